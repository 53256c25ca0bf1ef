"""The gate: PASS where a condition is shown, FAIL where its contrary is shown, INCONCLUSIVE otherwise.

Each condition errs with probability at most alpha on each side. All must pass together, so passing needs no correction
for their number (an intersection-union test, Berger 1982); that one of many slices fails is corrected by Holm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from tunegate.core.artifacts import LoadReport
from tunegate.core.distributions import normal_quantile
from tunegate.core.errors import ExitCode, UserError, nearest
from tunegate.core.measurements import late_share, load_interval, load_metrics
from tunegate.core.power import LARGEST, POWER, items_for_rate, pairs_for_difference, pairs_for_mean
from tunegate.core.statistics import PERCENTILES, Interval, holm
from tunegate.evalkit.compare import OneSided, Paired, Reading, by_id, other_repeats, pair, slice_values
from tunegate.evalkit.policy import MAX_INFRA_ERROR_RATE, PAIRED, Condition, Policy
from tunegate.evalkit.summary import CENSUS, LEAKAGE, Measured, judged, known_metrics, lost_share, measure, score_of

Decision = Literal["PASS", "FAIL", "INCONCLUSIVE"]
EXIT: dict[str, ExitCode] = {
    "PASS": ExitCode.OK,
    "FAIL": ExitCode.GATE_FAIL,
    "INCONCLUSIVE": ExitCode.INCONCLUSIVE,
}
BEYOND = "; no set of items that one can make would decide it"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One condition, decided. value, low, high: the estimate with its interval of level 1 - 2 alpha; None where unbounded
    or not measured. need_n: items in all that would decide it with a chance of 80 %; None where no set one can make would.
    p: of a paired rule's test; with FAIL of the contrary, which is what is shown."""

    metric: str
    rule: str
    decision: Decision
    value: float | None
    low: float | None
    high: float | None
    need_n: int | None
    reason: str
    bound: float | None = None
    p: float | None = None
    n: int = 0
    slice: str | None = None
    level: float | None = None


def decide(
    policy: Policy, candidate: Reading, baseline: Reading | None, load: LoadReport | None = None
) -> dict[str, Any]:
    """Decide every condition: `decision`, `conditions`, and what they were decided from. load: a load test of the
    candidate, for conditions on `load_...` figures.

    Raises UserError for a metric or slice that the report does not have, and for a paired rule without a baseline.
    """
    conditions = policy.conditions
    _known(conditions, candidate, baseline, load is not None)
    lost = _lost(candidate, baseline)
    findings = [f for condition in conditions for f in _condition(condition, policy.alpha, candidate, baseline, load)]
    stated = [c.value or 0.0 for c in conditions if c.metric == "infra_error_rate" and c.rule == "at_most"]
    stated += [] if policy.max_infra_error_rate is None else [policy.max_infra_error_rate]
    limit = min(stated, default=MAX_INFRA_ERROR_RATE)
    if lost > limit:
        reason = f"{lost:.1%} of the items were lost to infrastructure errors, above {limit:.1%}: nothing is judged"
        findings = [_refused(f, reason) for f in findings]
    unjudged = {metric: _without_verdict(metric, candidate, baseline) for metric in {f.metric for f in findings}}
    findings = [_with_verdicts(f, unjudged[f.metric], limit) for f in findings]
    decisions = {finding.decision for finding in findings}
    decision = "FAIL" if "FAIL" in decisions else "INCONCLUSIVE" if "INCONCLUSIVE" in decisions else "PASS"
    return {
        "decision": decision,
        "conditions": [asdict(finding) for finding in findings],
        "policy": policy.to_json(),
        "alpha": policy.alpha,
        "infra_error_rate": lost,
    }


