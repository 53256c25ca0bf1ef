"""One search over method x base model x quantization x GPU x count x vendor: every option with its reasons to refuse.

The space is a product, but it factorises: how a model is served does not depend on how it was trained (an adapter is
merged), and where it is trained does not depend on where it is served. So the best training machine of each (method,
model) and the serving plans of each (model, prompt shape) are worked out once and joined; the result is the same as
enumerating the product, `considered` counts the product's size.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from tunegate.advisor import serving_plan, training_plan
from tunegate.advisor.break_even import DAYS_PER_MONTH
from tunegate.advisor.constraints import Constraints
from tunegate.advisor.data_profile import DataProfile
from tunegate.advisor.errors import significant
from tunegate.advisor.gpus import Gpu, known_gpus, parse_hardware
from tunegate.advisor.models import KnownModel, find, known_models
from tunegate.advisor.prices import ApiPrice
from tunegate.advisor.refusals import (
    LEAST_ROWS,
    RETRIEVED_TOKENS,
    Violation,
    enough,
    frozen,
    over,
    prompt_shape,
    retrieves,
    too_few,
    too_late,
    too_long,
    untrainable,
)
from tunegate.advisor.rules import METHODS, TUNED
from tunegate.core.architecture import Architecture

SHAPES = {"prompt": ("prompt", "lora", "qlora", "full"), "few_shot": ("few_shot",), "rag": ("rag", "rag_lora")}
MISFITS = ("serving memory", "training memory", "privacy", "model", "facts")
OFFERED_GPUS = ("T4", "L4", "A10G", "RTX4090", "L40S", "A100-40GB", "A100-80GB", "H100-SXM", "H200", "B200")
API_FIRST_TOKEN_S, API_TOKENS_PER_S = 0.6, 80.0  # a hosted API's typical speed: an assumption
# An ordering device, not a forecast of accuracy: see docs/advisor.md.
PROXY_AT_1B, PROXY_PER_DECADE = 0.50, 0.11
PROXY_CLOSED = {"small": 0.70, "mid": 0.77, "flagship": 0.82}
Plans = tuple[list[serving_plan.ServingPlan], int]  # the best of each kind of machine, and how many were tried


@dataclass(frozen=True, kw_only=True)
class Option:
    """One way to do it. vendor: API provider, empty when served on GPUs. quality: proxy in 0..1 that orders options.
    violations: what refuses it, nothing where it is feasible."""

    method: str
    model: str
    spec: str
    params_b: float
    quantization: str
    quality: float
    monthly_usd: float
    train_usd: float
    p95_ms: float
    vendor: str = ""
    serving: serving_plan.ServingPlan | None = None
    training: training_plan.TrainingPlan | None = None
    violations: tuple[Violation, ...] = ()

    @property
    def feasible(self) -> bool:
        """No constraint refuses it."""
        return not self.violations

    def refused_beside(self, constraint: str) -> bool:
        """Whether anything but this constraint refuses it."""
        return any(name != constraint for name, _, _ in self.violations)

    @property
    def binding(self) -> str:
        """The constraint that is exceeded by most."""
        return max(self.violations, key=lambda v: v[1])[0]

    @property
    def changes(self) -> list[str]:
        """What would admit it, all of it together: that of the binding constraint first."""
        return list(dict.fromkeys(change for _, _, change in sorted(self.violations, key=lambda v: -v[1])))

    @property
    def label(self) -> str:
        """`qlora Llama-3.1-8B awq on L4:1`."""
        if self.serving is None:
            return f"{self.method} with {self.vendor}/{self.model}"
        where = f"{self.serving.gpu.name}:{self.serving.gpus}"
        return f"{self.method} {self.model} {self.quantization} on {where}"


@dataclass(frozen=True, kw_only=True)
class Space:
    """Options found, and how many combinations they stand for."""

    options: list[Option] = field(default_factory=list)
    considered: int = 0


@dataclass(frozen=True, kw_only=True)
class Market:
    """What can be had: models, machines to serve and to train on, API offers. owned: machines cost nothing more. served:
    serving plans found so far, by what they depend on: a question that differs elsewhere finds them here."""

    models: list[KnownModel]
    machines: list[tuple[Gpu, int]]
    owned: bool
    offers: tuple[ApiPrice, ...]
    served: dict[tuple[Any, ...], Plans] = field(default_factory=dict, compare=False, repr=False)


def market(c: Constraints, offers: tuple[ApiPrice, ...]) -> Market:
    """Models, machines and offers that the constraints leave in question. Raises UserError for unknown names."""
    models = [find(c.model)] if c.model else [m for m in known_models().values() if m.offered]
    if c.hardware:
        gpu, count = parse_hardware(c.hardware)
        machines = [(gpu, n) for n in (1, 2, 4, 8, 16, 32) if n < count] + [(gpu, count)]
        if gpu.is_cpu and not c.model:
            models = [m for m in models if m.architecture.params < 1e9]
        return Market(models=models, machines=machines, owned=True, offers=offers)
    gpus = known_gpus()
    machines = [(gpus[name], n) for name in OFFERED_GPUS for n in (1, 2, 4, 8)]
    return Market(models=models, machines=machines, owned=False, offers=offers)


def quality_proxy(method: str, params_b: float, c: Constraints, profile: DataProfile | None, tier: str = "") -> float:
    """Orders options by what the evidence says of them, 0..1.

    Size: 0.11 per decade (scaling of benchmark scores, coarse). A prompted model loses up to 0.25 on a strict format as
    it gets smaller than 10B. Tuning closes the gap to a ceiling 0.28 above the base as n / (n + 400) rows come in
    (LoRA Land: +34 points). Changing facts without retrieval cost 0.2 (arXiv 2405.05904).
    """
    decade = math.log10(max(params_b, 0.05))
    base = PROXY_CLOSED[tier] if tier else min(0.78, PROXY_AT_1B + PROXY_PER_DECADE * decade)
    strict = c.wants("format", "style") or bool(profile and profile.strict_format)
    weakness = 0.0 if tier else 0.25 * min(1.0, max(0.0, (1.0 - decade) / 2.0))
    value = base - (weakness if strict and method not in TUNED else 0.0)
    if method == "few_shot":
        value += 0.03 + (0.4 * weakness if strict and params_b >= 1.0 else 0.0)
    if method in TUNED:
        rows = c.examples / (c.examples + 400.0)
        far = 1.15 if method == "full" and c.domain == "far" else 1.0
        value += 0.28 * rows * far * (0.99 if method == "qlora" else 1.0)
    if c.facts == "changing" and not retrieves(method, c):
        value -= 0.2
    return max(0.0, min(0.97, value))


def search(c: Constraints, profile: DataProfile | None, goods: Market, only: tuple[str, ...] = METHODS) -> Space:
    """Every option worth showing: for each (method, model) its best plan on each kind of machine, and each API offer. only:
    the methods looked at."""
    load = serving_plan.load_of(c.calls_per_day, c.peak_factor, c.p95_ms, _spread(profile))
    options, considered = [], 0
    for model in goods.models:
        for shape, methods in SHAPES.items():
            wanted = [method for method in methods if method in only]
            plans, tried = _serving_plans(model, shape, c, load, goods) if wanted else ([], 0)
            for method in wanted:
                training = _training(model, method, c, profile, goods)
                considered += tried * (len(goods.machines) if training else 1)
                options += [_self_hosted(method, model, plan, training, c, profile, goods) for plan in plans]
    for offer in goods.offers:
        for method in (method for method in ("prompt", "few_shot", "rag", "hosted_api") if method in only):
            considered += 1
            options.append(_hosted(method, offer, c, profile))
    return Space(options=options, considered=considered)


def pareto(options: list[Option]) -> list[Option]:
    """Feasible options that none beats on quality (as it is printed), monthly cost and latency at once; best quality first."""
    ordered = sorted(
        (o for o in options if o.feasible),
        key=lambda o: (-significant(o.quality, 3), o.monthly_usd + o.train_usd / 12, o.p95_ms),
    )
    front: list[Option] = []
    for option in ordered:
        cost = option.monthly_usd + option.train_usd / 12
        if not any(f.monthly_usd + f.train_usd / 12 <= cost and f.p95_ms <= option.p95_ms for f in front):
            front.append(option)
    return front


def nearest_miss(options: list[Option]) -> Option:
    """The refused option that the fewest and smallest changes would admit; what is no matter of degree comes last."""
    return min(
        options,
        key=lambda o: (sum(v[0] in MISFITS for v in o.violations), len(o.violations), sum(v[1] for v in o.violations)),
    )


def _serving_plans(model: KnownModel, shape: str, c: Constraints, load: serving_plan.Load, goods: Market) -> Plans:
    tokens, hit = prompt_shape(shape, c)
    key = (model.spec, tokens, hit, c.output_tokens, load)
    if key not in goods.served:
        goods.served[key] = _plans(model, (tokens, hit), c, load, goods)
    return goods.served[key]


def _plans(
    model: KnownModel, prompt: tuple[float, float], c: Constraints, load: serving_plan.Load, goods: Market
) -> Plans:
    tokens, hit = prompt
    best: list[serving_plan.ServingPlan] = []
    tried = 0
    for gpu, limit in _largest(goods.machines).values():
        for quantization in _quantizations(gpu):
            setups = serving_plan.setups_to_try(
                model.architecture, gpu, quantization, (tokens, c.output_tokens), hit, limit
            )
            tried += len(setups)
            most = goods.machines[-1][1] if goods.owned else None
            plans = [serving_plan.plan(model.name, setup, load, owned=goods.owned, at_hand=most) for setup in setups]
            best.append(min(plans, key=lambda plan: _plan_key(plan, load, goods)))
    return best, tried


def _plan_key(plan: serving_plan.ServingPlan, load: serving_plan.Load, goods: Market) -> tuple[float, ...]:
    """Orders plans on one kind of GPU: what is feasible, by the fewest GPUs and then by latency, before what is not, by the
    fewest and smallest changes."""
    late = plan.late_by_ms / 1e3 / load.p95_s if load.p95_s else 0.0
    short = _beyond(plan, goods)
    return (plan.misfit_gb, (late > 0) + (short > 0), late + short, plan.all_gpus, plan.p95_ms)


def _beyond(plan: serving_plan.ServingPlan, goods: Market) -> float:
    """How far more GPUs are needed than are owned, relative to those; 0 where they suffice or are rented."""
    return max(0.0, plan.all_gpus / goods.machines[-1][1] - 1.0) if goods.owned else 0.0


def _largest(machines: list[tuple[Gpu, int]]) -> dict[str, tuple[Gpu, int]]:
    return {gpu.name: (gpu, count) for gpu, count in machines}


def _quantizations(gpu: Gpu) -> tuple[str, ...]:
    if gpu.is_cpu:
        return ("bf16",)
    return ("bf16", "fp8", "awq") if gpu.fp8_tflops else ("bf16", "awq")


def recipe(
    architecture: Architecture, method: str, c: Constraints, profile: DataProfile | None, passages: float = 0.0
) -> training_plan.Recipe:
    """How a base would be trained on this data: its longest row (with `passages` tokens of retrieved text in it) and its
    answers' tokens, where DATA was given."""
    longest = (profile.longest_tokens if profile else 2.0 * (c.input_tokens + c.output_tokens)) + passages
    loss = profile.loss_tokens if profile else c.examples * c.output_tokens
    return training_plan.recipe_for(architecture, method, examples=c.examples, longest_tokens=longest, loss_tokens=loss)


