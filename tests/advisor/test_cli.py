import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tunegate.core.methods import ALL_LINEAR

HEAVY = ("torch", "transformers", "datasets", "pandas", "vllm", "trl", "peft")
ENVIRONMENT = {**os.environ, "PYTHONWARNINGS": "ignore"}


def keys(mapping, *names):
    return set(names) <= set(mapping)


def is_estimate(value):
    return keys(value, "value", "low", "high", "source", "n") and value["low"] <= value["value"] <= value["high"]


def test_recommend_has_the_keys_of_the_contract(advise):
    code, d, _ = advise("recommend", "--needs", "format", "--examples", 5000, "--json")
    assert code == 0
    assert keys(
        d["recommendation"], "method", "model", "quantization", "gpu", "gpus", "monthly_usd", "train_usd", "p95_ms"
    )
    assert all(keys(o, "method", "model", "monthly_usd", "p95_ms") for o in d["pareto"])
    assert all(keys(r, "option", "constraint", "change") for r in d["rejected"])
    assert all(keys(r, "id", "says", "fired", "grade", "source") for r in d["rules"])
    assert all(keys(a, "name", "value", "matters") for a in d["assumptions"])
    assert d["break_even"]["calls_per_day"] == "never" or d["break_even"]["calls_per_day"] > 0
    assert d["break_even"]["against"]


def test_estimate_train_has_the_keys_and_the_check_value(advise):
    code, d, _ = advise(
        "estimate", "train", "--model", "Llama-3.1-8B", "--method", "lora", "--gpu", "H100", "--rank", 16, "--json"
    )
    assert code == 0
    assert (d["trainable_params"], d["total_params"]) == (41_943_040, 8_072_204_288)
    assert all(is_estimate(d[name]) for name in ("memory_gb", "tokens_per_s", "hours", "usd"))
    assert d["fits"] is True


def test_estimate_serve_has_the_keys(advise):
    arguments = (
        "--model",
        "Llama-3.1-8B",
        "--gpu",
        "L4",
        "--quant",
        "awq",
        "--input-tokens",
        600,
        "--output-tokens",
        150,
    )
    code, d, _ = advise("estimate", "serve", *arguments, "--concurrency", 16, "--json")
    assert code == 0
    assert all(is_estimate(d[name]) for name in ("memory_gb", "ttft_ms", "tpot_ms", "tokens_per_s", "usd_per_1k_calls"))
    assert isinstance(d["max_concurrency"], int)


def test_a_cpu_estimate_says_that_it_extrapolates(advise):
    _, d, _ = advise("estimate", "train", "--model", "builtin:smollm2-135m", "--gpu", "cpu", "--json")
    assert d["extrapolates"]
    assert d["tokens_per_s"]["high"] / d["tokens_per_s"]["low"] > 10
    assert 50 < d["tokens_per_s"]["value"] < 1500


def test_backtest(advise, tmp_path):
    code, d, _ = advise("backtest", "--json")
    assert code == 0
    assert all(keys(c, "n", "mape", "median_ape", "bias", "within_interval") for c in d["classes"].values())
    assert all(keys(r, "id", "class", "measured", "predicted", "low", "high") for r in d["rows"])
    assert all(keys(s, "id", "reason") for s in d["skipped"])
    bad = tmp_path / "bad.csv"
    with (Path(__file__).parents[2] / "advisor/tables/measured.csv").open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["kind"] == "tpot"][:20]
    with bad.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows({**row, "value": 10 * float(row["value"])} for row in rows)
    code, d, captured = advise("backtest", bad, "--json")
    assert code == 1
    assert d["worse"]
    assert "exceeds the bound" in captured.err


@pytest.mark.parametrize("command", ["gpus", "prices", "rules"])
def test_tables_carry_sources(advise, command):
    code, d, _ = advise(command, "--json")
    assert code == 0
    assert d[command]
    assert all(row["source"] for row in d[command])
    assert advise(command)[0] == 0


