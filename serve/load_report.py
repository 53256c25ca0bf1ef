"""Writes a LoadReport: `report.json`, `requests.jsonl`, `summary.md`, `plot.svg`, `manifest.json`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import LoadReport
from tunegate.core.files import new_folder, write_json, write_jsonl, write_text
from tunegate.core.manifest import Input
from tunegate.serve.load_figures import figures, knee
from tunegate.serve.load_plan import LoadOptions
from tunegate.serve.load_plot import svg
from tunegate.serve.load_test import StageRun

Verdict = Literal["VALID", "INVALID", "FAILED"]
COLUMNS = ["load", "requests", "errors", "TTFT p50 ms", "TTFT p95 ms", "TPOT p50 ms", "E2E p50 ms", "E2E p95 ms",
           "E2E p99 ms", "tokens/s", "req/s", "goodput"]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class About:
    """What was tested. prompts: the file and how many there are. engine: what our own server says of itself, else empty.

    inputs: the artifacts behind it.
    """

    target: str
    endpoint: str
    model: str
    prompts: dict[str, Any]
    engine: dict[str, Any]
    inputs: list[Input]


def make_report(runs: list[StageRun], options: LoadOptions, about: About, *, max_error_rate: float) -> dict[str, Any]:
    """The content of report.json. verdict: FAILED above the error rate, else INVALID when the client was the bottleneck
    of a stage, else VALID; `reasons` says why."""
    stages = [figures(run, options.slo) for run in runs]
    verdict, reasons = judge(stages, max_error_rate)
    return {
        "schema_version": 1,
        "target": about.target,
        "endpoint": about.endpoint,
        "model": about.model,
        "verdict": verdict,
        "reasons": reasons,
        "interrupted": any(s["stopped"] == "interrupted" for s in stages),
        "stages": stages,
        "knee": _knee(stages),
        "settings": {
            "generation": options.generation,
            "slo": options.slo,
            "seed": options.seed,
            "timeout_s": options.timeout_s,
            "max_error_rate": max_error_rate,
            "prompts": about.prompts,
            "stages": [asdict(stage) for stage in options.stages],
        },
        "engine": about.engine,
    }


def judge(stages: list[dict[str, Any]], max_error_rate: float) -> tuple[Verdict, list[str]]:
    """(verdict, reasons) of all stages together."""
    failed = [
        f"{s['name']}: {s['error_rate']:.1%} of the requests failed ({_counts(s['errors'])})"
        for s in stages
        if s["error_rate"] > max_error_rate
    ]
    stopped = [s for s in stages if s["stopped"] not in (None, "interrupted") and not s["client"]["unsent"]]
    failed += [f"{s['name']}: {s['stopped']}" for s in stopped]
    if not any(s["answers"] or s["client"]["unsent"] for s in stages):
        failed.append("there was no answer to measure")
    doubtful = [f"{s['name']}: {reason}" for s in stages for reason in s["invalid"]]
    return ("FAILED" if failed else "INVALID" if doubtful else "VALID"), failed + doubtful


def _knee(stages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """{concurrency, output_tokens_per_s} where the throughput curve of the closed-loop stages bends; by requests, and
    None for the tokens, where the endpoint counts none."""
    closed = [s for s in stages if s["kind"] == "closed" and s["throughput"] and not s["stopped"]]
    rates = [float(s["throughput"]["output_tokens_per_s"] or s["throughput"]["requests_per_s"]) for s in closed]
    at = knee([float(s["concurrency"]) for s in closed], rates)
    if at is None:
        return None
    index = [s["concurrency"] for s in closed].index(int(at))
    return {"concurrency": int(at), "output_tokens_per_s": closed[index]["throughput"]["output_tokens_per_s"]}


def write_load_report(
    out: Path, report: dict[str, Any], runs: list[StageRun], about: About, *, force: bool
) -> LoadReport:
    """Write the folder, whole or not at all."""
    with new_folder(out, force=force) as folder:
        write_json(folder / "report.json", report)
        rows = [{"stage": i, **asdict(record)} for i, run in enumerate(runs) for record in run.records]
        write_jsonl(folder / "requests.jsonl", rows)
        write_text(folder / "summary.md", markdown(report))
        write_text(folder / "plot.svg", svg(report))
        manifests.write(
            folder,
            LoadReport.kind,
            inputs=about.inputs,
            config=report["settings"],
            seeds={"seed": report["settings"]["seed"]},
            facts={"verdict": report["verdict"], "model": about.model},
        )
    return LoadReport.open(out)


def table_rows(report: dict[str, Any], *, intervals: bool = True) -> list[list[str]]:
    """One row a stage, under COLUMNS."""
    rows = []
    for stage in report["stages"]:
        rate = stage["throughput"] or {}
        good = stage["goodput"]
        rows.append(
            [
                stage["name"],
                str(stage["requests"]),
                _counts(stage["errors"]) or "none",
                *(_figure(stage["ttft_ms"], name, intervals) for name in ("p50", "p95")),
                _figure(stage["tpot_ms"], "p50", intervals),
                *(_figure(stage["e2e_ms"], name, intervals) for name in ("p50", "p95", "p99")),
                _number(rate.get("output_tokens_per_s")),
                _number(rate.get("requests_per_s")),
                f"{good['share']['value']:.1%}" if good else "-",
            ]
        )
    return rows


def markdown(report: dict[str, Any]) -> str:
    """`summary.md`: verdict, table, warnings."""
    lines = [f"# Load test of {_escaped(report['model'])}", "", f"**{report['verdict']}**", ""]
    lines += [f"- {_escaped(reason)}" for reason in report["reasons"]]
    lines += ["", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(map(_escaped, row))} |" for row in table_rows(report)]
    lines += ["", "Percentiles as value [95 % interval]; `-` where the requests were too few for a bound.", ""]
    lines += [f"- {s['name']}: {_escaped(w)}" for s in report["stages"] for w in s["warnings"]]
    if report["knee"]:
        lines.append(f"- {knee_line(report)}")
    lines += ["", "![throughput and latency](plot.svg)", ""]
    return "\n".join(lines)


def knee_line(report: dict[str, Any]) -> str:
    """The knee in words."""
    at = report["knee"]
    tokens = at["output_tokens_per_s"]
    return f"knee of the throughput curve: {at['concurrency']} at once" + (f", {tokens:.4g} tokens/s" if tokens else "")


def _figure(summary: dict[str, Any] | None, name: str, interval: bool) -> str:
    if summary is None:
        return "-"
    value, low, high = (summary[name][key] for key in ("value", "low", "high"))
    if not interval:
        return _number(value)
    return f"{_number(value)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _counts(errors: dict[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(errors.items()))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
