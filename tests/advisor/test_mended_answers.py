"""What an answer says of itself: contexts, rows left out, intervals, ends that nothing answers, prices that differ."""

import json
import re

import pytest

from tunegate.advisor import brief, calibrate, estimates, explain
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.data_profile import profile
from tunegate.advisor.errors import interval, spoken
from tunegate.advisor.gpus import find_gpu, known_gpus
from tunegate.advisor.models import find
from tunegate.advisor.prices import live, snapshot
from tunegate.advisor.recommend import recommend
from tunegate.advisor.search import context_of
from tunegate.core.errors import UserError


def test_an_api_is_not_recommended_for_what_its_model_does_not_take():
    """A call of 10 million tokens was gpt-5-mini's, one of a million Llama's at Groq."""
    with pytest.raises(UserError, match="no option") as error:
        recommend(from_mapping({"input_tokens": 1e7, "output_tokens": 10}))
    assert error.value.where == "context"
    answer = recommend(from_mapping({"input_tokens": 200_000, "output_tokens": 10}))
    able = {o.vendor + "/" + o.model for o in answer.space.options if o.vendor and o.method == "prompt" and o.feasible}
    assert able == {offer.name for offer in snapshot() if (context_of(offer) or 0) >= 200_010}
    assert "openai/gpt-4o-mini" not in able
    assert (context_of(answer.competitor) or 0) >= 200_010


def test_contexts_of_apis_are_published_or_those_of_their_weights():
    for offer in snapshot():
        known = live(offer.model, offer.provider)
        assert offer.context == known.context or ("context:" in offer.source and known.context is None), offer.name
    groq = next(o for o in snapshot() if o.name == "groq/llama-3.1-8b-instant")
    assert (groq.context, context_of(groq)) == (None, 131_072)


def test_an_api_of_unknown_context_says_so(advise, tmp_path):
    prices = tmp_path / "prices.csv"
    prices.write_text("provider,model,input_usd_mtok,output_usd_mtok,tier,context\nme,mine,0.001,0.001,flagship,\n")
    question = ("recommend", "--input-tokens", 300_000, "--prices", prices, "--json")
    _, d, _ = advise(*question)
    assert d["recommendation"]["model"] == "me/mine"
    assert "not checked" in [a["value"] for a in d["assumptions"] if a["name"] == "api_context"]
    prices.write_text(prices.read_text().replace("flagship,", "flagship,128000"))
    assert advise(*question)[1]["recommendation"]["model"] != "me/mine"
    prices.write_text(prices.read_text().replace("128000", "-3"))
    assert "context must be tokens" in advise(*question)[1]["error"]["message"]


def test_breakeven_notes_an_api_that_takes_no_such_call(advise):
    long = ("--input-tokens", 129_000, "--output-tokens", 1000, "--gpu", "H100", "--json")
    _, d, _ = advise("breakeven", "--against", "openai/gpt-4o-mini", *long)
    assert any("takes no such call: 130,000 tokens" in note for note in d["notes"])


def rows_of(path, lengths):
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{i} " + "word " * n},
                {"role": "assistant", "content": json.dumps({"a": i})},
            ]
        }
        for i, n in enumerate(lengths)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return profile(path)


TINY = {"model": "TinyLlama-1.1B", "hardware": "L4", "needs": ["format"]}


def test_rows_that_training_leaves_out_are_counted_and_not_paid_for(tmp_path):
    """Rows beyond the context were dropped by ft train, and nothing said so."""
    some = recommend(from_mapping(TINY), rows_of(tmp_path / "a.jsonl", [200] * 980 + [4000] * 20))
    none = recommend(from_mapping(TINY), rows_of(tmp_path / "b.jsonl", [200] * 980))
    assert some.chosen.training.recipe.max_length == 2048
    (entry,) = [a for a in explain.assumptions(some) if a["name"] == "long_rows"]
    assert (entry["value"], entry["matters"]) == (
        "20 of 1,000 rows",
        "exceed max_length 2,048: ft train leaves them out",
    )
    assert any("long_rows" in line for line in brief.assumed(some))
    assert not [a for a in explain.assumptions(none) if a["name"] == "long_rows"]
    assert some.chosen.training.hours == pytest.approx(none.chosen.training.hours, rel=0.01)


def test_a_model_is_refused_where_one_row_in_ten_does_not_go_into_it(tmp_path):
    """The mean did."""
    with pytest.raises(UserError) as error:
        recommend(from_mapping(TINY), rows_of(tmp_path / "a.jsonl", [200] * 900 + [4000] * 100))
    assert error.value.where == "context"
    found = rows_of(tmp_path / "b.jsonl", [200, 400, 800])
    assert found.kept(found.lengths[1]) == (
        pytest.approx(2 / 3),
        pytest.approx(0.5 * sum(found.lengths[:2]) / found.mean_tokens, rel=0.01),
    )
    assert (found.kept(1), found.kept(1e9)) == ((0.0, 1.0), (1.0, 1.0))


