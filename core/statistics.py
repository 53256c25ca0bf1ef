"""Intervals, paired tests and power for scores of models.

In a pair (baseline, candidate) of the same item, b counts the items fixed (wrong before, right now), c those broken,
n all pairs; the difference is candidate minus baseline, (b - c) / n. alpha is one-sided in tests; an interval of
level 1 - 2 alpha leaves alpha on each side, so that a test and its interval agree.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from tunegate.core.distributions import (
    beta_cdf,
    binomial_cdf,
    binomial_sf,
    log_binomial,
    normal_quantile,
    solve,
    student_quantile,
    student_sf,
)

PERCENTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}  # of latencies, wherever they are told
UNSEEN = 2.0  # clusters that share their fate, taken as seen before any was
GAMMA = (
    0.001  # what the exact test adds to its p for not searching the whole range of a nuisance rate (Berger & Boos 1994)
)


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with its interval. low or high is None where the data set no bound on that side."""

    value: float
    low: float | None
    high: float | None
    n: int


def wilson(passed: float, n: float, *, level: float = 0.95) -> Interval:
    """Score interval of a rate (Wilson 1927, eq. 8 of Brown, Cai & DasGupta 2001)."""
    if n <= 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    z2 = normal_quantile((1.0 + level) / 2.0) ** 2
    p = passed / n
    centre = (p + z2 / (2.0 * n)) / (1.0 + z2 / n)
    half = math.sqrt(z2 * (p * (1.0 - p) / n + z2 / (4.0 * n * n))) / (1.0 + z2 / n)
    low = 0.0 if passed <= 0 else max(0.0, centre - half)
    high = 1.0 if passed >= n else min(1.0, centre + half)
    return Interval(value=p, low=low, high=high, n=round(n))


def clopper_pearson(passed: float, n: float, *, level: float) -> Interval:
    """Exact interval of a rate (Clopper & Pearson 1934). Real arguments are allowed: effective counts of clustered rows
    (Korn & Graubard 1998)."""
    if n <= 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    tail = (1.0 - level) / 2.0
    low = 0.0 if passed <= 0 else solve(lambda p: tail - beta_cdf(p, passed, n - passed + 1.0), 0.0, 1.0)
    high = 1.0 if passed >= n else solve(lambda p: 1.0 - beta_cdf(p, passed + 1.0, n - passed) - tail, 0.0, 1.0)
    return Interval(value=passed / n, low=low, high=high, n=round(n))


def mcnemar_better_p(b: float, c: float) -> float:
    """One-sided p of the exact McNemar test that the candidate is better (under equality b ~ Bin(b + c, 1/2)), also for counts
    that are no whole numbers: clustered rows count as so many independent ones, their binomial tail read off the beta
    distribution (Korn & Graubard 1998, for a rate)."""
    return 1.0 if b <= 0.0 else beta_cdf(0.5, b, c + 1.0)


def tango_statistic(b: float, c: float, n: float, difference: float) -> float:
    """Score statistic of H0: the true difference is `difference` (Tango 1998, Statistics in Medicine 17, eq. 13-16)."""
    w = b + c - difference * (2.0 * n - b + c)
    p21 = (w + math.sqrt(max(0.0, w * w + 8.0 * n * c * difference * (1.0 - difference)))) / (4.0 * n)
    variance = n * (2.0 * p21 + difference * (1.0 - difference))
    distance = b - c - n * difference
    if variance <= 1e-15 * n:
        return 0.0 if abs(distance) < 1e-12 * n else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def tango_interval(
    b: int, c: int, n: int, *, level: float, design_effect: float = 1.0, df: float = math.inf
) -> Interval:
    """Interval of the paired difference: the values that Tango's test does not reject.

    design_effect, df: for rows in clusters, the statistic is divided by the root of the design effect and read on
    Student's t with `design_effect`'s degrees of freedom (Rao & Scott 1992; Yang, Sun & Hardin 2012 for matched pairs).
    """
    if n == 0:
        return Interval(value=0.0, low=-1.0, high=1.0, n=0)
    bound = student_quantile((1.0 + level) / 2.0, df) * math.sqrt(design_effect)
    value = (b - c) / n
    low = solve(lambda d: tango_statistic(b, c, n, d) - bound, -1.0, value)
    high = solve(lambda d: tango_statistic(b, c, n, d) + bound, value, 1.0)
    return Interval(value=value, low=low, high=high, n=n)


