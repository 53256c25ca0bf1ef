"""Rows and names that the collection mostly does not hold: other spellings, other hardware, mixtures of experts, other engines.

Measurements are published ones. Some of their rows stand in `advisor/tables/measured.csv`, on which constants were fitted:
SGLang with 64 and 128 clients, fsdp_qlora's two, TinyChat's but for Llama-3-8B on A6000. Of the others (Qwen-72B and 7B by
GPTQ, Qwen3-235B, llm-foundry's long sequences on H100, SGLang with 16 clients) the table holds other rows of the same sources
only.
"""

import csv
import dataclasses

import pytest

from tunegate.advisor import backtest as testing
from tunegate.advisor import estimates, serving_speed, training_memory, training_time
from tunegate.advisor.errors import class_errors
from tunegate.advisor.gpus import find_gpu, known_gpus
from tunegate.advisor.measured import Case, parse
from tunegate.advisor.models import find, find_or_typical
from tunegate.advisor.predict import engine, memory_setup, predict
from tunegate.core.errors import UserError
from tunegate.core.methods import ALL_LINEAR

ROW = {
    "id": "mine-1", "kind": "train_mem", "model": "Llama-3.1-8B", "params_B": "8.03", "method": "lora", "quant": "bf16",
    "seq_len_or_in_len": "2048", "out_len": "", "batch_or_concurrency": "8", "grad_ckpt": "yes", "optimizer": "AdamW",
    "gpu": "H100-SXM", "n_gpus": "1", "value": "30", "unit": "GB", "source_repo_or_paper": "me", "notes": "",
}  # fmt: skip
SERVED = {**ROW, "kind": "tpot", "method": "infer vllm", "out_len": "128", "value": "10", "unit": "ms"}


def case(row=ROW, **changes) -> Case:
    return parse({**row, **changes})


def guess(row=ROW, **changes) -> float:
    return predict(case(row, **changes))


def setup(model="Llama-3.1-8B", gpu="H100", **changes):
    values = {"input_tokens": 1024, "output_tokens": 128, **changes}
    return serving_speed.ServingSetup(architecture=find(model).architecture, gpu=find_gpu(gpu), **values)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("Qwen/Qwen3-235B-A22B-FP8", "Qwen3-235B-A22B"), ("TheBloke/Llama-2-70B-GPTQ", "Llama-2-70B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B"), ("nvidia/Qwen3-32B-NVFP4", "Qwen3-32B"),
        ("unsloth/llama-3.1-8b-bnb-4bit", "Llama-3.1-8B"), ("owner/Meta-Llama-3.1-8B-Instruct-FP8-dynamic", "Llama-3.1-8B"),
        ("owner/Mixtral-8x7B-Instruct-v0.1-quantized.w4a16", "Mixtral-8x7B"), ("Mixtral 46.7B", "Mixtral-8x7B"),
    ],
)  # fmt: skip
def test_a_weight_format_in_a_name_does_not_hide_the_model(name, known):
    assert find(name).architecture == find(known).architecture


@pytest.mark.parametrize(
    "name", ["Unheard-9x7B", "Nobody/Unheard-80B-A3B", "deepseek-ai/DeepSeek-V3", "moonshot/Kimi-K9"]
)
def test_a_mixture_of_unknown_shape_is_not_taken_for_a_dense_model(name):
    with pytest.raises(UserError, match="unknown model"):
        find_or_typical(name, 80.0)
    assert find_or_typical("Nobody/Unheard-80B", 80.0).architecture.experts == 1
    assert find("DeepSeek-R1-Distill-Qwen-32B").architecture.experts == 1


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-SXM"), ("H100 SXM5", "H100-SXM"), ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100 80GB PCIe", "A100-PCIe-80GB"), ("Tesla T4", "T4"), ("NVIDIA L4", "L4"), ("L40S 48GB", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"), ("RTX 3090 24GB", "RTX3090"), ("AMD Instinct MI300X", "MI300X"),
        ("Tesla V100-SXM2-32GB", "V100"), ("A100-PCIE-40GB", "A100-40GB"),
    ],
)  # fmt: skip
def test_a_gpu_is_known_as_drivers_and_vendors_write_it(written, meant):
    assert find_gpu(written).name == meant


