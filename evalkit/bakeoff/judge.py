"""From reports to a decision: paired differences, money, who wins and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean
from typing import TYPE_CHECKING, Any

from tunegate.core.artifacts import EvalReport, Run
from tunegate.core.statistics import holm
from tunegate.evalkit.bakeoff.arms import notes_of
from tunegate.evalkit.bakeoff.plan import ARMS, BASE, TUNED, Member, Plan
from tunegate.evalkit.compare import Reading, lock, pair
from tunegate.evalkit.evaluate import open_reading
from tunegate.evalkit.gate import need_pairs
from tunegate.evalkit.summary import clusters, judged, measure, score_of

if TYPE_CHECKING:
    from tunegate.advisor.gpus import Gpu
    from tunegate.advisor.models import KnownModel

DRAWS = 4000
MARGIN = 0.02
ALPHA = 0.05


@dataclass(frozen=True, kw_only=True)
class Money:
    """What a call costs on the user's GPU. usd_per_1k: at the user's volume, billed by the hour; at_capacity: when the
    machines are kept busy. p95_ms: predicted. train_usd: once. None where the model or GPU cannot be estimated."""

    usd_per_1k: float | None = None
    at_capacity_usd_per_1k: float | None = None
    p95_ms: float | None = None
    train_usd: float | None = None
    why: str | None = None


def decide(plan: Plan, reports: Mapping[str, EvalReport], failed: Mapping[str, str]) -> dict[str, Any]:
    """The content of `bakeoff.json`: arms, differences, winner, curves, Pareto set, failures.

    Every report is checked to be of the same items, prompts and settings. Intervals are the reports' (95 %).
    """
    readings = {name: open_reading(report, name=name) for name, report in reports.items()}
    members = [Member(arm=arm) for arm in plan.arms if arm in readings]
    first = next(iter(readings.values()))
    for reading in readings.values():
        lock(first, reading, allowed=())
    primary = plan.task.primary
    rows = [_arm(plan, member, readings[member.name]) for member in members]
    _compare(rows, readings, primary)
    sure = probability_best({m.name: readings[m.name] for m in members}, primary)
    for row in rows:
        row["probability_best"] = sure[row["arm"]]
    return {
        "schema_version": 1,
        "task": plan.task.file.name,
        "primary": primary,
        "n": first.report["n"],
        "model": plan.source.spec,
        "gpu": plan.business.gpu,
        "calls_per_day": plan.business.calls_per_day,
        "arms": rows,
        "failed": dict(failed),
        "winner": winner(rows, readings, primary, p95_ms=plan.business.p95_ms),
        "pareto": pareto(rows, primary),
        "curves": {
            arm: _curve(plan, [m for m in plan.members(arm) if m.name in readings], readings, primary)
            for arm in plan.arms
            if arm in TUNED
        },
    }


def _arm(plan: Plan, member: Member, reading: Reading) -> dict[str, Any]:
    """One row of the table: quality, tokens, latency, what it took to make, money."""
    report, rows = reading.report, judged(reading.rows)
    run = None if member.arm == BASE else Run.open(plan.run_folder(member))
    facts = {} if run is None else run.manifest.facts
    tokens = {
        side: _mean([row[f"{side}_tokens"] for row in rows if row[f"{side}_tokens"] is not None])
        for side in ("prompt", "completion")
    }
    latency = measure(reading.rows, report, "latency_p95_ms", level=0.95).interval
    money = money_of(plan, member.arm, tokens, run)
    return {
        "arm": member.arm,
        "run": None if run is None else str(run.path),
        "report": reading.path,
        "report_digest": reading.digest,
        "metrics": report["metrics"],
        "outcomes": report["outcomes"],
        "prompt_tokens": tokens["prompt"],
        "completion_tokens": tokens["completion"],
        "latency_p95_ms": None if latency is None else latency.value,
        "made_s": notes_of(plan, member).get("made_s"),
        "peak_memory_gb": facts.get("peak_memory_gb"),
        "steps": facts.get("steps"),
        "usd_per_1k_calls": money.usd_per_1k,
        "usd_per_1k_calls_at_capacity": money.at_capacity_usd_per_1k,
        "predicted_p95_ms": money.p95_ms,
        "train_usd": money.train_usd,
        "money_note": money.why,
    }


def money_of(plan: Plan, arm: str, tokens: Mapping[str, float | None], run: Run | None) -> Money:
    """The advisor's figures for this arm's measured tokens on the user's GPU at the user's volume, and for its training as
    the run had it."""
    from tunegate.advisor import serving_plan
    from tunegate.advisor.break_even import DAYS_PER_MONTH
    from tunegate.advisor.constraints import Constraints
    from tunegate.advisor.gpus import find_gpu
    from tunegate.advisor.models import find
    from tunegate.core.errors import UserError

    sent, made = tokens["prompt"], tokens["completion"]
    if sent is None or made is None:
        return Money(why="the endpoint told no token counts")
    gpu = find_gpu(plan.business.gpu)
    try:
        model = find(plan.source.spec)
    except UserError as error:
        return Money(why=error.message)
    setup = serving_plan.setup_for(model.architecture, gpu, 1, "bf16", (max(1.0, sent), max(1.0, made)), 0.0)
    load = serving_plan.load_of(plan.business.calls_per_day, Constraints.peak_factor, plan.business.p95_ms)
    sized = serving_plan.plan(model.name, setup, load, owned=False)
    monthly_calls = plan.business.calls_per_day * DAYS_PER_MONTH
    busy = gpu.price / (sized.max_calls_per_s * 3600) * 1000 if gpu.price and sized.max_calls_per_s else None
    return Money(
        usd_per_1k=sized.monthly_usd / monthly_calls * 1000,
        at_capacity_usd_per_1k=busy,
        p95_ms=sized.p95_ms,
        train_usd=_train_usd(model, gpu, run) if run is not None and arm in TUNED else None,
        why="the p95 that is asked for cannot be kept: priced for the least that can" if sized.late_by_ms > 0 else None,
    )


def _train_usd(model: "KnownModel", gpu: "Gpu", run: Run) -> float | None:
    """What this training costs on the GPU: passes as it made them (a budget may have cut it short), shape as configured."""
    from tunegate.advisor import estimates
    from tunegate.train.lora_targets import projections_of

    facts, config = run.manifest.facts, run.manifest.config
    mask = facts["mask"]
    question = estimates.TrainQuestion(
        model=model,
        method=facts["method"],
        gpu=gpu,
        batch=config["per_device_train_batch_size"],
        accumulation=config["gradient_accumulation_steps"],
        seq=mask["longest"],
        rank=config["rank"],
        targets=projections_of(config["targets"], mixture=model.architecture.experts > 1),
        examples=mask["rows"],
        epochs=facts["tokens"] / mask["tokens"],
        mean_tokens=mask["tokens"] / mask["rows"],
        checkpointing=config["gradient_checkpointing"] is not False,
    )
    usd = estimates.train(question)["usd"]
    return None if usd is None else float(usd["value"])


def _compare(rows: list[dict[str, Any]], readings: Mapping[str, Reading], primary: str) -> None:
    """Add to each arm the paired difference to the best and to the cheapest, p-values adjusted over the arms (Holm)."""
    best = max(rows, key=lambda r: (r["metrics"][primary]["value"], -ARMS.index(r["arm"])))["arm"]
    cheapest = min(rows, key=_cost)["arm"]
    for role, other in (("to_best", best), ("to_cheapest", cheapest)):
        pairs = [pair(readings[other].rows, readings[r["arm"]].rows, primary) for r in rows]
        compared = [i for i, r in enumerate(rows) if r["arm"] != other]
        adjusted = dict(zip(compared, holm([pairs[i].two_sided_p() for i in compared]), strict=True))
        for i, row in enumerate(rows):
            interval = pairs[i].interval(level=1 - 2 * ALPHA)
            row[role] = {
                "arm": other, "difference": interval.value, "low": interval.low, "high": interval.high,
                "fixed": pairs[i].fixed, "broken": pairs[i].broken, "p_holm": adjusted.get(i, 1.0), "n": pairs[i].n,
            }  # fmt: skip
    for row in rows:
        row["break_even_calls"] = _break_even(row, next(r for r in rows if r["arm"] == cheapest))


def _cost(row: dict[str, Any]) -> tuple[float, float, int]:
    """Dearer later: at the user's volume, then at capacity, then the order of the methods by the work they are."""
    large = float("inf")
    at_volume, busy = row["usd_per_1k_calls"], row["usd_per_1k_calls_at_capacity"]
    return (large if at_volume is None else at_volume, large if busy is None else busy, ARMS.index(row["arm"]))


