"""From a reading and a baseline to a comparison and a decision; shared by `ft eval --against` and `ft gate`."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport, GateDecision, LoadReport
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import refuse_existing, refuse_input, sha256_file, write_text
from tunegate.core.manifest import is_finished
from tunegate.evalkit.compare import Reading, compare, lock
from tunegate.evalkit.evaluate import Evaluation, evaluate, identity_of, log_path, open_reading, open_unchanged, planned
from tunegate.evalkit.folders import write_report
from tunegate.evalkit.gate import decide
from tunegate.evalkit.policy import Policy, default_policy, load_policy
from tunegate.evalkit.runner import RunOptions
from tunegate.evalkit.summary import answered, lost_share
from tunegate.evalkit.system import System
from tunegate.evalkit.task import EvalTask, load_task


def policy_for(path: Path | None, own: Policy | None, primary: str) -> Policy:
    """The policy of a file, else the task's own, else the default. Raises UserError."""
    return load_policy(path) if path is not None else own or default_policy(primary)


def baseline_reading(
    system: System, task: EvalTask | None, *, out: Path, options: RunOptions, key: str | None, force: bool
) -> Reading:
    """The baseline as a reading: a report is opened; anything else is judged now, by the same task, into a folder `out`."""
    if isinstance(system.source, EvalReport):
        return open_unchanged(system.source, name=system.spec)
    assert task is not None, "what is no report is judged by a task"
    if options.retry_errors and is_finished(out) and not log_path(out).is_file():  # it lost nothing
        before = EvalReport.open(out)
        if _is_of(before.report(), system, task):
            return open_unchanged(before, name=system.spec)
    try:
        evaluation = evaluate(system, task, out=out, options=options, key=key)
    except UserError as error:
        error.hint = error.hint and error.hint.replace("--model", "--against-model")
        raise
    report = write_report(out, evaluation, force=force)
    finish(evaluation)
    return open_reading(report, name=system.spec)


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A baseline that is judged beside the report of its candidate, into the folder OUT-baseline. `candidate` and `baseline` are
    the systems, `out` is the candidate's folder. A note says which report it came to, so that a run that was cut short while the
    candidate was asked goes on with it."""

    candidate: System
    baseline: System
    task: EvalTask
    out: Path
    options: RunOptions

    @property
    def folder(self) -> Path:
        """Where the baseline's report is written."""
        return beside(self.out)

    @property
    def _note(self) -> Path:
        return self.out.with_name(f".{self.out.name}.baseline")

    def check(self, read: Sequence[str | Path], *, force: bool) -> None:
        """Raise UserError for a folder that is read, and for one that is neither of this run nor to be replaced."""
        refuse_input(self.folder, *read)
        if self._begun() is None:
            refuse_existing(self.folder, force=force)

    def reading(self, key: str | None, *, force: bool) -> Reading:
        """The baseline's reading: the one that this run came to before, else judged now."""
        if (before := self._begun()) is not None:
            say(f"resuming: the baseline was judged before, in {self.folder}")
            return open_unchanged(before, name=self.baseline.spec)
        found = baseline_reading(self.baseline, self.task, out=self.folder, options=self.options, key=key, force=force)
        write_text(self._note, f"{found.digest} {self.candidate.digest}\n")
        return found

    def done(self) -> None:
        """The candidate's report stands."""
        self._note.unlink(missing_ok=True)

    def _begun(self) -> EvalReport | None:
        if self.options.retry_errors or not self._note.is_file() or not is_finished(self.folder):
            return None
        report = EvalReport.open(self.folder)
        same = self._note.read_text(encoding="utf-8").split() == [report.digest, self.candidate.digest]
        return report if same and _is_of(report.report(), self.baseline, self.task) else None


def beside(out: Path) -> Path:
    """The folder of a baseline that is judged together with the report `out`."""
    return out.with_name(f"{out.name}-baseline")


def task_of(report: EvalReport, *, allow_python: bool) -> EvalTask:
    """The task that a report was judged by, with as many rows; its path is from here, or from a folder above the report, where
    `ft eval` may have been run. Raises UserError where its file is gone or was changed."""
    named = next((i for i in report.manifest.inputs if i.role == "task"), None)
    told = Path("task.yaml" if named is None else named.path)
    places = [path for path in (told, *(above / told for above in report.path.resolve().parents)) if path.is_file()]
    path = next((path for path in places if named is not None and sha256_file(path) == named.digest), None)
    if path is None:
        raise UserError(
            f"the task that {report.path} was judged by {'was changed' if places else 'is not there'}",
            where=str(places[0] if places else told),
            hint="judge the baseline by it first: ft eval TARGET --task task.yaml --out DIR, then --against DIR",
        )
    return load_task(path, limit=int(report.report()["data"]["n"]), allow_python=allow_python)


def judged_before(folder: Path, system: System, task: EvalTask) -> EvalReport | None:
    """The report in `folder` where it is of this system by this task; None for anything else."""
    if system.kind == "endpoint" or not is_finished(folder):
        return None
    report = EvalReport.open(folder)
    return report if _is_of(report.report(), system, task) else None


