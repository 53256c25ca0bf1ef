"""Why this answer: refused options with what would admit them, assumptions with what hangs on them, probes, a tornado."""

import dataclasses
import math
from typing import Any

from tunegate.advisor import calibrate, what_if
from tunegate.advisor.constraints import Constraints
from tunegate.advisor.data_profile import DataProfile
from tunegate.advisor.gpus import Gpu
from tunegate.advisor.models import find
from tunegate.advisor.prices import stale_note
from tunegate.advisor.recommend import LEAST_TUNED_B, Recommendation, recommend, too_small
from tunegate.advisor.refusals import prompt_shape
from tunegate.advisor.rules import METHODS, RULES, TUNED, Rule
from tunegate.advisor.search import Option, context_of, kept_rows, nearest_miss
from tunegate.core.errors import UserError
from tunegate.core.token_estimate import CHARACTERS_PER_TOKEN, CJK_CHARACTERS_PER_TOKEN

Json = dict[str, Any]
MANY_REPEATED = 0.05  # share of the rows from which on duplicates and conflicts are said
SOME_CJK = 0.01  # share of the characters from which on those of Chinese, Japanese and Korean are spoken of
GRADES = {
    "A": "evidence A: controlled, several models",
    "B": "evidence B: one study",
    "C": "evidence C: guidance",
    "F": "a fact",
}


def rejected(answer: Recommendation) -> list[Json]:
    """One entry for each method not chosen, for hosted APIs that a constraint refuses, and for closed fine-tuning."""
    entries = []
    winners = [(text, what_if.winner(answer, other)) for text, other in what_if.variations(answer)]
    for method in METHODS:
        if method == answer.chosen.method:
            continue
        options = [o for o in answer.space.options if o.method == method]
        feasible = [o for o in options if o.feasible]
        if feasible and too_small(feasible, answer.situation, answer.space.options):
            larger = [o for o in options if o.params_b >= LEAST_TUNED_B]
            entries.append(_refused(larger, method))
        elif feasible:
            entries.append(_outscored(answer, method, winners))
        elif options:
            entries.append(_refused(options, method))
    refused_offers = [o for o in answer.space.options if o.vendor and o.method == "hosted_api" and not o.feasible]
    if refused_offers and answer.chosen.method == "hosted_api":
        entries.append(_refused(refused_offers, f"{len(refused_offers)} other API offers"))
    if answer.constraints.privacy == "public":
        entries.append(
            {"option": "OpenAI tuning", "constraint": "closed to new users", "change": "choose open weights"}
        )
    return entries


def _refused(options: list[Option], name: str) -> Json:
    near = nearest_miss(options)
    return {
        "option": f"{name} ({near.label})",
        "constraint": near.binding,
        "change": " and ".join(near.changes),
        "changes": near.changes,
    }


def _outscored(answer: Recommendation, method: str, winners: list[tuple[str, str | None]]) -> Json:
    gap = answer.score[answer.chosen.method] - answer.score[method]
    won = {r.id: r.votes.get(answer.chosen.method, 0.0) - r.votes.get(method, 0.0) for r in answer.fired}
    against = sorted((rule for rule, lead in won.items() if lead > 0), key=lambda rule: -won[rule])[:3]
    flips = [text for text, winner in winners if winner == method]
    change = flips[0] if flips else f"none of the single changes tried: it is {gap:.1f} points of evidence behind"
    return {
        "option": method,
        "constraint": f"evidence: {', '.join(against) or 'simpler method preferred'}",
        "change": change,
        "points_behind": round(gap, 2),
        "flips": bool(flips),
    }


