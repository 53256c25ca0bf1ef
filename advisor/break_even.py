"""Self-hosting against an API: what each costs at so many calls a day, and where the two meet, if anywhere.

Machines are billed by the hour whether they are busy or not; replicas follow the busiest hour; training and engineering
are paid off over a stated time.
"""

import math
from dataclasses import dataclass

from tunegate.advisor.prices import ApiPrice
from tunegate.advisor.serving_plan import HOURS_PER_MONTH

ENGINEER_USD_H = 100.0
SETUP_HOURS = 40.0  # to train, gate and deploy the first time
UPKEEP_HOURS_MONTH = 8.0  # to run a service of one's own
PAID_OFF_MONTHS = 12.0
DAYS_PER_MONTH = 365 / 12
MOST_CALLS = 1e9  # per day, beyond which "never" is said


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


def api_monthly_usd(offer: ApiPrice, calls_per_day: float, input_tokens: float, output_tokens: float) -> float:
    """Cost of a month of calls at an API."""
    return offer.per_call(input_tokens, output_tokens) * calls_per_day * DAYS_PER_MONTH


def break_even(own: SelfHosted, offer: ApiPrice, input_tokens: float, output_tokens: float) -> float | None:
    """Fewest calls a day from which self-hosting is the cheaper and stays so up to its capacity; None for never.

    The own cost is a staircase, so the load is looked at step by step: each replica added is a candidate, and within a
    step the API's straight line crosses the flat tread at most once.
    """
    per_day = api_monthly_usd(offer, 1.0, input_tokens, output_tokens)
    if per_day <= 0 or own.max_calls_per_s <= 0:
        return None
    tread = own.max_calls_per_s * 86_400 / own.peak_factor  # calls a day that one replica carries
    most = own.max_replicas or math.ceil(MOST_CALLS / tread)
    fixed = own.monthly_usd(1.0)
    if fixed is None:
        return None
    rent = own.usd_per_hour * HOURS_PER_MONTH * own.busy_share
    if own.max_replicas is None and rent >= per_day * tread:
        return None  # even a full replica costs more than the calls it carries
    for count in range(1, min(most, 1_000_000) + 1):
        cost = fixed + rent * (count - 1)
        crossing = cost / per_day
        if crossing <= tread * count:
            return max(crossing, tread * (count - 1))
    return None


def curve(
    own: SelfHosted, offer: ApiPrice, input_tokens: float, output_tokens: float, points: int = 61
) -> list[tuple[float, float | None, float]]:
    """(calls per day, own monthly USD or None, API monthly USD) on a logarithmic axis from 100 to 1e8."""
    loads = [10 ** (2 + 6 * i / (points - 1)) for i in range(points)]
    return [(n, own.monthly_usd(n), api_monthly_usd(offer, n, input_tokens, output_tokens)) for n in loads]