def _break_even(row: dict[str, Any], other: dict[str, Any]) -> float | str | None:
    """Calls after which an arm's training is paid by its cheaper calls; "never" when they are not cheaper."""
    once, own, theirs = row["train_usd"], row["usd_per_1k_calls_at_capacity"], other["usd_per_1k_calls_at_capacity"]
    if once is None or own is None or theirs is None or row is other:
        return None
    return round(once / (theirs - own) * 1000) if own < theirs else "never"


def probability_best(readings: Mapping[str, Reading], primary: str) -> dict[str, float]:
    """Share of bootstrap draws (of groups of items, 4,000) in which an arm has the highest mean; ties are split."""
    import numpy as np

    per_arm = {name: {row["id"]: score_of(row, primary) for row in judged(r.rows)} for name, r in readings.items()}
    shared = [
        key for key in next(iter(per_arm.values())) if all(scores.get(key) is not None for scores in per_arm.values())
    ]
    if not shared:
        return dict.fromkeys(readings, 0.0)
    rows = {row["id"]: row for row in next(iter(readings.values())).rows}
    groups = clusters([rows[key] for key in shared])
    names = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(names), len(per_arm)))
    for key, group in zip(shared, groups, strict=True):
        sums[names[group]] += [float(scores[key] or 0.0) for scores in per_arm.values()]
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS) @ sums
    top = draws == draws.max(axis=1, keepdims=True)
    share = (top / top.sum(axis=1, keepdims=True)).mean(axis=0)
    return {name: round(float(value), 4) for name, value in zip(per_arm, share, strict=True)}


