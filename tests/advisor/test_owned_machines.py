"""Machines that are owned and idle against an API whose bill is far beyond the load from which they pay."""

import pytest

from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.recommend import recommend

OWNED = {"hardware": "H100-SXM:8", "calls_per_day": 1e6, "examples": 200}


@pytest.mark.parametrize("needs", ["format,cost", "cost,format", "cost", "format", None])
def test_idle_machines_are_taken_where_an_api_costs_many_times_as_much(needs):
    """An API at $18,250 a month was recommended at 19 times the load from which the GPUs at hand pay."""
    answer = recommend(from_mapping({**OWNED, "needs": needs}))
    assert answer.chosen.serving
    assert answer.break_even is not None
    assert answer.break_even < OWNED["calls_per_day"] / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"needs": "quality,cost"},  # what comes first
        {"needs": "format,cost", "quality": "max"},
        {"needs": "format,cost", "calls_per_day": 1e4},  # below the break-even
        {"needs": "format,cost", "calls_per_day": 6e4},  # hardly above it
        {"needs": None, "calls_per_day": 2e5},  # cost is no need: four times is not enough
        {"needs": "format,cost", "hardware": "A100-80GB"},  # carries 0.5B only: no match
        {"needs": "format,cost", "ops": "low"},
    ],
)
def test_an_api_stays_where_it_costs_little_or_does_better(changes):
    assert recommend(from_mapping({**OWNED, **changes})).chosen.vendor


def test_accumulation_shares_the_time_of_the_optimizer_step(advise):
    """`recommend` had it in its recipe, `estimate train` could not be asked for it: 11 % between their hours."""
    question = (
        "estimate",
        "train",
        "--model",
        "Llama-3.1-8B",
        "--method",
        "full",
        "--gpu",
        "H100",
        "--gpus",
        8,
        "--json",
    )
    alone, shared = (advise(*question, *more)[1]["hours"]["value"] for more in ((), ("--accumulation", 8)))
    assert shared < alone