def check_metrics(
    policy: Policy,
    metrics: Sequence[str],
    slices: Sequence[str],
    baseline: Reading | None,
    load: LoadReport | None = None,
    repeats: int | None = None,
    *,
    where: str = "gate",
) -> None:
    """Raise UserError, with `where`, for a condition that a report with these metrics and slices could not decide, before it is
    made. repeats: answers an item, None where that is not known."""
    shell = {"metrics": dict.fromkeys(metrics), "task": {"slices": list(slices), "repeats": repeats}}
    _known(policy.conditions, Reading(name="", report=shell, rows=()), baseline, load is not None, where)
    for index, condition in enumerate(policy.conditions):
        _check_value(condition, f"{where} conditions[{index}]")


def _lost(candidate: Reading, baseline: Reading | None) -> float:
    sides = [side for side in (candidate, baseline) if side is not None and side.rows]
    return max((lost_share(side.rows) for side in sides), default=1.0)


def _without_verdict(metric: str, candidate: Reading, baseline: Reading | None) -> float:
    """The larger side's share of items without a score of a validator's metric: a judge that gave no verdict. 0 of other metrics."""
    if metric not in {validator["name"] for validator in candidate.report["task"].get("validators", ())}:
        return 0.0
    sides = [judged(s.rows) for s in (candidate, baseline) if s is not None and metric in s.report["metrics"]]
    return max((sum(score_of(r, metric) is None for r in rows) / len(rows) for rows in sides if rows), default=0.0)


def _with_verdicts(finding: Finding, share: float, limit: float) -> Finding:
    """Refused where more than `limit` of a side's items have no verdict of the metric."""
    if share <= limit:
        return finding
    reason = f"{share:.1%} of the items have no verdict of {finding.metric}, above {limit:.1%}: nothing is judged"
    return _refused(finding, reason)


def _refused(finding: Finding, reason: str) -> Finding:
    return replace(finding, decision="INCONCLUSIVE", reason=reason)


def _known(
    conditions: Sequence[Condition], candidate: Reading, baseline: Reading | None, loaded: bool, file: str = "gate"
) -> None:
    for index, condition in enumerate(conditions):
        where = f"{file} conditions[{index}]"
        known = list(candidate.report["metrics"]) if condition.rule in PAIRED else known_metrics(candidate.report)
        known += load_metrics() if condition.rule not in PAIRED else []
        if condition.metric in load_metrics() and condition.rule not in PAIRED and not loaded:
            hint = "--load LOADREPORT, made by: ft loadtest TARGET --out LOADREPORT"
            raise UserError(f"{condition.metric} needs a load test", where=f"{where} metric", hint=hint)
        if condition.metric not in known:
            raise UserError(
                f"the report has no metric {condition.metric!r} for {condition.rule}",
                where=f"{where} metric",
                hint=nearest(condition.metric, known),
            )
        if condition.rule in PAIRED and baseline is None:
            raise UserError(
                f"{condition.rule} needs a baseline", where=where, hint="--against NAME, a report folder, or any TARGET"
            )
        if condition.rule in PAIRED and baseline is not None and condition.metric not in baseline.report["metrics"]:
            raise UserError(f"the baseline has no metric {condition.metric!r}", where=f"{where} metric")
        paired_with = baseline if condition.rule in PAIRED else None
        if paired_with is not None and (other := other_repeats(condition.metric, paired_with, candidate)) is not None:
            raise UserError(other, where=f"{where} metric", hint="judge the baseline again with as many repeats")
        if condition.slice is not None and condition.slice not in candidate.report["task"]["slices"]:
            keys = list(candidate.report["task"]["slices"])
            raise UserError(
                f"the report has no slice {condition.slice!r}",
                where=f"{where} slice",
                hint=nearest(condition.slice, keys) if keys else "name it under slices: in the task",
            )


