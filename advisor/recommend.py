"""The answer: rules choose the method, the search finds the cheapest way to do it that no constraint refuses."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tunegate.advisor import break_even, evidence, training_plan
from tunegate.advisor.constraints import Constraints, implied, refuse_contradictions, with_data
from tunegate.advisor.data_profile import DataProfile
from tunegate.advisor.evidence import Measured
from tunegate.advisor.models import find
from tunegate.advisor.prices import ApiPrice, snapshot
from tunegate.advisor.refusals import prompt_shape, retrieves
from tunegate.advisor.rules import ADAPTERS, METHODS, PROMPTED, TUNED, Rule, Situation, fired, scores
from tunegate.advisor.search import (
    Market,
    Option,
    Space,
    context_of,
    market,
    nearest_miss,
    pareto,
    recipe,
    search,
)
from tunegate.core.errors import UserError

LARGE_BUDGET_USD = 5000.0
TYPICAL_BASE = "Llama-3.1-8B"
BAND_TUNED = (6.0, 15.0)  # 1e9 parameters: where LoRA Land's adapters stand
LEAST_TUNED_B = 2.0  # of the bases of LoRA Land, the smallest
BAND_LARGE = (30.0, 1e6)
CHEAP_BAND = 0.15  # of the quality proxy that may be given up where cost comes first
# An API's bill over what own machines cost beside it, from which on they are taken: with cost among the needs, and without.
OWN_PAYS, OWN_PAYS_UNASKED = 2.0, 5.0
OWN_BAND = 0.11  # of the quality proxy that they may be behind: a decade of parameters
LATENCY_BUDGET = 2.0  # times the cheapest option's cost that may be spent on being faster


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer with everything it rests on. competitor: the API to beat, the chosen one where it is one. own: the service
    of one's own that `break_even` is about: the chosen one, or the best that could stand in for a chosen API; None without
    any. elsewhere: what was searched to say what would flip the answer, by the constraints that differ."""

    constraints: Constraints
    profile: DataProfile | None
    situation: Situation
    chosen: Option
    score: dict[str, float]
    fired: tuple[Rule, ...]
    goods: Market
    space: Space
    front: tuple[Option, ...]
    competitor: ApiPrice
    own: Option | None
    break_even: float | None
    offers: tuple[ApiPrice, ...]
    measured: Mapping[str, Measured]
    elsewhere: dict[tuple[Any, ...], list[Option]] = field(default_factory=dict, compare=False, repr=False)


def recommend(
    c: Constraints,
    profile: DataProfile | None = None,
    offers: tuple[ApiPrice, ...] | None = None,
    measured: Mapping[str, Measured] | None = None,
    goods: Market | None = None,
) -> Recommendation:
    """Answer a question; `measured` reports by method outvote the priors. goods: of a question with the same model, hardware
    and offers.

    Raises UserError for contradictory constraints, unknown names, and when nothing is feasible.
    """
    if profile is not None:
        lengths = {"input_tokens": profile.input_tokens, "output_tokens": profile.output_tokens}
        c = with_data(c, {**lengths, "examples": profile.rows})
    c = implied(c)
    refuse_contradictions(c)
    offers = snapshot() if offers is None else offers
    goods = market(c, offers) if goods is None else goods
    space = search(c, profile, goods)
    situation = situation_of(c, profile, goods, space)
    totals = scores(situation)
    rules = fired(situation)
    if measured:
        space = dataclasses.replace(space, options=[_with_evidence(o, measured) for o in space.options])
        rules.append(evidence.rule(measured, totals))
        for method, points in rules[-1].votes.items():
            totals[method] += points
    chosen = choose(situation, space, totals)
    competitor = _competitor(chosen, offers, c)
    own = chosen if chosen.serving else _stand_in(chosen, space, situation)
    return Recommendation(
        constraints=c,
        profile=profile,
        situation=situation,
        chosen=chosen,
        score=totals,
        fired=tuple(rules),
        goods=goods,
        space=space,
        front=tuple(pareto(space.options)),
        competitor=competitor,
        own=own,
        break_even=_break_even(own, competitor, c, goods) if own else None,
        offers=offers,
        measured=measured or {},
    )


def _with_evidence(option: Option, measured: Mapping[str, Measured]) -> Option:
    report = measured.get(option.method)
    if report is None:
        return option
    left = tuple(v for v in option.violations if v[0] != "facts")  # what was measured stands, frozen facts or not
    return dataclasses.replace(option, quality=report.value, violations=left)


