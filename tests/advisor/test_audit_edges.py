"""Edges that a reading of the whole product found: each of these went wrong once."""

import pytest
import yaml

from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.models import find, known_models
from tunegate.advisor.recommend import recommend
from tunegate.core.errors import UserError


def test_every_hub_id_of_the_table_is_found():
    for model in known_models().values():
        assert find(model.spec).spec == model.spec
        assert find(model.spec).name == model.name


def test_a_recommendation_of_the_table_s_own_hub_id_is_answered(advise, tmp_path):
    """Mistral-Small's hub id was not in the index: the command failed after it had written its file."""
    out = tmp_path / "r.yaml"
    question = ("recommend", "--facts", "changing", "--privacy", "no-egress", "--hardware", "L4:1", "--out", out)
    assert advise(*question)[0] == 0
    assert yaml.safe_load(out.read_text())["train"]["model"] == "mistralai/Mistral-Small-24B-Instruct-2501"


def test_a_command_that_fails_leaves_no_file(advise, tmp_path, monkeypatch):
    from tunegate.advisor import explain

    def fails(answer):
        raise UserError("no")

    monkeypatch.setattr(explain, "probes", fails)
    for kind in ((), ("--json",)):
        assert advise("recommend", "--out", tmp_path / "r.yaml", *kind)[0] == 2
        assert not (tmp_path / "r.yaml").exists()


