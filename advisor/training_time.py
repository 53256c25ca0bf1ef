"""Time of training steps, throughput, GPU-hours.

    t_micro = max(floor * L, FLOPs * tokens / (HFU * peak)) + dequantization + gathering shards + optimizer

The launch floor bounds small micro-batches, the hardware FLOP utilisation (HFU) large ones; quantization adds per pass
and parameter, not as a factor. Constants fitted on measured.csv are marked.
"""

import math
from dataclasses import dataclass

from tunegate.advisor.gpus import Gpu
from tunegate.advisor.training_memory import weights_gb
from tunegate.core.architecture import Architecture

OPTIMIZER_BYTES = 55.0  # memory traffic of an eager AdamW step per trained parameter. Fitted.
GATHER_SHARE = 0.83  # of the link between the GPUs of one machine, NVLink or PCIe, that an all-gather reaches. Fitted.
BALANCE_POINT = 150.0  # FLOP per byte up to which a chip keeps its HFU; beyond, HFU falls with the root. Fitted.
EXPERT_HALF_WIDTH = 1000.0  # width of an expert whose matrix products reach half of a dense layer's speed. Fitted.
EVALUATION_S = 390.0  # wall clock beyond training where a run evaluates as it goes (PEFT's benchmark). Fitted.


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of one training program with one kind of method. All fitted.

    floor_ms: per layer and micro-step below which kernels are not launched. hfu_max and half_width: HFU is
    hfu_max * h / (h + half_width): narrow layers spend their time between matrix products. dequant_ms: per 1e9
    quantized parameters and pass over them. masked: attention computes the half that the causal mask hides too.
    """

    floor_ms: float
    hfu_max: float
    half_width: float
    dequant_ms: float = 6.0
    masked: bool = False


SPEEDS = {
    ("hf", "adapter"): Speed(floor_ms=5.0, hfu_max=0.80, half_width=2890.0),
    ("hf", "full"): Speed(floor_ms=5.0, hfu_max=0.74, half_width=600.0),
    ("deepspeed", "full"): Speed(floor_ms=11.0, hfu_max=0.74, half_width=600.0),
    ("cpu", "adapter"): Speed(floor_ms=5.0, hfu_max=0.30, half_width=300.0, dequant_ms=200.0),
    ("cpu", "full"): Speed(floor_ms=5.0, hfu_max=0.30, half_width=300.0),
    ("litgpt", "adapter"): Speed(floor_ms=4.5, hfu_max=0.82, half_width=2890.0),
    ("unsloth", "adapter"): Speed(floor_ms=4.0, hfu_max=0.98, half_width=2890.0, dequant_ms=5.0),
    ("torchtune-eager", "full"): Speed(floor_ms=5.0, hfu_max=0.67, half_width=600.0),
    ("torchtune-compiled", "full"): Speed(floor_ms=1.5, hfu_max=0.76, half_width=600.0),
    ("torchtune", "adapter"): Speed(floor_ms=1.5, hfu_max=0.76, half_width=600.0, dequant_ms=1.0),
    ("torchtune", "full"): Speed(floor_ms=1.5, hfu_max=0.76, half_width=600.0),
    ("llm-foundry", "full"): Speed(floor_ms=1.5, hfu_max=0.77, half_width=600.0, masked=True),
    ("pretraining", "full"): Speed(floor_ms=1.5, hfu_max=0.74, half_width=600.0),
    ("pretraining", "adapter"): Speed(floor_ms=1.5, hfu_max=0.74, half_width=600.0),
}
GPTQ_DEQUANT_MS = 12.0  # GPTQ kernels: per 1e9 parameters and pass. Fitted.


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One micro-step on one GPU.

    tokens: padded tokens of the mean micro-batch. seq_len: length attention runs over. accumulation: micro-steps per
    optimizer step. fp8: matrix products in FP8. sharded_over: GPUs that share weights.
    """

    architecture: Architecture
    gpu: Gpu
    method: str
    tokens: float
    seq_len: float
    checkpointing: bool
    quantization: str = "bf16"
    software: str = "hf"
    accumulation: int = 1
    fp8: bool = False
    sharded_over: int = 1