def _check_value(condition: Condition, where: str) -> None:
    """A floor or ceiling must be one that the metric can reach: 95 of a share always fails, 5 always passes."""
    metric, value = condition.metric, condition.value
    share = not metric.endswith(("_ms", "_bytes", "_usd")) and metric not in LEAKAGE
    if value is None or (value >= 0.0 and not (share and value > 1.0)):
        return
    wanted = "a share from 0 to 1" if share else "never below 0"
    hint = f"{value:g} % is {value / 100.0:g}" if 1.0 < value <= 100.0 else None
    raise UserError(f"{metric} is {wanted}, found {value:g}", where=f"{where} value", hint=hint)


def _condition(
    condition: Condition, alpha: float, candidate: Reading, baseline: Reading | None, load: LoadReport | None
) -> list[Finding]:
    if load is not None and condition.metric in load_metrics():
        return [_loaded(condition, alpha, load)]
    before = None if baseline is None else by_id(baseline.rows)
    if condition.slice is None:
        return [_one(condition, alpha, candidate, before, candidate.rows, None)[0]]
    parts = slice_values(candidate.rows, condition.slice)
    if not parts:
        reason = f"no row has a value of the slice {condition.slice}: nothing was measured"
        return [_finding(condition, "INCONCLUSIVE", None, None, reason, alpha, condition.slice)]
    decided = [
        _one(condition, alpha, candidate, before, rows, f"{condition.slice}={value}") for value, rows in parts.items()
    ]
    corrected = holm([contrary for _, contrary in decided])
    return [
        _spared(finding, p, adjusted, alpha / len(parts))
        if finding.decision == "FAIL" and adjusted >= alpha
        else finding
        for (finding, p), adjusted in zip(decided, corrected, strict=True)
    ]


def _loaded(condition: Condition, alpha: float, load: LoadReport) -> Finding:
    """A condition on the heaviest stage of a load test; nothing is shown by one that was not valid."""
    interval = load_interval(load, condition.metric, level=1.0 - 2.0 * alpha)
    kind = "rate" if condition.metric.endswith("_rate") else "percentile"
    late = 0.0 if interval is None else late_share(load, condition.metric)
    finding = _bounded(condition, alpha, Measured(kind=kind, interval=interval, late=late), None)
    return finding if interval is not None else replace(finding, reason=f"{finding.reason}: the load test is not valid")


def _spared(finding: Finding, p: float, adjusted: float, tail: float) -> Finding:
    """A slice's FAIL that its p does not carry among so many. need_n: as many of the slice's items as bring a difference like
    the one seen, whose z grows with the root of n, below `tail` with a chance of 80 %."""
    reason = f"{finding.reason}; not shown once corrected for the number of slices (Holm p {adjusted:.3f})"
    wanted = (normal_quantile(1.0 - tail) + normal_quantile(POWER)) / normal_quantile(1.0 - p)
    return replace(_refused(finding, reason), need_n=max(finding.n + 1, math.ceil(finding.n * wanted**2)))


def _one(
    condition: Condition,
    alpha: float,
    candidate: Reading,
    before: dict[str, dict[str, Any]] | None,
    rows: Any,
    part: str | None,
) -> tuple[Finding, float]:
    """One condition over some rows, and the p-value of its contrary."""
    level = 1.0 - 2.0 * alpha
    if condition.rule in PAIRED:
        assert before is not None
        return _paired(condition, alpha, pair(before, rows, condition.metric), part)
    metric, report = condition.metric, candidate.report
    measured = measure(rows, report, metric, level=level, exact=True)
    finding = _bounded(condition, alpha, measured, part)
    if finding.decision != "FAIL" or part is None:
        return finding, 1.0
    bound, above = condition.value or 0.0, condition.rule == "at_most"
    if measured.kind == "rate":
        return finding, _contrary(lambda a: measured.rate_tail(bound, above=above, level=1.0 - 2.0 * a) < a, alpha)

    def breaks(tail: float) -> bool:
        interval = measure(rows, report, metric, level=1.0 - 2.0 * tail, exact=True).interval
        return interval is not None and _breaks(interval, bound, condition)

    return finding, _contrary(breaks, alpha)


