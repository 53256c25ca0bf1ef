"""Means of scores that are not 0/1, or of their paired differences, with intervals and p-values that agree.

alpha is one-sided in tests; an interval of level 1 - 2 alpha leaves alpha on each side. Scores lie on a scale with two ends.
"""

import bisect
import functools
import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.distributions import student_quantile, student_sf
from tunegate.core.statistics import Interval, clustered_se, effective_clusters

KEPT_DRAWS = 1_000_000  # clusters times draws up to which a set of resamples is made at once, and kept
BOOTSTRAP_LIMIT = 5000  # above this many clusters the central limit theorem holds and resampling adds only noise
TOLD_BY = 20  # resamples that must lie beyond a tail for their share to tell it, within about a fifth


@dataclass(frozen=True, kw_only=True)
class _Side:
    """What lies below a mean; of what lies above it all is mirrored. se: 0 where all scores are equal. draws: sorted t*.

    end: of the scale. guard_mean, guard_se, guard_df: with one more cluster, at that end. count: clusters, in effect.
    """

    mean: float
    se: float
    df: float
    draws: tuple[float, ...]
    count: float
    end: float
    guard_mean: float
    guard_se: float
    guard_df: float

    def p(self, value: float) -> float:
        """One-sided p of H0: the mean is at most `value`."""
        if math.isinf(self.se):
            return 1.0
        unseen = self._unseen_p(value)
        if self.se == 0.0:
            return unseen
        guard = student_sf((self.guard_mean - value) / self.guard_se, self.guard_df)
        return max(self._resampled_p((self.mean - value) / self.se), guard, unseen)

    def bound(self, tail: float) -> float | None:
        """The least value whose p is not under `tail`; None where the scores tell none."""
        if math.isinf(self.se):
            return None
        unseen: float = self.mean - (1.0 - tail ** (1.0 / self.count)) * (self.mean - self.end)
        if self.se == 0.0:
            return unseen
        guard = self.guard_mean - student_quantile(1.0 - tail, self.guard_df) * self.guard_se
        return max(self.end, min(self.mean - self._resampled_quantile(tail) * self.se, guard, unseen))

    def _unseen_p(self, value: float) -> float:
        distance, room = self.mean - value, self.mean - self.end
        if distance <= 0.0:
            return 1.0
        return (1.0 - min(1.0, distance / room)) ** self.count if room > 0.0 else 0.0

    def _resampled_p(self, t: float) -> float:
        student = student_sf(t, self.df)
        if not self.draws:
            return student
        beyond, told = len(self.draws) - bisect.bisect_left(self.draws, t), TOLD_BY / len(self.draws)
        p = (1 + beyond) / (1 + len(self.draws))
        return p if p >= told else max(p if beyond else 0.0, min(student, told))

    def _resampled_quantile(self, tail: float) -> float:
        student = student_quantile(1.0 - tail, self.df)
        if not self.draws:
            return student
        beyond = max(0, math.ceil(tail * (1 + len(self.draws)) - 1e-9) - 2)  # as many draws keep p under the tail
        drawn = self.draws[len(self.draws) - 1 - beyond]
        return max(drawn, student) if tail <= TOLD_BY / len(self.draws) else drawn


@dataclass(frozen=True, kw_only=True)
class MeanTest:
    """A mean with its interval, and the one-sided p-values that it is above and below each asked-for value.

    draws: sorted t*. se: 0 where all scores are equal; then the chance of meeting no other score decides.
    """

    interval: Interval
    draws: tuple[float, ...]
    se: float
    df: float
    below: _Side
    above: _Side

    def p_above(self, value: float) -> float:
        """One-sided p of H0: the mean is at most `value`."""
        return self.below.p(value)

    def p_below(self, value: float) -> float:
        """One-sided p of H0: the mean is at least `value`."""
        return self.above.p(-value)