def flops_per_token(
    architecture: Architecture, method: str, seq_len: float, *, checkpointing: bool, masked: bool = False
) -> float:
    """FLOPs per trained token: 6Nc full, 4Nc for adapters (no gradients of frozen weights), 2Nc more to recompute.

    Nc: parameters a token is multiplied with. Attention adds 3 * 2Lhs (causal), twice that where the masked half is
    computed too. Hoffmann et al. arXiv 2203.15556,
    appendix F; the 4N of LoRA as Megatron-Bridge's performance guide counts it.
    """
    a = architecture
    passes = (6.0 if method == "full" else 4.0) + (2.0 if checkpointing else 0.0)
    attention = 6.0 * a.layers * a.q_width * min(seq_len, a.kv_tokens(seq_len))
    return passes * a.compute_params + attention * (2.0 if masked else 1.0)


def utilisation(step: TrainingStep) -> float:
    """Hardware FLOP utilisation at saturation, a share of the chip's dense peak."""
    speed = speed_of(step.software, step.method)
    width = step.architecture.hidden
    per_byte = peak_tflops(step.gpu, fp8=step.fp8) * 1000.0 / step.gpu.bandwidth_gbps
    balance = min(1.0, math.sqrt(BALANCE_POINT / per_byte))
    return speed.hfu_max * width / (width + speed.half_width) * balance * expert_share(step.architecture)


def expert_share(architecture: Architecture) -> float:
    """Of a dense layer's speed in matrix products, what a mixture of experts reaches: its tokens are sorted into many narrow
    ones. 1 for a dense model."""
    if architecture.experts == 1:
        return 1.0
    return architecture.ffn / (architecture.ffn + EXPERT_HALF_WIDTH)


def peak_tflops(gpu: Gpu, *, fp8: bool) -> float:
    """Dense peak of the chip in 1e12/s for the precision used."""
    return gpu.fp8_tflops if fp8 and gpu.fp8_tflops else gpu.tflops


def micro_step_s(step: TrainingStep) -> float:
    """Seconds of one micro-step."""
    a, gpu, speed = step.architecture, step.gpu, speed_of(step.software, step.method)
    flops = step.tokens * flops_per_token(
        a, step.method, step.seq_len, checkpointing=step.checkpointing, masked=speed.masked
    )
    compute = flops / (utilisation(step) * peak_tflops(gpu, fp8=step.fp8) * 1e12)
    floor = speed.floor_ms * a.layers / 1e3
    passes = 3.0 if step.checkpointing else 2.0
    seconds = max(compute, floor)
    if step.method != "full" and step.quantization not in ("bf16", "fp32", "fp8"):
        per_pass = GPTQ_DEQUANT_MS if step.quantization == "gptq" else speed.dequant_ms
        seconds += passes * per_pass * a.linear_params / 1e12
    if step.sharded_over > 1 and step.software == "hf":
        weights = step.quantization if step.method != "full" else "bf16"
        moved_gb = weights_gb(a, weights) * (step.sharded_over - 1) / step.sharded_over
        seconds += passes * moved_gb / (GATHER_SHARE * gpu.link_gbps)
    if step.method == "full" and step.software in ("hf", "deepspeed"):
        seconds += OPTIMIZER_BYTES * a.params / step.sharded_over / (gpu.bandwidth_gbps * 1e9) / step.accumulation
    return seconds


def tokens_per_s(step: TrainingStep) -> float:
    """Tokens per second of one GPU."""
    return step.tokens / micro_step_s(step)


def speed_of(software: str, method: str) -> Speed:
    """Constants of a program and method; a pair that was never measured takes HF's."""
    kind = "full" if method == "full" else "adapter"
    return SPEEDS.get((software, kind), SPEEDS["hf", kind])


def hours(*, examples: int, mean_tokens: float, epochs: float, tokens_per_second: float, gpus: int) -> float:
    """Wall-clock hours: tokens seen over the throughput of all GPUs."""
    return examples * mean_tokens * epochs / (tokens_per_second * scaling(gpus)) / 3600.0


def scaling(gpus: int) -> float:
    """How many times faster than one GPU several are: one tenth is lost."""
    return gpus * (1.0 if gpus == 1 else 0.9)