def situation_of(c: Constraints, profile: DataProfile | None, goods: Market, space: Space) -> Situation:
    """What the rules look at; space: what was found for these constraints."""
    cpu_only = goods.owned and goods.machines[-1][0].is_cpu
    base = None
    if c.model or cpu_only:
        base = max(m.architecture.params for m in goods.models) / 1e9
    fits = None
    if goods.owned:
        architecture = (
            find(c.model)
            if c.model
            else max(goods.models, key=lambda m: m.architecture.params)
            if cpu_only
            else find(TYPICAL_BASE)
        ).architecture
        mean = c.input_tokens + c.output_tokens
        fits = training_plan.cheapest(
            architecture,
            recipe(architecture, "lora", c, profile),
            goods.machines,
            examples=c.examples,
            mean_tokens=mean,
            owned=True,
        ).fits
    large = c.budget_usd >= LARGE_BUDGET_USD if c.budget_usd is not None else c.quality == "max"
    return Situation(
        constraints=c,
        profile=profile,
        base_b=base,
        cpu_only=cpu_only,
        fits_16bit=fits,
        large_budget=large,
        api_cheaper=_api_cheaper(c, space),
    )


def _api_cheaper(c: Constraints, space: Space) -> bool:
    """Whether, at a load that was stated, an API asked with a prompt takes less a month than machines rented for a tuned base
    of the usual size, at about its quality. False where none of that is known, or no API may be asked."""
    if not c.wants("cost") or "calls_per_day" not in c.stated or c.hardware:
        return False
    low, high = BAND_TUNED
    tuned = [o for o in space.options if o.method in ADAPTERS and o.feasible and low <= o.params_b <= high]
    if not tuned:
        return False
    own = min(tuned, key=lambda o: (_cost(o), -o.quality))
    good = own.quality - CHEAP_BAND
    bills = [_cost(o) for o in space.options if o.method in PROMPTED and o.vendor and o.feasible and o.quality >= good]
    return bool(bills) and min(bills) < _cost(own) + engineering_usd(tuned=True)


def choose(situation: Situation, space: Space, totals: dict[str, float]) -> Option:
    """The best method that has a feasible option, and its best option.

    Raises UserError naming the binding constraint when nothing is feasible.
    """
    ranked = sorted(METHODS, key=lambda m: -totals[m])  # a stable sort: ties go to the simpler method
    for method in ranked:
        options = [o for o in space.options if o.method == method and o.feasible]
        if options and not too_small(options, situation, space.options):
            return _on_own_machines(best_of(options, situation), options, situation)
    near = nearest_miss(space.options)
    raise UserError(
        f"no option meets the constraints; the nearest is {near.label}",
        where=near.binding,
        hint=f"smallest change: {' and '.join(near.changes)}",
    )


def too_small(tuned: list[Option], situation: Situation, beside: list[Option]) -> bool:
    """Whether tuning is left with bases below those that its evidence is about, though an untuned model that is to be had
    does better: a dollar more to train with must not lead from the best model asked to a small one tuned."""
    fixed = situation.constraints.model or situation.cpu_only or tuned[0].method not in TUNED
    if fixed or max(o.params_b for o in tuned) >= LEAST_TUNED_B:
        return False
    best = max(o.quality for o in tuned)
    return any(o.feasible and o.training is None and o.quality > best for o in beside)


def best_of(options: list[Option], situation: Situation) -> Option:
    """Among one method's feasible options: those of the size the evidence is about, then cheap, fast or good."""
    c = situation.constraints
    options = _in_band(options, situation)
    if c.quality == "max" or (c.priority == "quality" and situation.large_budget):
        return min(options, key=lambda o: (-round(o.quality, 2), _cost(o), o.p95_ms))
    cheapest = min(_cost(o) for o in options)
    if c.priority == "latency":
        options = [o for o in options if _cost(o) <= max(1.0, LATENCY_BUDGET * cheapest)]
        return min(options, key=lambda o: (o.p95_ms, _cost(o)))
    rented = any(o.vendor for o in options) and not c.hardware  # beside an API, what it takes to run servers counts

    def whole(option: Option) -> float:
        work = engineering_usd(tuned=option.training is not None) if rented and option.serving else 0.0
        return _cost(option) + work

    return min(options, key=lambda o: (whole(o), -o.quality, o.p95_ms))