def _paired(condition: Condition, alpha: float, paired: Paired, part: str | None) -> tuple[Finding, float]:
    margin = condition.margin or 0.0
    if condition.rule == "superior":
        shown, refuted = (OneSided(p=p, exact=None, alpha=alpha) for p in (paired.better_p(), paired.worse_p()))
    else:
        shown, refuted = paired.not_worse(margin, alpha=alpha), paired.worse(margin, alpha=alpha)
    decision: Decision = "PASS" if shown.holds else "FAIL" if refuted.holds else "INCONCLUSIVE"
    p = refuted.largest_p if decision == "FAIL" else shown.p
    exact = shown.exact if shown.exact is not None else refuted.exact
    need = need_pairs(paired, -margin, alpha=alpha) if decision == "INCONCLUSIVE" else None
    interval = paired.interval(level=1.0 - 2.0 * alpha)
    reason = _paired_reason(condition, decision, interval, p, exact)
    reason += BEYOND if decision == "INCONCLUSIVE" and need is None and paired.n else ""
    finding = _finding(condition, decision, interval, need, reason, alpha, part)
    return replace(finding, p=p, bound=-margin or 0.0, n=paired.n), refuted.largest_p


def _contrary(breaks: Callable[[float], bool], alpha: float) -> float:
    """p of the contrary: the least tail at which the whole interval still breaks the condition, at most `alpha`."""
    low, high = 0.0, alpha
    for _ in range(20):
        middle = (low + high) / 2.0
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return high


def _breaks(interval: Interval, bound: float, condition: Condition) -> bool:
    """Whether the whole interval lies on the wrong side of the bound."""
    if condition.rule == "at_most":
        return interval.low is not None and interval.low > bound
    return interval.high is not None and interval.high < bound


def _paired_reason(condition: Condition, decision: Decision, interval: Interval, p: float, exact: float | None) -> str:
    span = f"difference {interval.value:+.4f} [{_text(interval.low)}, {_text(interval.high)}], p {p_text(p)}"
    if condition.rule == "superior":
        words = {"PASS": "better", "FAIL": "worse", "INCONCLUSIVE": "neither better nor worse is shown"}
    else:
        words = {
            "PASS": f"not worse by {condition.margin:g} or more",
            "FAIL": f"worse by more than {condition.margin:g}",
            "INCONCLUSIVE": f"a drop of {condition.margin:g} is neither excluded nor shown",
        }
    note = (
        f"; the exact p is {p_text(exact)}, so few pairs differ"
        if exact is not None and decision == "INCONCLUSIVE"
        else ""
    )
    return f"{words[decision]}: {span}{note}"


def need_pairs(paired: Paired, bound: float, *, alpha: float) -> int | None:
    """Items for 80 % power: if the two are equal; where there are that many already, if the difference is as observed. None where
    nothing was paired, or no set one can make would do: with a difference that lies on the bound none does."""
    if paired.n == 0:
        return None
    pairs = pairs_for_difference if paired.binary else pairs_for_mean
    distances = [abs(bound)] if bound else []
    for distance in [*distances, abs(paired.value - bound)]:
        need = _possible(pairs(paired.spread, distance, alpha=alpha) * paired.effect) if distance > 0 else None
        if need is None or need > paired.n:
            return need
    return 2 * paired.n


def _possible(items: float) -> int | None:
    """A number of items, rounded; None for one so large that it stands for "no set one can make"."""
    return round(items) if items < LARGEST else None


