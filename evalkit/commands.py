"""What `ft eval`, `ft gate` and `ft report` do, and what they show."""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import console, registry
from tunegate.core.artifacts import EvalReport, LoadReport
from tunegate.core.errors import ExitCode, UserError
from tunegate.core.files import refuse_existing, refuse_input, write_text
from tunegate.core.manifest import is_finished
from tunegate.core.power import LARGEST, detectable_difference, pairs_for_difference, power_of_margin
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.evaluate import (
    Evaluation,
    evaluate,
    log_path,
    metric_names_of,
    open_reading,
    open_unchanged,
    planned,
)
from tunegate.evalkit.folders import write_decision, write_report
from tunegate.evalkit.gate import EXIT, check_metrics
from tunegate.evalkit.policy import make_policy
from tunegate.evalkit.runner import RunOptions
from tunegate.evalkit.summary import answered
from tunegate.evalkit.system import System, classify
from tunegate.evalkit.task import load_task
from tunegate.evalkit.validators.judge import share_key_with
from tunegate.evalkit.verdict import (
    Beside,
    baseline_reading,
    beside,
    check_sides,
    finish,
    judge_against,
    judged_before,
    open_load,
    policy_for,
    say_other_verdict,
    task_of,
)
from tunegate.serve.client import api_key

GATE_FOLDER = "gate"
DISCORDANCE = 0.1  # share of items on which two models differ, where nothing says it


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A finished report, as it is printed. paths: what was written, by label."""

    reading: Reading
    paths: dict[str, Path]

    @property
    def report(self) -> dict[str, Any]:
        """The content of report.json."""
        return self.reading.report

    @property
    def exit_code(self) -> int:
        """The gate's exit code; without a gate 0, or 4 where infrastructure errors left nothing to score."""
        if decision := self.report.get("decision"):
            return int(EXIT[decision["decision"]])
        return int(ExitCode.OK if answered(self.report) else ExitCode.INFRASTRUCTURE)

    def annotate(self) -> None:
        """In a GitHub job: annotations, on standard error, so that --json stays alone on standard output."""
        if os.environ.get("GITHUB_ACTIONS") == "true":
            from tunegate.evalkit.render.annotations import render

            for line in render(self.report):
                print(line, file=sys.stderr)

    def payload(self) -> dict[str, Any]:
        """What `ft eval --json` prints."""
        report = self.report
        payload: dict[str, Any] = {
            "n": report["n"],
            "metrics": report["metrics"],
            "outcomes": report["outcomes"],
            "operations": report.get("operations", {}),
            "report": str(self.paths["report"]),
        }
        if report.get("comparison"):
            payload["comparison"] = report["comparison"]["metrics"]
            payload["flips"] = {
                side: sum(causes.values()) for side, causes in report["comparison"]["flip_causes"].items()
            }
        if report.get("decision"):
            payload |= {"decision": report["decision"]["decision"], "conditions": report["decision"]["conditions"]}
        return payload | {name: str(path) for name, path in self.paths.items() if name != "report"}

    def gate_payload(self) -> dict[str, Any]:
        """What `ft gate --json` prints."""
        decision: dict[str, Any] = self.report["decision"]
        comparison = (self.report.get("comparison") or {}).get("metrics")
        return {
            **decision,
            "comparison": comparison,
            "report": str(self.paths["report"]),
            "gate": str(self.paths["gate"]),
        }

    def show(self) -> None:
        """The table, the paths and, last, the gate's line."""
        from tunegate.evalkit.terminal import metric_table

        metric_table(self.report)
        for name, path in self.paths.items():
            console.out().print(f"{name}: {path}", markup=False)
        if decision := self.report.get("decision"):
            console.out().print(f"gate: {decision['decision']} (exit {self.exit_code})", markup=False)


def run_eval(
    target: str,
    task_path: Path,
    out: Path,
    *,
    against: str | None,
    against_model: str | None = None,
    policy_path: Path | None,
    load_path: Path | None = None,
    save_as: str | None,
    allowed: Sequence[str],
    limit: int | None,
    options: RunOptions,
    model: str | None,
    key_file: Path | None,
    allow_python: bool,
    force: bool,
) -> Shown:
    """Judge, compare, decide, write. Everything that can be wrong with the input is found before anything is asked."""
    force = force or options.retry_errors
    _refuse_report(out, options, force=force)
    system = classify(target, model=model)
    if system.kind == "endpoint":
        share_key_with(system.spec)
    task = load_task(task_path, limit=limit, allow_python=allow_python)
    read = (target, against or "", *(item.path for item in task.inputs))
    refuse_input(out, *read)
    policy = policy_for(policy_path, task.file.gate, task.primary)
    load = open_load(load_path)
    other = None if against is None else classify(against, model=against_model, baseline=True)
    key = api_key(key_file)
    expected = planned(system, task)
    baseline = together = None
    if other is not None and other.kind == "report":
        baseline = baseline_reading(other, task, out=beside(out), options=options, key=key, force=force)
    elif other is not None:
        together = Beside(candidate=system, baseline=other, task=task, out=out, options=options)
        together.check(read, force=force)
        baseline = expected  # judged by this task it will be of the same items and metrics
    if baseline is not None or policy_path is not None:
        where = str(policy_path or f"{task_path} gate")
        check_metrics(policy, metric_names_of(task), task.file.slices, baseline, load, task.file.repeats, where=where)
    check_sides(expected, baseline, allowed=allowed, load=load)
    if save_as is not None:
        registry.check_save(save_as)
    if together is not None:
        baseline = together.reading(key, force=force)
    evaluation = evaluate(system, task, out=out, options=options, key=key)
    if baseline is not None or policy_path is not None:
        judged = judge_against(evaluation.reading, baseline, policy, allowed=allowed, load=load)
        _say_lock(judged.report)
        evaluation = replace(evaluation, reading=judged)
    report = write_report(out, evaluation, baseline=baseline, force=force)
    _finish(evaluation, together)
    paths = {"report": out, "page": out / "report.html"}
    if evaluation.reading.report["decision"]:
        paths["gate"] = _written(evaluation.reading, out / GATE_FOLDER, report, baseline, load, force=False)
    if save_as is not None:
        _save(save_as, report)
    return Shown(reading=evaluation.reading, paths=paths)


