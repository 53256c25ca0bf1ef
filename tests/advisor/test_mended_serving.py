"""Latency bounds that cannot be met, calls that do not fit, a prefix that is shared: what the plan then says."""

import dataclasses
import re

import pytest

from tunegate.advisor import serving_speed
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.estimates import ServeQuestion, serve
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.advisor.recommend import recommend
from tunegate.advisor.serving_plan import load_of, plan, setup_for
from tunegate.core.errors import UserError

CALL = {"model": "Llama-3.1-8B", "privacy": "no-egress", "input_tokens": 1000, "output_tokens": 200}


@pytest.mark.parametrize(
    ("where", "calls"),
    [(None, 1e7), (None, 1000), ("L4:4", 1e5), ("H100:8", 1e5), ("H100:8", 1e6), ("A100-80GB:3", 2e5)],
)
def test_the_smallest_change_of_a_latency_bound_is_enough_and_less_is_not(where, calls):
    """It was the crowded engine's: 1544 ms where 698 are enough."""
    question = {**CALL, "calls_per_day": calls, "hardware": where}
    with pytest.raises(UserError) as error:
        recommend(from_mapping({**question, "p95_ms": 500}))
    found = re.fullmatch(r"smallest change: raise p95_ms from 500 to (\d+)", error.value.hint)
    needed = int(found[1])
    answer = recommend(from_mapping({**question, "p95_ms": needed}))
    assert answer.chosen.p95_ms <= needed
    with pytest.raises(UserError):
        recommend(from_mapping({**question, "p95_ms": 0.98 * needed}))


def test_both_changes_together_admit_what_owned_machines_do_not_carry():
    """A plan that is late and larger than the machines at hand: its changes are those of one plan."""
    question = {**CALL, "calls_per_day": 1e7, "hardware": "L4:4", "p95_ms": 500}
    with pytest.raises(UserError) as error:
        recommend(from_mapping(question))
    count, bound = (
        re.search(pattern, error.value.hint)[1] for pattern in (r"(\d+) x L4 instead of 4", r"p95_ms from 500 to (\d+)")
    )
    more = {**question, "hardware": f"L4:{count}"}
    assert recommend(from_mapping({**more, "p95_ms": int(bound)})).chosen.feasible
    for less in ({"p95_ms": 0.98 * int(bound)}, {"hardware": f"L4:{int(0.9 * int(count))}"}):
        with pytest.raises(UserError):
            recommend(from_mapping({**more, "p95_ms": int(bound), **less}))


def test_a_late_plan_is_that_of_the_least_bound_it_keeps():
    """Its rent, too, is what the stated change leads to."""
    setup = setup_for(find("Llama-3.1-8B").architecture, find_gpu("B200"), 8, "awq", (1000, 200), 0.0)
    late = plan("x", setup, load_of(1e7, 3, 500), owned=False)
    kept = plan("x", setup, load_of(1e7, 3, 500 + late.late_by_ms + 0.01), owned=False)
    assert late.late_by_ms > 0
    assert (kept.late_by_ms, kept.replicas, kept.monthly_usd) == (0.0, late.replicas, late.monthly_usd)


def test_breakeven_says_a_bound_that_it_then_takes(advise):
    question = ("breakeven", "--gpu", "L4", "--against", "openai/gpt-5", "--p95-ms")
    code, d, _ = advise(*question, 600, "--json")
    best = int(re.search(r"p95 is (\d+) ms at best", d["error"]["message"])[1])
    assert (code, f"--p95-ms {best}" in d["error"]["hint"]) == (2, True)
    assert advise(*question, best)[0] == 0
    assert advise(*question, int(0.98 * best))[0] == 2


LONG = {"input_tokens": 10_000, "output_tokens": 20_000}


def test_one_whole_call_has_to_fit_the_cache():
    """Its mean did: vLLM does not start without room for the whole."""
    question = ServeQuestion(model=find("Llama-3.1-8B"), gpu=find_gpu("L4"), **LONG)
    answer = serve(question)
    assert (answer["fits"], answer["max_concurrency"]) == (False, 0)
    assert any("KV cache" in note for note in answer["notes"])
    assert serve(dataclasses.replace(question, gpu=find_gpu("L40S")))["fits"]
    setup = setup_for(question.model.architecture, question.gpu, 1, "bf16", (10_000, 20_000), 0.0)
    assert serving_speed.cache_room_gb(setup) > serving_speed.sequence_gb(setup)  # of the mean there is enough
    refused = plan("x", setup, load_of(1000, 3, None), owned=True)
    assert refused.misfit_of == "KV cache"
    assert refused.misfit_gb == pytest.approx(serving_speed.call_gb(setup) - serving_speed.cache_room_gb(setup))


def test_a_shared_prefix_is_kept_once():
    """Reference 2.3: KV shared once."""
    a = find("Llama-3.1-8B").architecture
    alone = setup_for(a, find_gpu("L4"), 1, "awq", (4000, 200), 0.0)
    shared = dataclasses.replace(alone, prefix_hit=0.9)
    token = a.kv_bytes_per_token() / 1e9
    assert serving_speed.sequence_gb(shared) == pytest.approx((400 + 100) * token)
    assert serving_speed.shared_gb(shared) == pytest.approx(3600 * token)
    assert serving_speed.call_gb(shared) == pytest.approx(4200 * token)
    room = serving_speed.cache_room_gb(shared)
    assert serving_speed.max_concurrency(shared) == pytest.approx((room - 3600 * token) / (500 * token))
    assert serving_speed.max_concurrency(alone) == pytest.approx(room / (4100 * token))
    question = ServeQuestion(
        model=find("Llama-3.1-8B"),
        gpu=find_gpu("L4"),
        quantization="awq",
        input_tokens=4000,
        output_tokens=200,
        concurrency=4,
    )
    less = (
        serve(question)["memory_gb"]["value"]
        - serve(dataclasses.replace(question, prefix_hit=0.9))["memory_gb"]["value"]
    )
    assert less == pytest.approx(3 * 3600 * token, rel=0.01)


def test_a_window_and_a_shared_prefix_leave_something_to_divide_by():
    a = find("Mistral-7B-v0.1").architecture
    setup = dataclasses.replace(setup_for(a, find_gpu("L40S"), 1, "bf16", (20_000, 10), 0.0), prefix_hit=1.0)
    assert 1 < serving_speed.max_concurrency(setup) < float("inf")
