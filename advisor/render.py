"""A recommendation as the contract's JSON, as `recommendation.yaml`, and as text."""

import math
from pathlib import Path
from typing import Any

from tunegate.advisor import brief, explain
from tunegate.advisor.errors import significant
from tunegate.advisor.models import find, known_models
from tunegate.advisor.recommend import BAND_TUNED, Recommendation
from tunegate.advisor.refusals import prompt_shape, retrieves
from tunegate.advisor.search import Option
from tunegate.core.console import table
from tunegate.core.errors import UserError
from tunegate.core.files import write_text
from tunegate.core.methods import RECOMMENDATION_VERSION

Json = dict[str, Any]
FALLBACK_MODEL = "builtin:smollm2-135m"
DEFAULT_LENGTH = 2048  # of the trainer: what it takes without being told
NO_OWN = "no machine at hand"  # where an API is chosen and nothing of one's own could stand in for it
SPREAD = 1.5  # longest prompt over the mean, where no data says otherwise
VOTES = (
    "Grades say how good the evidence is: A controlled and with several models, B one study, C guidance, F a fact. "
    "The points are our own judgement of how much it should weigh here; no study gives them."
)


def option_json(option: Option) -> Json:
    """One option with the keys of the contract's `recommendation`."""
    plan = option.serving
    return {
        "method": option.method,
        "model": f"{option.vendor}/{option.model}" if option.vendor else option.spec,
        "quantization": option.quantization,
        "gpu": plan.gpu.name if plan else None,
        "gpus": plan.gpus * plan.replicas if plan else 0,
        "monthly_usd": _finite(option.monthly_usd),
        "train_usd": _finite(option.train_usd),
        "p95_ms": _finite(option.p95_ms),
        "quality_proxy": significant(option.quality, 3),
        "replicas": plan.replicas if plan else 0,
    }


def as_json(answer: Recommendation, *, why: bool = False) -> Json:
    """What `ftadvise recommend --json` prints; `why` adds the tornado, which asks ten more times."""
    chosen = answer.chosen
    training = chosen.training
    document: Json = {
        "recommendation": option_json(chosen),
        "pareto": [option_json(o) for o in answer.front[:25]],
        "rejected": explain.rejected(answer),
        "rules": explain.rules_json(answer),
        "assumptions": explain.assumptions(answer),
        "break_even": {
            "calls_per_day": "never" if answer.break_even is None else significant(answer.break_even, 3),
            "against": answer.competitor.name if chosen.serving else answer.own.label if answer.own else NO_OWN,
            "own": answer.own.label if answer.own else None,
            "api": answer.competitor.name,
        },
        "scores": answer.score,
        "outweighed": explain.outweighed(answer),
        "probes": explain.probes(answer),
        "considered": answer.space.considered,
        "constraints": constraints_json(answer),
    }
    if why:
        document["tornado"] = explain.tornado(answer)
    if training is not None:
        document["training"] = {
            "gpu": training.gpu.name,
            "gpus": training.gpus,
            "memory_gb": significant(training.memory_gb, 3),
            "hours": significant(training.hours, 3),
            "trainable_params": training.trainable,
            "rank": None if training.recipe.method == "full" else training.recipe.rank,
            "max_length": training.recipe.max_length,
        }
    if answer.profile is not None:
        told = {name: v for name, v in vars(answer.profile).items() if name not in ("lengths", "sums")}
        document["data"] = {name: _finite(v) if isinstance(v, float) else v for name, v in told.items()}
    return document


def constraints_json(answer: Recommendation) -> Json:
    """The constraints as they were used, with which of them were stated."""
    c = answer.constraints
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(c).items() if k != "stated"}
    return {**{k: _finite(v) if isinstance(v, float) else v for k, v in values.items()}, "stated": sorted(c.stated)}


