"""The same question with something else in it: which method would win, and what may be had for it."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from tunegate.advisor.constraints import Constraints, implied, refuse_contradictions
from tunegate.advisor.recommend import Recommendation, situation_of, too_small
from tunegate.advisor.rules import ADAPTERS, METHODS, PROMPTED, RULES, TUNED, Situation, scores
from tunegate.advisor.search import Option, Space, search
from tunegate.core.errors import UserError

# Of what is varied here: what the options hang on.
SHAPING = ("calls_per_day", "examples", "facts", "privacy", "budget_usd")
AMPLE_USD = 100_000.0
COMPARED = (*PROMPTED, *ADAPTERS)  # what is held against each other where a load is stated and cost matters
UNTUNED = tuple(m for m in METHODS if m not in TUNED)
NO_EFFECT = "no plausible value changes the method"


def winner(answer: Recommendation, s: Situation | None) -> str | None:
    """The method that another situation would be answered with; what was measured stands. None where its constraints
    contradict each other, or nothing meets them."""
    if s is None:
        return None
    totals = scores(s)
    for rule in answer.fired:
        if rule not in RULES:
            for method, points in rule.votes.items():
                totals[method] += points
    for method in sorted(METHODS, key=lambda m: -totals[m]):
        if method == answer.chosen.method:
            return method
        able = [o for o in _options(answer, s.constraints, method) if o.feasible]
        if able and not too_small(able, s, [o for m in UNTUNED for o in _options(answer, s.constraints, m)]):
            return method
    return None


def _options(answer: Recommendation, c: Constraints, method: str) -> list[Option]:
    """A method's options under other constraints of the same market; searched anew only where they hang on what differs."""
    if all(getattr(c, name) == getattr(answer.constraints, name) for name in SHAPING):
        return [o for o in answer.space.options if o.method == method]
    key = (method, *(getattr(c, name) for name in SHAPING))
    if key not in answer.elsewhere:
        answer.elsewhere[key] = search(c, answer.profile, answer.goods, (method,)).options
    return answer.elsewhere[key]


def variations(answer: Recommendation) -> Iterator[tuple[str, Situation | None]]:
    """Single changes to the question, small ones first."""
    s, c = answer.situation, answer.constraints
    for count in (50, 500, 1000, 5000, 100_001):
        if count != c.examples:
            yield f"{count} examples instead of {c.examples}", _with(answer, examples=count)
    if s.api_cheaper:
        for calls in (10 * c.calls_per_day, 100 * c.calls_per_day, 1000 * c.calls_per_day):
            yield f"{calls:,.0f} calls a day", _with(answer, calls_per_day=calls)
    if s.small_base:
        yield "a base of 7B instead of one below 1B", dataclasses.replace(s, base_b=7.0, cpu_only=False)
    if s.fits_16bit:
        yield (
            "a GPU too small for the base in 16 bits",
            dataclasses.replace(s, fits_16bit=False, cpu_only=False),
        )
    elif s.fits_16bit is None:
        yield "a GPU of your own that holds it in 16 bits", dataclasses.replace(s, fits_16bit=True)
    if not c.needs:
        yield "a need for a strict format", _with(answer, needs=("format",))
    else:
        yield "none of the needs", _with(answer, needs=())
    yield "changing facts", _with(answer, facts="changing")
    yield "changing facts and a strict format", _with(answer, facts="changing", needs=("format", *c.needs))
    if c.ops == "low":
        yield "servers of your own (ops: medium)", _with(answer, ops="medium")
    else:
        yield "no wish to run servers (ops: low)", _with(answer, ops="low")
    yield "a far domain and 100,001 examples", _with(answer, domain="far", examples=100_001)
    yield f"quality: max and a budget of ${AMPLE_USD:,.0f}", _with(answer, quality="max", budget_usd=AMPLE_USD)


def _with(answer: Recommendation, **changes: Any) -> Situation | None:
    """The situation of the same question with other constraints; None where two of them contradict each other."""
    c = answer.constraints
    if "needs" in changes and "privacy" not in c.stated:
        changes.setdefault("privacy", "public")  # it was implied by the needs
    if "needs" in changes:
        changes["needs"] = tuple(dict.fromkeys(changes["needs"]))
    other = implied(dataclasses.replace(c, **changes, stated=c.stated | (changes.keys() - {"privacy"})))
    try:
        refuse_contradictions(other)
    except UserError:
        return None
    compared = COMPARED if "calls_per_day" in other.stated and other.wants("cost") else ()
    found = Space(options=[o for method in compared for o in _options(answer, other, method)])
    return situation_of(other, answer.profile, answer.goods, found)


def flip(answer: Recommendation, **alternatives: tuple[Any, ...]) -> str:
    """Which methods other values of one constraint would favour, in words; NO_EFFECT for none."""
    ((name, values),) = alternatives.items()
    found = []
    for value in values:
        best = winner(answer, _with(answer, **{name: value}))
        if best not in (None, answer.chosen.method):
            shown = ",".join(value) or "none" if isinstance(value, tuple) else value
            shown = f"{value:g}" if isinstance(value, float) else shown
            found.append(f"{shown} would favour {best}")
    return "; ".join(found) or NO_EFFECT
