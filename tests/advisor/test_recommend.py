import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.advisor import explain, render, training_plan
from tunegate.advisor.constraints import from_mapping, read_file
from tunegate.advisor.data_profile import profile
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.advisor.prices import snapshot
from tunegate.advisor.recommend import recommend
from tunegate.advisor.rules import METHODS, RULES, Situation, scores
from tunegate.advisor.search import market, search
from tunegate.core.errors import UserError

TUNED = {"lora", "qlora"}
OFFERS = (snapshot()[1],)
SCENARIOS = [
    # the article's branches
    ("none of the four reasons", {"examples": 5000}, {"prompt"}),
    ("fewer than 1,000 examples", {"examples": 500, "needs": "format"}, {"prompt", "few_shot"}),
    ("latency first", {"examples": 5000, "needs": "latency", "calls_per_day": 1e5, "p95_ms": 2000}, {"qlora"}),
    ("cost first", {"examples": 20_000, "needs": "cost,format", "calls_per_day": 1e6}, {"qlora"}),
    ("maximum quality and the budget", {"examples": 50_000, "needs": "quality", "quality": "max", "budget_usd": 100_000}, {"full"}),
    ("operational simplicity", {"examples": 5000, "needs": "format", "ops": "low"}, {"hosted_api"}),
    ("domain shift and 200,000 examples", {"examples": 200_000, "domain": "far", "needs": "quality"}, {"full"}),
    # evidence
    ("changing facts", {"facts": "changing", "examples": 2000}, {"rag"}),
    ("changing facts and a format", {"facts": "changing", "examples": 5000, "needs": "format"}, {"rag_lora"}),
    ("forty examples", {"examples": 40, "needs": "format"}, {"few_shot", "prompt"}),
    ("nothing stated", {}, {"prompt"}),
    ("private, narrow, 5,000 rows", {"examples": 5000, "needs": "format,privacy", "privacy": "no-egress"}, {"qlora"}),
    ("private, no examples", {"examples": 0, "needs": "privacy", "privacy": "no-egress"}, {"prompt"}),
    ("private, changing facts", {"facts": "changing", "privacy": "no-egress"}, {"rag"}),
    ("a card of one's own that holds 16 bits", {"examples": 5000, "needs": "format", "hardware": "A100-80GB"}, {"lora"}),
    ("a card that does not", {"examples": 5000, "needs": "format", "hardware": "A10G", "model": "Qwen3-14B"}, {"qlora"}),
    (
        "small base on a CPU, 738 rows, strict format",
        {"examples": 738, "needs": "format,cost,privacy", "privacy": "no-egress", "hardware": "cpu", "model": "builtin:smollm2-135m",
         "input_tokens": 300, "output_tokens": 40, "calls_per_day": 20_000},
        {"lora"},
    ),
    (
        "the same with 50 rows",
        {"examples": 50, "needs": "format", "privacy": "no-egress", "hardware": "cpu", "model": "builtin:smollm2-135m",
         "input_tokens": 300, "output_tokens": 40},
        {"few_shot", "prompt"},
    ),
    # operational simplicity against the rest: a hosted API whatever else is wished, as long as data may leave
    ("simple operations and changing facts", {"facts": "changing", "ops": "low"}, {"hosted_api"}),
    ("simple operations, changing facts, a format", {"facts": "changing", "examples": 5000, "needs": "format", "ops": "low"}, {"hosted_api"}),
    ("simple operations and maximum quality", {"examples": 200_000, "quality": "max", "budget_usd": 1e5, "domain": "far", "ops": "low"}, {"hosted_api"}),
    ("simple operations, private, changing facts", {"facts": "changing", "ops": "low", "privacy": "no-egress", "hardware": "L4"}, {"rag"}),
    # privacy is a reason to tune, and means that data stay
    ("a need for privacy, 5,000 rows", {"examples": 5000, "needs": "privacy"}, {"qlora"}),
    ("a need for privacy, no rows", {"needs": "privacy"}, {"prompt"}),
    ("style and 3,000 rows", {"examples": 3000, "needs": "style"}, {"qlora"}),
    ("far domain, 5,000 rows", {"examples": 5000, "domain": "far", "needs": "quality"}, {"qlora", "lora"}),
    ("cost first at a load that no GPU is rented for", {"examples": 5000, "needs": "cost", "calls_per_day": 1000}, {"prompt", "few_shot"}),
    ("far domain and facts to look up", {"examples": 5000, "domain": "far", "facts": "changing"}, {"rag_lora"}),
]  # fmt: skip