def train_section(answer: Recommendation) -> tuple[Json, list[str]]:
    """The `train:` mapping that `ft train --from` runs as it is, and notes on where it is not the whole answer.

    Every method becomes a run: prompts, examples, an index or weights. What is asked over an API has no weights here:
    the run is made for the open weights behind the offer, or for the best open model of that method.
    """
    chosen, training = answer.chosen, answer.chosen.training
    weightless = "rag" if retrieves(chosen.method, answer.constraints) else "prompt"
    method = {"rag_lora": "lora", "hosted_api": weightless}.get(chosen.method, chosen.method)
    model, notes = chosen.spec, []
    if answer.constraints.model and (meant := find(answer.constraints.model).meant):
        notes.append(meant)
    if chosen.vendor:
        model = _open_model(answer, method)
        notes.append(
            f"{chosen.vendor}/{chosen.model} is asked over its API; `train` makes the same {method} for {model}, to be "
            "served, judged and compared"
        )
    if chosen.method == "rag_lora":
        notes.append(
            "`train` makes the adapter; name the documents, and it is trained and served with the passages that it "
            "retrieves: ft train DATA --from THIS_FILE --docs DOCUMENTS --out RUN"
        )
    section: Json = {"method": method, "model": model}
    if training is None:
        longest = prompt_shape(method, answer.constraints)[0] + answer.constraints.output_tokens
        if method != "prompt" and longest * SPREAD > DEFAULT_LENGTH:
            most = find(model).architecture.context or 32_768
            section["max_length"] = min(32_768, most, 256 * math.ceil(longest * SPREAD / 256))
        return section, notes
    if words := spread_words(answer):
        notes.append(f"`train` is for {training.gpus} GPUs, a process each: ft train DATA --from THIS_FILE{words}")
    r = training.recipe
    if method != "full":
        section |= {"rank": r.rank, "alpha": r.alpha, "targets": list(r.targets)}
    section |= {
        "learning_rate": r.learning_rate,
        "num_train_epochs": int(r.epochs) if r.epochs == int(r.epochs) else significant(r.epochs, 3),
        "per_device_train_batch_size": r.micro_batch,
        "gradient_accumulation_steps": max(1, r.accumulation // training.gpus),  # each process has batches of its own
        "max_length": r.max_length,
        "seed": 0,
    }
    return section, notes


def spread_words(answer: Recommendation) -> str:
    """The options by which `ft train` runs the answer on its several GPUs, one process each, after a space; empty for one.

    The model is shared over them (FSDP2); bitsandbytes' 4-bit weights are not, so QLoRA runs as DDP.
    """
    training = answer.chosen.training
    if training is None or training.gpus == 1:
        return ""
    strategy = "ddp" if answer.chosen.method == "qlora" else "fsdp2"
    return f" --launch accelerate --num-processes {training.gpus} --strategy {strategy}"


def _open_model(answer: Recommendation, method: str) -> str:
    """Open weights to try a hosted answer on: those behind the offer, else the largest that one GPU
    trains and serves."""
    chosen = answer.chosen
    offer = next((o for o in answer.offers if (o.provider, o.model) == (chosen.vendor, chosen.model)), None)
    behind = known_models().get(offer.open_weights) if offer is not None else None
    if behind is not None and behind.spec != behind.name:
        return behind.spec
    own = [o for o in answer.space.options if o.method == method and not o.vendor and o.params_b <= BAND_TUNED[1]]
    return max(own, key=lambda o: o.params_b).spec if own else FALLBACK_MODEL


def write_yaml(answer: Recommendation, path: Path) -> None:
    """Write `recommendation.yaml` atomically. Raises UserError when its folder does not exist."""
    import yaml

    from tunegate.core.manifest import now

    if path.is_dir() or not path.name:
        raise UserError("is a folder, a file name is needed here", where=f"--out {path}")
    if not path.parent.is_dir():
        raise UserError("no such folder", where=str(path.parent), hint="make it first, or choose another --out")
    section, notes = train_section(answer)
    document = {
        "schema_version": RECOMMENDATION_VERSION,
        "created": now(),
        "recommendation": option_json(answer.chosen),
        "constraints": constraints_json(answer),
        "train": section,
        "notes": notes,
    }
    write_text(path, yaml.safe_dump(document, sort_keys=False, allow_unicode=True))


def print_answer(answer: Recommendation, *, why: bool) -> None:
    """The answer for people; `why` adds everything it rests on."""
    brief.write(answer)
    if why:
        _print_why(answer)
    else:
        brief.line(
            "--why shows every rule, its source and votes, the Pareto front, what would flip the answer, and probes."
        )


def _print_why(answer: Recommendation) -> None:
    from tunegate.advisor.rules import RULES

    brief.line(f"{answer.space.considered:,} combinations considered, {len(answer.front)} on the Pareto front")
    for sentence in explain.outweighed(answer):
        brief.line(sentence)
    says = {rule.id: (rule.says, rule.source) for rule in (*RULES, *answer.fired)}
    rows = [[i, g, says[i][0], v, says[i][1]] for i, g, v in explain.votes_table(answer)]
    table("rules that fired", ["rule", "grade", "says", "votes", "source"], rows, left=5)
    brief.line(VOTES)
    totals = ", ".join(f"{m} {s:+.1f}" for m, s in sorted(answer.score.items(), key=lambda x: -x[1]))
    brief.line(f"votes: {totals}")
    rows = [[r["option"], r["constraint"], r["change"]] for r in explain.rejected(answer)]
    table("not chosen", ["option", "because of", "smallest change that would admit it"], rows, left=3)
    rows = [[a["name"], _shown(a["value"]), a["matters"]] for a in explain.assumptions(answer)]
    table("assumed, not stated", ["name", "value", "what hangs on it"], rows, left=3)
    rows = [
        [t["name"], brief.usd(t["low_usd"]), brief.usd(t["high_usd"]), ", ".join(t["flips_to"]) or "no"]
        for t in explain.tornado(answer)
    ]
    table("each quantity a tenth and ten times", ["assumption", "a month, low", "high", "flips the answer to"], rows)
    for probe in explain.probes(answer):
        brief.line(f"probe: {probe}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(str(part) for part in value) or "none"
    return f"{value:.4g}" if isinstance(value, float) and value < 1e4 else str(value)


def _finite(value: float) -> float | None:
    return significant(value, 6) if math.isfinite(value) else None