def non_inferior_p(b: int, c: int, n: int, margin: float, *, design_effect: float = 1.0, df: float = math.inf) -> float:
    """One-sided p of H0: difference <= -margin (Tango 1998). With margin 0 it is McNemar's score test."""
    if n == 0:
        return 1.0
    return student_sf(tango_statistic(b, c, n, -margin) / math.sqrt(design_effect), df)


def exact_non_inferior_p(b: int, c: int, n: int, margin: float, *, gamma: float = GAMMA) -> float:
    """Exact unconditional p of the same hypothesis, for few discordant pairs, where the score test errs too often. A margin
    below 0 asks for that much better: with b and c exchanged that is the p of "worse by more than the margin".

    The largest P(T >= T observed) over the probability of a broken item, searched within its 1 - gamma exact interval,
    plus gamma (Berger & Boos 1994). Cost grows with b + c: meant for b + c up to about a hundred.
    """
    if n == 0:
        return 1.0
    observed = tango_statistic(b, c, n, -margin)
    box = clopper_pearson(c, n, level=1.0 - gamma)
    assert box.low is not None
    assert box.high is not None
    high = min((1.0 + margin) / 2.0, max(margin, box.high))
    low = min(high, max(margin, box.low))
    grid = [low + (high - low) * (i / 40.0) ** 2 for i in range(41)]
    least = _least_fixed(n, margin, observed, grid[-1])
    return min(1.0, max(_tail_mass(n, q, q - margin, least) for q in grid) + gamma)


def _least_fixed(n: int, margin: float, observed: float, largest: float) -> list[int]:
    """For each count of broken items, the fewest fixed ones with which the statistic is at least `observed`."""
    least, fixed = [], 0
    for broken in range(min(n, math.ceil(n * largest + 9.0 * math.sqrt(n * largest) + 10.0)) + 1):
        while fixed <= n - broken and tango_statistic(fixed, broken, n, -margin) < observed - 1e-10:
            fixed += 1
        least.append(fixed)
    return least


def _tail_mass(n: int, broken_p: float, fixed_p: float, least: list[int]) -> float:
    """P(fixed >= least[broken]) of a trinomial with these two probabilities."""
    total = 0.0
    share = min(1.0, max(0.0, fixed_p / (1.0 - broken_p))) if broken_p < 1.0 else 0.0
    for broken, fixed in enumerate(least if broken_p > 0.0 else least[:1]):
        log_mass = log_binomial(n, broken) + (broken * math.log(broken_p) if broken else 0.0)
        if broken < n:
            log_mass += (n - broken) * math.log1p(-broken_p) if broken_p < 1.0 else -math.inf
        if log_mass > -32.0:
            total += math.exp(log_mass) * binomial_sf(fixed, n - broken, share)
    return total