@pytest.mark.parametrize(("case", "constraints", "expected"), SCENARIOS, ids=[s[0] for s in SCENARIOS])
def test_golden_scenarios(case, constraints, expected):
    answer = recommend(from_mapping(constraints))
    assert answer.chosen.method in expected
    assert answer.chosen.feasible


def test_latency_and_cost_first_take_a_7b_to_14b_base():
    for needs in ("latency", "cost"):
        chosen = recommend(from_mapping({"examples": 5000, "needs": needs})).chosen
        assert 6 <= chosen.params_b <= 15
        assert chosen.serving is not None


def test_maximum_quality_takes_a_large_base():
    chosen = recommend(
        from_mapping({"examples": 50_000, "needs": "quality", "quality": "max", "budget_usd": 1e5})
    ).chosen
    assert chosen.params_b >= 30
    assert chosen.train_usd <= 1e5


def test_article_rule_fires_and_is_outweighed_by_reasons():
    """Fewer than 1,000 examples: shown, and why it does not win, on a base that cannot be prompted."""
    answer = recommend(from_mapping(SCENARIOS[16][1]))
    assert answer.constraints.examples == 738
    assert "article-few-examples" in {rule.id for rule in answer.fired}
    sentences = explain.outweighed(answer)
    assert any("article-few-examples" in s and "small-base-cannot-be-prompted" in s for s in sentences)


def test_the_same_question_on_a_7b_base_follows_the_article():
    question = {**SCENARIOS[16][1], "model": "Qwen2.5-7B", "hardware": "A100-80GB"}
    assert recommend(from_mapping(question)).chosen.method == "few_shot"


@pytest.mark.parametrize(
    ("constraints", "two"),
    [
        ({"needs": "privacy", "privacy": "public"}, ("needs: privacy", "privacy: public")),
        ({"privacy": "no-egress", "ops": "low"}, ("privacy: no-egress", "ops: low")),
        ({"privacy": "no-egress", "monthly_budget_usd": 0}, ("no-egress", "monthly_budget_usd")),
    ],
)
def test_contradictions_name_both(constraints, two):
    with pytest.raises(UserError, match="contradictory") as error:
        recommend(from_mapping(constraints))
    assert all(name in error.value.message for name in two)


@pytest.mark.parametrize(
    "bad",
    [
        {"calls_per_day": -1}, {"calls_per_day": 0}, {"calls_per_day": float("nan")}, {"input_tokens": 1e12}, {"examples": -5}, {"privacy": "maybe"},
        {"needs": "formt"}, {"needs": 5}, {"needs": {"a": 1}}, {"examples": True}, {"examples": 1.5}, {"examples": 10**400}, {"peak_factor": 0.5}, {"hardware": ["L4"]}, {"model": ""}, {"hardware": "Abacus"}, {"model": "Lama"}, {"cals_per_day": 5}, {"p95_ms": "fast"}, {"budget_usd": float("inf")},
    ],
)  # fmt: skip
def test_bad_values_are_refused(bad):
    with pytest.raises(UserError):
        recommend(from_mapping(bad))


