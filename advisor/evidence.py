"""Measured reports in place of priors: `--evidence METHOD=REPORT`, where REPORT is a folder that `ft eval` wrote."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tunegate.advisor.rules import METHODS, Rule
from tunegate.core.artifacts import EvalReport
from tunegate.core.errors import UsageError, UserError, nearest

DECIDES = 30.0  # points: more than all priors together


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The primary metric of one method's report: value and interval (fractions), the task's name, the report's digest."""

    metric: str
    value: float
    low: float
    high: float
    task: str
    digest: str


def read(pairs: Sequence[str]) -> dict[str, Measured]:
    """Reports by method. Raises UsageError for text that is not METHOD=REPORT; UserError for another kind of folder, and
    for reports of different metrics, which cannot be compared."""
    found: dict[str, Measured] = {}
    for pair in pairs:
        method, equals, folder = pair.partition("=")
        if not equals or method not in METHODS:
            hint = nearest(method, list(METHODS))
            raise UsageError(f"expected METHOD=REPORT, found {pair!r}", where="--evidence", hint=hint)
        found[method] = _measured(EvalReport.open(Path(folder)))
    metrics = sorted({m.metric for m in found.values()})
    if len(metrics) > 1:
        raise UserError(f"reports of different metrics: {', '.join(metrics)}", where="--evidence")
    return found


def _measured(report: EvalReport) -> Measured:
    document = report.report()
    try:
        task = document["task"]
        metric = str(task["primary"])
        numbers = document["metrics"][metric]
        value, low, high = (float(numbers[name]) for name in ("value", "low", "high"))
        name = str(task.get("name", ""))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("no primary metric with its interval in report.json", where=str(report.path)) from None
    return Measured(metric=metric, value=value, low=low, high=high, task=name, digest=report.digest)


def winner(measured: Mapping[str, Measured]) -> str:
    """The simplest method whose interval reaches the best value: more work must show that it pays."""
    best = max(m.value for m in measured.values())
    return next(method for method in METHODS if method in measured and measured[method].high >= best)


def rule(measured: Mapping[str, Measured]) -> Rule:
    """What the reports say, as a rule that outvotes the priors where two methods or more were measured."""
    shown = ", ".join(f"{name} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for name, m in measured.items())
    metric = next(iter(measured.values())).metric
    votes = {winner(measured): DECIDES} if len(measured) > 1 else {}
    return Rule(
        id="measured-here",
        says=f"Measured on your own task, {metric}: {shown}. The simplest method whose interval reaches the best is taken.",
        when=lambda _: True,
        source=", ".join(f"EvalReport {m.digest[:12]}" for m in measured.values()),
        grade="A",
        scope="this task and these models",
        votes=votes,
        note="" if len(measured) > 1 else "one method alone decides nothing: measure its rival too",
    )
