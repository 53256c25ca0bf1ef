"""How many items an evaluation needs, and what a set of n items can show. One-sided alpha; power is 1 - beta."""

import functools
import math

from tunegate.core.distributions import binomial_cdf, binomial_sf, normal_quantile, normal_sf

LARGEST = 10_000_000  # items; beyond it the answer is "not with any set one can make"


def pairs_for_difference(discordance: float, distance: float, *, alpha: float, power: float = 0.8) -> int:
    """Pairs needed to tell a paired difference from a bound that lies `distance` away.

    n = (z_alpha + z_beta)^2 (d - delta^2) / distance^2 with delta taken as 0 (Liu, Hsueh, Hsieh & Chen 2002, section
    4): at d = 0.05 and a margin of 0.02 it is 773. discordance: share of pairs that differ.
    """
    z = normal_quantile(1.0 - alpha) + normal_quantile(power)
    return min(LARGEST, math.ceil(z * z * discordance / (distance * distance)))


def detectable_difference(n: int, discordance: float, *, alpha: float, power: float = 0.8) -> float:
    """The smallest paired difference (or margin) that n pairs show with this power; the inverse of the above."""
    z = normal_quantile(1.0 - alpha) + normal_quantile(power)
    return z * math.sqrt(discordance / n)


@functools.lru_cache(maxsize=4096)
def items_for_rate(rate: float, bound: float, *, alpha: float, power: float = 0.8) -> int | None:
    """Items needed for the exact interval of a rate to clear `bound` when the true rate is `rate`; None if it is equal.

    Normal approximation (Fleiss, Levin & Paik 2003, eq. 2.6), then raised until the exact interval of the expected count
    clears the bound.
    """
    if rate == bound:
        return None
    z_a, z_b = normal_quantile(1.0 - alpha), normal_quantile(power)
    root = z_a * math.sqrt(bound * (1.0 - bound)) + z_b * math.sqrt(rate * (1.0 - rate))
    n = max(1, math.ceil((root / (rate - bound)) ** 2))
    while n < LARGEST and not _clears(rate, bound, n, alpha):
        n += max(1, n // 50)
    return min(n, LARGEST)


def _clears(rate: float, bound: float, n: int, alpha: float) -> bool:
    """Whether the exact interval of the expected count lies beyond `bound`: whether the bound's own tail is under alpha."""
    passed = math.floor(rate * n + 0.5)
    return (binomial_sf(passed, n, bound) if rate > bound else binomial_cdf(passed, n, bound)) < alpha


def miller_n(
    omega2: float,
    sigma2_a: float,
    sigma2_b: float,
    *,
    difference: float,
    k_a: float,
    k_b: float,
    alpha: float,
    power: float,
) -> int:
    """Questions needed to detect `difference`, two-sided (Miller 2024, arXiv 2411.00640, eq. 9).

    omega2: variance over questions of the difference of expected scores. sigma2: mean variance of a question's score
    over resamples; k: resamples.
    """
    z = normal_quantile(1.0 - alpha / 2.0) + normal_quantile(power)
    return math.ceil(z * z * (omega2 + sigma2_a / k_a + sigma2_b / k_b) / difference**2)


def power_of_margin(n: int, discordance: float, margin: float, *, alpha: float) -> float:
    """Chance that n pairs of equal models show non-inferiority by `margin` (normal approximation)."""
    return normal_sf(normal_quantile(1.0 - alpha) - margin * math.sqrt(n / discordance))
