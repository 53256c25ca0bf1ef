"""Where a training runs, how often it sees its rows, and what is learnt from its log."""

import itertools
import json
from dataclasses import asdict

import pytest

from tunegate.advisor import training_plan
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.gpus import find_gpu
from tunegate.advisor.models import find
from tunegate.advisor.recommend import recommend
from tunegate.advisor.render import train_section
from tunegate.core import manifest
from tunegate.core.model_source import resolve
from tunegate.train import preflight
from tunegate.train.config import TrainConfig


def machines(name, *counts):
    return [(find_gpu(name), n) for n in counts]


def cheapest(model, method, goods, *, owned, examples=5000):
    a = find(model).architecture
    recipe = training_plan.recipe_for(a, method, examples=examples, longest_tokens=900)
    return training_plan.cheapest(a, recipe, goods, examples=examples, mean_tokens=600, owned=owned)


@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_owned_machines_do_not_stay_idle(method):
    """Seven of eight H100 did, since all cost nothing."""
    found = cheapest("Llama-3.1-8B", method, machines("H100", 1, 2, 4, 8), owned=True)
    one = cheapest("Llama-3.1-8B", method, machines("H100", *((2,) if method == "full" else (1,))), owned=True)
    assert found.gpus == 8
    assert found.hours < one.hours / 3
    rows = found.recipe.micro_batch * found.recipe.accumulation
    assert rows == 32


def test_an_optimizer_batch_is_dealt_out_to_as_many_as_it_has_rows():
    small = cheapest("SmolLM2-135M", "lora", machines("H100", 1, 2, 4, 8), owned=True)
    assert small.gpus <= 4
    answer = recommend(
        from_mapping({"hardware": "H100:8", "model": "Qwen2.5-1.5B", "examples": 5000, "needs": "format"})
    )
    section, gpus = train_section(answer)[0], answer.chosen.training.gpus
    assert gpus > 1
    assert section["per_device_train_batch_size"] * section["gradient_accumulation_steps"] * gpus == 16


@pytest.mark.parametrize(
    ("model", "gpu"), [("Qwen3-8B", "H100"), ("Llama-3.1-8B", "L40S"), ("Qwen2.5-3B", "A100-40GB")]
)
def test_full_tuning_is_rented_where_it_costs_least(model, gpu):
    """More GPUs than it takes share the optimizer and leave room for a larger micro-batch: half the cost."""
    a = find(model).architecture
    recipe = training_plan.recipe_for(a, "full", examples=5000, longest_tokens=2000)

    def best(*counts):
        return training_plan.cheapest(a, recipe, machines(gpu, *counts), examples=5000, mean_tokens=700, owned=False)

    fewest = next(found for n in (1, 2, 4, 8) if (found := best(n)).fits)
    chosen = best(1, 2, 4, 8)
    assert chosen.gpus > fewest.gpus
    assert chosen.usd < 0.7 * fewest.usd


def test_more_rows_never_cost_less_to_train_on():
    """10,001 rows were seen twice, 10,000 three times: a budget refused the fewer and took the more."""
    rows = (1, 999, 9_999, 10_000, 10_001, 14_999, 15_001, 30_000, 50_000, 50_001, 99_999, 100_001, 1_000_000)
    seen = [n * training_plan.epochs_for(n) for n in rows]
    assert all(b >= a * (1 - 1e-9) for a, b in itertools.pairwise(seen))
    assert [training_plan.epochs_for(n) for n in (1000, 10_000, 20_000, 50_000, 200_000)] == [3, 3, 2, 2, 1]
    goods = machines("L4", 1)
    usd = [cheapest("Llama-3.1-8B", "qlora", goods, owned=False, examples=n).usd for n in rows]
    assert usd == sorted(usd)


def test_epochs_that_are_no_whole_number_go_into_the_recipe():
    sections = [
        train_section(recommend(from_mapping({"needs": "format", "examples": n, "hardware": "L40S"})))[0]
        for n in (5000, 12_345)
    ]
    assert [s["num_train_epochs"] for s in sections] == [3, 2.43]
    assert type(sections[0]["num_train_epochs"]) is int


def run_of(folder, speed, *, config, **facts):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"tokens_per_s": speed}) + "\n")
    manifest.write(folder, "run", inputs=[], config=config, facts=facts)
    return folder


FACTS = {"method": "full", "base": "Qwen/Qwen2.5-3B-Instruct", "tokens": 64_000, "steps": 20, "processes": 2}
CONFIG = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}


def test_calibrate_takes_what_the_run_says_of_itself(advise, tmp_path):
    run = run_of(tmp_path / "run", 3000.0, config=CONFIG, **FACTS)
    code, told, _ = advise("calibrate", run, "--gpu", "H100", "--json")
    assert (code, told["model"], told["gpus"]) == (0, "Qwen/Qwen2.5-3B-Instruct", 2)
    typed = ("--model", "Qwen2.5-3B", "--method", "full", "--batch", 2, "--seq", 200)
    again = advise("calibrate", run / "metrics.jsonl", "--gpu", "H100", *typed, "--json")[1]
    assert again["predicted"] == pytest.approx(told["predicted"], rel=1e-3)
    other = advise("calibrate", run, "--gpu", "H100", "--batch", 8, "--seq", 900, "--json")[1]
    assert other["predicted"] != pytest.approx(told["predicted"], rel=0.05)