def _on_own_machines(picked: Option, options: list[Option], situation: Situation) -> Option:
    """In place of an API whose bill is well beyond the break-even of machines that are owned, what these carry: at most
    OWN_BAND behind it, no later where latency comes first; not where quality does."""
    c, able = situation.constraints, [o for o in options if o.serving]
    if not (c.hardware and picked.vendor and able) or c.quality != "normal" or c.priority == "quality":
        return picked
    own = best_of(able, situation)
    if own.quality < picked.quality - OWN_BAND or (c.priority == "latency" and own.p95_ms > picked.p95_ms):
        return picked
    times = OWN_PAYS if c.wants("cost") else OWN_PAYS_UNASKED
    return own if _cost(picked) >= times * (_cost(own) + engineering_usd(tuned=False)) else picked


def _in_band(options: list[Option], situation: Situation) -> list[Option]:
    c, method = situation.constraints, options[0].method
    best = max(o.quality for o in options)
    if c.model:
        return options
    if situation.cpu_only and not any(o.vendor for o in options):
        return [o for o in options if o.quality >= best - 0.03]
    if method in TUNED:
        large = method == "full" or c.quality == "max" or (c.priority == "quality" and situation.large_budget)
        low, high = BAND_LARGE if large else BAND_TUNED
        inside = [o for o in options if low <= o.params_b <= high]
        if inside:
            return inside
        largest = max(o.params_b for o in options)
        return [o for o in options if o.params_b >= 0.8 * largest] if large else _nearest_below(options, low)
    if c.priority == "cost":  # a prompt that costs little: anything not far behind
        return [o for o in options if o.quality >= best - CHEAP_BAND]
    return [o for o in options if o.quality >= best - 0.06]


def _nearest_below(options: list[Option], low: float) -> list[Option]:
    below = [o for o in options if o.params_b < low]
    size = max(o.params_b for o in below) if below else min(o.params_b for o in options)
    return [o for o in options if o.params_b == size]


def _cost(option: Option) -> float:
    return option.monthly_usd + option.train_usd / break_even.PAID_OFF_MONTHS


def _competitor(chosen: Option, offers: tuple[ApiPrice, ...], c: Constraints) -> ApiPrice:
    """The API to beat: hosted open weights at least about as large as the chosen base, that of them which takes least for
    a call of the chosen method and takes it at all; the chosen one where an API is chosen."""
    if chosen.vendor:
        return next(o for o in offers if (o.provider, o.model) == (chosen.vendor, chosen.model))
    tokens, hit = prompt_shape(chosen.method, c)
    able = [o for o in offers if (context_of(o) or math.inf) >= tokens + c.output_tokens]
    alike = [o for o in able if o.open_weights and o.params_b >= min(0.9 * chosen.params_b, 60.0)]
    return min(alike or able or offers, key=lambda o: o.per_call(tokens, c.output_tokens, hit))


def _stand_in(chosen: Option, space: Space, situation: Situation) -> Option | None:
    """The service of one's own that would do what a chosen API does, whatever it costs a month; None where no machine at
    hand carries it."""
    c = situation.constraints
    method = chosen.method if chosen.method != "hosted_api" else ("rag" if retrieves(chosen.method, c) else "prompt")
    able = [o for o in space.options if o.method == method and o.serving and not o.refused_beside("monthly_budget_usd")]
    return best_of(able, situation) if able else None


def engineering_usd(*, tuned: bool) -> float:
    """USD a month for setting up and running a service of one's own: half the setting up where nothing is trained."""
    base = break_even.SelfHosted(usd_per_hour=0.0, max_calls_per_s=1.0)
    return base.upkeep_usd + _setup_usd(base, tuned=tuned) / base.paid_off_months


def _setup_usd(base: break_even.SelfHosted, *, tuned: bool) -> float:
    return base.once_usd * (1.0 if tuned else 0.5)


def self_hosted(chosen: Option, c: Constraints, max_replicas: int | None) -> break_even.SelfHosted | None:
    """The chosen service with its costs; None when it is an API."""
    plan = chosen.serving
    if plan is None:
        return None
    tuned = chosen.training is not None
    base = break_even.SelfHosted(usd_per_hour=0.0, max_calls_per_s=plan.max_calls_per_s)
    return dataclasses.replace(
        base,
        usd_per_hour=plan.monthly_usd / 730.0 / plan.replicas,
        peak_factor=c.peak_factor,
        once_usd=chosen.train_usd + _setup_usd(base, tuned=tuned),
        max_replicas=max_replicas,
    )


def _break_even(option: Option, competitor: ApiPrice, c: Constraints, goods: Market) -> float | None:
    owned = goods.machines[-1][1] if goods.owned else None
    replicas = max(1, owned // option.serving.gpus) if owned and option.serving else None
    own = self_hosted(option, c, replicas)
    if own is None:
        return None
    tokens, hit = prompt_shape(option.method, c)
    return break_even.break_even(own, competitor, tokens, c.output_tokens, hit)