def test_user_files_override(advise, tmp_path):
    mine = tmp_path / "gpus.csv"
    mine.write_text(
        "name,memory_GB,bandwidth_GBps,bf16_dense_TFLOPS,price_low_usd_h,price_high_usd_h\nMine,48,900,200,1,1\n"
    )
    arguments = ("estimate", "train", "--model", "Llama-3.1-8B", "--method", "qlora", "--gpu", "Mine", "--gpu-file")
    assert advise(*arguments, mine, "--json")[1]["usd"]["value"] > 0
    mine.write_text("name,memory_GB,bandwidth_GBps,bf16_dense_TFLOPS\nMine,-48,900,200\n")
    code, d, _ = advise(*arguments, mine, "--json")
    assert code == 2
    assert d["error"]["where"].endswith("gpus.csv:2")
    for bad in ("Mine,48,900,200,-1,1\n", "Mine,nan,900,200,1,1\n", "Mine,inf,900,200,1,1\n", ",48,900,200,1,1\n"):
        mine.write_text("name,memory_GB,bandwidth_GBps,bf16_dense_TFLOPS,price_low_usd_h,price_high_usd_h\n" + bad)
        assert advise(*arguments, mine, "--json")[1]["error"]["where"].endswith("gpus.csv:2")
    prices = tmp_path / "prices.csv"
    for bad in ("a,b,nan,1", "a,b,1,inf", "a,b,-1,1", ",b,1,1", "a,b,,1"):
        prices.write_text(f"provider,model,input_usd_mtok,output_usd_mtok\n{bad}\n")
        assert advise("prices", "--file", prices, "--json")[1]["error"]["where"].endswith("prices.csv:2")
    prices.write_text("provider,model,input_usd_mtok,output_usd_mtok,date\nme,own,0.001,0.001,2020-01-01\n")
    _, d, _ = advise("prices", "--file", prices, "--json")
    assert next(p for p in d["prices"] if p["provider"] == "me")["stale"]


def test_out_is_what_train_reads(advise, tmp_path):
    out = tmp_path / "recommendation.yaml"
    question = (
        "--needs",
        "format,privacy",
        "--privacy",
        "no-egress",
        "--hardware",
        "cpu",
        "--model",
        "builtin:smollm2-135m",
        "--examples",
        738,
    )
    code, _, _ = advise(
        "recommend", *question, "--input-tokens", 300, "--output-tokens", 40, "--calls-per-day", 20000, "--out", out
    )
    assert code == 0
    document = yaml.safe_load(out.read_text())
    assert document["schema_version"] == 1
    assert keys(document, "created", "recommendation", "constraints", "train")
    train = document["train"]
    assert (train["method"], train["model"], train["rank"], train["alpha"]) == ("lora", "builtin:smollm2-135m", 16, 32)
    assert train["targets"] == list(ALL_LINEAR)
    assert train["learning_rate"] == pytest.approx(5e-4)
    assert (train["per_device_train_batch_size"], train["gradient_accumulation_steps"]) == (4, 1)
    assert keys(train, "num_train_epochs", "max_length", "seed")
    advise("recommend", "--out", out)
    assert set(yaml.safe_load(out.read_text())["train"]) == {"method", "model"}
    assert advise("recommend", "--out", tmp_path / "none" / "r.yaml")[0] == 2


@pytest.mark.parametrize(
    "question",
    [
        ("--needs", "latency", "--examples", 5000),
        ("--needs", "quality", "--quality", "max", "--budget-usd", 100000, "--examples", 50000),
    ],
)
def test_the_trainer_takes_every_key(advise, tmp_path, question):
    config = pytest.importorskip("tunegate.train.config")
    out = tmp_path / "recommendation.yaml"
    assert advise("recommend", *question, "--out", out)[0] == 0
    resolved, settings, notes = config.resolve([(str(out), config.from_file(out))])
    assert resolved.method in ("qlora", "full")
    assert notes == []
    assert settings["learning_rate"].origin == str(out)


SMALL = ("--model", "builtin:smollm2-135m", "--hardware", "cpu", "--input-tokens", 100, "--output-tokens", 20)
LARGER = ("--model", "Qwen2.5-7B", "--hardware", "A100-80GB")


