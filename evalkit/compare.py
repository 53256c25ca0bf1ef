"""Two readings of the same items, pair by pair: may they be compared at all, and what differs.

A reading is the content of an EvalReport: its `report.json` and the rows of its `results.jsonl`.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.bootstrap import MeanTest, bootstrap_mean
from tunegate.core.errors import UserError, nearest
from tunegate.core.power import gamma_of
from tunegate.core.statistics import (
    Interval,
    design_effect,
    exact_non_inferior_p,
    holm,
    mcnemar_better_p,
    non_inferior_p,
    tango_interval,
)
from tunegate.evalkit.summary import REPEATED, clusters, score_of

EXACT_LIMIT = 100  # discordant pairs up to which the exact test stands beside the score test
LOCKED = ("data", "prompts", "template", "generation", "scorer")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The content of an EvalReport. name: as the user named it; digest: of the folder, None before it is written."""

    name: str
    report: dict[str, Any]
    rows: Sequence[dict[str, Any]]
    digest: str | None = None
    path: str | None = None


@dataclass(frozen=True, kw_only=True)
class OneSided:
    """A one-sided test. p: of the score test or the bootstrap; exact: of the exact test, where that was asked too."""

    p: float
    exact: float | None
    alpha: float

    @property
    def holds(self) -> bool:
        """Whether it is shown: both lie under alpha."""
        return self.largest_p < self.alpha

    @property
    def largest_p(self) -> float:
        """The p that decides."""
        return max(self.p, self.exact or 0.0)


@dataclass(frozen=True, kw_only=True)
class Paired:
    """One metric over the pairs that both sides answered.

    differences: candidate minus baseline, in the order of the items. binary: all scores are 0 or 1; then (also without a pair) `fixed` and
    `broken` count the pairs that differ, and the tests are Tango's and McNemar's; else the studentised bootstrap.
    effect, df: design effect and degrees of freedom where rows share a group.
    """

    n: int
    binary: bool
    fixed: int
    broken: int
    both_pass: int
    both_fail: int
    differences: tuple[float, ...]
    groups: tuple[str, ...]
    effect: float
    df: float

    @property
    def clustered(self) -> bool:
        """Whether rows share groups."""
        return len(set(self.groups)) < self.n

    @property
    def value(self) -> float:
        """Mean difference."""
        return sum(self.differences) / self.n if self.n else 0.0

    @property
    def spread(self) -> float:
        """Variance of a pair's difference, to plan with: the share of pairs that differ (one more of two more, so that it is never
        0) where scores are 0/1, which is the variance of equal models; else the variance that was seen."""
        if self.binary:
            return (self.fixed + self.broken + 1.0) / (self.n + 2.0)
        mean = self.value
        return sum((d - mean) ** 2 for d in self.differences) / self.n or 1.0 / self.n

    def interval(self, *, level: float) -> Interval:
        """Interval of the mean difference."""
        if not self.binary:
            return self._mean(level).interval
        return tango_interval(self.fixed, self.broken, self.n, level=level, design_effect=self.effect, df=self.df)

    def above_p(self, bound: float) -> float:
        """One-sided p of H0: the difference is at most `bound` (<= 0)."""
        if not self.binary:
            return self._mean(0.9).p_above(bound)
        return non_inferior_p(self.fixed, self.broken, self.n, -bound, design_effect=self.effect, df=self.df)

    def below_p(self, bound: float) -> float:
        """One-sided p of H0: the difference is at least `bound` (<= 0)."""
        if not self.binary:
            return self._mean(0.9).p_below(bound)
        return non_inferior_p(self.broken, self.fixed, self.n, bound, design_effect=self.effect, df=self.df)

    def not_worse(self, margin: float, *, alpha: float) -> OneSided:
        """Whether a drop of `margin` or more is excluded: what PASS of `non_inferior` means, wherever it is said."""
        p = self.above_p(-margin)
        return OneSided(p=p, exact=self.exact_p(margin, alpha=alpha) if p < alpha else None, alpha=alpha)

    def worse(self, margin: float, *, alpha: float) -> OneSided:
        """Whether the drop is shown to be larger than `margin`: what FAIL of `non_inferior` means."""
        p = self.below_p(-margin)
        return OneSided(p=p, exact=self.exact_worse_p(margin, alpha=alpha) if p < alpha else None, alpha=alpha)

    def exact_p(self, margin: float, *, alpha: float = 0.05) -> float | None:
        """Exact p of H0: the difference is at most -margin; None where the pairs that differ are many, or scores are not 0/1.

        Grouped rows count as n / design effect independent ones. alpha: what the p is held against.
        """
        return self._exact(self.fixed, self.broken, margin, gamma=gamma_of(alpha))

    def exact_worse_p(self, margin: float, *, alpha: float = 0.05) -> float | None:
        """Exact p of H0: the difference is at least -margin; the same test with fixed and broken exchanged, and a gamma that lets
        one slice of thousands fail."""
        return self._exact(self.broken, self.fixed, -margin, gamma=min(1e-6, gamma_of(alpha)))

    def _exact(self, fixed: int, broken: int, margin: float, *, gamma: float) -> float | None:
        if not self.binary or fixed + broken > EXACT_LIMIT or not self.n:
            return None
        n = max(1, round(self.n / self.effect))
        against = min(n, math.ceil(broken / self.effect - 1e-9))  # never fewer than were seen: a part of one is one
        return exact_non_inferior_p(min(n - against, round(fixed / self.effect)), against, n, margin, gamma=gamma)

    def better_p(self) -> float:
        """One-sided p of H0: the candidate is not better: exact McNemar. Grouped rows: counts over the design effect, and the score
        test at 0 with its Student's t, whichever shows less."""
        return self._better(self.above_p(0.0) if self.clustered or not self.binary else 0.0, self.fixed, self.broken)

    def worse_p(self) -> float:
        """One-sided p of H0: the candidate is not worse."""
        return self._better(self.below_p(0.0) if self.clustered or not self.binary else 0.0, self.broken, self.fixed)

    def _better(self, p: float, fixed: int, broken: int) -> float:
        return max(p, mcnemar_better_p(fixed / self.effect, broken / self.effect)) if self.binary else p

    def two_sided_p(self) -> float:
        """Two-sided p of H0: no difference."""
        return min(1.0, 2.0 * min(self.better_p(), self.worse_p()))

    def _mean(self, level: float) -> MeanTest:
        return bootstrap_mean(self.differences, self.groups, level=level)