def _refuse_report(out: Path, options: RunOptions, *, force: bool) -> None:
    """Raise UserError for a report that stands in the way, or whose lost items alone cannot be asked again."""
    refuse_existing(out, force=force)
    if options.retry_errors and is_finished(out) and not log_path(out).is_file():
        raise UserError("no answers are kept beside this report", where=str(out), hint="--force asks everything again")


def _finish(evaluation: Evaluation, together: Beside | None) -> None:
    if together is not None:
        together.done()
    if finish(evaluation):
        console.say("the answers that came are kept: with --retry-errors only the lost ones are asked for again")


def _save(name: str, report: EvalReport) -> None:
    """Keep a report as the baseline `name`, unless nothing could be compared with it, or a gate did not pass it."""
    document = report.report()
    if not answered(document):
        console.warn(f"not saved as {name!r}: no item was answered, so nothing could be compared with it")
        return
    decision = (document["decision"] or {}).get("decision", "PASS")
    if decision != "PASS":
        console.warn(
            f"not saved as {name!r}: the gate says {decision}, and the next run would be compared with this one"
        )
        return
    registry.save(name, report)
    console.say(f"saved as {name!r} in {registry.home()}")


def run_gate(
    report_path: Path,
    *,
    against: str | None,
    against_model: str | None = None,
    policy_path: Path | None,
    out: Path | None,
    allowed: Sequence[str],
    force: bool,
    load_path: Path | None = None,
    allow_python: bool = False,
) -> Shown:
    """Decide on a finished report; without `against`, by the baseline that it was compared with when it was made.

    A baseline that is no report is judged now, by the report's own task, into the folder that `ft eval` would take.
    """
    folder = out or report_path / GATE_FOLDER
    refuse_input(folder, report_path, against or "", policy_path or "", load_path or "")
    report = EvalReport.open(report_path)
    if out is not None or against is None:
        refuse_existing(folder, force=force or out is None)
    candidate = open_unchanged(report, name=report_path.name)
    earlier = (candidate.report.get("comparison") or {}).get("baseline")
    if against is None and earlier is not None:
        against = earlier["path"]
        _same_baseline(against, earlier)
        allowed = [*allowed, *candidate.report["comparison"]["allowed_differences"]]
    task = report.manifest.config.get("task", {})
    if not isinstance(task, dict):
        raise UserError("damaged manifest: config.task is no object", where=str(report_path))
    gate = task.get("gate")
    own = None if gate is None else make_policy(gate, f"{report_path} gate")
    policy = policy_for(policy_path, own, candidate.report["task"]["primary"])
    baseline = None
    if against is not None:
        system = classify(against, model=against_model, baseline=True)
        baseline = _baseline_of(report, system, allow_python=allow_python, force=force)
    load = open_load(load_path)
    where = str(policy_path or f"{report_path} gate")
    metrics, slices = list(candidate.report["metrics"]), candidate.report["task"]["slices"]
    check_metrics(policy, metrics, slices, baseline, load, where=where)
    check_sides(candidate, baseline, allowed=allowed, load=load)
    judged = judge_against(candidate, baseline, policy, allowed=allowed, load=load)
    _say_lock(judged.report)
    say_other_verdict(candidate.report, judged.report["decision"], own=policy_path is None, folder=folder)
    written = _written(judged, folder, report, baseline, load, force=force or out is None)
    return Shown(reading=judged, paths={"report": report_path, "gate": written})


def _written(
    judged: Reading,
    folder: Path,
    report: EvalReport,
    baseline: Reading | None,
    load: LoadReport | None,
    *,
    force: bool,
) -> Path:
    """The GateDecision folder of a reading that was decided."""
    decision, comparison = judged.report["decision"], judged.report["comparison"]
    return write_decision(
        folder, decision, report=report, baseline=baseline, comparison=comparison, load=load, force=force
    ).path


