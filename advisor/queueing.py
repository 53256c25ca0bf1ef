"""An engine with continuous batching as a queue: Little's law for its load, Erlang C for waiting.

Seconds and calls per second throughout. Checked in a test against a discrete-event simulation.
"""

import math
from collections.abc import Callable


def erlang_c(servers: int, offered: float) -> float:
    """Probability that an arrival waits in M/M/c (Erlang 1917). offered: arrival rate * service time; 1 if >= servers."""
    if offered <= 0:
        return 0.0
    if offered >= servers:
        return 1.0
    blocked = 1.0
    for k in range(1, servers + 1):  # Erlang B by recursion
        blocked = offered * blocked / (k + offered * blocked)
    utilisation = offered / servers
    return blocked / (1.0 - utilisation + utilisation * blocked)


def wait_quantile(
    servers: int, arrivals: float, service: float, quantile: float = 0.95, variability: float = 1.0
) -> float:
    """Seconds an arrival waits at most with probability `quantile`; infinite when unstable.

    P(W > t) = C * exp(-(c*mu - lambda) t) in M/M/c; `variability` = (Ca^2 + Cs^2) / 2 scales it (Allen-Cunneen).
    """
    offered = arrivals * service
    if offered >= servers:
        return math.inf
    waits = erlang_c(servers, offered)
    if waits <= 1.0 - quantile:
        return 0.0
    return variability * math.log(waits / (1.0 - quantile)) / ((servers - offered) / service)


def load(arrivals: float, service_at: Callable[[float], float], limit: float) -> float | None:
    """Sequences in the engine at a steady arrival rate: the fixed point B = arrivals * service_at(B).

    service_at(B): seconds one call takes with B in the engine (rises with B). None when no B up to `limit` carries the
    load: the engine is unstable.
    """
    if arrivals * service_at(limit) > limit:
        return None
    alone = arrivals * service_at(1.0)
    if alone <= 1.0:
        return alone
    low, high = 1.0, limit
    while high - low > 0.005 * high:
        middle = (low * high) ** 0.5
        if arrivals * service_at(middle) > middle:
            low = middle
        else:
            high = middle
    return high
