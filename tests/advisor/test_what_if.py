"""What is said of other answers holds when it is tried: changes admit, flips flip, more never gives less."""

import re

import pytest

from tunegate.advisor import brief, explain, serving_plan
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.advisor.prices import ApiPrice
from tunegate.advisor.recommend import recommend
from tunegate.core.errors import UserError

LLAMA = ApiPrice(provider="host", model="70b", input_usd_mtok=0.59, output_usd_mtok=0.79, open_weights="Llama-3.3-70B", params_b=70.6)  # fmt: skip


def answered(question, **more):
    return recommend(from_mapping({**question, **more}))


def changed(question, changes):
    """The question with the changes that an entry of `rejected`, or an error's hint, names."""
    asked = dict(question)
    for change in changes:
        if found := re.fullmatch(r"raise (\w+) (?:from \S+ )?to (\S+)", change):
            asked[found[1]] = float(found[2])
        elif found := re.fullmatch(r"collect (?:at least )?(\d+) examples.*", change):
            asked["examples"] = int(found[1])
        elif change.startswith("leave out --model"):
            del asked["model"]
        elif change == "no privacy in --needs":
            asked["needs"] = [need for need in asked["needs"] if need != "privacy"]
        elif change.startswith("only with --"):
            name, value = change.removeprefix("only with --").split()
            asked[name] = value
        else:
            pytest.fail(f"nobody can do this: {change}")
    return asked


@pytest.mark.parametrize(
    ("question", "method", "constraints"),
    [
        ({"needs": ["privacy"]}, "hosted_api", {"privacy"}),
        ({"needs": ["privacy"], "privacy": "no-egress"}, "hosted_api", {"privacy"}),
        ({"privacy": "no-egress", "model": "Llama-3.3-70B"}, "hosted_api", {"privacy", "model"}),
        ({"needs": ["latency"], "p95_ms": 3050, "examples": 300, "hardware": "T4", "model": "builtin:smollm2-135m"}, "hosted_api", {"p95_ms", "model"}),
        ({"needs": ["quality"], "examples": 5000, "monthly_budget_usd": 235}, "lora", {"monthly_budget_usd"}),
        ({"facts": "changing", "needs": ["quality"], "examples": 5000, "monthly_budget_usd": 235}, "lora", {"facts", "monthly_budget_usd"}),
        ({"facts": "changing", "examples": 5000, "monthly_budget_usd": 235}, "rag_lora", {"monthly_budget_usd"}),
        ({"monthly_budget_usd": 27.5, "calls_per_day": 20_700, "output_tokens": 136}, "few_shot", {"examples", "monthly_budget_usd"}),
        ({"monthly_budget_usd": 2}, "qlora", {"examples", "monthly_budget_usd"}),
    ],
)  # fmt: skip
def test_all_that_an_option_is_refused_for_is_said_and_lifted_together(question, method, constraints):
    """One of several constraints was named, or memory of a model that nobody had asked for: doing it changed nothing."""
    answer = answered(question)
    (entry,) = [e for e in explain.rejected(answer) if e["option"].split(" (")[0] == method]
    assert entry["constraint"] in constraints
    assert entry["change"] == " and ".join(entry["changes"])
    again = recommend(from_mapping(changed(question, entry["changes"])))
    assert any(o.feasible for o in again.space.options if o.method == method)
    for left_out in range(len(entry["changes"]) if len(entry["changes"]) > 1 else 0):
        rest = entry["changes"][:left_out] + entry["changes"][left_out + 1 :]
        try:
            fewer = recommend(from_mapping(changed(question, rest)))
        except UserError:
            continue
        assert not any(o.feasible for o in fewer.space.options if o.method == method)


@pytest.mark.parametrize(
    "question",
    [
        {"facts": "changing", "output_tokens": 328, "calls_per_day": 17_900, "p95_ms": 734, "monthly_budget_usd": 18.8},
        {
            "calls_per_day": 437_000,
            "p95_ms": 828,
            "input_tokens": 137,
            "output_tokens": 113,
            "monthly_budget_usd": 1.37,
        },
    ],
)
def test_the_hint_of_an_error_is_enough(question):
    """It named the larger of two excesses, and led into the next error."""
    with pytest.raises(UserError) as error:
        answered(question)
    changes = str(error.value.hint).removeprefix("smallest change: ").split(" and ")
    assert recommend(from_mapping(changed(question, changes))).chosen.feasible