def by_id(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Rows by item id: made once where many slices are paired with the same baseline."""
    return {row["id"]: row for row in rows}


def pair(
    baseline: Sequence[dict[str, Any]] | dict[str, dict[str, Any]], candidate: Sequence[dict[str, Any]], metric: str
) -> Paired:
    """Pair both sides by item id; an item that either side lost to infrastructure is left out."""
    before = baseline if isinstance(baseline, dict) else by_id(baseline)
    pairs = [
        (float(was), float(now), row)
        for row in candidate
        if (old := before.get(row["id"])) is not None
        and "infra_error" not in (old["outcome"], row["outcome"])
        and (was := score_of(old, metric)) is not None
        and (now := score_of(row, metric)) is not None
    ]
    counts = Counter((old, new) for old, new, _ in pairs)
    differences = tuple(new - old for old, new, _ in pairs)
    groups = tuple(clusters([row for _, _, row in pairs]))
    effect, df = design_effect(differences, groups) if pairs else (1.0, float("inf"))
    return Paired(
        n=len(pairs),
        binary=all(old in (0.0, 1.0) and new in (0.0, 1.0) for old, new in counts),
        fixed=counts[(0.0, 1.0)],
        broken=counts[(1.0, 0.0)],
        both_pass=counts[(1.0, 1.0)],
        both_fail=counts[(0.0, 0.0)],
        differences=differences,
        groups=groups,
        effect=effect,
        df=df,
    )


def lock(baseline: Reading, candidate: Reading, *, allowed: Sequence[str]) -> tuple[list[str], list[str]]:
    """Check that both readings are of the same thing: (differences that were allowed, things that one side does not know).

    Raises UserError, with what differs, unless it is among `allowed`.
    """
    for name in allowed:
        if name not in LOCKED:
            raise UserError(f"--allow-different knows no {name!r}", hint=nearest(name, list(LOCKED)))
    differing, unknown = [], []
    one, two = _locked(baseline.report), _locked(candidate.report)
    for name in LOCKED:
        if one[name] is None or two[name] is None:
            unknown.append(name)
        elif one[name] != two[name] and not (name == "template" and _same_but_for_the_day(baseline, candidate)):
            differing.append(name)
    before, now = (side.report["data"].get("questions_digest") for side in (baseline, candidate))
    # the same ids, other questions: told also of recorded outputs, whose prompts are not known
    if "data" not in differing and None not in (before, now) and before != now:
        differing.insert(0, "data")
    refused = [name for name in differing if name not in allowed]
    if refused:
        details = "; ".join(f"{name}: {_words(name, baseline.report, candidate.report)}" for name in refused)
        raise UserError(
            f"not comparable with the baseline {baseline.name!r}: {details}",
            hint=f"judge the baseline again with this task, or pass --allow-different {','.join(refused)}",
        )
    return differing, unknown


def other_repeats(metric: str, baseline: Reading, candidate: Reading) -> str | None:
    """What to say where a metric of k answers an item (pass@k, pass^k) has another k on the two sides; None else.

    Of answers that are right with probability p an item passes with 1 - (1 - p)^k or p^k: with another k it differs between
    equal models.
    """
    before, now = (reading.report["task"].get("repeats") for reading in (baseline, candidate))
    if metric not in REPEATED or before == now or None in (before, now):
        return None
    return f"not comparable: repeats: {metric} was of {before} answers an item, is of {now}"


def _same_but_for_the_day(baseline: Reading, candidate: Reading) -> bool:
    """Whether both were asked with one chat template that writes today's date, whose prompts differ from day to day."""
    one, two = (reading.report for reading in (baseline, candidate))
    dated = all((report.get("server") or {}).get("dated_template") for report in (one, two))
    return dated and one.get("template_digest") == two.get("template_digest") is not None


def _locked(report: dict[str, Any]) -> dict[str, Any]:
    """What must be equal; None where a reading does not know it (outputs recorded elsewhere)."""
    return {
        "data": report["data"].get("items_digest"),
        "prompts": report.get("prompt_digest"),
        "template": report.get("prompt_ids_digest"),
        "generation": report.get("generation"),
        "scorer": [report.get("scorer_version"), report["task"].get("digest")],
    }


def _words(name: str, one: dict[str, Any], two: dict[str, Any]) -> str:
    if name == "data" and one["data"].get("items_digest") == two["data"].get("items_digest"):
        return "the same ids and expected answers, other questions"
    if name == "data":
        return f"other items or other expected answers ({one['data']['n']} items then, {two['data']['n']} now)"
    if name == "generation":
        old, new = one["generation"], two["generation"]
        changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        return ", ".join(f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed)
    if name == "scorer":
        return "validators, extraction or scorer version"
    return {
        "prompts": "the messages sent differ",
        "template": "the prompts' token ids differ (chat template or tokenizer)",
    }[name]


def compare(
    baseline: Reading,
    candidate: Reading,
    *,
    alpha: float = 0.05,
    margins: dict[str, float] | None = None,
    allowed: Sequence[str] = (),
) -> dict[str, Any]:
    """The `comparison` of report.json: each metric's paired difference, flips with causes, slices, what was let through.

    Intervals are of level 1 - 2 alpha, so that they agree with the one-sided tests. margins: by metric, for
    `non_inferior_p`; 0.02 where not given. pass@k and pass^k of another k are left out. Raises UserError where not comparable.
    """
    differing, unknown = lock(baseline, candidate, allowed=allowed)
    primary = candidate.report["task"]["primary"]
    shared = [
        name
        for name in candidate.report["metrics"]
        if name in baseline.report["metrics"] and other_repeats(name, baseline, candidate) is None
    ]
    metrics = {}
    for name in shared:
        paired = pair(baseline.rows, candidate.rows, name)
        if paired.n or name == primary:
            metrics[name] = describe(paired, alpha=alpha, margin=(margins or {}).get(name, 0.02))
    if by_id(baseline.rows).keys().isdisjoint(row["id"] for row in candidate.rows):
        raise UserError("no item stands on both sides: nothing can be compared", where=baseline.name)
    flips = flips_of(baseline.rows, candidate.rows)
    return {
        "baseline": {
            "spec": baseline.report["target"]["spec"],
            "digest": baseline.digest,
            "name": baseline.name,
            "path": baseline.path,
            "metrics": baseline.report["metrics"],
            "operations": baseline.report.get("operations", {}),
        },
        "alpha": alpha,
        "level": 1.0 - 2.0 * alpha,
        "metrics": metrics,
        "flips": flips,
        "flip_causes": _causes(flips),
        "slices": compare_slices(baseline, candidate, primary, alpha=alpha),
        "allowed_differences": differing,
        "unknown": unknown,
    }


def describe(paired: Paired, *, alpha: float, margin: float) -> dict[str, Any]:
    """One metric's comparison as JSON."""
    interval = paired.interval(level=1.0 - 2.0 * alpha)
    return {
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "n": paired.n,
        "fixed": sum(d > 0 for d in paired.differences),
        "broken": sum(d < 0 for d in paired.differences),
        "both_pass": paired.both_pass,
        "both_fail": paired.both_fail,
        "mcnemar_p": paired.two_sided_p(),
        "non_inferior_p": paired.above_p(-margin),
        "margin": margin,
        "exact_non_inferior_p": paired.exact_p(margin, alpha=alpha),
        "test": ("tango" if paired.binary else "bootstrap") + (", clustered" if paired.clustered else ""),
        "design_effect": paired.effect,
        "spread": paired.spread,
    }


def flips_of(baseline: Sequence[dict[str, Any]], candidate: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items whose outcome changed between pass and anything else, broken ones first, with the failing side's cause."""
    before = by_id(baseline)
    found = []
    for row in candidate:
        old = before.get(row["id"])
        if old is None or "infra_error" in (old["outcome"], row["outcome"]):
            continue
        was, now = old["outcome"] == "pass", row["outcome"] == "pass"
        if was != now:
            failing = row if was else old
            cause = failing["cause"] or failing["outcome"]
            found.append(
                {
                    "id": row["id"],
                    "direction": "broken" if was else "fixed",
                    "cause": cause,
                    "reason": failing["reason"],
                }
            )
    return sorted(found, key=lambda flip: (flip["direction"], flip["cause"], flip["id"]))


def _causes(flips: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    return {
        side: dict(Counter(f["cause"] for f in flips if f["direction"] == side).most_common())
        for side in ("broken", "fixed")
    }


def slice_values(rows: Sequence[dict[str, Any]], key: str) -> dict[str, list[dict[str, Any]]]:
    """Rows by their value of a slice key; rows without one are left out."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if (value := row["tags"].get(key)) is not None:
            parts.setdefault(str(value), []).append(row)
    return dict(sorted(parts.items()))


def compare_slices(baseline: Reading, candidate: Reading, metric: str, *, alpha: float) -> list[dict[str, Any]]:
    """The metric's paired difference in every slice; `p_holm` is corrected over all of them."""
    found, before = [], by_id(baseline.rows)
    for key in candidate.report["task"]["slices"]:
        for value, rows in slice_values(candidate.rows, key).items():
            paired = pair(before, rows, metric)
            if paired.n:
                interval = paired.interval(level=1.0 - 2.0 * alpha)
                entry = {"key": key, "value": value, "metric": metric, "n": paired.n, "difference": interval.value}
                counts = {"low": interval.low, "high": interval.high, "fixed": paired.fixed, "broken": paired.broken}
                found.append({**entry, **counts, "p": paired.two_sided_p()})
    for entry, adjusted in zip(found, holm([float(entry["p"]) for entry in found]), strict=True):
        entry["p_holm"] = adjusted
    return found
