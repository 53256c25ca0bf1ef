"""Rows of results to figures: each metric with its interval, over all items and by slice."""

import bisect
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.core.bootstrap import bootstrap_mean
from tunegate.core.distributions import beta_cdf, student_quantile
from tunegate.core.statistics import (
    PERCENTILES,
    Interval,
    censored,
    clopper_pearson,
    clustered_se,
    design_effect,
    percentile,
    wilson,
)

Rows = Sequence[dict[str, Any]]
LEVEL = 0.95  # of the intervals in a report; a gate takes 1 - 2 alpha
REPEATED = ("pass_at_k", "pass_hat_k")
SHARES = ("infra_error", "truncated", "refused", "unparsable")
LEAKAGE = ("leakage", "leakage_exact", "leakage_ngram", "leakage_near")
CENSUS = {"infra_error_rate", "size_bytes", *LEAKAGE}  # facts of this run and this folder, not samples of anything


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One metric. interval: None where nothing was measured. kind: how its interval was made. effective_n: as many independent
    items, of a percentile answers; items: those it is of, where its interval counts something else (answers). late: the share of
    answers that timed out, of a percentile."""

    kind: str
    interval: Interval | None
    passed: float = 0.0
    effective_n: float = 0.0
    items: int = 0
    late: float = 0.0
    effect: float = 1.0
    df: float = math.inf

    def rate_tail(self, bound: float, *, above: bool, level: float) -> float:
        """Exact one-sided p of a rate that is not above (else: not below) `bound`.

        With the effective counts of `level` it is under (1 - level) / 2 exactly where that level's interval clears the bound.
        """
        assert self.interval is not None
        counted = _effective_n(self.interval.n, self.effect, self.df, level)
        passed = self.passed * counted / self.interval.n
        if above:
            return 1.0 if passed <= 0.0 else beta_cdf(bound, passed, counted - passed + 1.0)
        return 1.0 if passed >= counted else 1.0 - beta_cdf(bound, passed + 1.0, counted - passed)


def judged(rows: Rows) -> list[dict[str, Any]]:
    """The rows that say something about the model: all but infrastructure errors."""
    return [row for row in rows if row["outcome"] != "infra_error"]


def timings(rows: Rows, field: str) -> list[float]:
    """latency_ms or ttft_ms of every answer that arrived, repeats included; of requests that timed out the latency is what they
    were waited for, and more."""
    return [ms for row in rows for ms in _timings_of(row, field)]


def _waited(row: dict[str, Any], field: str) -> list[float]:
    """What the requests of an item that timed out were waited for, in ms: at least that they would have taken."""
    each = row.get("each_timed_out_ms") or [row.get("timed_out_ms")]
    return [ms for ms in each if ms is not None] if field == "latency_ms" else []


def _timings_of(row: dict[str, Any], field: str) -> list[float]:
    repeats = {"latency_ms": "latencies_ms", "ttft_ms": "ttfts_ms"}[field]
    outcomes = row.get("outcomes") or [row["outcome"]]
    each = zip(outcomes, row.get(repeats) or [row.get(field)], strict=False)
    arrived = [ms for outcome, ms in each if ms is not None and outcome != "infra_error"]
    return arrived + _waited(row, field)


def clusters(rows: Rows) -> list[str]:
    """What each row is grouped by; where it has no group, the question with what is expected: copies of one are no independent
    evidence. Rows that all have one prompt are independent: samples of its answers, or, where other answers are expected, questions
    that the prompt does not tell (outputs recorded elsewhere)."""
    asked = [(row.get("prompt_digest") or row["id"], row.get("expected")) for row in rows]
    one = len({prompt for prompt, _ in asked}) == 1
    return [
        str(row["group"]) if row.get("group") is not None else f"\0{row['id'] if one else question}"
        for row, question in zip(rows, asked, strict=True)
    ]


def score_interval(values: Sequence[float], groups: Sequence[str], *, level: float, exact: bool = False) -> Measured:
    """Interval of the mean of scores: Wilson (or exact) where all are 0 or 1, else studentised bootstrap.

    Grouped rows: the exact interval on the effective counts (Korn & Graubard 1998), n / design effect, with Student's t.
    """
    n = len(values)
    if n == 0:
        return Measured(kind="rate", interval=None)
    if any(value not in (0.0, 1.0) for value in values):
        found = bootstrap_mean(values, groups, level=level, lowest=0.0).interval
        return Measured(kind="mean", interval=found, effective_n=n)
    passed = sum(values)
    effect, df = design_effect(values, groups)
    effective = _effective_n(n, effect, df, level)
    bounds = (clopper_pearson if exact else wilson)(passed * effective / n, effective, level=level)
    interval = Interval(value=passed / n, low=bounds.low, high=bounds.high, n=n)
    return Measured(kind="rate", interval=interval, passed=passed, effective_n=effective, effect=effect, df=df)


def _effective_n(n: int, effect: float, df: float, level: float) -> float:
    if effect == 1.0 and math.isinf(df):
        return float(n)
    ratio = (student_quantile((1 + level) / 2, math.inf) / student_quantile((1 + level) / 2, df)) ** 2
    return max(1.0, n / effect * ratio)


def measure(rows: Rows, report: dict[str, Any], metric: str, *, level: float, exact: bool = False) -> Measured:
    """One metric by name, over these rows. Raises KeyError for a name that is none."""
    if metric.endswith("_rate") and metric.removesuffix("_rate") in SHARES:
        return _share(rows, metric.removesuffix("_rate"), level=level, exact=exact)
    for field in ("latency_ms", "ttft_ms"):
        for name, probability in PERCENTILES.items():
            if metric == f"{field.removesuffix('_ms')}_{name}_ms":
                return _percentile(rows, field, probability, level=level)
    if metric == "size_bytes" or metric in LEAKAGE:
        found = report.get("leakage") or {}
        size = report.get("size_bytes") if metric == "size_bytes" else found.get("metrics", {}).get(metric)
        most = None if metric in LEAKAGE and found.get("partial") else size
        return Measured(
            kind="census", interval=None if size is None else Interval(value=size, low=size, high=most, n=1)
        )
    if metric == "cost_per_correct_usd":
        return Measured(kind="ratio", interval=_cost_per_correct(rows, level=level))
    if metric in REPEATED:
        return _repeats(rows, metric, level=level, exact=exact)
    if metric not in metric_names(report):
        raise KeyError(metric)
    counted = [row for row in judged(rows) if metric in row["scores"]]
    return score_interval([row["scores"][metric] for row in counted], clusters(counted), level=level, exact=exact)


def _percentile(rows: Rows, field: str, probability: float, *, level: float) -> Measured:
    """A percentile of the answers' times. Those of one item, or of items of one group, are not independent: they count as n / design
    effect, with Student's t, as a rate's do: the effect on the share that is at most the percentile, or where that is larger on
    the answers' ranks (a percentile that falls amid one item's answers hides half of it). Where the upper end is the time of a
    request that timed out there is none: nobody knows how long it would have taken (censored on the right)."""
    timed = [(row, _timings_of(row, field)) for row in rows]
    values = [ms for _, each in timed for ms in each]
    if not values:
        return Measured(kind="percentile", interval=None)
    groups = [group for (_, each), group in zip(timed, clusters([row for row, _ in timed]), strict=True) for _ in each]
    value = percentile(values, probability, level=level).value
    ordered = sorted(values)
    seen = [float(ms <= value) for ms in values], [float(bisect.bisect_left(ordered, ms)) for ms in values]
    effect, df = max(design_effect(each, groups) for each in seen)
    effective = _effective_n(len(values), effect, df, level)
    waited = [ms for row in rows for ms in _waited(row, field)]
    interval = censored(percentile(values, probability, level=level, effective_n=effective), waited)
    items, late = sum(bool(each) for _, each in timed), len(waited) / len(values)
    return Measured(kind="percentile", interval=interval, effective_n=effective, items=items, late=late)


def metric_names(report: dict[str, Any]) -> list[str]:
    """The metrics that answers are scored by."""
    return list(report["metrics"])


def known_metrics(report: dict[str, Any]) -> list[str]:
    """Every metric a gate may name for this report."""
    times = [f"{field}_{name}_ms" for field in ("latency", "ttft") for name in PERCENTILES]
    return [
        *metric_names(report),
        *times,
        *(f"{s}_rate" for s in SHARES),
        "size_bytes",
        "cost_per_correct_usd",
        *LEAKAGE,
    ]


def _share(rows: Rows, outcome: str, *, level: float, exact: bool) -> Measured:
    """Share of an outcome: of all answers for infrastructure errors (a census of this run), else of the judged ones, each item's
    repeats counted as parts of it."""
    if outcome == "infra_error":
        share = lost_share(rows)
        return Measured(kind="census", interval=Interval(value=share, low=share, high=share, n=len(rows)))
    counted = judged(rows)
    values = [_part(row, outcome) for row in counted]
    return score_interval(values, clusters(counted), level=level, exact=exact)


def answered(report: dict[str, Any]) -> bool:
    """Whether a report says anything about its model: at least one item got an answer."""
    return bool(report["n"] > report["outcomes"]["infra_error"])


def lost_share(rows: Rows) -> float:
    """Share of the answers asked for that infrastructure lost, each item's repeats counted as parts of it; 0 to 1."""
    each = [row.get("outcomes") or [row["outcome"]] for row in rows]
    return sum(found.count("infra_error") / len(found) for found in each) / max(1, len(each))