def _is_of(document: dict[str, Any], system: System, task: EvalTask) -> bool:
    """Whether a report is of this system by this task."""
    asked = document["target"]["digest"] == system.digest
    return asked and identity_of(document) == identity_of(planned(system, task).report)


def finish(evaluation: Evaluation) -> bool:
    """Remove the answers' log once the report stands; it stays for --retry-errors where items were lost. Returns whether it
    does."""
    lost = lost_share(evaluation.reading.rows) > 0
    if evaluation.log is not None and not lost:
        evaluation.log.unlink(missing_ok=True)
    return lost and evaluation.log is not None and evaluation.log.is_file()


def unanswered(evaluation: Evaluation) -> str | None:
    """What to say of an evaluation of which no item got an answer; None where one did."""
    if answered(evaluation.reading.report):
        return None
    first = next((row["reason"] for row in evaluation.reading.rows), "nothing was asked")
    return f"no item was answered: {first}"


def check_sides(
    candidate: Reading, baseline: Reading | None, *, allowed: Sequence[str], load: LoadReport | None
) -> None:
    """Raise UserError for what no answer can mend: a load test of something else, a baseline of other items, prompts,
    settings or scorer; say it where it is the candidate itself. candidate: also one that was not asked yet."""
    if load is not None:
        _same_system(load, candidate)
    if baseline is not None and baseline.digest is not None and baseline.digest == candidate.digest:
        warn(f"the baseline {baseline.name!r} is this report itself, which is never worse than itself")
    if baseline is not None:
        lock(baseline, candidate, allowed=allowed)


def judge_against(
    candidate: Reading,
    baseline: Reading | None,
    policy: Policy,
    *,
    allowed: Sequence[str],
    load: LoadReport | None = None,
) -> Reading:
    """The candidate's reading with `comparison` and `decision` filled in. load: a load test of the candidate.

    Raises UserError when the two cannot be compared.
    """
    # last, so that it stands: a margin of slices is not the whole metric's
    whole_last = sorted(policy.conditions, key=lambda c: c.slice is None)
    margins = {c.metric: c.margin for c in whole_last if c.margin is not None}
    comparison = None
    if baseline is not None:
        comparison = compare(baseline, candidate, alpha=policy.alpha, margins=margins, allowed=allowed)
        _say_nothing_right(candidate.report, comparison)
    decision = decide(policy, candidate, baseline, load)
    return replace(candidate, report={**candidate.report, "comparison": comparison, "decision": decision})


def say_other_verdict(report: dict[str, Any], decision: dict[str, Any], *, own: bool, folder: Path) -> None:
    """Say where the report itself, or the decision in `folder` which this one replaces, says otherwise; of the report also that it
    is by another policy. own: this decision is by the task's own policy, or the default one."""
    now, before, others = decision["decision"], report.get("decision") or {}, []
    another = before.get("policy") not in (None, decision["policy"])
    if before.get("decision") not in (None, now) or (own and another):
        others.append(f"the report itself says {before['decision']}{' by another policy' if another else ''}")
    if (stood := _decision_in(folder)) not in (None, now):
        others.append(f"{folder}, which it replaces, says {stood}")
    if others:
        note = "; this is by the task's own or the default one (--policy FILE takes another)" if own and another else ""
        warn(f"the gate says {now}, but {' and '.join(others)}{note}")


def _decision_in(folder: Path) -> str | None:
    try:
        manifest = manifests.read(folder)
    except UserError:
        return None
    return manifest.facts.get("decision") if manifest.kind == GateDecision.kind else None


def open_load(path: Path | None) -> LoadReport | None:
    """The load test that a decision is to rest on, where there is one. Raises UserError where it was changed since."""
    if path is None:
        return None
    load = LoadReport.open(path)
    manifests.refuse_changed(path, "the load test")
    return load


def _say_nothing_right(report: dict[str, Any], comparison: dict[str, Any]) -> None:
    primary = report["task"]["primary"]
    found, value = comparison["metrics"].get(primary), report["metrics"].get(primary, {}).get("value")
    if found is not None and value == 0 and found["fixed"] == found["broken"] == 0:
        warn(f"no answer of either side has any {primary}: that nothing differs shows nothing about these answers")


def _same_system(load: LoadReport, candidate: Reading) -> None:
    """A load test of a folder is of this candidate or of none; one of an endpoint cannot be told."""
    known = [i.digest for i in load.manifest.inputs if i.role == "target"]
    target = candidate.report["target"]
    if known and target["kind"] in ("run", "release") and target["digest"] not in known:
        raise UserError(
            f"the load test is of another system than the report's {target['spec']!r}",
            where=str(load.path),
            hint=f"ft loadtest {target['spec']} --out DIR",
        )
    if not known:
        warn(f"the load test does not say which weights it was run on: taken as of {target['spec']}")