@pytest.mark.parametrize("name", ["V100-SXM2-16GB", "H100 NVL", "L40", "RTX 3060", "A100 24GB"])
def test_a_gpu_of_other_memory_is_another_gpu(name):
    with pytest.raises(UserError, match="unknown GPU"):
        find_gpu(name)


def test_every_gpu_is_found_by_its_own_name():
    assert all(find_gpu(name).name == name for name in known_gpus())


@pytest.mark.parametrize(
    ("changes", "like"),
    [
        ({"unit": "GiB", "value": "30"}, {"value": "32.21225472"}), ({"unit": "MiB", "value": "30720"}, {"value": "32.21225472"}),
        ({"unit": "MB", "value": "30000"}, {}), ({"unit": "gib"}, {"unit": "GiB"}), ({"value": "~30"}, {}),
        ({"batch_or_concurrency": "8.0"}, {}), ({"batch_or_concurrency": "bs8"}, {}), ({"batch_or_concurrency": "batch = 8"}, {}),
        ({"seq_len_or_in_len": "2k"}, {}), ({"seq_len_or_in_len": "2,048"}, {}), ({"params_B": "8.03B"}, {}),
        ({"grad_ckpt": "True"}, {}), ({"grad_ckpt": "1"}, {}), ({"grad_ckpt": "False"}, {"grad_ckpt": "no"}),
        ({"quant": ""}, {}), ({"quant": "16-bit"}, {}), ({"method": "QLoRA", "quant": "4bit"}, {"method": "qlora", "quant": "nf4"}),
        ({"method": "qlora", "quant": ""}, {"method": "qlora", "quant": "nf4"}), ({"n_gpus": ""}, {}), ({"kind": "TRAIN_MEM"}, {}),
        ({"gpu": "2x H100-SXM", "n_gpus": ""}, {"n_gpus": "2"}),
    ],
)  # fmt: skip
def test_other_spellings_of_a_cell_mean_the_same(changes, like):
    assert case(**changes).value == pytest.approx(case(**like).value)
    assert guess(**changes) == pytest.approx(guess(**like))


def test_times_may_be_given_in_seconds():
    assert case(SERVED, value="0.01", unit="s").value == pytest.approx(10.0)
    assert case(SERVED).value == 10.0


def write(path, rows, *, mark=",", before="", columns=None, rename=str):
    columns = columns or list(ROW)
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        stream.write(before)
        writer = csv.writer(stream, delimiter=mark)
        writer.writerow([rename(name) for name in columns])
        writer.writerows([row[name] for name in columns] for row in rows)
    return path


@pytest.mark.parametrize(
    "shape",
    [
        {"mark": ";"}, {"mark": "\t"}, {"before": "# measured by us\n\n"}, {"rename": str.upper}, {"rename": "  {} ".format},
        {"columns": sorted(ROW)}, {"columns": [c for c in ROW if c not in ("id", "optimizer", "params_B", "n_gpus", "quant", "out_len")]},
    ],
)  # fmt: skip
def test_a_users_csv_is_read_whatever_its_dress(tmp_path, shape):
    result = testing.backtest(
        testing.rows_of(write(tmp_path / "mine.csv", [ROW, {**ROW, "model": " Llama 3.1 8B "}], **shape))
    )
    assert not result.skipped
    assert [pair.predicted for pair in result.pairs] == pytest.approx([guess(), guess()])
    assert len({pair.case.id for pair in result.pairs}) >= 1
    assert all(pair.case.id for pair in result.pairs)