def assumptions(answer: Recommendation) -> list[Json]:
    """What was not stated, its value, and what changes when it is wrong."""
    c, entries = answer.constraints, []
    effects = {
        "calls_per_day": _load_matters(answer),
        "input_tokens": "scales API cost and prefill time",
        "output_tokens": "scales cost and latency",
        "peak_factor": "replicas follow the busiest hour",
        "examples": what_if.flip(answer, examples=(50, 5000)),
        "facts": what_if.flip(answer, facts=("changing",)),
        "domain": what_if.flip(answer, domain=("far",)),
        "ops": what_if.flip(answer, ops=("low",)),
        "needs": what_if.flip(answer, needs=((), ("format",))),
        "privacy": "public would admit hosted APIs" if c.privacy == "no-egress" else "no-egress would refuse every API",
        "p95_ms": "no latency bound was given: none refuses an option",
        "quality": what_if.flip(answer, quality=("max",)),
        "budget_usd": "no one-off limit was given",
        "monthly_budget_usd": "no monthly limit was given",
        "hardware": "machines are rented at the geometric mean of known prices",
        "model": "the base was free to choose",
    }
    for name, effect in effects.items():
        if name not in c.stated:
            value = getattr(c, name)
            shown = list(value) if isinstance(value, tuple) else value
            entries.append({"name": name, "value": shown, "matters": effect, "weighs": effect != what_if.NO_EFFECT})
    entries += _fixed_assumptions(answer)
    return entries


def _load_matters(answer: Recommendation) -> str:
    found = "scales the monthly cost; decides whether owning machines can pay"
    if (flip := what_if.flip(answer, calls_per_day=(answer.constraints.calls_per_day,))) == what_if.NO_EFFECT:
        return found
    return f"{found}; {flip}, were it stated"


def _fixed_assumptions(answer: Recommendation) -> list[Json]:
    c, chosen = answer.constraints, answer.chosen
    entries: list[Json] = []
    if c.model and (meant := find(c.model).meant):
        entries.append({"name": "model_id", "value": chosen.spec, "matters": meant})
    if answer.situation.cpu_only:
        rented = (
            "no GPU is owned and none may be rented: data must not leave"
            if c.privacy == "no-egress"
            else "no GPU is used"
        )
        entries.append({"name": "machines", "value": rented, "matters": "a GPU would admit bases of 7B and more"})
    entries += [_speed(gpu) for gpu in _machines(answer) if gpu.is_cpu or _calibrated(gpu)]
    doubts = {gpu.doubt for gpu in _machines(answer)} | {_model_doubt(answer)}
    if unchecked := sorted(d for d in doubts if d):
        matters = "entered from general knowledge: estimates are only as good as that"
        entries.append({"name": "unchecked", "value": unchecked, "matters": matters})
    if answer.profile and answer.profile.counted_with == "estimate":
        entries.append(_token_counts(answer.profile))
    entries += _repetitions(answer.profile) + _long_rows(answer)
    if chosen.serving and not c.hardware:
        note = f"{chosen.serving.gpu.prices}"
        entries.append(
            {
                "name": "gpu_price",
                "value": chosen.serving.gpu.price,
                "matters": f"monthly cost is proportional; vendors differ: {note}",
            }
        )
    if chosen.vendor:
        offer = next(o for o in answer.offers if o.model == chosen.model and o.provider == chosen.vendor)
        note = stale_note(offer.date)
        entries.append(
            {"name": "api_price", "value": f"{offer.date} {offer.source}", "matters": note or "cost is proportional"}
        )
        entries.append(
            {
                "name": "api_speed",
                "value": "0.6 s to the first token, 80 tokens/s",
                "matters": "p95 of an API is not in our hands",
            }
        )
    entries.append(
        {
            "name": "engineering",
            "value": f"{40 if chosen.training else 20} h once, 8 h a month, $100/h, paid off in 12 months",
            "matters": "the largest part of a small service's cost",
            "weighs": chosen.serving is not None,
        }
    )
    return entries


def _token_counts(profile: DataProfile) -> Json:
    """How lengths were estimated where no tokenizer was at hand."""
    value, off = f"{CHARACTERS_PER_TOKEN:g} characters a token", "lengths off by up to 20 %"
    if profile.cjk_share >= SOME_CJK:
        value += f", {CJK_CHARACTERS_PER_TOKEN:g} of Chinese, Japanese and Korean ({profile.cjk_share:.0%} of the text)"
        off = "lengths off by up to 20 %, those of Chinese, Japanese and Korean by up to a factor of two"
    return {"name": "token_counts", "value": value, "matters": f"{off}: no tokenizer was at hand"}


