"""What no machine does: numbers that beat its memory, its bandwidth or its arithmetic are not measurements of what they say.

Every limit errs on the generous side: embeddings are left out or taken at the bits of the rest, of a mixture's experts one
token's are read, products other than those of training in bf16 may run at twice the dense 16-bit rate (8 bits; 16 bits
accumulated in 16 on consumer chips), at four times with 4 bits. A CPU has no limit of speed here: its row stands for any.
"""

import dataclasses
import math
import re

from tunegate.advisor import predict as asking
from tunegate.advisor import training_time as timing
from tunegate.advisor.gpus import Gpu, find_gpu
from tunegate.advisor.measured import Case, method, quantization
from tunegate.advisor.serving_speed import max_concurrency
from tunegate.advisor.training_memory import WEIGHT_BITS
from tunegate.core.architecture import Architecture

SLACK = 1.05  # what rounding, clocks and counts of tokens may add
GIB_FOR_GB = 1.1  # and names of units: 7 %
RATES = ("train_tps", "infer_tps", "infer_rps", "prefill_tps")
SERVED = ("infer_tps", "infer_rps", "ttft", "ttft_p99", "tpot")  # by an engine with a cache
SPECULATES = re.compile(r"specul|draft|eagle|medusa|lookahead|n-?gram|\bmtp\b")


def beats(kind: str, measured: float, limit: float) -> bool:
    """Whether a measurement of a class is better than the limit: more of a rate, less of anything else."""
    return measured > SLACK * limit if kind in RATES else SLACK * measured < limit


def train_tokens_per_s(
    architecture: Architecture, gpu: Gpu, gpus: int, *, passes: float = 4.0, fp8: bool = False
) -> float:
    """Most tokens per second of `gpus`: forward and backward products alone at the dense peak. passes: FLOPs per token and
    parameter, 4 of an adapter, 6 of full tuning."""
    return gpus * timing.peak_tflops(gpu, fp8=fp8) * 1e12 / (passes * architecture.active_linear_params)


def token_ms(architecture: Architecture, gpu: Gpu, gpus: int, *, bits: float = 4.0) -> float:
    """Least time of a token in ms: its weights, at so many bits, are read once from the memories of all GPUs."""
    return 1e3 * architecture.active_linear_params * bits / 8 / (gpus * gpu.bandwidth_gbps * 1e9)


def impossible(case: Case, predicted: float) -> str:
    """Why a row cannot have been measured, in words; empty where it can. predicted: the formulas' answer to the row."""
    if case.gpu.name == "A100-40GB" and "40" not in case.row["gpu"]:
        case = dataclasses.replace(case, gpu=find_gpu("A100-80GB"))  # no size stated: the larger, faster one
    if (reason := _too_large(case)) or "mem" in case.kind or case.gpu.is_cpu:
        return reason
    limit = _training(case, predicted) if case.kind.startswith("train") else _serving(case)
    if not beats(case.kind, case.value, limit):
        return ""
    return f"measured {case.value:.4g} is beyond the hardware's limit of {limit:.4g}"


def _too_large(case: Case) -> str:
    """Weights that the GPUs do not hold, or that are more than the memory that was measured, in words."""
    if "offload" in case.text:
        return ""
    full = case.kind.startswith("train") and method(case) == "full"
    weights = case.arch.params * WEIGHT_BITS["bf16" if full else quantization(case)] / 8e9
    held = case.n_gpus * case.gpu.memory_gb
    counted = case.row["n_gpus"].strip()
    if weights > GIB_FOR_GB * held:
        told = f"{weights:.3g} GB of weights do not fit the {held:g} GB of {case.n_gpus} x {case.gpu.name}"
        return told if counted else f"{told}, and n_gpus is not stated"
    if not counted and case.kind in SERVED and max_concurrency(asking.serving_setup(case)) < 1:
        return f"weights and one call do not fit one {case.gpu.name}, and n_gpus is not stated"
    of_one = case.per_gpu or (case.kind.startswith("train") and "total" not in case.row["unit"])
    share = weights / (case.n_gpus if of_one else 1)
    if "mem" in case.kind and GIB_FOR_GB * case.value < share:
        return f"measured {case.value:.4g} GB is less than the {share:.4g} GB of weights in it"
    return ""


def _training(case: Case, predicted: float) -> float:
    """The limit in the unit of a training row: what the formulas predict, were the products all there is."""
    step = asking.training_step(case)
    passes = 6.0 if step.method == "full" else 4.0
    fastest = train_tokens_per_s(step.architecture, step.gpu, 1, passes=passes, fp8=step.fp8)
    times = fastest / timing.tokens_per_s(step)
    return predicted * times if case.kind in RATES else predicted / times


def _serving(case: Case) -> float:
    """The limit in the unit of a serving row."""
    setup, gpus = asking.serving_setup(case), case.n_gpus
    faster = 4.0 if setup.quantization == "fp4" else 2.0
    products = gpus * faster * case.gpu.tflops * 1e12 / (2.0 * case.arch.active_linear_params)  # tokens per second
    guessed = SPECULATES.search(case.text)
    read_ms = 0.0 if guessed else token_ms(case.arch, case.gpu, gpus, bits=WEIGHT_BITS[setup.quantization])
    computed = 0.0 if "cache" in case.text else setup.input_tokens  # those found in a prefix cache are not
    share = 1.0 / gpus if case.per_gpu else 1.0
    if case.kind == "tpot":
        return read_ms
    if case.kind in ("ttft", "ttft_p99"):
        return max(read_ms, 1e3 * computed / products)
    if case.kind == "prefill_tps":
        return products * share if computed else math.inf
    most = products * share
    batch = case.row["batch_or_concurrency"]
    if read_ms and batch and not batch.startswith("max"):
        most = min(most, case.batch() * 1e3 / read_ms * share)
    if "total(in+out)" in case.text:
        most *= (setup.input_tokens + setup.output_tokens) / setup.output_tokens
    return most / setup.output_tokens if case.row["unit"].startswith("req") else most
