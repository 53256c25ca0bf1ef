"""Writing the folders EvalReport and GateDecision."""

from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GateDecision, LoadReport
from tunegate.core.files import new_folder, write_json, write_jsonl, write_text
from tunegate.core.manifest import Input
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.evaluate import Evaluation


def write_report(
    out: Path, evaluation: Evaluation, *, baseline: Reading | None = None, force: bool = False
) -> EvalReport:
    """Write an EvalReport folder whole: results, report.json, page, JUnit, summary, manifest."""
    reading = evaluation.reading
    inputs = list(evaluation.inputs)
    if baseline is not None and baseline.digest is not None:
        inputs.append(Input(role="baseline", kind="eval_report", path=str(baseline.path), digest=baseline.digest))
    with new_folder(out, force=force) as folder:
        rows = list(reading.rows)
        write_jsonl(folder / "results.jsonl", rows)
        write_json(folder / "report.json", reading.report)
        write_pages(folder, reading.report, rows, None if baseline is None else list(baseline.rows))
        facts = {
            "n": reading.report["n"],
            "metrics": {name: figure["value"] for name, figure in reading.report["metrics"].items()},
            "outcomes": reading.report["outcomes"],
            "decision": (reading.report["decision"] or {}).get("decision"),
        }
        manifests.write(
            folder, EvalReport.kind, inputs=inputs, config=evaluation.config, seeds=evaluation.seeds, facts=facts
        )
    return EvalReport.open(out)


def write_pages(
    folder: Path, report: dict[str, Any], rows: list[dict[str, Any]], baseline_rows: list[dict[str, Any]] | None
) -> None:
    """report.html, junit.xml and summary.md, from the report and its rows."""
    from tunegate.evalkit.render import html, junit, markdown

    write_text(folder / "report.html", html.render(report, rows, baseline_rows))
    write_text(folder / "junit.xml", junit.render(report, rows))
    write_text(folder / "summary.md", markdown.render(report))


def write_decision(
    out: Path,
    decision: dict[str, Any],
    *,
    report: EvalReport,
    baseline: Reading | None,
    comparison: dict[str, Any] | None = None,
    load: LoadReport | None = None,
    force: bool = False,
) -> GateDecision:
    """Write a GateDecision folder: decision.json (what `ft gate --json` prints, with policy and digests), and its manifest.

    comparison: the `comparison` of a report; its metrics are kept.
    """
    inputs = [report.as_input("candidate"), *([load.as_input("load")] if load else [])]
    if baseline is not None and baseline.digest is not None:
        inputs.append(Input(role="baseline", kind="eval_report", path=str(baseline.path), digest=baseline.digest))
    document = {
        "schema_version": 1,
        **decision,
        "comparison": None if comparison is None else comparison["metrics"],
        "report": str(report.path),
        "gate": str(out),
        "candidate": {"path": str(report.path), "digest": report.digest, "target": report.report()["target"]},
        "baseline": None
        if baseline is None
        else {"name": baseline.name, "path": baseline.path, "digest": baseline.digest},
        "load": None if load is None else {"path": str(load.path), "digest": load.digest},
        "created": manifests.now(),
    }
    with new_folder(out, force=force) as folder:
        write_json(folder / "decision.json", document)
        facts = {"decision": decision["decision"], "target": document["candidate"]["target"]["digest"]}
        manifests.write(folder, GateDecision.kind, inputs=inputs, config=decision["policy"], facts=facts)
    return GateDecision.open(out)