@pytest.mark.parametrize(
    ("question", "method", "trained"),
    [
        (SMALL, "prompt", "prompt"), ((*LARGER, "--examples", 500, "--needs", "format"), "few_shot", "few_shot"), ((*SMALL, "--facts", "changing"), "rag", "rag"),
        ((*SMALL, "--examples", 738, "--needs", "format"), "lora", "lora"), (("--examples", 5000, "--needs", "format"), "qlora", "qlora"),
        ((*SMALL, "--examples", 5000, "--needs", "format", "--facts", "changing"), "rag_lora", "lora"),
        (("--quality", "max", "--needs", "quality", "--examples", 50_000), "full", "full"), (("--ops", "low"), "hosted_api", "prompt"),
        (("--ops", "low", "--facts", "changing"), "hosted_api", "rag"),
    ],
)  # fmt: skip
def test_whatever_the_method_the_trainer_runs_it(advise, tmp_path, question, method, trained):
    config = pytest.importorskip("tunegate.train.config")
    out = tmp_path / "recommendation.yaml"
    code, d, _ = advise("recommend", *question, "--out", out, "--json")
    assert (code, d["recommendation"]["method"]) == (0, method)
    values = config.from_file(out)
    resolved, _, notes = config.resolve([(str(out), values)])
    assert (resolved.method, notes) == (trained, [])
    assert set(values) <= {*config.keys_of(trained), "preset"}
    notes = yaml.safe_load(out.read_text())["notes"]
    said = [
        note for note in notes if "is meant" not in note and "a process each" not in note
    ]  # which hub id, how many GPUs
    assert bool(said) == (method in ("hosted_api", "rag_lora"))
    if method == "hosted_api":
        assert resolved.model.count("/") == 1  # open weights of a hub id, not the API's name
        assert resolved.model != d["recommendation"]["model"]


def test_what_would_flip_the_answer_is_in_the_json(advise):
    _, d, _ = advise("recommend", "--needs", "format", "--examples", 1200, "--why", "--json")
    rows = {row["name"]: row for row in d["tornado"]}
    assert set(rows) == {"calls_per_day", "input_tokens", "output_tokens", "examples", "peak_factor"}
    assert any("few_shot" in flip for flip in rows["examples"]["flips_to"])
    assert all(0 <= row["low_usd"] <= row["high_usd"] for row in rows.values())
    assert any("200" in probe for probe in d["probes"])
    assert "tornado" not in advise("recommend", "--json")[1]


def test_nothing_is_written_without_out(advise, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, captured = advise("recommend", "--why")
    assert "nothing was written" in captured.err
    assert "rules that fired" in captured.out
    assert "probe:" in captured.out
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


def test_constraints_file_and_options(advise, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("needs: [format]\nexamples: 5000\ncalls_per_day: 5\n")
    _, d, _ = advise("recommend", "--constraints", file, "--calls-per-day", 7, "--json")
    assert (d["constraints"]["calls_per_day"], d["constraints"]["examples"]) == (7, 5000)
    file.write_text("exampels: 5000\n")
    code, d, _ = advise("recommend", "--constraints", file, "--json")
    assert (code, d["error"]["kind"]) == (2, "bad_input")
    assert "examples" in d["error"]["hint"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("recommend", "--hardware", "Abacus"), ("recommend", "--hardware", "A100:" + "9" * 5000), ("recommend", "--hardware", "L4:\u00b2"),
        ("recommend", "--model", "~Nobody"), ("recommend", "--calls-per-day", "-5"), ("recommend", "--needs", "speed"), ("recommend", "--launch", "moon"),
        ("recommend", "no-such.jsonl"), ("recommend", "--calls-per-day", "many"), ("recommend", "--examples", "1.5"), ("recommend", "--privacy", "no-egress", "--ops", "low"), ("estimate", "train", "--model", "Lama", "--gpu", "L4"),
        ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--method", "lorra"), ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--batch", "0"),
        ("estimate", "serve", "--model", "Llama-3.1-8B", "--gpu", "A100", "--quant", "fp8", "--input-tokens", "5", "--output-tokens", "5"),
        ("recommend", "--out", "."), ("recommend", "--needs", "privacy", "--ops", "low"), ("breakeven", "--quant", "fp8", "--gpu", "A100"),
        ("breakeven", "--calls-per-day", "inf"), ("breakeven", "--gpu-usd-h", "1e308"), ("prices", "--model", "nobody/none"),
        ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--targets", ""), ("recommend", "--evidence", "no-such"),
        ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--mean-tokens", "500", "--seq", "100"),
        ("backtest", "no-such.csv"), ("calibrate", "no-such.jsonl", "--model", "Llama-3.1-8B", "--gpu", "L4"), ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4", "--targets", "q_prj"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(advise, arguments):
    code, _, captured = advise(*arguments)
    assert code == 2
    assert captured.err.splitlines()[-1].startswith("error:")
    code, document, _ = advise(*arguments, "--json")
    assert code == 2
    assert keys(document["error"], "kind", "message", "where", "hint")


def test_rows_may_be_a_dataset_and_other_files_say_what_reads_them(advise, tmp_path, tiny_dataset):
    code, d, _ = advise("recommend", tiny_dataset.path, "--json")
    assert (code, d["data"]["rows"]) == (0, 24)
    rows = json.dumps([json.loads(line) for line in tiny_dataset.train_path.read_text().splitlines()])
    for name, text in (("a.csv", "prompt,completion\nq,a\n"), ("a.json", f"\ufeff {rows}"), ("a.jsonl.gz", "x")):
        (tmp_path / name).write_text(text)
        code, d, _ = advise("recommend", tmp_path / name, "--json")
        assert (code, d["error"]["kind"]) == (2, "bad_input")
        assert d["error"]["hint"].startswith(f"ft data prepare {tmp_path / name} --out data/")
    code, d, _ = advise("recommend", tmp_path, "--json")
    assert (code, d["error"]["where"]) == (2, str(tmp_path))


def test_calibration_is_drawn_to_the_prior_and_used(advise, tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1.0, "tokens_per_s": 400.0}) + "\n" for i in range(5)))
    question = ("--model", "builtin:smollm2-135m", "--gpu", "cpu", "--method", "lora", "--batch", 4, "--seq", 512)
    before = advise("estimate", "train", *question, "--json")[1]["tokens_per_s"]["value"]
    code, d, _ = advise("calibrate", log, *question, "--json")
    assert code == 0
    after = advise("estimate", "train", *question, "--json")[1]["tokens_per_s"]["value"]
    assert min(before, 400) < after < max(before, 400)
    assert after / before == pytest.approx(d["factor"], rel=0.01)
    log.write_text(json.dumps({"tokens_per_s": 1e9}) + "\n")
    code, d, _ = advise("calibrate", log, *question, "--json")
    assert code == 2
    assert "limit" in d["error"]["message"]


