"""How many machines carry a load within a latency bound, and what they cost: open loop, billed by the hour."""

import dataclasses
import math
from dataclasses import dataclass

from tunegate.advisor import calibrate, queueing
from tunegate.advisor.gpus import Gpu
from tunegate.advisor.serving_speed import (
    Curve,
    ServingSetup,
    cache_room_gb,
    call_gb,
    curve,
    memory_gb,
    most_split,
    splits,
)
from tunegate.core.architecture import Architecture

MAX_UTILISATION = 0.7  # of the highest stable load that is planned for
LENGTH_SPREAD = 1.5  # 95th percentile of an answer's length over its mean, where no data says otherwise
HOURS_PER_MONTH = 730.0
STEPS_TO_BOUND = 12  # halvings of the sequences in the engine: to a four-thousandth of the most
SPARING_SHARE = 0.88  # of the GPU that one call may take where another count of GPUs can be had
SCHEDULER_LIMIT = 256.0  # sequences in one engine


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """A configuration sized for its load.

    gpus: per replica. p95_ms: a whole answer at the busiest hour. monthly_usd: rent (0 for owned machines).
    max_calls_per_s: what one replica carries at MAX_UTILISATION and within the latency bound. misfit_gb: missing per GPU
    for the weights and the cache of one call, 0 when it fits; misfit_of: which of them does not. late_by_ms: how far above the
    latency bound it stays however many replicas there are, those at hand where machines are owned; all other figures are then
    those of the least bound that it keeps.
    """

    model: str
    quantization: str
    gpu: Gpu
    gpus: int
    replicas: int
    p95_ms: float
    ttft_ms: float
    tpot_ms: float
    monthly_usd: float
    max_calls_per_s: float
    misfit_gb: float = 0.0
    misfit_of: str = ""
    late_by_ms: float = 0.0

    @property
    def all_gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.gpus


@dataclass(frozen=True, kw_only=True)
class Load:
    """What must be carried. peak: calls per second in the busiest hour. mean: over the day. p95_s: bound, None for
    none. length_spread: 95th percentile over mean of the answers' length."""

    peak: float
    mean: float
    p95_s: float | None
    length_spread: float = LENGTH_SPREAD


def load_of(
    calls_per_day: float, peak_factor: float, p95_ms: float | None, length_spread: float = LENGTH_SPREAD
) -> Load:
    """The load of so many calls a day."""
    mean = calls_per_day / 86_400.0
    return Load(peak=mean * peak_factor, mean=mean, p95_s=p95_ms / 1e3 if p95_ms else None, length_spread=length_spread)


def setup_for(
    architecture: Architecture, gpu: Gpu, gpus: int, quantization: str, tokens: tuple[float, float], hit: float
) -> ServingSetup:
    """A serving configuration of our own: vLLM, FP8 cache with FP8 weights, 16-bit otherwise."""
    return ServingSetup(
        architecture=architecture,
        gpu=gpu,
        gpus=gpus,
        quantization=quantization,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        engine="vllm-cpu" if gpu.is_cpu else ("vllm-rocm" if gpu.name.startswith("MI") else "vllm"),
        kv_bytes=1.0 if quantization == "fp8" else 2.0,
        prefix_hit=hit,
    )


