"""How many items an evaluation needs, and what a set of n items can show. One-sided alpha; power is 1 - beta."""

import functools
import math

from tunegate.core.distributions import binomial_sf, log_binomial, normal_quantile, normal_sf
from tunegate.core.statistics import GAMMA, exact_non_inferior_p, non_inferior_p

POWER = 0.8  # the chance to show what is true with the items that are asked for
# Of a strict alpha it may take a fiftieth at most: added whole to p, it would leave nothing to be shown.
SHARE_OF_ALPHA = 0.02
LARGEST = 10_000_000  # items; where it is reached the answer is "with no set one can make", which a gate tells as None
FEW = 1.25  # discordance over distance up to which pairs that differ are so few that the spread under the null hypothesis counts
SUMMED = 15.0  # pairs that differ, as expected, up to which a chance is summed over all tables (under a second)


def pairs_for_difference(discordance: float, distance: float, *, alpha: float, power: float = POWER) -> int:
    """Pairs needed to tell a paired difference from a bound that lies `distance` away.

    n = (z_alpha + z_beta)^2 (d - delta^2) / distance^2 with delta taken as 0 (Liu, Hsueh, Hsieh & Chen 2002, section
    4): at d = 0.05 and a margin of 0.02 it is 773. Where few pairs differ that is far too small (equal models of which no
    pair differs need 150 for a margin of 0.02, not 0): there it is at least their formula with the spread that the null
    hypothesis has, (z_alpha sqrt(v0) + z_beta sqrt(d))^2 / distance^2, v0 from the restricted estimate of Tango 1998, eq. 16,
    and at least the n at which no broken pair at all shows it. discordance: share of pairs that differ.
    """
    z_a, z_b = normal_quantile(1.0 - alpha), normal_quantile(power)
    plain = (z_a + z_b) ** 2 * discordance / distance**2
    few = min(discordance, FEW * distance)
    restricted = ((z_a * math.sqrt(_null_variance(few, distance)) + z_b * math.sqrt(few)) / distance) ** 2
    return min(LARGEST, math.ceil(max(plain, restricted, _without_any(distance, alpha))))


def pairs_for_mean(variance: float, distance: float, *, alpha: float, power: float = POWER) -> int:
    """The same for scores that are not 0/1: one pair more at the end of their scale must leave the difference shown too (core.
    bootstrap), which takes 1/n of the distance. n (distance - 1/n)^2 = n0 distance^2 gives n0 + 2 / distance pairs, about."""
    plain = pairs_for_difference(variance, distance, alpha=alpha, power=power)
    return min(LARGEST, plain + math.ceil(2.0 / distance))


def _null_variance(discordance: float, distance: float) -> float:
    """n times the variance of the difference under a true difference of -distance, when this share of pairs is seen to differ,
    as many either way (Tango 1998, eq. 16, divided by n)."""
    if distance >= 1.0:
        return discordance
    w = discordance + 2.0 * distance
    broken = (w + math.sqrt(max(0.0, w * w - 4.0 * discordance * distance * (1.0 + distance)))) / 4.0
    return max(discordance, 2.0 * broken - distance * (1.0 + distance))


def gamma_of(alpha: float) -> float:
    """The exact test's gamma where its p is held against `alpha`."""
    return min(GAMMA, SHARE_OF_ALPHA * alpha)


def _without_any(distance: float, alpha: float) -> float:
    """Pairs of which none is broken that exclude a share `distance` of broken ones: (1 - distance)^n + gamma < alpha."""
    return math.log(alpha - gamma_of(alpha)) / math.log1p(-distance) if distance < 1.0 else 1.0


def detectable_difference(n: int, discordance: float, *, alpha: float, power: float = POWER) -> float:
    """The smallest paired difference (or margin) that n pairs show with this power; the inverse of the above."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2.0
        enough = pairs_for_difference(discordance, middle, alpha=alpha, power=power) <= n
        low, high = (low, middle) if enough else (middle, high)
    return high


@functools.lru_cache(maxsize=4096)
def items_for_rate(rate: float, bound: float, *, alpha: float, power: float = POWER) -> int | None:
    """Items needed for the exact interval of a rate to clear `bound` when the true rate is `rate`; None if it is equal, or so near
    that it would take more than `LARGEST`.

    Normal approximation (Fleiss, Levin & Paik 2003, eq. 2.6), then raised until the exact test has the power.
    """
    if rate == bound:
        return None
    z_a, z_b = normal_quantile(1.0 - alpha), normal_quantile(power)
    root = z_a * math.sqrt(bound * (1.0 - bound)) + z_b * math.sqrt(rate * (1.0 - rate))
    n = max(1, math.ceil((root / (rate - bound)) ** 2))
    while n < LARGEST and _exact_power(rate, bound, n, alpha) < power:
        n += max(1, n // 50)
    return n if n < LARGEST else None


def _exact_power(rate: float, bound: float, n: int, alpha: float) -> float:
    """Chance that the exact one-sided interval of n items of this rate lies beyond `bound`."""
    if rate < bound:
        rate, bound = 1.0 - rate, 1.0 - bound
    low, high = 0, n + 1  # the fewest right ones whose tail under the bound is below alpha
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_sf(middle, n, bound) < alpha else (middle + 1, high)
    return binomial_sf(low, n, rate) if low <= n else 0.0


def power_of_margin(n: int, discordance: float, margin: float, *, alpha: float) -> float:
    """Chance that n pairs of equal models show non-inferiority by `margin`.

    From the n on at which pairs that are all alike show it, the power with which `pairs_for_difference` gives n (normal
    approximation), so that the items which that asks for have the power asked for. Below, where some pairs must be fixed, that is
    far off where few differ, and the chance is summed over all tables.
    """
    if n < _without_any(margin, alpha) and n * discordance <= SUMMED:
        return _summed_power(n, discordance, margin, alpha)
    z = normal_quantile(1.0 - alpha)
    few = min(discordance, FEW * margin)
    missing = z * math.sqrt(_null_variance(few, margin)) - margin * math.sqrt(n)
    restricted = normal_sf(missing / math.sqrt(few)) if few > 0 else float(missing < 0)
    return min(restricted, normal_sf(z - margin * math.sqrt(n / discordance)) if discordance > 0 else 1.0)


def _summed_power(n: int, discordance: float, margin: float, alpha: float) -> float:
    """The same chance exactly: the trinomial probabilities of all (fixed, broken) that a gate's two tests let pass."""
    broken_p, total, fixed = discordance / 2.0, 0.0, 0
    if broken_p == 0.0:
        return 0.0
    for broken in range(n + 1):
        mass = math.exp(log_binomial(n, broken) + broken * math.log(broken_p) + (n - broken) * math.log1p(-broken_p))
        if mass > 1e-4:
            while fixed <= n - broken and not _shows(fixed, broken, n, margin, alpha):
                fixed += 1
            total += mass * binomial_sf(fixed, n - broken, broken_p / (1.0 - broken_p))
    return total


def _shows(fixed: int, broken: int, n: int, margin: float, alpha: float) -> bool:
    """Whether n pairs of which so many differ exclude a drop of `margin`, as a gate decides it."""
    if non_inferior_p(fixed, broken, n, margin) >= alpha:
        return False
    return exact_non_inferior_p(fixed, broken, n, margin, gamma=gamma_of(alpha)) < alpha