@pytest.mark.parametrize(
    ("asked", "spec"),
    [
        ("DeepSeek-R1-Distill-Llama-8B", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"),
        ("Qwen2.5-Coder-7B", "Qwen/Qwen2.5-Coder-7B-Instruct"),
        ("Mistral-7B-Instruct-v0.2", "mistralai/Mistral-7B-Instruct-v0.2"),
        ("Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"),
        ("CodeLlama-7B", "codellama/CodeLlama-7b-Instruct-hf"),
        ("Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"),
        ("Gemma-3-4B", "google/gemma-3-4b-it"),
        ("Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"),
        ("Mixtral-8x7B", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
        ("codellama/CodeLlama-7b-hf", "codellama/CodeLlama-7b-hf"),
        ("unsloth/Llama-3.1-8B", "unsloth/Llama-3.1-8B"),
    ],
)
def test_the_model_asked_for_is_the_model_named(advise, tmp_path, asked, spec):
    out = tmp_path / "r.yaml"
    question = ("recommend", "--examples", 3000, "--needs", "format", "--model", asked, "--out", out, "--json")
    code, d, _ = advise(*question)
    written = yaml.safe_load(out.read_text())
    assert code == 0
    assert (d["recommendation"]["model"], written["train"]["model"]) == (spec, spec)
    said = [a["matters"] for a in d["assumptions"] if a["name"] == "model_id"]
    assert said == [note for note in written["notes"] if "is meant" in note or "stands for it" in note]
    assert bool(said) == ("/" not in asked or asked.startswith("unsloth"))


def test_a_shape_without_known_weights_says_so():
    assert "no public weights" in find("MPT-125m").meant
    assert find("builtin:smollm2-135m").meant == ""
    assert recommend(from_mapping({"model": "MPT-125m", "examples": 3000, "needs": "format"})).chosen.feasible


def test_qlora_on_several_gpus_is_one_whole_copy_each(advise):
    """bitsandbytes' 4-bit weights are not shared by FSDP2: DDP, as `ft train --strategy ddp` runs it."""
    question = ("estimate", "train", "--model", "Llama-3.3-70B", "--method", "qlora", "--gpu", "L4", "--json")
    one, four = advise(*question)[1], advise(*question, "--gpus", 4)[1]
    assert four["memory_gb"] == one["memory_gb"]
    assert four["terms_gb"] == one["terms_gb"]
    assert four["fits"] is False
    assert any("DDP" in note for note in four["notes"])
    shared = advise(*question[:5], "lora", *question[6:], "--gpus", 4)[1]
    assert shared["memory_gb"]["value"] < advise(*question[:5], "lora", *question[6:])[1]["memory_gb"]["value"] / 2
    model = ("--model", "Llama-3.3-70B", "--examples", 5000, "--needs", "format", "--privacy", "no-egress")
    _, d, _ = advise("recommend", *model, "--hardware", "L4:8", "--json")
    assert d["recommendation"]["method"] != "qlora"
    (refused,) = [r for r in d["rejected"] if r["option"].startswith("qlora")]
    assert refused["constraint"] == "training memory"


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_hours_are_tokens_over_tokens_a_second(advise, gpus):
    question = ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "H100", "--gpus", gpus, "--json")
    _, d, _ = advise(*question, "--examples", 1000, "--epochs", 3, "--seq", 1024)
    assert d["hours"]["value"] == pytest.approx(3 * 1000 * 1024 / d["tokens_per_s"]["value"] / 3600, rel=2e-3)


def test_heads_are_dealt_out_whole(advise):
    serve = ("--gpu", "L4", "--quant", "awq", "--input-tokens", 600, "--output-tokens", 100, "--json")
    for model, gpus, fits in (("Qwen2.5-7B", 8, False), ("Qwen2.5-7B", 4, True), ("Falcon-7B", 2, False)):
        _, d, _ = advise("estimate", "serve", "--model", model, "--gpus", gpus, *serve)
        assert d["fits"] is fits
        assert any("tensor parallelism" in note for note in d["notes"]) is not fits
    code, d, _ = advise("breakeven", "--model", "Qwen2.5-7B", "--gpus", 8, "--json")
    assert (code, d["error"]["where"]) == (2, "--gpus")
    _, d, _ = advise("recommend", "--model", "Qwen2.5-7B", "--hardware", "L4:6", "--privacy", "no-egress", "--json")
    assert d["recommendation"]["gpus"] in (1, 2, 4)
    assert all(option["gpus"] in (1, 2, 4) for option in d["pareto"])


def test_key_value_heads_are_copied_beyond_their_number():
    from tunegate.advisor import serving_plan
    from tunegate.advisor.gpus import find_gpu
    from tunegate.advisor.serving_speed import max_concurrency

    def sequences(model, gpus):
        shape = find(model).architecture
        setup = serving_plan.setup_for(shape, find_gpu("H100"), gpus, "bf16", (4000.0, 100.0), 0.0)
        return max_concurrency(setup) / gpus

    assert sequences("Llama-3.1-8B", 8) > sequences("Llama-3.1-8B", 4)  # 8 heads: one a GPU
    assert sequences("Llama-3.1-8B", 32) < 0.3 * sequences("Llama-3.1-8B", 8)  # each on 4 GPUs


@pytest.mark.parametrize("option", ["--input-tokens", "--output-tokens"])
@pytest.mark.parametrize("value", ["inf", "1e308", "nan"])
def test_prices_of_absurd_calls_are_refused(advise, option, value):
    assert advise("prices", option, value, "--json")[0] == 2


GPU_ROW = "name,memory_GB,bandwidth_GBps,bf16_dense_TFLOPS,fp8_dense_TFLOPS,price_low_usd_h,price_high_usd_h\n"


@pytest.mark.parametrize(
    "row",
    [
        "X,1e300,300,100,,1,2", "X,24,1e300,100,,1,2", "X,24,300,1e300,,1,2", "X,24,300,1e-300,,1,2", "X,24,300,100,-5,1,2",
        "X,24,300,100,,1e300,1e300",
    ],
)  # fmt: skip
def test_gpus_that_cannot_be_are_refused_by_line(advise, tmp_path, row):
    (tmp_path / "g.csv").write_text(GPU_ROW + row + "\n")
    serve = ("estimate", "serve", "--model", "Llama-3.1-8B", "--gpu", "X", "--input-tokens", 100, "--output-tokens", 10)
    code, d, _ = advise(*serve, "--gpu-file", tmp_path / "g.csv", "--json")
    assert (code, d["error"]["where"]) == (2, f"{tmp_path / 'g.csv'}:2")


@pytest.mark.parametrize("row", ["a,b,1,1,-1,", "a,b,1,1,cheap,", "a,b,1,1,,-7", "a,b,1e300,1,,"])
def test_prices_that_cannot_be_are_refused_by_line(advise, tmp_path, row):
    head = "provider,model,input_usd_mtok,output_usd_mtok,cached_usd_mtok,params_b\n"
    (tmp_path / "p.csv").write_text(head + row + "\n")
    code, d, _ = advise("prices", "--file", tmp_path / "p.csv", "--json")
    assert (code, d["error"]["where"]) == (2, f"{tmp_path / 'p.csv'}:2")


@pytest.mark.parametrize(
    "stored", ["[]", '{"train_tps/cpu": 5}', '{"train_tps/cpu": {"factor": 0}}', '{"train_tps/cpu": {"factor": -1}}',
               '{"train_tps/cpu": {"factor": "2"}}', '{"train_tps/cpu": {"factor": 1, "ratios": [0]}}', '{"train_tps/cpu": {}}',
               "{half"],
)  # fmt: skip
def test_a_calibration_that_is_none_is_refused(advise, tmp_path, stored):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/calibration.json").write_text(stored)
    code, d, _ = advise("estimate", "train", "--model", "builtin:smollm2-135m", "--gpu", "cpu", "--json")
    assert code == 2
    assert "calibration.json" in d["error"]["where"]


def test_init_in_place_is_one_line(tmp_path, monkeypatch, capsys):
    from tunegate.core.commands import run
    from tunegate.core.ft import app

    for name in ("task.yaml", "gate.yaml", "train.yaml"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    assert run(app, prog="ft", argv=["init", ".", "--force"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"learning_rate": "inf"}, "--learning-rate"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**32}, "--seed"),
        ({"dropout": 1.0}, "--dropout"),
        ({"max_steps": -7}, "--max-steps"),
        ({"use_dora": True, "method": "full"}, "--use-dora"),
        ({"use_rslora": True, "method": "full"}, "--use-rslora"),
        ({"rank": 16, "lora_r": 8}, "--lora-r"),
        ({"lora_r": 8, "rank": 16}, "--rank"),
        ({"lora_r": 8, "r": 16}, "--r"),
        ({"num_train_epochs": 1e308}, "--num-train-epochs"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, where):
    from tunegate.train.config import resolve

    with pytest.raises(UserError) as error:
        resolve([("flag", settings)])
    assert error.value.where == where


def test_faults_of_a_file_name_its_line(tmp_path, advise):
    from tunegate.train.config import from_file, resolve

    path = tmp_path / "r.yaml"
    path.write_text("recommendation:\n  method: lora\ntrain:\n  method: lora\n  rank: -3\n")
    with pytest.raises(UserError) as error:
        resolve([(str(path), from_file(path))])
    assert error.value.where == f"{path}:5"
    path.write_text("recommendation:\n  method: lora\ntrain:\n  method: lara\n")
    with pytest.raises(UserError) as error:
        resolve([(str(path), from_file(path))])
    assert error.value.where == f"{path}:4"
    path.write_text("lora_r: -3\n")
    with pytest.raises(UserError) as error:
        resolve([(str(path), from_file(path))])
    assert error.value.where == f"{path}:1"
    path.write_text("schema_version: 99\ntrain: {method: lora}\n")
    with pytest.raises(UserError, match="schema_version 99") as error:
        from_file(path)
    assert error.value.where == f"{path}:1"
    for line in ("hardware: RTX5090", "hardware: L4:x", "model: gpt-4o"):
        path.write_text(f"calls_per_day: 100\n{line}\n")
        code, d, _ = advise("recommend", "--constraints", path, "--json")
        assert (code, d["error"]["where"]) == (2, f"{path}:2")
    _, d, _ = advise("recommend", "--privacy", "no-egress", "--ops", "low", "--json")
    assert d["error"]["where"] == "privacy, ops"


def test_out_of_a_link_a_pipe_or_a_device(advise, tmp_path):
    import os
    import threading

    target, link, pipe = tmp_path / "target.yaml", tmp_path / "link.yaml", tmp_path / "pipe"
    target.write_text("old")
    link.symlink_to(target)
    assert advise("recommend", "--out", link)[0] == 0
    assert link.is_symlink()
    assert "train" in yaml.safe_load(target.read_text())
    os.mkfifo(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert advise("recommend", "--out", pipe)[0] == 0
    reader.join(10)
    assert "train" in yaml.safe_load(read[0])
    assert pipe.is_fifo()
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    assert advise("recommend", "--out", null)[0] == 0
    assert null.resolve().is_char_device()


def test_an_api_is_held_against_the_best_service_of_ones_own(advise):
    """It was `never` whenever an API was chosen: nothing of one's own had been looked at."""
    _, d, _ = advise("recommend", "--ops", "low", "--json")
    found, chosen = d["break_even"], d["recommendation"]
    assert (found["api"], found["against"]) == (chosen["model"], found["own"])
    _, model, weights, _, machine = found["own"].split(" ")
    gpu, gpus = machine.split(":")
    c = d["constraints"]
    _, same, _ = advise(
        "breakeven", "--model", model, "--gpu", gpu, "--gpus", gpus, "--quant", weights, "--against", chosen["model"], "--setup-hours", 20,
        "--input-tokens", c["input_tokens"], "--output-tokens", c["output_tokens"], "--calls-per-day", c["calls_per_day"], "--json",
    )  # fmt: skip
    assert found["calls_per_day"] == pytest.approx(same["offers"][0]["break_even_calls_per_day"], rel=0.01)
    assert "is cheaper from about" in advise("recommend", "--ops", "low")[2].out
    _, d, _ = advise(
        "recommend", "--ops", "low", "--input-tokens", 200_000, "--json"
    )  # beyond every context of the table
    assert (d["break_even"]["calls_per_day"], d["break_even"]["against"]) == ("never", "no machine at hand")


def test_both_sides_of_a_break_even_get_the_same_prompt(monkeypatch):
    """An API beside which nothing is retrieved is no rival of RAG."""
    from tunegate.advisor import break_even, refusals

    asked = []
    real = break_even.break_even

    def spy(own, offer, tokens, answer, hit):
        asked.append((tokens, hit))
        return real(own, offer, tokens, answer, hit)

    monkeypatch.setattr(break_even, "break_even", spy)
    private = {"privacy": "no-egress"}
    recommend(from_mapping({"facts": "changing", **private}))
    recommend(from_mapping({"examples": 200, "needs": "format", "model": "Qwen3-8B", "hardware": "L4", **private}))
    (passages, none), (shots, cached) = asked
    assert (passages, none) == (600 + refusals.RETRIEVED_TOKENS, 0.0)
    assert shots == 600 + refusals.FEW_SHOTS * 750
    assert cached > 0.9


def test_an_adapter_is_trained_with_the_passages_it_is_served_with():
    plain = recommend(from_mapping({"examples": 5000, "needs": "format", "model": "Llama-3.1-8B", "hardware": "H100"}))
    both = recommend(
        from_mapping(
            {"examples": 5000, "needs": "format", "model": "Llama-3.1-8B", "hardware": "H100", "facts": "changing"}
        )
    )
    assert (plain.chosen.method, both.chosen.method) == ("lora", "rag_lora")
    assert both.chosen.training.recipe.max_length >= plain.chosen.training.recipe.max_length + 1200
    assert both.chosen.training.hours > 2 * plain.chosen.training.hours
    assert both.chosen.training.memory_gb > plain.chosen.training.memory_gb


def test_what_is_longer_than_the_context_is_refused(advise):
    small = ("--model", "builtin:smollm2-135m", "--hardware", "L4", "--privacy", "no-egress", "--json")
    code, d, _ = advise("recommend", *small, "--input-tokens", 3000, "--examples", 40, "--needs", "format")
    assert (code, d["recommendation"]["method"]) == (0, "prompt")  # eight examples of 3,150 tokens do not go into 8,192
    (refused,) = [r for r in d["rejected"] if r["option"].startswith("few_shot")]
    assert (refused["constraint"], "28,350 tokens" in refused["change"]) == ("context", True)
    code, d, _ = advise("recommend", *small, "--input-tokens", 9000)
    assert (code, d["error"]["where"]) == (2, "context")
    model = ("--model", "builtin:smollm2-135m", "--gpu", "L4", "--json")
    _, d, _ = advise("estimate", "serve", *model, "--input-tokens", 9000, "--output-tokens", 10)
    assert (d["fits"], any("context of 8,192" in note for note in d["notes"])) == (False, True)
    _, d, _ = advise("estimate", "train", *model, "--seq", 16384, "--batch", 1)
    assert (d["fits"], any("context of 8,192" in note for note in d["notes"])) == (False, True)
    assert advise("breakeven", *model[:4], "--quant", "bf16", "--input-tokens", 9000, "--json")[0] == 2
    recipe = recommend(
        from_mapping({"model": "TinyLlama-1.1B", "examples": 900, "needs": "format", "input_tokens": 1500})
    )
    assert max(o.training.recipe.max_length for o in recipe.space.options if o.training) == 2048


def test_the_smallest_change_is_large_enough(advise):
    from tunegate.advisor.refusals import enough

    assert (enough(1.28), enough(1.281), enough(99.999), enough(1234.2)) == ("1.28", "1.29", "100", "1235")
    question = ("recommend", "--json", "--calls-per-day", 100, "--monthly-budget-usd")
    code, d, _ = advise(*question, 0.01)
    assert code == 2
    assert advise(*question, d["error"]["hint"].rsplit(" ", 1)[1])[0] == 0
    question = ("recommend", "--json", "--needs", "latency", "--examples", 5000, "--p95-ms")
    hint = advise(*question, 10)[1]["error"]["hint"]
    assert advise(*question, hint.rsplit(" ", 1)[1])[0] == 0


def test_what_is_missing_is_named_with_its_size():
    """A cache that does not fit always read 0.1 GB, whatever was missing."""
    from tunegate.advisor import serving_plan
    from tunegate.advisor.gpus import find_gpu

    def missing(model, tokens):
        setup = serving_plan.setup_for(find(model).architecture, find_gpu("L4"), 1, "bf16", (tokens, 100.0), 0.0)
        plan = serving_plan.plan(model, setup, serving_plan.load_of(1000, 3, None), owned=True)
        return plan.misfit_of, plan.misfit_gb

    what, short = missing("Llama-3.1-8B", 40_000.0)
    assert what == "KV cache"
    assert missing("Llama-3.1-8B", 80_000.0)[1] == pytest.approx(short + 40_000 * 131_072 / 1e9)
    assert missing("Qwen3-14B", 100.0)[0] == "weights"


def test_a_latency_bound_costs_replicas(advise):
    question = ("breakeven", "--model", "Llama-3.1-8B", "--gpu", "L4", "--against", "openai/gpt-5-mini", "--json")
    load = ("--calls-per-day", 60_000)
    free, bound = advise(*question, *load)[1], advise(*question, *load, "--p95-ms", 9000)[1]
    assert bound["replicas"] > free["replicas"]
    assert bound["offers"][0]["own_monthly_usd"] > free["offers"][0]["own_monthly_usd"]
    assert bound["capacity_calls_per_day_per_replica"] < free["capacity_calls_per_day_per_replica"]


GEMMA_2_2B = {
    "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 26, "head_dim": 256, "vocab_size": 256_000, "sliding_window": 4096, "max_position_embeddings": 8192,
}  # fmt: skip
GEMMA_3_4B = {
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10_240, "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
}  # fmt: skip


@pytest.mark.parametrize(("config", "name"), [(GEMMA_2_2B, "Gemma-2-2B"), (GEMMA_3_4B, "Gemma-3-4B")])
def test_what_gemma_leaves_unsaid_is_what_transformers_takes(config, name):
    from tunegate.core.architecture import from_config

    assert from_config(config) == find(name).architecture


def test_yarn_lengthens_the_context():
    from tunegate.core.architecture import from_config

    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    llama = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 100,
    }
    config = {**llama, "max_position_embeddings": 32_768}
    assert from_config(config).context == 32_768
    assert from_config({**config, "rope_scaling": yarn}).context == 131_072
    assert from_config(llama).context is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_local_experts": 4, "num_experts_per_tok": 9}, {"layer_types": ["full_attention"] * 7}, {"hidden_size": 10**40},
        {"hidden_size": 10**8, "num_hidden_layers": 10**8},
    ],
)  # fmt: skip
def test_configurations_that_cannot_be_are_refused(wrong):
    from tunegate.core.architecture import from_config

    config = {
        "model_type": "mixtral",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vocab_size": 9,
    }
    from_config(config)
    with pytest.raises(UserError):
        from_config(config | wrong)