def bootstrap_mean(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    *,
    level: float,
    draws: int = 4000,
    seed: int = 0,
    lowest: float = -1.0,
    highest: float = 1.0,
) -> MeanTest:
    """Mean of scores that are not 0/1, or of their paired differences, by the studentised bootstrap over clusters.

    Each draw resamples whole clusters and gives t* = (mean* - mean) / se*; the interval is
    mean - t*[1 - a/2] se .. mean - t*[a/2] se, on the scale (Efron & Tibshirani 1993, section 12.5). A tail that fewer than
    `TOLD_BY` draws lie beyond takes the wider of them and Student's t; above `BOOTSTRAP_LIMIT` clusters Student's t does it
    alone. The seed is fixed: the same scores give the same interval.

    lowest, highest: of the scores' scale. Resamples hold only what was seen, and rare scores at an end of the scale (one
    answer of fifty that cannot be read) are often not among it. So a side's bound lies no nearer than
    - Student's t gives with one more cluster at that end (what one unseen observation can do to an estimate: the sensitivity
      curve of Tukey 1977, chapter 20), and
    - the exact bound of a share that no case in k shows: with a share q of the clusters at the end, k of them show none with
      probability (1 - q)^k, so that q is at most 1 - alpha^(1/k) (Clopper & Pearson 1934); the only one where all scores are
      equal, because then there is nothing to resample. Clusters of uneven size count as (sum s)^2 / sum s^2 (Kish 1965).
    """
    groups = list(range(len(values))) if clusters is None else list(clusters)
    mean, se = math.fsum(values) / max(1, len(values)), clustered_se(values, groups)
    sizes = list(Counter(groups).values())
    df = max(1.0, effective_clusters(sizes) - 1.0) if sizes else 1.0
    studentised: tuple[float, ...] = ()
    mirrored: tuple[float, ...] = ()
    if se < 1e-12:  # digits that rounding leaves are no spread
        se = 0.0
    elif len(sizes) <= BOOTSTRAP_LIMIT and not math.isinf(se):
        studentised, mirrored = _studentised_draws(tuple(values), tuple(groups), draws, seed)
    below = _side(values, groups, sizes, end=lowest, mean=mean, se=se, df=df, draws=studentised)
    above = _side([-v for v in values], groups, sizes, end=-highest, mean=-mean, se=se, df=df, draws=mirrored)
    tail = (1.0 - level) / 2.0
    low, high = below.bound(tail), above.bound(tail)
    interval = Interval(value=mean, low=low, high=None if high is None else -high, n=len(values))
    return MeanTest(interval=interval, draws=studentised, se=se, df=df, below=below, above=above)


def _side(
    values: Sequence[float],
    groups: Sequence[Hashable],
    sizes: Sequence[int],
    *,
    end: float,
    mean: float,
    se: float,
    df: float,
    draws: tuple[float, ...],
) -> _Side:
    """One side, with its guard: a cluster more, of as many rows as the cluster has that a row is in, on average."""
    n, squares = max(1, len(values)), max(1, sum(size * size for size in sizes))
    more = round(squares / n)
    guarded = [*values, *[end] * more]
    return _Side(
        mean=mean,
        se=se,
        df=df,
        draws=draws,
        count=n * n / squares,
        end=end,
        guard_mean=math.fsum(guarded) / len(guarded),
        guard_se=clustered_se(guarded, [*groups, *[object()] * more]),
        guard_df=df + 1.0,
    )


@functools.lru_cache(maxsize=8)  # a gate asks for several levels of the same scores, one after the other
def _studentised_draws(
    values: tuple[float, ...], groups: tuple[Hashable, ...], draws: int, seed: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Sorted t* of `draws` resamples of whole clusters, and sorted -t*.

    A draw is how often it takes each cluster, so that its sums are one product of matrices: with r the clusters' sums of
    deviations from the mean, s their sizes and d the draw's own mean deviation, its residuals are r - d s.
    """
    import numpy as np

    names = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    member = np.array([names[g] for g in groups])
    sizes = np.bincount(member).astype(float)
    scores = np.asarray(values, dtype=float)
    deviations = np.bincount(member, weights=scores - scores.mean())
    columns = np.stack([deviations, sizes, deviations**2, deviations * sizes, sizes**2], axis=1)
    count = len(names)
    found = []
    for taken in _resamples(count, draws, seed):
        total, size, squares, crossed, sizes2 = (taken.astype(float) @ columns).T
        off = total / size
        residual2 = np.maximum(squares - 2.0 * off * crossed + off**2 * sizes2, 0.0)
        se = np.sqrt(count / (count - 1.0) * residual2) / size
        # A resample without spread says nothing about the tails on its own: it counts as extreme on its side.
        found.append(off / np.maximum(se, 1e-9))
    ordered = np.sort(np.clip(np.concatenate(found), -1e6, 1e6))
    return tuple(ordered.tolist()), tuple((-ordered[::-1]).tolist())


def _resamples(count: int, draws: int, seed: int) -> Iterator[Any]:
    """How often each of `count` clusters is taken in each draw, in blocks of draws: [draws of the block, count], int."""
    if draws * count <= KEPT_DRAWS:
        yield _kept_resamples(count, draws, seed)
        return
    yield from _drawn(count, draws, seed)


@functools.lru_cache(maxsize=64)  # slices of one size share their draws: thousands of slices have a few dozen sizes
def _kept_resamples(count: int, draws: int, seed: int) -> Any:
    import numpy as np

    (taken,) = _drawn(count, draws, seed)
    return taken.astype(np.uint8 if count < 256 else np.uint32)


def _drawn(count: int, draws: int, seed: int) -> Iterator[Any]:
    import numpy as np

    generator = np.random.default_rng(seed)
    block = max(1, KEPT_DRAWS // count)
    for start in range(0, draws, block):
        n = min(block, draws - start)
        chosen = generator.integers(0, count, size=(n, count)) + count * np.arange(n)[:, None]
        yield np.bincount(chosen.ravel(), minlength=n * count).reshape(n, count)