def _baseline_of(report: EvalReport, system: System, *, allow_python: bool, force: bool) -> Reading:
    """The baseline's reading: a report opened; anything else judged by the task of `report`, unless it was before."""
    if system.kind == "report":
        return baseline_reading(system, None, out=report.path, options=RunOptions(), key=None, force=False)
    if system.kind == "endpoint":
        share_key_with(system.spec)
    task = task_of(report, allow_python=allow_python)
    folder = beside(report.path)
    if not force and (before := judged_before(folder, system, task)) is not None:
        return open_reading(before, name=system.spec)
    refuse_input(folder, system.spec, *(item.path for item in task.inputs))
    refuse_existing(folder, force=force)
    return baseline_reading(system, task, out=folder, options=RunOptions(), key=api_key(None), force=force)


def _same_baseline(path: str | None, earlier: dict[str, Any]) -> None:
    if path is None or not Path(path).is_dir():
        raise UserError(
            "the baseline that this report was compared with is gone", where=str(path), hint="name one with --against"
        )
    if EvalReport.open(Path(path)).digest != earlier["digest"]:
        raise UserError(
            "the baseline that this report was compared with was changed", where=path, hint="name one with --against"
        )


def _say_lock(report: dict[str, Any]) -> None:
    comparison = report.get("comparison")
    if comparison is None:
        return
    if comparison["allowed_differences"]:
        console.warn(f"compared although these differ: {', '.join(comparison['allowed_differences'])}")
    unknown = [name for name in comparison["unknown"] if name != "template"]
    if unknown:
        console.say(f"not known for recorded outputs, so not checked: {', '.join(unknown)}")


def power_of(
    n: int | None, report: Path | None, *, discordance: float | None, margin: float, alpha: float, power: float
) -> dict[str, Any]:
    """What `ft eval power --json` prints. `discordance_from`: given, report, or assumed where neither says it. `design_effect`: what
    the groups of the report's items cost, 1 without any."""
    source, effect = "assumed" if discordance is None else "given", 1.0
    if report is not None:
        document = open_reading(EvalReport.open(report), name=report.name).report
        n = n or int(document["n"])
        if discordance is None and document.get("comparison"):
            change = document["comparison"]["metrics"][document["task"]["primary"]]
            seen = (change["fixed"] + change["broken"] + 1) / (change["n"] + 2)  # reports of before `spread` was told
            discordance, source = change.get("spread", seen), "report"
            effect = change.get("design_effect", 1.0)
        elif discordance is None:
            console.warn(
                f"{report} was compared with nothing, so how often two models differ is not known from it: "
                f"{DISCORDANCE:g} is assumed (--discordance says otherwise)"
            )
    discordance = DISCORDANCE if discordance is None else discordance
    independent = None if n is None else max(1, round(n / effect))
    need_n = math.ceil(pairs_for_difference(discordance, margin, alpha=alpha, power=power) * effect)
    return {
        "n": n,
        "discordance": discordance,
        "discordance_from": source,
        "margin": margin,
        "alpha": alpha,
        "power": power,
        "design_effect": effect,
        "need_n": need_n if need_n < LARGEST else None,
        "detectable_margin": None
        if independent is None
        else detectable_difference(independent, discordance, alpha=alpha, power=power),
        "power_at_n": None if independent is None else power_of_margin(independent, discordance, margin, alpha=alpha),
    }


def show_report(
    path: Path, *, html: Path | None, junit: Path | None, markdown: Path | None, inspect: Path | None = None
) -> Shown:
    """Open a report; write its page, JUnit file, summary or an Inspect log anew where a file is named."""
    reading = open_reading(EvalReport.open(path), name=path.name)
    rows, paths = list(reading.rows), {"report": path}
    for file in (html, junit, markdown, inspect):
        if file is not None and file.resolve().is_relative_to(path.resolve()):
            raise UserError(
                "the report's own files stay as they are", where=str(file), hint="name a file outside of it"
            )
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    if html is not None:
        from tunegate.evalkit.render import html as page

        write_text(html, page.render(reading.report, rows, _baseline_rows(reading.report)))
        paths["html"] = html
    if junit is not None:
        from tunegate.evalkit.render import junit as cases

        write_text(junit, cases.render(reading.report, rows))
        paths["junit"] = junit
    if markdown is not None:
        from tunegate.evalkit.render import markdown as summary

        write_text(markdown, summary.render(reading.report))
        paths["markdown"] = markdown
    if inspect is not None:
        from tunegate.evalkit.interchange import inspect_write

        inspect_write.write(inspect, reading.report, rows)
        paths["inspect"] = inspect
    return Shown(reading=reading, paths=paths)


def _baseline_rows(report: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The baseline's rows where its folder is still there and holds what was compared; the page does without otherwise."""
    known = (report.get("comparison") or {}).get("baseline") or {}
    if not known.get("path") or not is_finished(Path(known["path"])):
        return None
    try:
        there = EvalReport.open(Path(known["path"]))
    except UserError:  # something else lies there now
        return None
    return list(open_reading(there, name=known["path"]).rows) if there.digest == known["digest"] else None