def _repetitions(profile: DataProfile | None) -> list[Json]:
    """Rows that count as examples and teach less than they seem to, where they are many."""
    if profile is None:
        return []
    found = (
        ("duplicates", profile.duplicates, "rows that stood before teach nothing new: ft data prepare removes them"),
        ("conflicts", profile.conflicts, "one prompt with several answers: no model can be right on all of them"),
    )
    return [
        {"name": name, "value": f"{count:,} of {profile.rows:,} rows", "matters": matters}
        for name, count, matters in found
        if count > MANY_REPEATED * profile.rows
    ]


def _long_rows(answer: Recommendation) -> list[Json]:
    """Rows of DATA that are longer than what is trained on, or than the model takes; an API whose context is not known."""
    chosen, c, training = answer.chosen, answer.constraints, answer.chosen.training
    offer = next((o for o in answer.offers if (o.provider, o.model) == (chosen.vendor, chosen.model)), None)
    context = context_of(offer) if offer else find(chosen.spec).architecture.context
    found: list[Json] = []
    if offer and context is None:
        matters = "long calls may be refused: its provider says how long they may be"
        found.append({"name": "api_context", "value": "not checked", "matters": matters})
    if training is not None:
        most, name = training.recipe.max_length, f"max_length {training.recipe.max_length:,}: ft train leaves them out"
        share = kept_rows(chosen.method, most, answer.profile)[0]
    elif context is not None and answer.profile is not None:
        beside = prompt_shape(chosen.method, c)[0] - c.input_tokens
        share, name = answer.profile.kept(context - beside)[0], f"the context of {context:,}: they cannot be answered"
    else:
        return found
    if answer.profile is not None and share < 1:
        rows = answer.profile.rows
        value = f"{round((1 - share) * rows):,} of {rows:,} rows"
        found.append({"name": "long_rows", "value": value, "matters": f"exceed {name}"})
    return found


def _machines(answer: Recommendation) -> list[Gpu]:
    """The GPUs of the answer, each once: serving, then training."""
    plans = (answer.chosen.serving, answer.chosen.training)
    return list({plan.gpu.name: plan.gpu for plan in plans if plan is not None}.values())


def _calibrated(gpu: Gpu) -> bool:
    return any(calibrate.is_calibrated(kind, gpu.name) for kind in ("train_tps", "tpot"))


def _speed(gpu: Gpu) -> Json:
    """Whether a machine's speed is computed or corrected by its own logs."""
    known = {
        what: calibrate.factor(kind, gpu.name)
        for what, kind in (("training speed", "train_tps"), ("time per token", "tpot"))
        if calibrate.is_calibrated(kind, gpu.name)
    }
    name = "cpu_speed" if gpu.is_cpu else "gpu_speed"
    if not known:
        value, matters = "computed, not measured here", "wide: run ftadvise calibrate on this machine"
        return {"name": name, "value": value, "matters": matters}
    value = ", ".join(f"{what} times {factor:.2f}" for what, factor in known.items())
    return {"name": name, "value": value, "matters": "as ftadvise calibrate found on this machine"}


def _model_doubt(answer: Recommendation) -> str | None:
    return None if answer.chosen.serving is None else find(answer.chosen.spec).doubt


def rules_json(answer: Recommendation) -> list[Json]:
    """Every rule, fired or not."""
    ids = {rule.id for rule in answer.fired}
    return [
        {
            "id": r.id, "says": r.says, "fired": r.id in ids, "grade": r.grade, "source": r.source, "scope": r.scope,
            "conflicts": list(r.conflicts), "note": r.note, "votes": dict(r.votes),
        }
        for r in (*RULES, *(r for r in answer.fired if r not in RULES))
    ]  # fmt: skip


def outweighed(answer: Recommendation) -> list[str]:
    """For each fired rule that favoured other methods: a sentence that says by what it was outweighed."""
    return [sentence for rule in answer.fired if (sentence := counter_sentence(answer, rule))]