@pytest.mark.parametrize(
    ("typed", "where", "words"),
    [
        (("--method", "lora"), "--method", "this run was full, not lora"),
        (("--model", "Llama-3.1-8B"), "--model", "this run is of Qwen/Qwen2.5-3B-Instruct, not Llama-3.1-8B"),
    ],
)
def test_calibrate_refuses_what_the_run_denies(advise, tmp_path, typed, where, words):
    run = run_of(tmp_path / "run", 3000.0, config=CONFIG, **FACTS)
    code, d, _ = advise("calibrate", run, "--gpu", "H100", *typed, "--json")
    assert (code, d["error"]["where"], d["error"]["message"]) == (2, where, words)


@pytest.fixture(scope="module")
def smollm():
    """Looked up once, before a test has a cache of its own: it is unpacked there."""
    return resolve("builtin:smollm2-135m")


@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": True}, {"method": "full"}, {"method": "qlora", "fast_cpu": False}]
)
def test_calibrate_predicts_what_the_run_forecast(smollm, advise, tmp_path, settings):
    """It took activations for computed again on the CPU, and each micro-batch for a step of its own."""
    config = TrainConfig(
        device="cpu", per_device_train_batch_size=2, gradient_accumulation_steps=8, **{"method": "lora", **settings}
    )
    told = preflight.forecast(smollm, config, preflight.Load(rows=480, longest=150, mean=100, label_share=0.5), "cpu")
    facts = {
        "method": config.method,
        "base": "builtin:smollm2-135m",
        "steps": 30,
        "tokens": 30 * 16 * 100,
        "processes": 1,
    }
    run = run_of(tmp_path / "run", 700.0, config=asdict(config), **facts)
    code, found, _ = advise("calibrate", run, "--gpu", "cpu", "--json")
    assert (code, found["predicted"]) == (0, pytest.approx(told.tokens_per_s["value"], rel=1e-6))


def test_what_a_cpu_was_calibrated_with_is_estimated_for_it(advise, tmp_path):
    """The estimate computed activations again, which neither ft train nor the calibration does on a CPU."""
    facts = {"method": "lora", "base": "builtin:smollm2-135m", "tokens": 4000, "steps": 20, "processes": 1}
    run = run_of(
        tmp_path / "run", 700.0, config={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}, **facts
    )
    assert advise("calibrate", run, "--gpu", "cpu")[0] == 0
    shape = ("--method", "lora", "--model", "builtin:smollm2-135m", "--gpu", "cpu", "--batch", "2", "--seq", "100")
    speed = {}
    for words in ((), ("--no-checkpointing",), ("--checkpointing",)):
        _, found, _ = advise("estimate", "train", *shape, *words, "--json")
        speed[words] = found["tokens_per_s"]["value"]
    assert speed[()] == speed[("--no-checkpointing",)] == pytest.approx(700, rel=0.05)
    assert speed[("--checkpointing",)] < 0.9 * speed[()]


def test_calibrate_refuses_a_run_that_trained_nothing(advise, tmp_path):
    """The speed of scoring examples is that of a forward pass."""
    run = run_of(tmp_path / "run", 9000.0, config=CONFIG, **{**FACTS, "method": "few_shot"})
    code, found, _ = advise("calibrate", run, "--gpu", "H100", "--json")
    assert (code, found["error"]["message"].startswith("this run is few_shot: it trained nothing")) == (2, True)
    assert not (tmp_path / "cache" / "calibration.json").exists()


def test_a_bare_log_needs_its_model_named(advise, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"tokens_per_s": 900}\n')
    code, d, _ = advise("calibrate", tmp_path / "metrics.jsonl", "--gpu", "H100", "--json")
    assert (code, d["error"]["where"]) == (2, "--model")
    gone = run_of(tmp_path / "run", 900.0, config={}, method="lora", base=str(tmp_path / "gone"))
    assert advise("calibrate", gone, "--gpu", "H100", "--model", "Llama-3.1-8B")[0] == 0


def test_a_log_that_is_read_again_takes_its_own_place(advise, tmp_path):
    """Twice the same log weighed as two."""
    runs = [run_of(tmp_path / name, speed, config=CONFIG, **FACTS) for name, speed in (("a", 3000.0), ("b", 2000.0))]
    first, again, both = (advise("calibrate", run, "--gpu", "H100", "--json")[1] for run in (runs[0], runs[0], runs[1]))
    assert again["factor"] == pytest.approx(first["factor"], rel=1e-3)
    assert both["factor"] < 0.9 * first["factor"]
    entry = json.loads((tmp_path / "cache" / "calibration.json").read_text())["train_tps/H100-SXM"]
    assert (len(entry["ratios"]), len(set(entry["logs"]))) == (2, 2)


def test_a_store_from_before_logs_were_named_is_kept(advise, tmp_path):
    store = tmp_path / "cache" / "calibration.json"
    store.parent.mkdir()
    store.write_text(json.dumps({"train_tps/H100-SXM": {"factor": 0.5, "ratios": [0.5, 0.5]}}))
    run = run_of(tmp_path / "run", 3000.0, config=CONFIG, **FACTS)
    assert advise("calibrate", run, "--gpu", "H100")[0] == 0
    entry = json.loads(store.read_text())["train_tps/H100-SXM"]
    assert entry["ratios"][:2] == [0.5, 0.5]
    assert entry["logs"][:2] == ["", ""]


def test_estimate_takes_the_names_of_fused_modules(advise):
    """`qkv_proj` was no module of Phi's."""
    question = ("estimate", "train", "--model", "Phi-3.5-mini", "--gpu", "L4", "--json")
    code, d, _ = advise(*question, "--targets", "qkv_proj,o_proj")
    assert (code, d["trainable_params"]) == (0, 16 * 32 * 6 * 3072)