def _training(
    model: KnownModel, method: str, c: Constraints, profile: DataProfile | None, goods: Market
) -> training_plan.TrainingPlan | None:
    if method not in TUNED:
        return None
    kind = "lora" if method == "rag_lora" else method
    passages = passages_in(method)
    how = recipe(model.architecture, kind, c, profile, passages)
    share, shorter = kept_rows(method, how.max_length, profile)
    mean = (c.input_tokens + c.output_tokens) * shorter + passages
    return training_plan.cheapest(
        model.architecture,
        how,
        goods.machines,
        examples=max(1, round((c.examples or LEAST_ROWS) * share)),
        mean_tokens=min(mean, how.max_length),
        owned=goods.owned,
    )


def passages_in(method: str) -> float:
    """Tokens of retrieved text in each row that is trained on."""
    return RETRIEVED_TOKENS if method == "rag_lora" else 0.0


def kept_rows(method: str, max_length: int, profile: DataProfile | None) -> tuple[float, float]:
    """(share of the rows that are short enough for a training, their mean length over that of all): `ft train` leaves longer
    ones out."""
    return profile.kept(max_length - passages_in(method)) if profile else (1.0, 1.0)


def _self_hosted(
    method: str, model: KnownModel, plan: serving_plan.ServingPlan, training: training_plan.TrainingPlan | None,
    c: Constraints, profile: DataProfile | None, goods: Market,
) -> Option:  # fmt: skip
    size = model.architecture.params / 1e9
    return Option(
        method=method,
        model=model.name,
        spec=model.spec,
        params_b=size,
        quantization=plan.quantization,
        quality=quality_proxy(method, size, c, profile) - (0.01 if plan.quantization == "awq" else 0.0),
        monthly_usd=plan.monthly_usd,
        train_usd=training.usd if training else 0.0,
        p95_ms=plan.p95_ms,
        serving=plan,
        training=training,
        violations=(
            *too_long(method, model.name, model.architecture.context, c, profile),
            *frozen(method, c),
            *_violations(method, plan, training, c, goods),
            *(
                untrainable(training.recipe.max_length, kept_rows(method, training.recipe.max_length, profile)[0])
                if training
                else ()
            ),
        ),
    )


