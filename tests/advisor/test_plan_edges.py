"""Edges of sizing, pricing and queueing: each of these gave a wrong answer once."""

import re

import pytest

from tunegate.advisor import estimates, prices, recommend, search, serving_plan
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.core.errors import UserError

INSIDE = {"privacy": "no-egress"}
BOUNDED = {**INSIDE, "model": "Qwen2.5-1.5B", "hardware": "RTX4090:2", "input_tokens": 2000, "output_tokens": 150}


def answer(**question):
    return recommend.recommend(from_mapping(question))


def test_a_bound_that_is_met_without_it_refuses_nothing():
    """Of plans that cost no rent the quickest was kept, though it needs more GPUs than are owned."""
    free = answer(**BOUNDED, calls_per_day=500_000).chosen
    assert free.p95_ms < 2000
    bounded = answer(**BOUNDED, calls_per_day=500_000, p95_ms=2000).chosen
    assert bounded.serving.all_gpus <= 2
    assert bounded.p95_ms <= 2000


def test_no_more_owned_gpus_are_taken_than_are_needed():
    """Without rent the fewest GPUs are the cheapest."""
    question = {**BOUNDED, "hardware": "RTX4090:8", "calls_per_day": 1000}
    assert answer(**question).chosen.serving.all_gpus == 1
    assert answer(**question, p95_ms=5000).chosen.serving.all_gpus == 1


def applied(question, hint):
    """The question with the stated smallest change made."""
    changed = dict(question)
    for part in hint.removeprefix("smallest change: ").split(" and "):
        if raised := re.match(r"raise (\w+) from \S+ to (\S+)", part):
            changed[raised[1]] = float(raised[2])
        else:
            more = re.match(r"(\d+) x (\S+) instead", part)
            changed["hardware"] = f"{more[2]}:{more[1]}"
    return changed


REFUSED = [
    ("L40S:2", "Llama-3.3-70B", 10_321, 41, 729_987, 364),
    ("L40S:2", "Mistral-Nemo-12B", 2775, 163, 574_111, 836),
    ("T4:3", "Mistral-Nemo-12B", 224, 463, 15_151, 3029),
    ("L4:2", "Mistral-Nemo-12B", 159, 120, 145_597, 2724),
    ("H100:8", "Mistral-Nemo-12B", 1213, 461, 109_740, 833),
    ("H100:2", "Qwen2.5-32B", 3978, 962, 28_090, 4215),
    ("A10G:3", "Qwen2.5-7B", 6242, 175, 194_837, 1171),
]


@pytest.mark.parametrize(("hardware", "model", "inputs", "outputs", "calls", "bound"), REFUSED)
def test_the_smallest_change_admits_an_option(hardware, model, inputs, outputs, calls, bound):
    """The search for a load within the bound stops early, and asked for one replica more than the stated bound needs."""
    question = {
        **INSIDE, "hardware": hardware, "model": model, "input_tokens": inputs, "output_tokens": outputs,
        "calls_per_day": calls, "p95_ms": bound,
    }  # fmt: skip
    with pytest.raises(UserError) as refused:
        answer(**question)
    assert answer(**applied(question, refused.value.hint)).chosen.feasible


def test_a_long_prompt_is_served_on_the_gpus_that_hold_its_cache():
    """One A6000 holds the weights, not the cache of a call: two were never tried."""
    question = {**INSIDE, "model": "Llama-3.3-70B", "hardware": "A6000:2", "input_tokens": 8000, "output_tokens": 500}
    chosen = answer(**question, calls_per_day=500).chosen
    assert (chosen.quantization, chosen.serving.gpus) == ("awq", 2)


def test_a_longer_prompt_does_not_take_a_dearer_gpu_where_two_cheap_ones_do():
    chosen = answer(**INSIDE, input_tokens=120_000, output_tokens=500, calls_per_day=50).chosen
    assert (chosen.serving.gpu.name, chosen.serving.gpus) == ("L40S", 2)
    assert chosen.monthly_usd == pytest.approx(1792, rel=0.01)