def test_a_row_without_a_cell_is_none_and_lines_are_counted_from_the_top(tmp_path):
    path = tmp_path / "gpus.csv"
    path.write_text(
        "# ours\n\nname,memory_GB,bandwidth_GBps,bf16_dense_TFLOPS\nmine,24,900,100\n,,,\nyours,none,900,100\n"
    )
    with pytest.raises(UserError) as caught:
        known_gpus(path)
    assert caught.value.where == f"{path}:6"


# QwenLM/Qwen README, "Profiling of Memory and Speed": Q-LoRA (GPTQ int4) of 72B and 7B on one A100.
@pytest.mark.parametrize(
    ("model", "seq", "gb"),
    [
        ("Qwen-72B", 256, 61.4),
        ("Qwen-72B", 1024, 62.9),
        ("Qwen-72B", 4096, 68.0),
        ("Qwen-7B", 256, 11.5),
        ("Qwen-7B", 2048, 13.9),
    ],
)
def test_gptq_keeps_one_layer_unpacked_not_all(model, seq, gb):
    row = {"model": model, "params_B": "", "method": "qlora", "quant": "gptq-int4", "seq_len_or_in_len": str(seq)}
    notes = {"batch_or_concurrency": "1", "gpu": "A100-80GB", "notes": "LoRA r=64 on all linear"}
    assert guess(**row, **notes) == pytest.approx(gb, rel=0.07)


# AnswerDotAI/fsdp_qlora benchmarks_03_2024.md: LoRA of Llama-2-7B on two 24 GB cards, context 2048.
def test_data_parallel_gpus_hold_whole_copies():
    row = {"model": "Llama-2-7B", "params_B": "6.74", "n_gpus": "2", "gpu": "RTX3090", "notes": "LoRA r=64"}
    whole = guess(**row, method="lora ddp", batch_or_concurrency="4")
    assert whole == pytest.approx(22.04 * 1.0737, rel=0.08)
    assert guess(**row, method="lora fsdp", batch_or_concurrency="6") == pytest.approx(21.35 * 1.0737, rel=0.15)
    assert memory_setup(case(**row, method="lora zero2")).sharded_over == 1
    assert memory_setup(case(**row, method="lora zero3")).sharded_over == 2


def test_a_trainer_in_the_notes_is_not_deepspeed():
    plain = memory_setup(case(method="full", notes="HF Trainer; FSDP"))
    assert plain.software == "hf"
    assert memory_setup(case(method="full", notes="DeepSpeed ZeRO-3")).software == "deepspeed"
    assert memory_setup(case(method="full", optimizer="AdamW (HF Trainer)")).software == "deepspeed"


def test_sglang_lets_prefills_go_first():
    assert engine(case(SERVED, method="infer sglang 0.5")) == "sglang"
    vllm, sglang = (setup("Qwen3-32B", gpus=2, engine=name) for name in ("vllm", "sglang"))
    first, second = serving_speed.curve(vllm), serving_speed.curve(sglang)
    assert second.tpot_s(64) < 0.8 * first.tpot_s(64)
    assert serving_speed.benchmark_ttft_s(sglang, 64) > 2 * serving_speed.benchmark_ttft_s(vllm, 64)
    assert serving_speed.throughput(sglang, 64) == pytest.approx(serving_speed.throughput(vllm, 64))
    assert second.tpot_s(1) == pytest.approx(first.tpot_s(1), rel=0.03)


# ai-dynamo/aiconfigurator silicon_sample.csv: SGLang, Qwen3-32B on two H100, 1024 in, 128 out.
@pytest.mark.parametrize(("clients", "ms"), [(16, 16.5), (64, 30.1), (128, 48.5)])
def test_sglang_is_predicted(clients, ms):
    row = {"model": "Qwen3-32B", "params_B": "", "method": "infer sglang", "seq_len_or_in_len": "1024", "n_gpus": "2"}
    assert guess(SERVED, **row, batch_or_concurrency=str(clients)) == pytest.approx(ms, rel=0.2)