def test_misspelt_key_offers_the_nearest(tmp_path):
    with pytest.raises(UserError) as error:
        from_mapping({"cals_per_day": 5})
    assert "calls_per_day" in str(error.value.hint)
    (tmp_path / "c.yaml").write_text("needs: [format\n")
    with pytest.raises(UserError, match="not valid YAML"):
        read_file(tmp_path / "c.yaml")
    for text, line in (
        ("needs: [format]\n\nexamples: -3\n", 3),
        ("facts: static\nexamples: 1\nexamples: 2\n", 3),
        ("cals: 1\n", 1),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(UserError) as error:
            from_mapping(read_file(tmp_path / "c.yaml"), file=tmp_path / "c.yaml")
        assert error.value.where == f"{tmp_path / 'c.yaml'}:{line}"
    (tmp_path / "c.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match="mapping"):
        read_file(tmp_path / "c.yaml")


def test_nothing_feasible_names_the_constraint():
    with pytest.raises(UserError, match="no option") as error:
        recommend(from_mapping({"needs": "latency", "examples": 5000, "p95_ms": 10}))
    assert error.value.where == "p95_ms"
    assert "raise p95_ms" in str(error.value.hint)


def test_a_need_for_privacy_keeps_data_in():
    answer = recommend(from_mapping({"needs": "privacy", "examples": 2000}))
    assert answer.constraints.privacy == "no-egress"
    assert not answer.chosen.vendor
    assert "privacy" in {entry["name"] for entry in explain.assumptions(answer)}
    with pytest.raises(UserError, match="contradictory") as error:
        recommend(from_mapping({"needs": "privacy", "ops": "low"}))
    assert all(word in error.value.message for word in ("needs: privacy", "ops: low"))


def test_a_hosted_api_with_changing_facts_is_priced_with_its_passages():
    still = recommend(from_mapping({"ops": "low"}), offers=OFFERS).chosen
    changing = recommend(from_mapping({"ops": "low", "facts": "changing"}), offers=OFFERS).chosen
    assert changing.method == "hosted_api"
    assert changing.monthly_usd > 1.5 * still.monthly_usd


def test_no_egress_refuses_every_api():
    answer = recommend(from_mapping({"privacy": "no-egress", "examples": 2000, "needs": "format"}))
    assert all(not o.vendor for o in answer.front)
    assert any(r["constraint"] == "privacy" for r in explain.rejected(answer))


def test_front_is_not_dominated():
    answer = recommend(from_mapping({"examples": 3000, "needs": "format"}))
    for a in answer.front:
        for b in answer.front:
            better = (
                b.quality >= a.quality
                and b.monthly_usd + b.train_usd / 12 <= a.monthly_usd + a.train_usd / 12
                and b.p95_ms <= a.p95_ms
            )
            assert a is b or not better or (b.quality, b.p95_ms) == (a.quality, a.p95_ms)


@settings(max_examples=25, deadline=None)
@given(calls=st.floats(10, 1e6), more=st.floats(1.1, 50), needs=st.sampled_from([(), ("format",), ("cost",)]))
def test_more_calls_never_make_an_api_cheaper_beside_machines_owned(calls, more, needs):
    """Options on owned machines cost no more rent with more calls; every API's bill grows with them."""

    def bills(count):
        c = from_mapping({"calls_per_day": count, "examples": 5000, "needs": needs, "hardware": "H100:8"})
        options = search(c, None, market(c, snapshot())).options
        mine = [o for o in options if o.serving and not o.serving.misfit_gb]
        own = {o.label.rpartition(":")[0]: o.monthly_usd for o in mine}  # on however many of them
        return own, {o.label: o.monthly_usd for o in options if o.vendor}

    (own, api), (own_more, api_more) = bills(calls), bills(calls * more)
    assert all(own_more[label] <= usd for label, usd in own.items())
    assert all(api_more[label] == pytest.approx(more * usd) for label, usd in api.items())


@settings(max_examples=40, deadline=None)
@given(
    model=st.sampled_from(["SmolLM2-135M", "Llama-3.1-8B", "Qwen2.5-14B", "Llama-3.1-70B", "Mixtral-8x7B"]),
    method=st.sampled_from(["lora", "qlora", "full"]), gpu=st.sampled_from(["T4", "L4", "A100-80GB", "H200"]), more=st.floats(1, 8),
    longest=st.floats(10, 20_000),
)  # fmt: skip
def test_more_memory_never_makes_a_training_plan_fit_less(model, method, gpu, more, longest):
    a, card = find(model).architecture, find_gpu(gpu)
    larger = dataclasses.replace(card, memory_gb=card.memory_gb * more)
    recipe = training_plan.recipe_for(a, method, examples=1000, longest_tokens=longest)
    plans = [
        training_plan.cheapest(a, recipe, [(g, 1)], examples=1000, mean_tokens=100, owned=True) for g in (card, larger)
    ]
    assert plans[1].fits >= plans[0].fits


def test_rank_follows_the_tokens_of_the_answers():
    a = find("SmolLM2-135M").architecture
    ranks = [training_plan.rank_for(a, tokens) for tokens in (0, 1e5, 1e6, 1e7, 1e8, 1e12)]
    assert ranks == sorted(ranks)
    assert (ranks[0], ranks[-1]) == (16, 128)
    assert 2.0 * a.lora_params(ranks[3]) >= 1e7


def test_every_rule_is_complete_and_fires_somewhere():
    assert len({rule.id for rule in RULES}) == len(RULES)
    fired = set()
    for _, constraints, _ in SCENARIOS:
        fired |= {rule.id for rule in recommend(from_mapping(constraints)).fired}
    for rule in RULES:
        assert rule.grade in "ABCF"
        assert rule.source
        assert rule.scope
        assert set(rule.votes) <= set(METHODS)
        assert rule.id in fired, rule.id
    conflicts = {rule.id: rule.conflicts for rule in RULES}
    assert "lora-learns-less" in conflicts["lora-equals-full"]


def test_search_is_quick_and_large():
    c = from_mapping({"examples": 3000})
    space = search(c, None, market(c, ()))
    assert space.considered > 5000


@settings(max_examples=25, deadline=None)
@given(
    calls=st.floats(1, 1e7), inputs=st.floats(1, 50_000), outputs=st.floats(1, 4000), examples=st.integers(0, 1_000_000),
    needs=st.lists(st.sampled_from(["format", "style", "latency", "cost", "quality"]), unique=True, max_size=3),
    facts=st.sampled_from(["static", "changing"]), domain=st.sampled_from(["near", "far"]), ops=st.sampled_from(["low", "medium", "high"]),
    hardware=st.sampled_from([None, "L4", "H100:8", "cpu"]),
)  # fmt: skip
def test_any_legal_question_gets_a_finite_answer_or_a_reason(
    calls, inputs, outputs, examples, needs, facts, domain, ops, hardware
):
    question = from_mapping(
        {"calls_per_day": calls, "input_tokens": inputs, "output_tokens": outputs, "examples": examples, "needs": needs, "facts": facts,
         "domain": domain, "ops": ops, "hardware": hardware}
    )  # fmt: skip
    try:
        answer = recommend(question)
    except UserError as error:
        failure = error.hint
    else:
        failure = None
    if failure is not None:
        assert failure
        return
    document = render.as_json(answer)
    json.dumps(document, allow_nan=False)
    assert document["recommendation"]["monthly_usd"] >= 0
    assert document["recommendation"]["p95_ms"] > 0


@settings(max_examples=30, deadline=None)
@given(examples=st.integers(1000, 90_000), needs=st.sampled_from([("format",), ("latency",), ("cost",)]))
def test_more_examples_never_weaken_tuning(examples, needs):
    def lead(count):
        totals = scores(Situation(constraints=from_mapping({"examples": count, "needs": needs})))
        return totals["qlora"] - totals["few_shot"]

    assert lead(examples + 5000) >= lead(examples) - 1e-9


def write_rows(path, count, answer):
    with path.open("w") as stream:
        for i in range(count):
            messages = [
                {"role": "user", "content": f"question {i % 90} " + "word " * 50},
                {"role": "assistant", "content": answer(i)},
            ]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return path


def test_data_is_measured(tmp_path):
    found = profile(
        write_rows(tmp_path / "d.jsonl", 100, lambda i: json.dumps({"name": "f", "arguments": {"i": i % 90}}))
    )
    assert found.rows == 100
    assert found.json_share == 1.0
    assert found.strict_format
    assert found.duplicates == 10
    assert found.conflicts == 0
    assert found.counted_with == "estimate"
    assert 60 < found.input_tokens < 100


def test_labels_and_conflicts(tmp_path):
    found = profile(write_rows(tmp_path / "d.jsonl", 100, lambda i: "yes" if i < 90 else "no"))
    assert (found.labels, found.conflicts, found.json_share) == (2, 10, 0.0)
    assert found.narrow


def test_data_with_a_bad_row_says_where(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", 3, lambda i: "x")
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(UserError) as error:
        profile(path)
    assert str(error.value.where).endswith("d.jsonl:4")


def test_strict_data_is_a_format_need(tmp_path):
    found = profile(write_rows(tmp_path / "d.jsonl", 2000, lambda i: json.dumps({"i": i})))
    answer = recommend(from_mapping({"needs": "cost"}), found)
    assert answer.constraints.examples == 2000
    assert answer.situation.strict_format
    assert answer.chosen.method in TUNED