def _violations(
    method: str,
    plan: serving_plan.ServingPlan,
    training: training_plan.TrainingPlan | None,
    c: Constraints,
    goods: Market,
) -> list[Violation]:
    found: list[Violation] = []
    gpu = plan.gpu
    if plan.misfit_gb:
        more = f"{plan.misfit_gb:.1f} GB more per GPU than {gpu.name}:{plan.gpus} has, for the {plan.misfit_of}"
        return [("serving memory", plan.misfit_gb / gpu.memory_gb, more), *too_few(method, c)]
    if plan.late_by_ms and c.p95_ms:
        found.append(too_late(c.p95_ms + plan.late_by_ms, c.p95_ms))
    if short := _beyond(plan, goods):
        owned = goods.machines[-1][1]
        found.append(("hardware", short, f"{plan.all_gpus} x {gpu.name} instead of {owned} at the busiest hour"))
    found += over("monthly_budget_usd", plan.monthly_usd, c.monthly_budget_usd)
    if not math.isfinite(plan.monthly_usd):
        found.append(("price", 1.0, f"no rental price is known for {gpu.name}"))
    found += too_few(method, c)
    if training is None:
        return found
    if not training.fits:
        needed = enough(training.memory_gb / training_plan.FIT_MARGIN)
        shortage = f"GPUs of {needed} GB to train on ({training.gpu.name}: {training.gpu.memory_gb:g})"
        found.append(("training memory", training.memory_gb / training.gpu.memory_gb - 1, shortage))
    return found + over("budget_usd", training.usd, c.budget_usd)