# mit-han-lab/llm-awq tinychat/README.md: one stream of HF in 16 bits.
@pytest.mark.parametrize(
    ("model", "gpu", "ms"),
    [
        ("Llama-3-8B", "A6000", 24.95),
        ("Llama-2-13B", "A6000", 41.72),
        ("Llama-3-8B", "RTX4090", 17.07),
        ("Vicuna-7B", "RTX4090", 15.81),
    ],
)
def test_launches_of_an_eager_engine_hide_under_the_work(model, gpu, ms):
    row = {
        "model": model,
        "params_B": "",
        "method": "infer HF transformers",
        "batch_or_concurrency": "1",
        "seq_len_or_in_len": "",
    }
    assert guess(SERVED, **row, gpu=gpu, out_len="", notes="hf transformers") == pytest.approx(ms, rel=0.2)


def test_experts_are_read_once_however_many_sequences_choose_them():
    of = serving_speed.curve(setup("Qwen3-30B-A3B"))
    share = 8 / 128

    def read(b):  # the time of a step without what grows with b by itself
        return of.decode_s(b) - of.dense_s - of.fixed_s - b * (of.cache_s + of.sequence_s)

    assert read(1) == pytest.approx(of.expert_s * share)
    assert read(16) == pytest.approx(of.expert_s * (1 - (1 - share) ** 16))
    assert read(8) < 8 * read(1)


# ai-dynamo/aiconfigurator silicon_sample.csv: TensorRT-LLM, Qwen3-235B-A22B-FP8 on four H100.
@pytest.mark.parametrize(
    ("tokens", "clients", "ms"), [((256, 128), 8, 15.2), ((256, 512), 16, 18.5), ((512, 256), 32, 23.3)]
)
def test_a_mixture_is_predicted_by_its_experts(tokens, clients, ms):
    row = {
        "model": "Qwen/Qwen3-235B-A22B-FP8",
        "params_B": "235",
        "method": "infer trtllm",
        "quant": "fp8",
        "n_gpus": "4",
    }
    inputs, outputs = map(str, tokens)
    row |= {"seq_len_or_in_len": inputs, "out_len": outputs, "batch_or_concurrency": str(clients)}
    assert guess(SERVED, **row) == pytest.approx(ms, rel=0.15)


def test_narrow_experts_are_slow_and_said_to_be_uncertain():
    narrow, wide, dense = (find(m).architecture for m in ("Qwen3-30B-A3B", "Mixtral-8x7B", "Llama-3.1-8B"))
    shares = [training_time.expert_share(a) for a in (narrow, wide, dense)]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert shares[0] < 0.5
    question = estimates.TrainQuestion(
        model=find("Mixtral-8x7B"), method="lora", gpu=find_gpu("H100"), targets=ALL_LINEAR
    )
    answer = estimates.train(question)
    assert "mixtures" in answer["extrapolates"]
    speed = answer["tokens_per_s"]
    assert speed["high"] / speed["value"] > 1.5
    pair = testing.backtest([{**ROW, "model": "Mixtral-8x7B", "params_B": "", "gpu": "H200", "value": "120"}]).pairs[0]
    assert pair.widen == estimates.MIXTURE_WIDEN


def test_hopper_has_no_fp4_units():
    hopper, blackwell = find_gpu("H200"), find_gpu("B200")
    assert not hopper.has_fp4
    assert blackwell.has_fp4
    assert serving_speed.peak_flops(setup(gpu="H200", quantization="fp4")) == pytest.approx(
        serving_speed.peak_flops(setup(gpu="H200", quantization="awq"))
    )
    assert serving_speed.peak_flops(setup(gpu="B200", quantization="fp4")) > serving_speed.peak_flops(
        setup(gpu="B200", quantization="fp8")
    )


