"""Tail probabilities and quantiles of the normal, Student's t and binomial distributions, in plain Python.

The incomplete beta function is Lentz's continued fraction (Press et al., Numerical Recipes, 3rd ed., section 6.4);
relative error below 1e-12 where a and b are under a million. scipy is the oracle in the tests.
"""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300


def normal_quantile(probability: float) -> float:
    """z with P(Z <= z) = probability."""
    return _NORMAL.inv_cdf(probability)


def normal_sf(z: float) -> float:
    """P(Z > z), accurate in the far tail; z may be infinite."""
    return 0.5 * math.erfc(z / math.sqrt(2.0))


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0.0 or x >= 1.0:
        return 0.0 if x <= 0.0 else 1.0
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1.0) / (a + b + 2.0):
        return front * _continued_fraction(x, a, b) / a
    return 1.0 - front * _continued_fraction(1.0 - x, b, a) / b


def _continued_fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1.0 / _away_from_zero(1.0 - (a + b) * x / (a + 1.0))
    total = d
    for m in range(1, 20_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 / _away_from_zero(1.0 + numerator * d)
            c = _away_from_zero(1.0 + numerator / c)
            total *= d * c
        if abs(d * c - 1.0) < 1e-15:
            break
    return total


def _away_from_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY


def log_binomial(n: int, k: int) -> float:
    """log of n over k."""
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def binomial_sf(k: int, n: int, p: float) -> float:
    """P(X >= k) for X ~ Bin(n, p)."""
    if k <= 0:
        return 1.0
    return 0.0 if k > n else beta_cdf(p, k, n - k + 1)


def binomial_cdf(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Bin(n, p)."""
    if k >= n:
        return 1.0
    return 0.0 if k < 0 else beta_cdf(1.0 - p, n - k, k + 1)


def student_sf(t: float, df: float) -> float:
    """P(T > t) for Student's t with df degrees of freedom; infinite df is the normal."""
    if math.isinf(df) or math.isinf(t):
        return normal_sf(t)
    tail = 0.5 * beta_cdf(df / (df + t * t), df / 2.0, 0.5)
    return tail if t >= 0 else 1.0 - tail


@lru_cache(maxsize=1024)
def student_quantile(probability: float, df: float) -> float:
    """t with P(T <= t) = probability."""
    if math.isinf(df):
        return normal_quantile(probability)
    if probability < 0.5:
        return -student_quantile(1.0 - probability, df)
    high = 1.0
    while student_sf(high, df) > 1.0 - probability:
        high *= 2.0
    return solve(lambda t: student_sf(t, df) - (1.0 - probability), 0.0, high)


def solve(decreasing: Callable[[float], float], low: float, high: float, tolerance: float = 1e-12) -> float:
    """Root of a function that does not increase on [low, high], by bisection; an end where there is no crossing."""
    for _ in range(200):
        middle = (low + high) / 2.0
        if decreasing(middle) > 0.0:
            low = middle
        else:
            high = middle
        if high - low <= tolerance * max(1.0, abs(low), abs(high)):
            break
    return (low + high) / 2.0