def test_the_best_count_of_gpus_is_found_without_a_bound_too():
    """What is kept for each kind of GPU is no dearer than any count that holds a call."""
    c = from_mapping({**INSIDE, "input_tokens": 6000, "output_tokens": 300, "calls_per_day": 200_000})
    load = serving_plan.load_of(c.calls_per_day, c.peak_factor, None)
    options = search.search(c, None, search.market(c, ()), ("prompt",)).options
    kept = {(o.model, o.serving.gpu.name, o.quantization): o.serving for o in options if o.serving}
    for model, gpu, quantization in (("Llama-3.1-8B", "L4", "bf16"), ("Llama-3.3-70B", "H100-SXM", "fp8")):
        found = [
            serving_plan.plan(
                model,
                serving_plan.setup_for(find(model).architecture, find_gpu(gpu), n, quantization, (6000.0, 300.0), 0.0),
                load,
                owned=False,
            )
            for n in (1, 2, 4, 8)
        ]
        assert kept[model, gpu, quantization].monthly_usd == min(plan.monthly_usd for plan in found)


def test_the_competitor_is_the_cheapest_for_these_calls():
    """It was that of the least sum of both prices, whatever a call consists of."""
    question = {"model": "Mistral-Nemo-12B", "examples": 5000, "needs": "format", "output_tokens": 20}
    found = answer(**question, input_tokens=4000, calls_per_day=500_000)
    assert found.chosen.serving
    alike = [o for o in found.offers if o.open_weights and o.params_b >= 0.9 * found.chosen.params_b]
    assert found.competitor.per_call(4000, 20) == min(o.per_call(4000, 20) for o in alike)
    assert found.competitor.name == "groq/openai/gpt-oss-20b"


def test_a_user_s_price_keeps_what_it_does_not_say(tmp_path):
    """A replaced offer lost the size and kind of its model: an 8B model then ranked as a closed one of middle size."""
    old = {offer.name: offer for offer in prices.snapshot()}
    hosted = next(o for o in old.values() if o.open_weights and o.cached_usd_mtok is not None)
    closed = next(o for o in old.values() if o.tier == "flagship")
    kept = ("open_weights", "params_b", "tier", "cached_usd_mtok")
    (tmp_path / "few.csv").write_text(
        "provider,model,input_usd_mtok,output_usd_mtok\n"
        + "".join(f"{o.provider},{o.model},7,8\n" for o in (hosted, closed))
    )
    (tmp_path / "empty.csv").write_text(
        "provider,model,input_usd_mtok,output_usd_mtok,cached_usd_mtok,open_weights,params_b,tier\n"
        + "".join(f"{o.provider},{o.model},7,8,,,,\n" for o in (hosted, closed))
    )
    for name in ("few.csv", "empty.csv"):
        found = {offer.name: offer for offer in prices.offers(tmp_path / name)}
        for offer in (hosted, closed):
            new = found[offer.name]
            assert (new.input_usd_mtok, new.output_usd_mtok) == (7, 8)
            assert [getattr(new, column) for column in kept] == [getattr(offer, column) for column in kept]
            assert (new.date, new.source) == ("", "")  # those of the shipped price are not this one's


def test_what_a_user_s_price_says_is_taken(tmp_path):
    offer = next(o for o in prices.snapshot() if o.open_weights)
    (tmp_path / "p.csv").write_text(
        "provider,model,input_usd_mtok,output_usd_mtok,params_b,cached_usd_mtok,date\n"
        f"{offer.provider},{offer.model},7,8,3,0.5,2026-11-01\n"
    )
    new = next(o for o in prices.offers(tmp_path / "p.csv") if o.name == offer.name)
    assert (new.params_b, new.cached_usd_mtok, new.date) == (3, 0.5, "2026-11-01")


def served(concurrency):
    return estimates.serve(
        estimates.ServeQuestion(
            model=find("Llama-3.1-70B"), gpu=find_gpu("H100"), gpus=2, quantization="fp8", input_tokens=5000,
            output_tokens=500, concurrency=concurrency,
        )
    )  # fmt: skip


def test_calls_beyond_the_cache_wait_for_their_first_token():
    """Published for this configuration: 8.0 s at 100 clients (NIM 70B FP8 on two H100)."""
    within, beyond = served(78), served(100)
    assert within["max_concurrency"] == 78
    assert within["ttft_ms"]["value"] < 1000
    assert within["notes"] == []
    assert beyond["ttft_ms"]["low"] < 8000 < beyond["ttft_ms"]["high"]
    assert ["more than max_concurrency" in note for note in beyond["notes"]] == [True]


@pytest.mark.parametrize("clients", [100, 200, 800])
def test_the_wait_is_what_littles_law_leaves(clients):
    """In a closed loop every client has one call under way: clients = calls a second x time of a call."""
    found = served(clients)
    call = found["ttft_ms"]["value"] + 500 * found["tpot_ms"]["value"]
    calls_per_ms = found["tokens_per_s"]["value"] / 500 / 1000
    assert calls_per_ms * call == pytest.approx(clients, rel=0.02)
