"""From a measured row to what the formulas say about it: the only place where rows and formulas meet."""

import re
from collections.abc import Callable

from tunegate.advisor import serving_speed as serving
from tunegate.advisor import training_memory as memory
from tunegate.advisor import training_time as timing
from tunegate.advisor.measured import (
    Case,
    NotPredictedError,
    checkpointing,
    method,
    quantization,
    software,
    trainable_params,
    whole_copies,
)

ALPACA_MEAN_TOKENS = 125.0  # Alpaca rows name their longest sample; the data set's mean with template is about this
SHAREGPT_TOKENS = (220.0, 200.0)  # mean prompt and answer of the ShareGPT sample that serving benchmarks use
# Full tuning with 16 bytes a parameter, in the words of a row.
FP32_WEIGHTS = re.compile(
    r"(?<!no )(?<!without )(?:(?<![a-z])amp(?![a-z])|mixed[ -]precision|\bautocast|master[ -]weights|fp32[ -]weights)"
)
UNSTATED_TOKENS = 128.0  # a single stream's length where none is stated: it hardly matters there


def predict(case: Case) -> float:
    """The prediction in the unit of the row's class. Raises NotPredictedError with the reason."""
    if case.kind not in PREDICTORS:
        raise NotPredictedError(f"class {case.kind!r} is not modelled")
    return PREDICTORS[case.kind](case)


def memory_setup(case: Case) -> memory.TrainingMemory:
    """The training configuration of a memory row."""
    how = method(case)
    program = software(case)
    return memory.TrainingMemory(
        architecture=case.arch,
        method=how,
        micro_batch=case.batch(),
        seq_len=case.tokens("seq_len_or_in_len"),
        checkpointing=checkpointing(case),
        trainable=0 if how == "full" else trainable_params(case),
        extra_trained=case.arch.embedding_params if "emb" in case.row["method"] else 0,
        quantization="bf16" if how == "full" else quantization(case),
        state=_state(case, program) if how == "full" else "amp",
        software=program if program in memory.SOFTWARE else "hf",
        sharded_over=1 if whole_copies(case) else case.n_gpus,
    )


def _state(case: Case, program: str) -> str:
    """What full tuning keeps, a key of STATE_BYTES: by the optimizer, and whether fp32 weights are kept beside bf16 products.
    Raises NotPredictedError for a saving optimizer of fp32 weights."""
    optimizer = case.row["optimizer"].lower()
    in_backward = "bwd" in optimizer or "backward" in optimizer
    of_8_bits = "8bit" in optimizer or "8-bit" in optimizer
    stated = " ".join(case.row[name] for name in ("quant", "optimizer", "notes")).lower()
    if "unspecified" in case.row["quant"].lower():
        raise NotPredictedError("precision is not stated")
    fp32 = re.search("fp32|float32|32-?bit", case.row["quant"].lower()) or FP32_WEIGHTS.search(stated)
    if not (in_backward or of_8_bits):
        return "amp" if fp32 or program in ("deepspeed", "pretraining") else "pure_bf16"
    if fp32:
        raise NotPredictedError("an 8-bit optimizer, or one in the backward pass, with fp32 weights is not modelled")
    if not of_8_bits:
        return "in_backward"
    if in_backward:
        return "paged_in_backward" if "paged" in optimizer else "adamw_8bit_in_backward"
    return "adamw_8bit"


def _train_memory(case: Case) -> float:
    total = case.n_gpus if "total" in case.row["unit"] else 1
    return memory.peak_gb(memory_setup(case)) * total


def _train_static(case: Case) -> float:
    return memory.static_gb(memory_setup(case)) + memory.BETWEEN_STEPS_GB


def training_step(case: Case) -> timing.TrainingStep:
    """The micro-step of a row on training time or speed."""
    how = method(case)
    longest = case.tokens("seq_len_or_in_len")
    mean = ALPACA_MEAN_TOKENS if software(case) == "litgpt" else longest
    tokens = case.batch() * mean
    if (counted := re.search(r"(\d+) tokens/(\d+) steps", case.text)) and int(counted[1]) and int(counted[2]):
        tokens = int(counted[1]) / int(counted[2])
        mean = tokens / case.batch()
    try:
        recompute = checkpointing(case)
    except NotPredictedError:
        recompute = False  # speed tables of pretraining stacks that do not say so do not recompute
    weights = "bf16" if how == "full" else quantization(case)
    return timing.TrainingStep(
        architecture=case.arch,
        gpu=case.gpu,
        method=how,
        tokens=tokens,
        seq_len=mean,
        checkpointing=recompute,
        quantization=weights,
        software=software(case),
        accumulation=8 if "8 micro" in case.row["unit"] else 1,
        fp8="fp8" in case.row["quant"],
        sharded_over=case.n_gpus if re.search("zero-?3|fsdp", case.text) and not whole_copies(case) else 1,
    )


def _train_time(case: Case) -> float:
    step = timing.micro_step_s(training_step(case))
    if case.row["unit"].startswith("min/1000"):
        return 1000.0 * step / 60.0
    if "8 micro" in case.row["unit"]:
        return 8.0 * step
    return step