def _bounded(condition: Condition, alpha: float, measured: Measured, part: str | None) -> Finding:
    assert condition.value is not None
    interval, bound, least = measured.interval, condition.value, condition.rule == "at_least"
    if interval is None:
        why = ": no training data is known" if condition.metric in LEAKAGE else ""
        reason = f"{condition.metric} was not measured{why}"
        return _finding(condition, "INCONCLUSIVE", None, None, reason, alpha, part)
    if condition.metric in CENSUS:
        if interval.high is None and not _breaks(interval, bound, condition):
            reason = f"{condition.metric} is at least {interval.value:g}: a part of the training data could not be read"
            return _finding(condition, "INCONCLUSIVE", interval, None, reason, alpha, part)
        holds = interval.value >= bound if least else interval.value <= bound
        word = "holds" if holds else "does not hold"
        reason = (
            f"{condition.metric} {interval.value:g} {'>=' if least else '<='} {bound:g} {word} (counted, not sampled)"
        )
        return _finding(condition, "PASS" if holds else "FAIL", interval, None, reason, alpha, part)
    low, high = interval.low, interval.high
    shown = (low is not None and low >= bound) if least else (high is not None and high <= bound)
    refuted = _breaks(interval, bound, condition)
    decision: Decision = "PASS" if shown else "FAIL" if refuted else "INCONCLUSIVE"
    need = _need_items(measured, interval, condition, alpha) if decision == "INCONCLUSIVE" else None
    words = {
        "PASS": "the whole interval keeps to it",
        "FAIL": "the whole interval breaks it",
        "INCONCLUSIVE": "the interval reaches over it",
    }
    span = f"{interval.value:.4g} [{_text(low)}, {_text(high)}]"
    reason = f"{condition.rule.replace('_', ' ')} {bound:g}: {words[decision]}, {span}"
    reason += BEYOND if decision == "INCONCLUSIVE" and need is None and None not in (low, high) else ""
    return _finding(condition, decision, interval, need, reason, alpha, part)


def _need_items(measured: Measured, interval: Interval, condition: Condition, alpha: float) -> int | None:
    """Items that would decide a floor or ceiling if the true value is the observed one; None where no number would."""
    bound, least = condition.value or 0.0, condition.rule == "at_least"
    items = measured.items or interval.n
    scale = items / (measured.effective_n or items)  # items that tell as much as one independent one
    if measured.kind == "rate" and 0.0 < bound < 1.0:
        need = items_for_rate(interval.value, bound, alpha=alpha)
        return None if need is None else _possible(max(items + 1, need * scale))
    lower = interval.value >= bound if least else interval.value > bound
    edge = interval.low if lower else interval.high  # the one that lies over the bound
    if measured.kind == "percentile" and edge is None:
        share = next(p for name, p in PERCENTILES.items() if f"_{name}_" in condition.metric)
        answers = math.ceil(math.log(alpha) / math.log(1.0 - share if lower else share))
        if measured.late and not lower:  # its upper end is a request that timed out, until it is shown that fewer do
            answers = items_for_rate(measured.late, 1.0 - share, alpha=alpha) or LARGEST
        return _possible(max(items + 1, math.ceil(answers * scale)))
    if edge is None or interval.value == bound:
        return None
    # the half-width is z_alpha standard errors; z_beta more must fit between value and bound
    widths = (1.0 + normal_quantile(POWER) / normal_quantile(1.0 - alpha)) * (edge - interval.value)
    return _possible(max(items + 1, items * (widths / (bound - interval.value)) ** 2))


def _finding(
    condition: Condition,
    decision: Decision,
    interval: Interval | None,
    need_n: int | None,
    reason: str,
    alpha: float,
    part: str | None,
) -> Finding:
    return Finding(
        metric=condition.metric,
        rule=condition.rule,
        decision=decision,
        value=None if interval is None else interval.value,
        low=None if interval is None else interval.low,
        high=None if interval is None else interval.high,
        need_n=need_n,
        reason=reason,
        bound=condition.value,
        n=0 if interval is None else interval.n,
        slice=part,
        level=1.0 - 2.0 * alpha,
    )


def p_text(p: float) -> str:
    """A p-value in four digits; one that would round to nothing as `< 0.0001`."""
    return f"{p:.4f}" if p >= 0.0001 else "< 0.0001"


def _text(bound: float | None) -> str:
    return "no bound" if bound is None else f"{bound:.4g}"
