"""Measured reports in place of priors.

`--evidence` takes, repeatable: an EvalReport folder that `ft eval` wrote (the method is that of the run it judged),
`METHOD=REPORT` where that cannot be told, or the folder of `ft bakeoff` (all its arms, and the paired comparison that
chose its winner).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.advisor.rules import METHODS, Rule
from tunegate.core import manifest as manifests
from tunegate.core.artifacts import EvalReport
from tunegate.core.console import say
from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.files import read_json
from tunegate.core.methods import RAG_LORA

DECIDES = 30.0  # points: more than all priors together
BAKEOFF = "bakeoff"
BASE = "base"  # a bake-off's arm: the model asked as it is


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The primary metric of one method's report: value and interval (fractions), the task's name, the report's digest.

    items: digest of what was asked, empty where the report does not say. bakeoff: the folder of the bake-off that it is an
    arm of. won: this method won it, by a paired comparison, which tells more than intervals apart.
    """

    metric: str
    value: float
    low: float
    high: float
    task: str
    digest: str
    items: str = ""
    bakeoff: str = ""
    won: bool = False


def read(texts: Sequence[str]) -> dict[str, Measured]:
    """Reports by method.

    Raises UsageError for an unknown method, and for a report whose method cannot be told; UserError for another kind of
    folder, for one method measured twice, and for reports of different metrics or items, which cannot be compared.
    """
    found: dict[str, Measured] = {}
    for text in texts:
        for method, measured in _read_one(text).items():
            if method in found:
                raise UserError(f"{method} was measured twice", where=text, hint="give one report a method")
            found[method] = measured
    for name, values in (("metrics", {m.metric for m in found.values()}), ("items", {m.items for m in found.values()})):
        known = sorted(v for v in values if v)
        if len(known) > 1:
            shown = ": " + ", ".join(known) if name == "metrics" else ""
            raise UserError(f"reports of different {name}{shown}", where="--evidence", hint="measure on the same task")
    return found


def _read_one(text: str) -> dict[str, Measured]:
    method, equals, rest = text.partition("=")
    named = bool(equals) and method in METHODS
    folder = Path(rest if named else text)
    if equals and not named and not folder.exists():
        hint = nearest(method, list(METHODS))
        raise UsageError(f"expected REPORT or METHOD=REPORT, found {text!r}", where="--evidence", hint=hint)
    if not named and manifests.read(folder).kind == BAKEOFF:
        return read_bakeoff(folder)
    report = EvalReport.open(folder)
    return {method if named else _method_of(report): _measured(report)}


def read_bakeoff(folder: Path) -> dict[str, Measured]:
    """The arms of a bake-off: `bakeoff.json` holds `primary`, `task`, `winner` {`arm`} and `arms`, a list of
    {`arm`, `report_digest`, `metrics` {name: {`value`, `low`, `high`}}}. The arm `base` counts as `prompt` where no
    prompt was tried. What was asked is told by their reports. Raises UserError for a file of another shape."""
    path = folder / "bakeoff.json"
    document = read_json(path)
    try:
        metric, task, winner = str(document["primary"]), str(document["task"]), document["winner"]["arm"]
        arms = {str(arm["arm"]): arm for arm in document["arms"]}
        if BASE in arms:
            base = arms.pop(BASE)
            winner = "prompt" if winner == BASE and "prompt" not in arms else winner
            arms.setdefault("prompt", base)
        found = {}
        for name, arm in arms.items():
            value, low, high = (float(arm["metrics"][metric][key]) for key in ("value", "low", "high"))
            found[name] = Measured(
                metric=metric, value=value, low=low, high=high, task=task, digest=str(arm["report_digest"]),
                items=_items_of(folder, str(arm["arm"])), bakeoff=str(folder), won=name == winner,
            )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("not the result of ft bakeoff", where=str(path)) from None
    if unknown := sorted(set(found) - set(METHODS)):
        raise UserError(f"an arm that is no method: {unknown[0]}", where=str(path))
    if not found:
        raise UserError("a bake-off without arms", where=str(path))
    return found