def context_of(offer: ApiPrice) -> int | None:
    """Most tokens of a call that an API takes: as published, else those of the open weights behind it; None where neither is
    known."""
    behind = known_models().get(offer.open_weights)
    return offer.context or (behind.architecture.context if behind else None)


def _hosted(method: str, offer: ApiPrice, c: Constraints, profile: DataProfile | None) -> Option:
    tokens, hit = prompt_shape(method, c)
    monthly = offer.per_call(tokens, c.output_tokens, hit) * c.calls_per_day * DAYS_PER_MONTH
    p95 = 1e3 * (API_FIRST_TOKEN_S + _spread(profile) * c.output_tokens / API_TOKENS_PER_S)
    violations = too_long(method, offer.name, context_of(offer), c, profile) + frozen(method, c) + too_few(method, c)
    if c.privacy == "no-egress":
        if "privacy" in c.stated or not c.wants("privacy"):
            violations.append(("privacy", 1.0, "only with --privacy public"))
        if c.wants("privacy"):
            violations.append(("privacy", 1.0, "no privacy in --needs"))
    if c.p95_ms is not None and p95 > c.p95_ms:
        violations.append(too_late(p95, c.p95_ms))
    violations += over("monthly_budget_usd", monthly, c.monthly_budget_usd)
    if c.model:
        violations.append(("model", 1.0, f"leave out --model {c.model}"))
    quality = quality_proxy(
        method, offer.params_b or 1.0, c, profile, "" if offer.open_weights else (offer.tier or "mid")
    )
    return Option(
        method=method,
        model=offer.model,
        spec=offer.model,
        params_b=offer.params_b,
        quantization="none",
        quality=quality,
        monthly_usd=monthly,
        train_usd=0.0,
        p95_ms=p95,
        vendor=offer.provider,
        violations=tuple(violations),
    )


def _spread(profile: DataProfile | None) -> float:
    if profile is None:
        return serving_plan.LENGTH_SPREAD
    return max(1.0, profile.p95_output_tokens / profile.output_tokens)