def winner(
    rows: Sequence[dict[str, Any]], readings: Mapping[str, Reading], primary: str, *, p95_ms: float | None
) -> dict[str, Any]:
    """The cheapest arm that is shown to be not worse than the best by more than the margin; else the best.

    p95_ms: arms whose predicted latency on the user's GPU is above it are out. `why` says it in words; `undecided`
    names arms that this many items cannot tell from the best, with the number that would.
    """
    allowed = [r for r in rows if p95_ms is None or r["predicted_p95_ms"] is None or r["predicted_p95_ms"] <= p95_ms]
    if not allowed:
        return {"arm": None, "why": f"no arm keeps to {p95_ms:g} ms", "undecided": []}
    best = max(allowed, key=lambda r: (r["metrics"][primary]["value"], -ARMS.index(r["arm"])))
    undecided, good = [], [best]
    for row in allowed:
        if row is best:
            continue
        paired = pair(readings[best["arm"]].rows, readings[row["arm"]].rows, primary)
        if paired.not_worse(MARGIN, alpha=ALPHA).holds:
            good.append(row)
        elif not paired.worse(MARGIN, alpha=ALPHA).holds:
            undecided.append({"arm": row["arm"], "need_n": need_pairs(paired, -MARGIN, alpha=ALPHA)})
    chosen = min(good, key=_cost)
    value = best["metrics"][primary]["value"]
    if chosen is best:
        why = f"highest {primary} ({value:.1%}); no cheaper arm is shown to be within {MARGIN:.0%} of it"
    else:
        why = f"cheapest of the arms shown to be within {MARGIN:.0%} of the best ({best['arm']}, {value:.1%})"
    return {"arm": chosen["arm"], "why": why, "best": best["arm"], "probability_best": chosen["probability_best"],
            "undecided": undecided}  # fmt: skip


def pareto(rows: Sequence[dict[str, Any]], primary: str) -> list[str]:
    """Arms that no other arm beats in quality and cost at once."""

    def beaten(row: dict[str, Any]) -> bool:
        return any(
            other["value"] >= row["value"] and _cost(other) <= _cost(row)
            and (other["value"] > row["value"] or _cost(other)[:2] < _cost(row)[:2])
            for other in points
            if other is not row
        )  # fmt: skip

    points = [{**row, "value": row["metrics"][primary]["value"]} for row in rows]
    return [row["arm"] for row in points if not beaten(row)]


def _curve(
    plan: Plan, members: Sequence[Member], readings: Mapping[str, Reading], primary: str
) -> list[dict[str, Any]]:
    """Quality at each share of the rows that came to a report; from the second on with the paired `gain` over the one before."""
    points: list[dict[str, Any]] = []
    for at, member in enumerate(members):
        facts, reading = Run.open(plan.run_folder(member)).manifest.facts, readings[member.name]
        point = {"share": member.share, "rows": facts["mask"]["rows"], "steps": facts["steps"]}
        points.append(point | reading.report["metrics"][primary])
        if at:
            paired = pair(readings[members[at - 1].name].rows, reading.rows, primary)
            points[-1]["gain"] = asdict(paired.interval(level=1 - 2 * ALPHA))
    return points


def _mean(values: Sequence[float]) -> float | None:
    return mean(values) if values else None