def test_one_line_says_that_there_is_more():
    answer = answered({"needs": ["privacy"], "model": "Qwen3-0.6B"})
    (entry,) = [e for e in explain.rejected(answer) if e["option"].startswith("hosted_api")]
    assert brief.refusal(entry) == "refused (privacy): no privacy in --needs, and 1 more (--why)"


QUESTIONS = [
    {"hardware": "H100:8", "model": "Qwen/Qwen2.5-14B-Instruct", "calls_per_day": 384_000},
    {"examples": 3, "budget_usd": 69.7, "model": "Llama-3.3-70B", "privacy": "no-egress"},
    {"examples": 1000, "needs": ["cost", "format"], "p95_ms": 3000, "ops": "low"},
    {"quality": "max", "examples": 0, "budget_usd": 6},
    {"needs": ["privacy", "format"], "examples": 2000},
]
FLIPS = {
    "changing facts": {"facts": "changing"},
    "none of the needs": {"needs": []},
    "a need for a strict format": {"needs": ["format"]},
    "servers of your own (ops: medium)": {"ops": "medium"},
    "no wish to run servers (ops: low)": {"ops": "low"},
    "a far domain and 100,001 examples": {"domain": "far", "examples": 100_001},
    "quality: max and a budget of $100,000": {"quality": "max", "budget_usd": 100_000},
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_what_would_flip_the_answer_flips_it(question):
    """Points alone were compared: `ops: low would favour hosted_api` beside a model for which no API can be asked, full
    tuning of 100,001 rows for $70, a far domain without an example to learn it from."""
    answer = answered(question)
    for entry in explain.rejected(answer):
        if not entry.get("flips"):
            continue
        found = re.fullmatch(r"(\d+) examples instead of \d+", entry["change"])
        asked = {"examples": int(found[1])} if found else FLIPS.get(entry["change"])
        if asked is not None:  # the others speak of hardware
            assert answered(question, **asked).chosen.method == entry["option"], entry
    for entry in explain.assumptions(answer):
        for value, method in re.findall(r"(\S+) would favour (\w+)", entry["matters"]):
            asked = {entry["name"]: [value] if entry["name"] == "needs" and value != "none" else value}
            if value == "none":
                asked = {"needs": []}
            assert answered(question, **asked).chosen.method == method, entry


def test_no_weights_alone_where_facts_change():
    """The passages did not go into the context, so that LoRA alone was next: it would have been trained on facts that move."""
    question = {
        "facts": "changing",
        "examples": 5000,
        "needs": "format",
        "model": "builtin:smollm2-135m",
        "hardware": "L4",
    }
    assert answered(question).chosen.method == "rag_lora"
    with pytest.raises(UserError, match="nearest is rag") as error:
        answered(question, input_tokens=7500)
    assert error.value.where == "context"
    refused = {e["option"].split(" ")[0]: e["constraint"] for e in explain.rejected(answered(question))}
    assert refused["lora"] == refused["prompt"] == "facts"


LOADS = (10, 1000, 20_000, 200_000, 1_000_000, 10_000_000)


@pytest.mark.parametrize("needs", ["cost", "format,cost", "cost,format", "latency"])
def test_more_calls_never_lead_from_ones_own_machines_to_an_api(needs):
    answers = [answered({"needs": needs, "examples": 5000, "calls_per_day": calls}) for calls in LOADS]
    own = [not answer.chosen.vendor for answer in answers]
    assert own == sorted(own)
    assert own[-1]


def test_cost_first_rents_nothing_for_a_load_that_an_api_carries_for_cents():
    """$1,549 a month for what an API takes $3 for, to a user whose first need is cost."""
    few = answered({"needs": "cost", "examples": 5000, "calls_per_day": 1000})
    assert few.chosen.vendor
    assert few.chosen.monthly_usd < 50
    assert {"api-costs-less-here", "article-four-reasons"} <= {rule.id for rule in few.fired}
    (entry,) = [e for e in explain.rejected(few) if e["option"] == "qlora"]
    calls = float(entry["change"].removesuffix(" calls a day").replace(",", ""))
    assert answered({"needs": "cost", "examples": 5000, "calls_per_day": calls}).chosen.method == "qlora"
    assert any("At the calls a day stated" in reason for reason in brief.reasons(few))
    many = answered({"needs": "cost", "examples": 5000, "calls_per_day": 1_000_000})
    assert many.chosen.method == "qlora"
    assert "api-costs-less-here" not in {rule.id for rule in many.fired}
    assert answered({"needs": "cost,format", "examples": 5000, "calls_per_day": 1000}).chosen.method == "qlora"


def test_a_load_that_was_not_stated_says_what_it_decides():
    answer = answered({"needs": "cost", "examples": 5000})
    assert answer.chosen.method == "qlora"  # cost first is cost at scale until a load says otherwise
    (entry,) = [e for e in explain.assumptions(answer) if e["name"] == "calls_per_day"]
    assert "1000 would favour prompt, were it stated" in entry["matters"]


def test_running_servers_counts_beside_an_api():
    """Rent alone was held against an API's bill: $831 of rent and $967 of engineering instead of $863."""
    question = from_mapping({"calls_per_day": 60_000})
    chosen = recommend(question, offers=(LLAMA,)).chosen
    assert chosen.vendor
    assert recommend(from_mapping({"calls_per_day": 600_000}), offers=(LLAMA,)).chosen.serving is not None


def test_a_cheaper_service_that_is_not_taken_says_why():
    sentence = brief.cost_sentence(answered({"needs": "cost", "calls_per_day": 1_000_000}))
    assert re.search(
        r"is cheaper from about [\d,]+ a day, but weaker \(quality proxy 0\.\d\d against 0\.\d\d\)", sentence
    )
    assert "weaker" not in brief.cost_sentence(answered({}))


def test_a_dollar_more_never_leads_to_a_model_too_small():
    """$1 to train with: QLoRA on a 360M base in place of few-shot on a flagship, for a user who asked for quality."""
    question = {"needs": "quality", "quality": "max", "examples": 50_000}
    nothing, little, enough = (answered(question, budget_usd=usd) for usd in (0, 1, 100))
    assert little.chosen == nothing.chosen
    assert enough.chosen.method == "qlora"
    assert enough.chosen.quality > nothing.chosen.quality
    (entry,) = [e for e in explain.rejected(little) if e["option"].split(" (")[0] == "qlora"]
    assert entry["constraint"] == "budget_usd"
    assert recommend(from_mapping(changed({**question, "budget_usd": 1}, entry["changes"]))).chosen.method == "qlora"
    assert answered({**question, "budget_usd": 1, "model": "SmolLM2-360M"}).chosen.method == "lora"  # asked for by name


def test_what_a_replica_carries_within_a_bound_is_within_it():
    """Found over the sequences in the engine, where the bound is checked at the load that brings them there."""
    checked = 0
    for name, gpu, gpus in (("Llama-3.1-8B", "L4", 1), ("Llama-3.1-8B", "H100", 1), ("Qwen3-32B", "A100", 2)):
        for tokens in ((100, 50), (600, 150), (6000, 400)):
            setup = serving_plan.setup_for(find(name).architecture, find_gpu(gpu), gpus, "awq", tokens, 0.0)
            for bound in (1000, 3000, 10_000):
                found = serving_plan.plan(name, setup, serving_plan.load_of(1, 3, bound), owned=True)
                if found.late_by_ms:
                    continue
                day = found.max_calls_per_s * 86_400
                full = serving_plan.plan(name, setup, serving_plan.load_of(0.999 * day, 1, bound), owned=True)
                more = serving_plan.plan(name, setup, serving_plan.load_of(1.05 * day, 1, bound), owned=True)
                assert (full.replicas, full.late_by_ms, more.replicas) == (1, 0, 2)
                checked += 1
    assert checked > 15