def test_rows_that_nothing_can_be_trained_on_refuse_training(tmp_path):
    data = rows_of(tmp_path / "a.jsonl", [40_000] * 300)
    answer = recommend(from_mapping({"needs": ["format"], "facts": "static"}), data)
    tuned = [o for o in answer.space.options if o.method == "qlora" and o.model == "Llama-3.1-8B"]
    assert all("context" in {name for name, _, _ in o.violations} for o in tuned)
    assert any("rows of at most 32,768 tokens to train on" in o.changes for o in tuned)


@pytest.mark.parametrize(("model", "hardware"), [("Mixtral-8x7B", "A100-80GB:8"), ("builtin:smollm2-135m", "L4"), ("builtin:smollm2-135m", "cpu"), ("Llama-3.1-8B", "L40S")])  # fmt: skip
def test_recommend_and_estimate_say_the_same_intervals(advise, model, hardware):
    """A mixture's was that of a dense model."""
    answer = recommend(from_mapping({"model": model, "hardware": hardware, "needs": ["format"], "examples": 3000}))
    told, plan, training = dict(brief.facts(answer)), answer.chosen.serving, answer.chosen.training
    known = find(model)
    speed = estimates.widen_of(known, plan.gpu, "tpot")[0]
    memory = min(2.0, estimates.widen_of(known, training.gpu, "train_tps")[0])
    assert spoken(plan.tpot_ms, "ms", "tpot", widen=speed).partition(", n")[0] in told["latency"]
    assert spoken(training.memory_gb, "GB", "train_mem", widen=memory).partition(", n")[0] in told["train"]
    assert ("extrapolated" in told["latency"]) == (model != "Llama-3.1-8B")


def test_the_tornado_says_what_nothing_answers():
    answer = recommend(
        from_mapping({"calls_per_day": 1e5, "hardware": "L4:2", "model": "Llama-3.1-8B", "privacy": "no-egress"})
    )
    rows = {row["name"]: row["flips_to"] for row in explain.tornado(answer)}
    assert rows["calls_per_day"] == ["refused (hardware) at 10 times"]
    found = explain.tornado(answer, 100.0)
    assert {flip for row in found for flip in row["flips_to"] if "refused" in flip} >= {
        "refused (hardware) at 100 times"
    }


@pytest.mark.parametrize("name", [n for n, g in known_gpus().items() if g.price_low and g.price_low != g.price_high])
def test_the_interval_of_a_cost_holds_every_price_that_is_named(name):
    """Half of the vendors of an H100 lay outside."""
    gpu = find_gpu(name)
    if gpu.is_cpu:
        pytest.skip("no rent")
    trained = estimates.train(estimates.TrainQuestion(model=find("Llama-3.2-3B"), method="qlora", gpu=gpu))
    served = estimates.serve(
        estimates.ServeQuestion(
            model=find("Llama-3.2-3B"), gpu=gpu, quantization="awq", input_tokens=600, output_tokens=150
        )
    )
    for usd in (trained["usd"], served["usd_per_1k_calls"]):
        for price in (gpu.price_low, gpu.price_high):
            assert usd["low"] <= usd["value"] * price / gpu.price <= usd["high"]
    alone = interval(trained["usd"]["value"], "train_tps")
    assert trained["usd"]["high"] > alone[1] > trained["usd"]["value"]


def test_a_price_that_is_one_number_widens_nothing():
    gpu = find_gpu("A10G")
    usd = estimates.train(estimates.TrainQuestion(model=find("Llama-3.2-3B"), method="qlora", gpu=gpu))["usd"]
    assert (usd["low"], usd["high"]) == pytest.approx(interval(usd["value"], "train_tps"), rel=1e-3)


def test_a_corrected_gpu_is_said(advise):
    gpu = find_gpu("H100")
    for kind in ("train_tps", "tpot"):
        calibrate.save(kind, gpu, 0.4, "a")
    words = "corrected by this machine's own log"
    model = ("--model", "Llama-3.1-8B", "--gpu", "H100")
    for question in (
        ("estimate", "train", *model),
        ("estimate", "serve", *model, "--input-tokens", 9, "--output-tokens", 9),
        ("breakeven", *model),
    ):
        notes = [note for note in advise(*question, "--json")[1]["notes"] if words in note]
        assert len(notes) == 1
        assert re.search(r"\(0\.\d\d times\)", notes[0])
    assert not [n for n in advise("breakeven", "--gpu", "L4", "--json")[1]["notes"] if words in n]