def _train_wall(case: Case) -> float:
    counted = re.search(r"tokens/(\d+) steps", case.text)
    if counted is None or int(counted[1]) == 0:
        raise NotPredictedError("the number of steps is not stated")
    return int(counted[1]) * timing.micro_step_s(training_step(case)) + timing.EVALUATION_S


def _train_throughput(case: Case) -> float:
    one = timing.tokens_per_s(training_step(case))
    return one if case.per_gpu else one * case.n_gpus


ENGINE_OF = (
    ("vllm 0.6", "vllm-0.6"), ("llm-inference-bench", "vllm-0.6"), ("gemv", "autoawq-gemv"), ("autoawq", "autoawq-gemm"),
    ("llama.cpp", "llamacpp"), ("litgpt", "litgpt"), ("lmdeploy", "lmdeploy"), ("turbomind", "lmdeploy"),
    ("trtllm", "trtllm"), ("trt-llm", "trtllm"), ("tensorrt", "trtllm"), ("fastertransformer", "trtllm"),
    ("(transformer)", "hf"), ("hf transformers", "hf"), ("sglang", "sglang"),
)  # fmt: skip


def engine(case: Case) -> str:
    """The serving program, from the row's own text; vLLM where none is named."""
    found = next((name for word, name in ENGINE_OF if word in case.text), "vllm")
    if found == "litgpt" and quantization(case).startswith("nf4"):
        return "litgpt-bnb"
    return "vllm-rocm" if case.gpu.name.startswith("MI") and found.startswith("vllm") else found


def serving_setup(case: Case) -> serving.ServingSetup:
    """The serving configuration of a row. FP8 and FP4 releases are benchmarked with an FP8 cache."""
    weights = quantization(case)
    cache = re.search(r"kv int(\d)", case.text)
    if "sharegpt" in case.text:
        inputs, outputs = SHAREGPT_TOKENS
    else:
        inputs, outputs = _length(case, "seq_len_or_in_len"), _length(case, "out_len")
    return serving.ServingSetup(
        architecture=case.arch,
        gpu=case.gpu,
        gpus=case.n_gpus,
        quantization=weights,
        input_tokens=inputs,
        output_tokens=outputs,
        engine=engine(case),
        kv_bytes=int(cache[1]) / 8 if cache else (1.0 if weights in ("fp8", "fp4") else 2.0),
    )


def _length(case: Case, column: str) -> float:
    if not case.row[column] and case.row["batch_or_concurrency"] in ("1", "1.0"):
        return UNSTATED_TOKENS
    return case.tokens(column)


def _concurrency(case: Case, setup: serving.ServingSetup) -> float:
    text = case.row["batch_or_concurrency"]
    if text.startswith("max") or (not text and "sharegpt" in case.text):  # all queued, or an open loop
        return min(SCHEDULER_LIMIT, max(1.0, serving.max_concurrency(setup)))
    return case.batch()


SCHEDULER_LIMIT = 2048.0  # sequences a scheduler takes at once when all are queued (TensorRT-LLM's max_batch_size)


def _throughput(case: Case) -> float:
    return _all_gpus(case) / (case.n_gpus if case.per_gpu else 1)


def _all_gpus(case: Case) -> float:
    setup = serving_setup(case)
    concurrency = _concurrency(case, setup)
    out = serving.throughput(setup, concurrency)
    if "decode" in case.row["unit"]:
        return concurrency / serving.curve(setup).decode_s(concurrency)
    if "total(in+out)" in case.text:
        return out * (setup.input_tokens + setup.output_tokens) / setup.output_tokens
    if case.row["unit"].startswith("req"):
        return out / setup.output_tokens
    return out


def _prefill_throughput(case: Case) -> float:
    setup = serving_setup(case)
    return setup.input_tokens / serving.prefill_s(setup) / (case.n_gpus if case.per_gpu else 1)


def _ttft(case: Case) -> float:
    return 1e3 * serving.benchmark_ttft_s(serving_setup(case), case.batch())


def _tpot(case: Case) -> float:
    return 1e3 * serving.curve(serving_setup(case)).tpot_s(case.batch())


def _infer_memory(case: Case) -> float:
    gb = serving.memory_in_use_gb(serving_setup(case), case.batch())
    # This table prints GiB: its 0.5B bf16 row (0.97) is less than the weights alone in 1e9 bytes (0.988).
    return gb / 1.073741824 if case.source == "QwenLM/Qwen3" else gb


P99_OVER_MEDIAN = 4.0  # of the time to first token in closed-loop sweeps. Fitted on one source.

PREDICTORS: dict[str, Callable[[Case], float]] = {
    "train_mem": _train_memory,
    "train_mem_static": _train_static,
    "train_time": _train_time,
    "train_wall": _train_wall,
    "train_tps": _train_throughput,
    "infer_tps": _throughput,
    "infer_rps": _throughput,
    "infer_mem": _infer_memory,
    "prefill_tps": _prefill_throughput,
    "ttft": _ttft,
    "tpot": _tpot,
    "ttft_p99": lambda case: P99_OVER_MEDIAN * _ttft(case),
}