def counter_sentence(answer: Recommendation, rule: Rule, *, short: bool = False) -> str:
    """What a rule that speaks for another method says, and what outweighs it; empty when it does not, or nothing does."""
    chosen = answer.chosen.method
    best = max(rule.votes, key=lambda m: rule.votes[m], default=chosen)
    if rule.votes.get(best, 0.0) <= 0 or rule.votes.get(chosen, 0.0) >= rule.votes[best]:
        return ""
    says = f'Against it: "{rule.says}" speaks for {best} ({GRADES[rule.grade]})'
    lead = {r.id: r.votes.get(chosen, 0.0) - r.votes.get(best, 0.0) for r in answer.fired if r.id != rule.id}
    stronger = sorted((r for r in answer.fired if lead.get(r.id, 0.0) > 0), key=lambda r: -lead[r.id])[:3]
    if short:
        return f"{says}; what speaks for {chosen} weighs more here." if stronger else f"{says}."
    if not stronger:
        return ""
    names = ", ".join(f"{r.id} (+{lead[r.id]:g} points for {chosen}, {GRADES[r.grade]})" for r in stronger)
    return f"{says}, rule {rule.id}. It is outweighed here by {names}."


TORNADO = ("calls_per_day", "input_tokens", "output_tokens", "examples", "peak_factor")


def tornado(answer: Recommendation, factor: float = 10.0) -> list[Json]:
    """Each quantity divided and multiplied by `factor`, one at a time: does the answer change, and the monthly cost?

    Entries with the largest change of monthly cost first. flips_to: other methods, and `refused (constraint) at 10 times`
    where nothing answers that.
    """
    rows = []
    for name in TORNADO:
        value = getattr(answer.constraints, name)
        ends = {
            "a tenth" if factor == 10 else f"1/{factor:g}": _again(answer, name, value / factor),
            f"{factor:g} times": _again(answer, name, value * factor),
        }
        found = [e.chosen for e in ends.values() if not isinstance(e, UserError)]
        costs = [chosen.monthly_usd for chosen in found] or [answer.chosen.monthly_usd]
        flips = sorted({f"{e.method} {e.model}" for e in found if e.method != answer.chosen.method})
        flips += [f"refused ({e.where}) at {end}" for end, e in ends.items() if isinstance(e, UserError)]
        rows.append({"name": name, "low_usd": min(costs), "high_usd": max(costs), "flips_to": flips})
    return sorted(rows, key=lambda r: r["low_usd"] - r["high_usd"])


def _again(answer: Recommendation, name: str, value: float) -> Recommendation | UserError:
    c = answer.constraints
    if name == "examples":
        value = int(value)
    elif name == "peak_factor":
        value = max(1.0, value)
    different: dict[str, Any] = {name: value, "stated": c.stated | {name}}
    changed: Constraints = dataclasses.replace(c, **different)
    try:
        profile = None if answer.profile is None else dataclasses.replace(answer.profile, rows=changed.examples)
        return recommend(changed, profile, answer.offers, answer.measured, answer.goods)
    except UserError as error:
        return error


def probes(answer: Recommendation) -> list[str]:
    """The cheapest experiments that could change the answer, cheapest first."""
    c, found = answer.constraints, []
    if answer.chosen.method in TUNED:
        rows = min(200, max(20, c.examples // 4))
        found.append(
            f"score the untuned base with your best prompt on {rows} held-out examples: if it passes, do not train"
        )
        hours = (
            answer.chosen.training.hours / max(1, answer.chosen.training.recipe.epochs) / 4
            if answer.chosen.training
            else 0.0
        )
        found.append(
            f"train one epoch on a quarter of the data ({_duration(hours)}) and on half: a flat curve says more rows will not help"
        )
    else:
        found.append(
            "score zero-shot, few-shot and a larger model on 200 examples: a gap that few-shot closes needs no training"
        )
    if c.facts == "changing":
        found.append("ask 100 questions with the right passage pasted in: what still fails is not a retrieval problem")
    return found


def _duration(hours: float) -> str:
    return f"about {hours:.1f} h" if hours >= 1 else f"about {max(1, math.ceil(hours * 60))} min"


def votes_table(answer: Recommendation) -> list[tuple[str, str, str]]:
    """(rule id, grade, votes) of every rule that fired."""
    return [
        (
            r.id,
            r.grade,
            ", ".join(f"{m} {p:+g}" for m, p in sorted(r.votes.items(), key=lambda x: -x[1])) or "informs only",
        )
        for r in answer.fired
    ]
