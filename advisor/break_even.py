"""Self-hosting against an API: what each costs at so many calls a day, and where the two meet, if anywhere.

Machines are billed by the hour whether they are busy or not; replicas follow the busiest hour; training and engineering
are paid off over a stated time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunegate.advisor.prices import ApiPrice
from tunegate.advisor.serving_plan import HOURS_PER_MONTH

ENGINEER_USD_H = 100.0
SETUP_HOURS = 40.0  # to train, gate and deploy the first time
UPKEEP_HOURS_MONTH = 8.0  # to run a service of one's own
PAID_OFF_MONTHS = 12.0
DAYS_PER_MONTH = 365 / 12
MOST_CALLS = 1e9  # per day, beyond which "never" is said
Point = tuple[float, float | None, float]  # calls a day, own USD a month (None: not carried), API USD a month


@dataclass(frozen=True, kw_only=True)
class SelfHosted:
    """A service of one's own.

    usd_per_hour: rent of one replica. max_calls_per_s: what one replica carries. peak_factor: busiest hour over mean.
    once_usd: training and setting up. upkeep_usd: per month. max_replicas: None when more can be rented. busy_share:
    share of the hours billed where machines are switched off when idle (scale to zero), else 1.
    """

    usd_per_hour: float
    max_calls_per_s: float
    peak_factor: float = 3.0
    once_usd: float = SETUP_HOURS * ENGINEER_USD_H
    upkeep_usd: float = UPKEEP_HOURS_MONTH * ENGINEER_USD_H
    paid_off_months: float = PAID_OFF_MONTHS
    max_replicas: int | None = None
    busy_share: float = 1.0

    def replicas(self, calls_per_day: float) -> int:
        """Replicas for the busiest hour."""
        return max(1, math.ceil(calls_per_day / 86_400 * self.peak_factor / self.max_calls_per_s))

    def monthly_usd(self, calls_per_day: float) -> float | None:
        """Cost of a month, None when the machines at hand do not carry the load."""
        needed = self.replicas(calls_per_day)
        if self.max_replicas is not None and needed > self.max_replicas:
            return None
        rent = needed * self.usd_per_hour * HOURS_PER_MONTH * self.busy_share
        return rent + self.upkeep_usd + self.once_usd / self.paid_off_months


def api_monthly_usd(
    offer: ApiPrice, calls_per_day: float, input_tokens: float, output_tokens: float, cached_share: float = 0.0
) -> float:
    """Cost of a month of calls at an API; cached_share: of the input that its prefix cache holds."""
    return offer.per_call(input_tokens, output_tokens, cached_share) * calls_per_day * DAYS_PER_MONTH


def break_even(
    own: SelfHosted, offer: ApiPrice, input_tokens: float, output_tokens: float, cached_share: float = 0.0
) -> float | None:
    """Fewest calls a day from which self-hosting is the cheaper and stays so up to its capacity; None for never.

    The own cost is a staircase with a tread for each replica; within a tread the API's straight line crosses it at most
    once. Where a further replica earns more than its rent, treads from number 1 + fixed / (earned - rent) on lie below
    the line from their first call; the crossing is on the tread before, or where that one begins.
    """
    per_day = api_monthly_usd(offer, 1.0, input_tokens, output_tokens, cached_share)
    if per_day <= 0 or own.max_calls_per_s <= 0:
        return None
    tread, fixed, rent = _staircase(own)
    earned = per_day * tread - rent
    below = math.ceil(1 + (fixed + rent) / earned) if earned > 0 else math.inf
    last = math.inf if own.max_replicas is None else own.max_replicas
    number = min(below - 1, last)
    if not math.isfinite(number):
        return None  # even a full replica costs more than the calls it carries
    number = max(1, number)
    crossing = (fixed + rent * number) / per_day
    if crossing <= tread * number:
        found = max(crossing, tread * (number - 1))
    elif below <= last:
        found = tread * number
    else:
        return None
    return found if found <= MOST_CALLS else None


def cheaper_before(
    own: SelfHosted, offer: ApiPrice, input_tokens: float, output_tokens: float
) -> tuple[float, float] | None:
    """The first loads (from, to) in calls a day at which own is the cheaper until one more replica is needed, where they lie
    below the break-even; None for none."""
    per_day = api_monthly_usd(offer, 1.0, input_tokens, output_tokens)
    tread, fixed, rent = _staircase(own)
    if per_day <= 0 or tread <= 0 or (earned := per_day * tread - rent) <= 0:
        return None
    number = max(1, math.ceil(fixed / earned))  # the first tread whose last call the own machines carry for less
    lowest = max((fixed + rent * number) / per_day, tread * (number - 1))
    settled = break_even(own, offer, input_tokens, output_tokens)
    if number > (own.max_replicas or math.inf) or tread * number >= (MOST_CALLS if settled is None else settled):
        return None
    return lowest, tread * number


def _staircase(own: SelfHosted) -> tuple[float, float, float]:
    """(calls a day that one replica carries, USD a month whatever the load, USD a month of one replica's rent)."""
    tread = own.max_calls_per_s * 86_400 / own.peak_factor
    rent = own.usd_per_hour * HOURS_PER_MONTH * own.busy_share
    return tread, own.upkeep_usd + own.once_usd / own.paid_off_months, rent


def curve(
    own: SelfHosted, offer: ApiPrice, input_tokens: float, output_tokens: float, points: int = 361
) -> list[Point]:
    """Both costs on a logarithmic axis from 100 to 1e8 calls a day."""
    loads = [10 ** (2 + 6 * i / (points - 1)) for i in range(points)]
    return [(n, own.monthly_usd(n), api_monthly_usd(offer, n, input_tokens, output_tokens)) for n in loads]


def rivals_worth_drawing(
    offers: Sequence[ApiPrice], base: str, against: ApiPrice | None, input_tokens: float, output_tokens: float
) -> list[ApiPrice]:
    """The offers of a picture: the one asked for, up to two that host the same open weights (else the cheapest two that
    host any: they are the real competitor), and where none was asked for the cheapest closed one of each tier."""

    def cost(offer: ApiPrice) -> float:
        return offer.per_call(input_tokens, output_tokens)

    hosted = sorted((o for o in offers if o.open_weights), key=cost)
    same = [o for o in hosted if o.open_weights == base] or hosted
    chosen = [against, *same[:2]] if against is not None else same[:2]
    if against is None:
        for tier in dict.fromkeys(o.tier for o in offers if not o.open_weights):
            chosen.append(min((o for o in offers if o.tier == tier and not o.open_weights), key=cost))
    return list({o.name: o for o in chosen}.values())