@pytest.mark.parametrize(
    ("rows", "says"), [(1, "of 1 rows none can be held out"), (0, "no rows"), (-1, "not valid JSON")], ids=str
)
def test_init_speaks_of_the_users_file_and_its_own_options(tmp_path, capsys, rows, says):
    import json

    from tunegate.core.commands import run
    from tunegate.core.ft import app

    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    data = tmp_path / "my.jsonl"
    data.write_text(json.dumps(row) + "\n{broken\n" if rows < 0 else (json.dumps(row) + "\n") * rows)
    assert run(app, prog="ft", argv=["init", str(tmp_path / "p"), "--data", str(data), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert says in error["message"]
    assert str(data) in error["where"]
    assert "--on-error" not in error["hint"]
    assert not (tmp_path / "p").exists()


def test_rows_that_repeat_are_said(advise, tmp_path):
    import json

    def row(question, answer):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return json.dumps({"messages": turns}) + "\n"

    data = tmp_path / "d.jsonl"
    data.write_text(
        "".join(row(f"q{i % 50}", f"a{i % 50}") for i in range(90)) + "".join(row("q0", f"b{i}") for i in range(10))
    )
    _, d, _ = advise("recommend", data, "--json")
    said = {a["name"]: a["value"] for a in d["assumptions"] if a["name"] in ("duplicates", "conflicts")}
    assert said == {"duplicates": "40 of 100 rows", "conflicts": "10 of 100 rows"}
    assert "40 of 100 rows" in advise("recommend", data)[2].out
    data.write_text("".join(row(f"q{i}", f"a{i}") for i in range(100)))
    assert not {a["name"] for a in advise("recommend", data, "--json")[1]["assumptions"]} & {"duplicates", "conflicts"}


def test_the_forecast_says_that_rows_go_beyond_the_context(tmp_path):
    import json

    from tunegate.core.model_source import ModelSource
    from tunegate.train import preflight
    from tunegate.train.config import TrainConfig

    config = {
        "model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256, "vocab_size": 100,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    source = ModelSource(str(tmp_path), "folder", str(tmp_path), "m", None)
    for longest, said in ((200, False), (400, True)):
        load = preflight.Load(rows=100, longest=longest, mean=100.0, label_share=0.2)
        found = preflight.forecast(source, TrainConfig(), load, "cpu")
        assert any("context of 256" in note for note in found.notes) is said