def score_of(row: dict[str, Any], metric: str) -> float | None:
    """One item's score: a validator's, or pass@k and pass^k from its repeats; None where it has none."""
    if metric not in REPEATED:
        score: float | None = row["scores"].get(metric)
        return score
    right = [o == "pass" for o in row.get("outcomes", ()) if o != "infra_error"]
    return float(any(right) if metric == "pass_at_k" else all(right)) if right else None


def _repeats(rows: Rows, metric: str, *, level: float, exact: bool) -> Measured:
    """pass@k: any of the k answers is right; pass^k: all are. Repeats lost to infrastructure are not counted."""
    counted = [row for row in judged(rows) if row.get("outcomes")]
    values = [score_of(row, metric) or 0.0 for row in counted]
    return score_interval(values, clusters(counted), level=level, exact=exact)


def _part(row: dict[str, Any], outcome: str) -> float:
    """Share of an item's answers that have an outcome: 0 or 1 where it was asked once. Those lost to infrastructure are none."""
    outcomes = [o for o in row.get("outcomes") or [row["outcome"]] if o != "infra_error"]
    return outcomes.count(outcome) / len(outcomes)


def _cost_per_correct(rows: Rows, *, level: float) -> Interval | None:
    """Cost of an answer over the share of right answers, as a ratio estimate (Cochran 1977, eq. 6.13), in USD.

    Its residuals vanish where all cost the same and all are right; so each bound lies no nearer than the mean cost over the
    exact bound of the share (Clopper & Pearson 1934, on effective counts as in `score_interval`).
    """
    counted = [row for row in judged(rows) if row.get("cost_usd") is not None]
    shares = [_part(row, "pass") for row in counted]
    right = sum(shares)
    if not counted or not right:
        return None
    ratio = sum(row["cost_usd"] for row in counted) / right
    residuals = [row["cost_usd"] - ratio * share for row, share in zip(counted, shares, strict=True)]
    groups = clusters(counted)
    if len(set(groups)) < 2:
        return Interval(value=ratio, low=None, high=None, n=len(counted))
    se = clustered_se(residuals, groups) * len(counted) / right
    n = len(counted)
    effect, df = design_effect(shares, groups)
    half = student_quantile((1 + level) / 2, max(1.0, min(df, len(set(groups)) - 1.0))) * se
    effective = _effective_n(n, effect, df, level)
    share = clopper_pearson(right * effective / n, effective, level=level)
    assert share.low is not None
    assert share.high is not None
    dearest = ratio * right / n / share.low
    cheapest = ratio * right / n / share.high
    return Interval(value=ratio, low=max(0.0, min(ratio - half, cheapest)), high=max(ratio + half, dearest), n=n)