def step(**changes):
    values = {"method": "lora", "tokens": 2048, "seq_len": 2048, "checkpointing": True, **changes}
    gpu = values.pop("gpu", find_gpu("RTX4090"))
    return training_time.TrainingStep(architecture=find("Llama-2-7B").architecture, gpu=gpu, **values)


def test_shards_are_gathered_over_the_link_there_is():
    lost = {
        name: training_time.micro_step_s(step(gpu=find_gpu(name), sharded_over=2))
        - training_time.micro_step_s(step(gpu=find_gpu(name)))
        for name in ("A100-80GB", "A100-PCIe-80GB")
    }
    assert lost["A100-PCIe-80GB"] > 5 * lost["A100-80GB"] > 0
    quantized = training_time.micro_step_s(step(method="qlora", quantization="nf4", sharded_over=2))
    whole = training_time.micro_step_s(step(method="qlora", quantization="nf4"))
    bf16 = training_time.micro_step_s(step(sharded_over=2)) - training_time.micro_step_s(step())
    assert quantized - whole < 0.5 * bf16


# mosaicml/llm-foundry scripts/train/benchmarking/README.md, H100 BF16: rows of long sequences.
@pytest.mark.parametrize(
    ("model", "seq", "micro", "checkpointed", "speed"),
    [
        ("MPT-1b", 8192, 3, "no", 29157),
        ("MPT-3b", 8192, 3, "no", 16578),
        ("MPT-3b", 16384, 1, "no", 11152),
        ("MPT-1b", 16384, 2, "no", 19649),
    ],
)
def test_attention_that_computes_the_masked_half_too(model, seq, micro, checkpointed, speed):
    row = {
        "kind": "train_tps",
        "model": model,
        "params_B": "",
        "method": "full(pretrain)",
        "quant": "amp_bf16",
        "unit": "tok/s/gpu",
    }
    row |= {
        "seq_len_or_in_len": str(seq),
        "batch_or_concurrency": f"micro {micro}",
        "grad_ckpt": checkpointed,
        "n_gpus": "8",
    }
    assert guess(**row, source_repo_or_paper="mosaicml/llm-foundry") == pytest.approx(speed, rel=0.25)


def test_small_products_of_rocm_cost_by_size_and_are_shared():
    small, large = (setup(m, "MI300X", engine="vllm-rocm", gpus=1) for m in ("Llama-3.1-8B", "Llama-3.3-70B"))
    each = [serving_speed.curve(s).sequence_s for s in (small, large)]
    assert each[1] > 4 * each[0]
    shared = serving_speed.curve(dataclasses.replace(large, gpus=4))
    assert shared.sequence_s < 0.5 * each[1]
    assert shared.cache_s == pytest.approx(serving_speed.curve(large).cache_s / 4)


def test_sources_have_one_voice_each():
    assert testing.one_voice_each([[0.1] * 100, [0.5, -0.6]]) == 0.6
    assert testing.one_voice_each([[0.1] * 100]) == 0.1


def test_recorded_widths_are_those_of_the_collection():
    result = testing.backtest(testing.rows_of(None))
    for kind, pairs in result.by_class().items():
        assert class_errors()[kind].half_width == pytest.approx(testing.class_half_width(pairs), abs=1e-4), kind


def test_memory_of_an_unquantized_base_has_no_copies():
    a = find("Llama-3.1-8B").architecture
    plain = training_memory.TrainingMemory(
        architecture=a, method="lora", micro_batch=1, seq_len=512, checkpointing=True
    )
    packed = dataclasses.replace(plain, quantization="gptq")
    copies = training_memory.GPTQ_LAYER_BYTES * a.linear_params / a.layers / 1e9 + training_memory.GPTQ_WORKSPACE_GB
    without = (
        training_memory.static_gb(packed) + training_memory.activations_gb(packed) + training_memory.logits_gb(packed)
    )
    assert training_memory.peak_gb(packed) - without == pytest.approx(
        copies + training_memory.SOFTWARE["hf"].context_gb
    )
