"""The error of each class of estimate, as back-testing found it, and the intervals that follow from it."""

import math
from dataclasses import dataclass
from functools import cache

from tunegate.advisor.facts import table

Estimate = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class ClassError:
    """What back-testing recorded for one class.

    n: rows behind it. mape, bias: mean absolute and mean relative error. half_width: half width of the 90 % interval
    in log units (measured / predicted lies within exp(+-half_width)). bound: the MAPE above which `backtest` fails.
    """

    n: int
    mape: float
    median_ape: float
    bias: float
    half_width: float
    bound: float


@cache
def class_errors() -> dict[str, ClassError]:
    """Recorded errors by class (`advisor/tables/errors.csv`, written by benchmarks/advisor_backtest.py --record)."""
    return {
        row["class"]: ClassError(n=int(row["n"]), **{k: float(v) for k, v in row.items() if k not in ("class", "n")})
        for row in table("errors")
    }


def half_width(values: list[float], level: float = 0.92) -> float:
    """The `level` quantile of |log(measured / predicted)|: a little above 0.9, since the constants saw these rows;
    wider where rows are few."""
    ordered = sorted(abs(v) for v in values)
    if not ordered:
        return math.log(2.0)
    position = level * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    spread = ordered[low] + (position - low) * (ordered[high] - ordered[low])
    return max(0.02, spread * (1.0 + 4.0 / len(ordered)))


def interval(value: float, kind: str, *, widen: float = 1.0, beside: float = 0.0) -> tuple[float, float]:
    """(low, high) of the 90 % interval of a class; `widen` multiplies its log half width where we extrapolate. beside: half
    width in log units of something else that the value hangs on (a price); independent errors add in quadrature."""
    error = class_errors().get(kind)
    spread = math.exp(math.hypot(widen * (error.half_width if error else math.log(2.0)), beside))
    return value / spread, value * spread


def estimate(value: float, kind: str, *, widen: float = 1.0, beside: float = 0.0, digits: int = 4) -> Estimate:
    """The contract's estimate object: value, interval, where it is from, rows behind the error."""
    low, high = interval(value, kind, widen=widen, beside=beside)
    error = class_errors().get(kind)
    return {
        "value": significant(value, digits),
        "low": significant(low, digits),
        "high": significant(high, digits),
        "source": "computed",
        "n": error.n if error else 0,
    }


def significant(value: float, digits: int = 4) -> float:
    """A number rounded to so many significant digits."""
    return float(f"{value:.{digits}g}")


# No CPU row is in the collection: intervals of speeds there are this much wider, in log units: a factor of 4.1 either way
# for time per token, 15 for training speed.
CPU_WIDEN = 8.0


def spoken(value: float, unit: str, kind: str, *, widen: float = 1.0) -> str:
    """For people: `18.7 GB ± 9 %, n = 65`; where we extrapolate, the interval and that it does."""
    error = class_errors().get(kind)
    if widen > 1.0:
        low, high = interval(value, kind, widen=widen)
        return f"{value:.3g} {unit} ({significant(low, 2):g} to {significant(high, 2):g}, extrapolated)"
    if error is None:
        return f"{value:.3g} {unit} (error unknown)"
    return f"{value:.3g} {unit} ± {100 * (math.exp(error.half_width) - 1):.0f} %, n = {error.n}"