def test_calibrate_reads_a_vllm_benchmark(advise, tmp_path):
    log = tmp_path / "bench.json"
    log.write_text(json.dumps({"median_tpot_ms": 30.0, "completed": 100}))
    code, d, _ = advise(
        "calibrate", log, "--model", "Llama-3.1-8B", "--gpu", "L4", "--quant", "awq", "--concurrency", 8, "--json"
    )
    assert (code, d["class"]) == (0, "tpot")


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recommend", "--help"], ["recommend", "--json"], ["recommend", "--needs", "cost", "--why"], ["estimate", "train", "--help"], ["backtest", "--json"]],
)  # fmt: skip
def test_starts_without_heavy_imports(arguments):
    code = f"import sys; from tunegate.advisor.cli import app; from tunegate.core.commands import run; run(app, prog='ftadvise', argv={arguments!r}); print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert done.stderr.splitlines()[-1] == "[]"


def test_many_rows_are_profiled_whole(tmp_path):
    from tunegate.advisor.data_profile import profile

    path = tmp_path / "big.jsonl"
    line = json.dumps(
        {"messages": [{"role": "user", "content": "word " * 60}, {"role": "assistant", "content": '{"a": 1}'}]}
    )
    path.write_text((line + "\n") * 20_000)
    assert profile(path).duplicates == 19_999


COMMANDS = [
    [], ["recommend"], ["estimate"], ["estimate", "train"], ["estimate", "serve"], ["breakeven"], ["gpus"], ["prices"], ["rules"],
    ["backtest"], ["calibrate"],
]  # fmt: skip


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: " ".join(path) or "ftadvise")
def test_help_ends_with_an_example_that_works(advise, tmp_path, monkeypatch, path):
    code, _, captured = advise(*path, "--help")
    assert code == 0
    example = " ".join(captured.out[captured.out.index("Example: ftadvise") :].split()).removeprefix(
        "Example: ftadvise "
    )
    monkeypatch.chdir(tmp_path)
    row = {"messages": [{"role": "user", "content": "a question"}, {"role": "assistant", "content": '{"a": 1}'}]}
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(20)))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "tokens_per_s": 300.0}) + "\n")
    code, document, captured = advise(*shlex.split(example), "--json")
    assert code == 0, captured.err
    assert isinstance(document, dict)