def _items_of(folder: Path, arm: str) -> str:
    """Digest of what an arm of a bake-off was asked; empty where its report is not there."""
    path = folder / "reports" / arm / "report.json"
    return str(read_json(path)["data"].get("items_digest") or "") if path.is_file() else ""


def _method_of(report: EvalReport) -> str:
    """The method of the run that was judged, itself or as the ancestor of a release. Raises UsageError."""
    system = next((item for item in report.manifest.inputs if item.role == "system"), None)
    if system is not None and system.kind == "model":
        say(f"{report.path}: an untouched model was judged: taken as prompt")
        return "prompt"
    places = [] if system is None else [system.path, *(row["path"] for row in manifests.lineage(system.inputs))]
    for place in places:
        folder = Path(str(place))
        if manifests.is_finished(folder):
            facts = manifests.read(folder).facts
            if facts.get("method") in METHODS:
                return RAG_LORA if facts.get("retrieval") else str(facts["method"])
    hint = f"for example --evidence qlora={report.path}"
    raise UsageError(f"which method does {report.path} measure?", where="--evidence", hint=hint)


def _measured(report: EvalReport) -> Measured:
    document: Any = report.report()
    try:
        task = document["task"]
        metric = str(task["primary"])
        numbers = document["metrics"][metric]
        value, low, high = (float(numbers[name]) for name in ("value", "low", "high"))
        name = str(task.get("name", ""))
        items = str(document.get("data", {}).get("items_digest") or "")
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError("no primary metric with its interval in report.json", where=str(report.path)) from None
    return Measured(metric=metric, value=value, low=low, high=high, task=name, digest=report.digest, items=items)


def winner(measured: Mapping[str, Measured]) -> str:
    """The bake-off's winner where there is one and nothing was measured outside it; else the simplest method whose interval
    reaches the best value: more work must show that it pays."""
    if (won := _won(measured)) is not None:
        return won
    best = max(m.value for m in measured.values())
    return next(method for method in METHODS if method in measured and measured[method].high >= best)


def _won(measured: Mapping[str, Measured]) -> str | None:
    """The winner of the bake-off that measured all of these."""
    together = len({m.bakeoff for m in measured.values()}) == 1
    return next((name for name, m in measured.items() if m.won), None) if together else None


def against(measured: Mapping[str, Measured], priors: Mapping[str, float]) -> str:
    """Where the priors (points by method) were wrong: a method that they put above another whose interval lies wholly
    above its own. Says also that they were right, or that the intervals tell nothing apart."""
    apart = [(low, high) for low in measured for high in measured if measured[low].high < measured[high].low]
    wrong = [(low, high) for low, high in apart if priors.get(low, 0.0) > priors.get(high, 0.0)]
    if wrong:
        pairs = "; ".join(f"{a} ({priors.get(a, 0.0):+g} points) above {b} ({priors.get(b, 0.0):+g})" for a, b in wrong)
        return f"The priors were wrong: they put {pairs}."
    return "Where the intervals tell methods apart, the priors had them in this order." if apart else ""


def rule(measured: Mapping[str, Measured], priors: Mapping[str, float]) -> Rule:
    """What the reports say, as a rule that outvotes the priors where two methods or more were measured."""
    shown = ", ".join(f"{name} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}]" for name, m in measured.items())
    metric = next(iter(measured.values())).metric
    votes = {winner(measured): DECIDES} if len(measured) > 1 else {}
    how = (
        "The bake-off's winner is taken."
        if _won(measured) is not None
        else "The simplest method whose interval reaches the best is taken."
    )
    return Rule(
        id="measured-here",
        says=f"Measured on your own task, {metric}: {shown}. {how} {against(measured, priors)}".rstrip(),
        when=lambda _: True,
        source=", ".join(f"EvalReport {m.digest[:12]}" for m in measured.values()),
        grade="A",
        scope="this task and these models",
        votes=votes,
        note="" if len(measured) > 1 else "one method alone decides nothing: measure its rival too",
    )
