"""The model card of a release that is passed on: from manifests and evaluation reports, nothing by hand."""

from collections.abc import Sequence
from typing import Any

from tunegate.core.artifacts import EvalReport, GgufExport, Release
from tunegate.core.model_source import has_hub_form
from tunegate.train.release import licences


def text(
    release: Release | GgufExport,
    described: dict[str, Any],
    reports: list[EvalReport],
    decision: dict[str, Any] | None,
    *,
    name: str,
) -> str:
    """README.md with the hub's front matter. described: of `promote.described`; decision: of a gate that passed it."""
    import yaml

    facts = release.manifest.facts
    matter = yaml.safe_dump(
        front(facts, [_result(r) for r in reports], name), sort_keys=False, allow_unicode=True
    ).strip()
    blocks = [
        f"---\n{matter}\n---\n# {name}",
        f"{facts.get('base_name', facts.get('base'))}, fine-tuned with {facts.get('method')} on a private dataset.",
        *licences.card_lines(facts),
        "## How it was made\n" + "\n".join(_made(facts, described)),
        *([_figures(reports)] if reports else ["It was passed on without an evaluation report."]),
        *([_gate(decision)] if decision else []),
        _use(facts),
        "## Limits\nThe intervals above are over the evaluation's items, for one training run. What the items do not cover was not "
        "measured. The base model's licence applies to this model too.",
    ]
    return "\n\n".join(blocks) + "\n"


def front(facts: dict[str, Any], reported: Sequence[dict[str, Any]] = (), name: str = "") -> dict[str, Any]:
    """The hub's front matter, from a release's facts. reported: results for its `model-index`, under `name`."""
    base, quantization = str(facts.get("base_name") or ""), str(facts.get("quantization", "none"))
    found: dict[str, Any] = {}
    if has_hub_form(base):  # the hub links it; a local folder's name is nobody's
        relation = "adapter" if facts.get("adapter") else "finetune" if quantization == "none" else "quantized"
        found |= {"base_model": base, "base_model_relation": relation}
    if facts.get("license"):
        found["license"] = facts["license"]
    library = "gguf" if "file" in facts else "peft" if facts.get("adapter") else "transformers"
    found |= {"library_name": library, "pipeline_tag": "text-generation"}
    found["tags"] = ["tunegate", str(facts.get("method")), *([] if quantization == "none" else [quantization])]
    if reported:
        found["model-index"] = [{"name": name, "results": list(reported)}]
    return found


def _result(report: EvalReport) -> dict[str, Any]:
    document = report.report()
    task, data = document["task"]["name"], document["data"]
    metrics = [
        {"type": metric, "name": metric, "value": round(float(figure["value"]), 4)}
        for metric, figure in document["metrics"].items()
        if figure.get("value") is not None
    ]
    dataset = {"name": task, "type": "private", "args": {"n": document["n"], "sha256": data["sha256"]}}
    return {"task": {"type": "text-generation"}, "dataset": dataset, "metrics": metrics}


def _made(facts: dict[str, Any], described: dict[str, Any]) -> list[str]:
    data, recipe = described.get("data") or {}, described.get("recipe") or {}
    keys = (
        "rank",
        "alpha",
        "learning_rate",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "max_length",
        "seed",
    )
    settings = ", ".join(f"{key} {recipe[key]}" for key in keys if recipe.get(key) not in (None, -1))
    counts = f", {data['train']} rows to train on and {data['eval']} held out" if "train" in data else ""
    details = ", ".join(
        f"{k.replace('_', ' ')} {facts[k]}"
        for k in ("format", "group_size", "calibration_rows", "rounding")
        if k in facts
    )
    return [
        f"- base: {facts.get('base_name')} (digest `{str(described.get('base_digest'))[:16]}`)",
        f"- data: digest `{str(data.get('digest'))[:16]}`{counts}",
        f"- method: {facts.get('method')}{': ' + settings if settings else ''}",
        f"- quantization: {facts.get('quantization')}{' (' + details + ')' if details else ''}",
        f"- chat template: `{str(facts.get('template_digest'))[:16]}` (SHA-256, first 16 digits), the same in training and here",
    ]


def _figures(reports: list[EvalReport]) -> str:
    lines = ["## Evaluation", "", "| task | metric | value | 95 % interval | items |", "|---|---|---|---|---|"]
    for report in reports:
        document = report.report()
        for metric, figure in document["metrics"].items():
            low, high = (f"{figure[k]:.3f}" if figure.get(k) is not None else "?" for k in ("low", "high"))
            value = f"{figure['value']:.3f}" if figure.get("value") is not None else "?"
            lines.append(f"| {document['task']['name']} | {metric} | {value} | {low} to {high} | {document['n']} |")
    for report in reports:
        comparison = report.report().get("comparison") or {"metrics": {}}
        for metric, c in comparison["metrics"].items():
            p = f"{c['mcnemar_p']:.4f}" if c["mcnemar_p"] >= 0.0001 else "below 0.0001"
            lines.append(
                f"\n{metric} against {comparison['baseline']['spec']}: {c['difference']:+.3f} "
                f"({c['fixed']} fixed, {c['broken']} broken, McNemar p {p})."
            )
    return "\n".join(lines)


def _gate(decision: dict[str, Any]) -> str:
    conditions = [f"- {c['decision']} {c['metric']} {c['rule']}: {c['reason']}" for c in decision["conditions"]]
    return "\n".join(["## Gate", f"{decision['decision']}, alpha {decision['policy'].get('alpha')}:", "", *conditions])


def _use(facts: dict[str, Any]) -> str:
    serve = (
        f"`llama-server -m {facts['file']}`, or `ollama create NAME -f Modelfile`"
        if "file" in facts
        else "`vllm serve` on this folder, or `ft serve`"
    )
    return (
        f"## Use\nServe with {serve}. Check with `ft verify` (every byte, the lineage, one chat template from training to here); "
        "`manifest.json` was written last, so a copy without it is not whole."
    )