def figures(rows: Rows, names: list[str]) -> dict[str, dict[str, Any]]:
    """Every score metric with its 95 % interval; pass@k and pass^k where items were asked several times."""
    shell = {"metrics": dict.fromkeys(names)}
    found = {name: measure(rows, shell, name, level=LEVEL) for name in names}
    if any(row.get("outcomes") for row in rows):
        found |= {name: measure(rows, shell, name, level=LEVEL) for name in REPEATED}
    return {name: _as_json(m) for name, m in found.items()}


def operations(rows: Rows, report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Latency, outcome shares and cost, those that were measured, with their 95 % intervals."""
    names = [n for n in known_metrics({"metrics": {}}) if n != "size_bytes"]
    found = {name: measure(rows, report, name, level=LEVEL) for name in names}
    return {name: _as_json(m) for name, m in found.items() if m.interval is not None}


def _as_json(measured: Measured) -> dict[str, Any]:
    if measured.interval is None:
        return {"value": None, "low": None, "high": None, "n": 0, "level": LEVEL}
    return {**asdict(measured.interval), "level": LEVEL}


def slices(rows: Rows, keys: Sequence[str], names: list[str]) -> dict[str, dict[str, Any]]:
    """For each slice key and value: number of items and every metric."""
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        values: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            if (value := row["tags"].get(key)) is not None:
                values.setdefault(str(value), []).append(row)
        found[key] = {
            value: {"n": len(part), "metrics": figures(part, names)} for value, part in sorted(values.items())
        }
    return found


def outcome_counts(rows: Rows) -> dict[str, int]:
    """Items by outcome, every outcome listed."""
    counts = Counter(row["outcome"] for row in rows)
    return {name: counts.get(name, 0) for name in ("pass", "fail", *SHARES[1:], "infra_error")}


def latency(rows: Rows) -> dict[str, dict[str, float | None]]:
    """p50, p95 and p99 of latency and of time to first token, in ms."""
    found: dict[str, dict[str, float | None]] = {}
    for field in ("latency_ms", "ttft_ms"):
        values = timings(rows, field)
        found[field] = {
            name: percentile(values, p, level=LEVEL).value if values else None for name, p in PERCENTILES.items()
        }
    return found