def design_effect(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """(variance of the mean with clusters / without, degrees of freedom), at least 1 each.

    The larger of what the clusters' sums show (`clustered_se`) and 1 + rho (sum s^2 / n - 1) with the correlation rho that is
    seen within them (Kish 1965, section 5.4): where few clusters hold all that varies, and these happen to be small ones, the
    sums alone show too little. Where the values do not vary at all rho cannot be seen: it is taken as 1, the worst; where they
    do in few clusters it is seen badly, and `UNSEEN` clusters of rho 1 are counted with those in which any value is another than
    the commonest: without, one or two deviating rows let a gate pass where none did not (benchmarks/gate_error_rates.py).
    Degrees of freedom: `effective_clusters` - 1, which is clusters - 1 where all are of one size.
    """
    sums: dict[Hashable, float] = {}
    sizes: dict[Hashable, int] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
        sizes[cluster] = sizes.get(cluster, 0) + 1
    n = len(values)
    if len(sizes) == n:
        return 1.0, math.inf
    worst = sum(size * size for size in sizes.values()) / n
    df = max(1.0, effective_clusters(list(sizes.values())) - 1.0)
    mean = sum(values) / n
    spread = sum((v - mean) ** 2 for v in values)
    if spread == 0.0 or len(sizes) < 2:
        return worst, df
    between = sum(sizes[cluster] * (sums[cluster] / sizes[cluster] - mean) ** 2 for cluster in sizes)
    rho = _correlation(
        between / (len(sizes) - 1.0), (spread - between) / (n - len(sizes)), (n - worst) / (len(sizes) - 1.0)
    )
    commonest = Counter(values).most_common(1)[0][0]
    deviating = len({cluster for value, cluster in zip(values, clusters, strict=True) if value != commonest})
    rho += (1.0 - rho) * UNSEEN / (UNSEEN + deviating)
    return max(1.0, clustered_se(values, clusters) ** 2 / (spread / (n * n)), 1.0 + rho * (worst - 1.0)), df


def _correlation(between: float, within: float, size: float) -> float:
    """Correlation of values of one cluster, 0 to 1, from the mean squares between and within clusters of that (effective) size
    (one-way analysis of variance; Donner & Koval 1980, eq. 2.2)."""
    total = between + (size - 1.0) * within
    return max(0.0, min(1.0, (between - within) / total)) if total > 0.0 else 1.0


def effective_clusters(sizes: Sequence[int]) -> float:
    """As many clusters of one size as tell the variance equally well: (sum s^2)^2 / sum s^4.

    A cluster whose rows share their fate adds a square to the variance that grows with its size s squared, and Satterthwaite
    (1946) gives a sum of such squares (sum w)^2 / sum w^2 degrees of freedom, w = s^2. Many small clusters beside a large one
    are then few, as they are to a t test (Carter, Schnepel & Steigerwald 2017).
    """
    squares = [float(size * size) for size in sizes]
    return math.fsum(squares) ** 2 / math.fsum(square * square for square in squares)


def clustered_se(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Standard error of the mean when rows of one cluster are not independent (Miller 2024, arXiv 2411.00640, eq. 4),
    with the C / (C - 1) correction for few clusters. With every row its own cluster it is the usual one."""
    n = max(1, len(values))
    mean = math.fsum(values) / n
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value - mean
    count = len(sums)
    if count < 2:
        return math.inf
    return math.sqrt(count / (count - 1.0) * math.fsum(s * s for s in sums.values())) / n


def quantile(ordered: Sequence[float], probability: float) -> float:
    """The smallest of the sorted values at or above the share `probability` (Hyndman & Fan 1996, type 1)."""
    return ordered[min(len(ordered) - 1, max(0, math.ceil(probability * len(ordered)) - 1))]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given (Holm 1979): reject where the adjusted p is under alpha."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def percentile(
    values: Sequence[float], probability: float, *, level: float, effective_n: float | None = None
) -> Interval:
    """A percentile and its distribution-free interval from order statistics (David & Nagaraja 2003, section 7.1).

    value: the smallest observation at or above the share `probability`. A bound is None where n is too small for one:
    p95 has no upper bound at 90 % under 59 values. effective_n: as many independent values as these, in clusters, stand for; the
    ranks are of so many, each of them n / effective_n of the values, and a bound is the outermost of its own (for copies of
    independent values that is their exact interval; for other clusters Woodruff 1952, whose variance has the same design effect).
    """
    ordered, n = sorted(values), len(values)
    if n == 0:
        return Interval(value=math.nan, low=None, high=None, n=0)
    counted = n if effective_n is None else max(1, min(n, math.floor(effective_n + 1e-9)))
    low, high = _percentile_ranks(counted, probability, level)
    each = n / counted
    return Interval(
        value=quantile(ordered, probability),
        low=None if low is None else ordered[math.floor((low - 1) * each + 1e-9)],
        high=None if high is None else ordered[math.ceil(high * each - 1e-9) - 1],
        n=n,
    )


def percentile_with_late(
    values: Sequence[float], waited: Sequence[float], probability: float, *, level: float
) -> Interval:
    """The same of values and of late ones, of which only what they were `waited` for is known: at least that they would have been
    (censored on the right)."""
    return censored(percentile([*values, *waited], probability, level=level), waited)


def censored(interval: Interval, waited: Sequence[float]) -> Interval:
    """The interval of a percentile without its upper bound, where that would be of one that was only `waited` for."""
    known = interval.high is None or interval.high < min(waited, default=math.inf)
    return interval if known else replace(interval, high=None)


@functools.lru_cache(maxsize=4096)
def _percentile_ranks(n: int, probability: float, level: float) -> tuple[int | None, int | None]:
    tail, ranks = (1.0 - level) / 2.0, range(1, n + 1)
    low = _last(ranks, lambda r: binomial_sf(r, n, probability) >= 1.0 - tail)
    high = _first(ranks, lambda r: binomial_cdf(r - 1, n, probability) >= 1.0 - tail)
    return low, high


def _first(ranks: range, holds: Callable[[int], bool]) -> int | None:
    """The first rank from which a monotone condition holds."""
    low, high = 0, len(ranks)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(ranks[middle]) else (middle + 1, high)
    return ranks[low] if low < len(ranks) else None


def _last(ranks: range, holds: Callable[[int], bool]) -> int | None:
    """The last rank up to which a monotone condition holds."""
    beyond = _first(ranks, lambda r: not holds(r))
    last = ranks[-1] if beyond is None else beyond - 1
    return last if last >= ranks[0] else None