def plan(name: str, setup: ServingSetup, load: Load, *, owned: bool, at_hand: int | None = None) -> ServingPlan:
    """Size one configuration: the fewest replicas that stay below MAX_UTILISATION and within the latency bound. at_hand: GPUs
    that are owned, None where more can be rented."""
    room = cache_room_gb(setup)
    times = dataclasses.replace(curve(setup), factor=calibrate.factor("tpot", setup.gpu.name))
    if times.fits < 1.0:
        return _unfit(name, setup, call_gb(setup) - room, "weights" if room < 0 else "KV cache")
    limit = min(SCHEDULER_LIMIT, times.fits)
    late, capacity = 0.0, MAX_UTILISATION * limit / times.service_s(limit)
    if load.p95_s is not None:
        fleet = None if at_hand is None else max(1, at_hand // setup.gpus)
        kept = max(load.p95_s, _least_p95_s(load, capacity, times, limit, fleet))
        late = kept - load.p95_s
        capacity = _bounded(dataclasses.replace(load, p95_s=kept), capacity, times, limit, fleet)
    replicas = max(1, math.ceil(load.peak / capacity))
    p95, running = _p95_s(times, load.peak / replicas, limit, load.length_spread)
    price = 0.0 if owned else (setup.gpu.price or math.inf)
    return ServingPlan(
        model=name,
        quantization=setup.quantization,
        gpu=setup.gpu,
        gpus=setup.gpus,
        replicas=replicas,
        p95_ms=1e3 * p95,
        ttft_ms=1e3 * times.ttft_s(running),
        tpot_ms=1e3 * times.tpot_s(running),
        monthly_usd=price * setup.gpus * replicas * HOURS_PER_MONTH,
        max_calls_per_s=capacity,
        late_by_ms=1e3 * late,
    )


def _least_p95_s(load: Load, capacity: float, times: Curve, limit: float, fleet: int | None) -> float:
    """The least 95th percentile to be had, seconds: of an empty engine, since replicas can be added without end; of the load
    shared by the `fleet` of replicas that is owned, or by as many as it takes without a bound."""
    if fleet is None:
        return _p95_s(times, 0.0, limit, load.length_spread)[0]
    share = load.peak / max(fleet, math.ceil(load.peak / capacity))
    return _p95_s(times, share, limit, load.length_spread)[0]


def _bounded(load: Load, capacity: float, times: Curve, limit: float, fleet: int | None) -> float:
    """As `_within` for the load's bound; where the fewest replicas for `capacity` meet it, or the `fleet` that is owned, no less
    than what each of them then gets: a search that stops early must not ask for one more."""
    bound = load.p95_s or math.inf
    found = _within(bound, capacity, times, limit, load.length_spread)
    fewest = max(1, math.ceil(load.peak / capacity))
    for replicas in sorted({fewest, max(fewest, fleet or 0)}):
        share = load.peak / replicas
        if found < share and _p95_s(times, share, limit, load.length_spread)[0] <= bound:
            return share * (1 + 1e-9)  # that the load over it rounds up to no further replica
    return found


def _within(bound: float, capacity: float, times: Curve, limit: float, spread: float) -> float:
    """The most calls a second, up to `capacity`, whose 95th percentile is within `bound` (seconds); an empty engine is."""
    if _p95_s(times, capacity, limit, spread)[0] <= bound:
        return capacity
    low, high = 0.0, limit  # sequences in the engine: they fix the calls that bring them there
    fine = limit / 2**STEPS_TO_BOUND
    if bound <= _answer_s(times, 0.0, 1.0, limit, spread):
        high = min(limit, 1.0)  # an empty engine's: a second sequence breaks it
    while high - low > fine:
        middle = (low + high) / 2
        arrivals = middle / times.service_s(max(1.0, middle))
        most = max(1.0, 1.006 * middle)  # queueing.load rounds up by less
        if arrivals <= capacity and _answer_s(times, arrivals, most, limit, spread) <= bound:
            low = middle
        else:
            high = middle
    running = low or high
    return min(capacity, running / times.service_s(max(1.0, running)))


def _unfit(name: str, setup: ServingSetup, missing: float, what: str) -> ServingPlan:
    return ServingPlan(
        model=name,
        quantization=setup.quantization,
        gpu=setup.gpu,
        gpus=setup.gpus,
        replicas=1,
        p95_ms=math.inf,
        ttft_ms=math.inf,
        tpot_ms=math.inf,
        monthly_usd=math.inf,
        max_calls_per_s=0.0,
        misfit_gb=missing,
        misfit_of=what,
    )


def _p95_s(times: Curve, arrivals: float, limit: float, spread: float) -> tuple[float, float]:
    """(95th percentile of a whole answer, sequences in the engine): a long answer at that load, and the wait for a place."""
    running = queueing.load(arrivals, times.service_s, limit)
    if running is None:
        return math.inf, limit
    running = max(1.0, running)
    return _answer_s(times, arrivals, running, limit, spread), running


def _answer_s(times: Curve, arrivals: float, running: float, limit: float, spread: float) -> float:
    """The 95th percentile of a whole answer with that many sequences in the engine, seconds."""
    first, per_token = times.ttft_s(running), times.tpot_s(running)
    places = max(1, int(limit))
    # Fewer than half the places taken on average: nobody waits (C < 0.05 from 4 places on; 1 to 3 are computed).
    crowded = running > 0.5 * places or places < 4
    wait = queueing.wait_quantile(places, arrivals, first + times.output_tokens * per_token) if crowded else 0.0
    return first + spread * times.output_tokens * per_token + wait


def setups_to_try(
    architecture: Architecture, gpu: Gpu, quantization: str, tokens: tuple[float, float], hit: float, limit: int
) -> list[ServingSetup]:
    """Configurations worth trying: each power of two up to 8 GPUs that the heads divide by and that holds the weights and
    the cache of one call with something to spare; the most GPUs up to `limit` that the heads divide by where none does. Not
    the fewest alone: room for calls at a time may be worth more than twice as many GPUs."""

    def on(gpus: int) -> ServingSetup:
        return setup_for(architecture, gpu, gpus, quantization, tokens, hit)

    split = [on(n) for n in (1, 2, 4, 8) if n <= limit and splits(architecture, n)]
    holding = [s for s in split if memory_gb(s) + call_gb(s) < SPARING_SHARE * gpu.memory_gb]
    return holding or [on(most_split(architecture, limit))]
