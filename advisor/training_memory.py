"""Peak memory of fine-tuning on one GPU (all GB are 1e9 bytes).

    peak = weights + trained state + activations + logits + copies of quantized weights + what sharding leaves + context

Each term is a formula with its source; the few constants that were fitted on measured.csv say so.
"""

from dataclasses import dataclass

from tunegate.core.architecture import Architecture
from tunegate.core.errors import UserError, nearest
from tunegate.core.methods import ALL_LINEAR

# Bits per weight of the linear modules. NF4: block 64 with fp32 absmax = 4.5; double quantization 0.127 bits of
# constants (QLoRA, arXiv 2305.14314, section 3). GPTQ and AWQ: group 128 with fp16 scale and 4-bit zero = 4.16.
WEIGHT_BITS = {
    "fp32": 32.0, "bf16": 16.0, "int8": 8.16, "fp8": 8.0, "q4_k_m": 4.85, "nf4": 4.5, "fp4": 4.5, "gptq": 4.16,
    "awq": 4.16, "nf4-dq": 4.127,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Software:
    """What a training program keeps in memory.

    logits_bytes: per token and vocabulary entry at the peak of the loss: HF eager 12 (bf16 logits, fp32 copy, fp32
    gradient, bf16 gradient), chunked or fused losses 0 to 2. layer_share: share of one layer's activations alive while
    it is recomputed. context_gb: CUDA context, workspaces and fragmentation where the program reports what the driver
    sees; near 0 where it reports what its allocator handed out. state_bytes: per adapter parameter (weight, gradient,
    two Adam moments). replicated_init: each GPU holds all weights once before they are sharded.
    """

    logits_bytes: float
    layer_share: float = 1.0
    context_gb: float = 1.3
    state_bytes: float = 16.0
    replicated_init: bool = False


SOFTWARE = {
    "hf": Software(logits_bytes=12.0),
    "deepspeed": Software(logits_bytes=12.0),
    "litgpt": Software(logits_bytes=2.0, context_gb=0.1, replicated_init=True),
    "torchtune-eager": Software(logits_bytes=12.0, context_gb=0.1, state_bytes=8.0),
    "torchtune-compiled": Software(logits_bytes=8.0, context_gb=0.1, state_bytes=8.0),
    "torchtune": Software(logits_bytes=0.0, context_gb=0.1, state_bytes=8.0),
    "unsloth": Software(logits_bytes=2.0, layer_share=0.0, context_gb=0.7),
}
# Bytes per trained parameter of full tuning: weight, gradient, optimizer. amp: bf16 weight and gradient, fp32 master and
# two moments (ZeRO, arXiv 1910.02054, section 3.1). pure_bf16: all four in bf16. adamw_8bit: moments of one byte.
# paged_in_backward: the optimizer is paged out and each gradient dies in the backward pass, so the weight is left.
# in_backward: as before it, without the gradient.
STATE_BYTES = {
    "amp": 16.0, "pure_bf16": 8.0, "in_backward": 6.0, "adamw_8bit": 6.0, "adamw_8bit_in_backward": 4.0,
    "paged_in_backward": 2.0,
}  # fmt: skip
TRAINED_EMBEDDING_BYTES = 12.0  # `modules_to_save`: bf16 copy and gradient, two fp32 moments
# Kept per quantized parameter for the backward pass: dequantized copies (bitsandbytes up to 0.41, without recomputation).
# Fitted.
TRANSIENT_BYTES = 0.3
# GPTQ kernels: one layer's weights unpacked to 32 bits, and a workspace. Fitted.
GPTQ_LAYER_BYTES = 4.0
GPTQ_WORKSPACE_GB = 1.0
# DeepSpeed's working set in full tuning: 1e9 live parameters and a 1e9 sub-group being updated (its defaults
# stage3_max_live_parameters and sub_group_size). Bytes each: fitted.
DEEPSPEED_WORKING_BYTES = 10.0
BETWEEN_STEPS_GB = 0.35  # allocated between steps beside weights and state: the batch, buffers. Fitted.


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """One configuration, ready for `peak_gb`.

    method: lora, qlora or full. micro_batch * seq_len: tokens of the LONGEST micro-batch. trainable: LoRA parameters
    (ignored for full). extra_trained: embedding parameters trained beside the adapter. sharded_over: GPUs that share
    weights, gradients and optimizer (ZeRO-3 or FSDP); 1 for none. state: key of STATE_BYTES (full only).
    """

    architecture: Architecture
    method: str
    micro_batch: int
    seq_len: float
    checkpointing: bool
    trainable: int = 0
    extra_trained: int = 0
    quantization: str = "bf16"
    state: str = "amp"
    software: str = "hf"
    flash_attention: bool = True
    sharded_over: int = 1


def shards(method: str, gpus: int) -> int:
    """GPUs that share one copy of weights, gradients and optimizer. FSDP2 does not share bitsandbytes' 4-bit weights: QLoRA
    runs as DDP, where each GPU holds a whole copy."""
    return 1 if method == "qlora" else gpus


def weights_gb(architecture: Architecture, quantization: str) -> float:
    """Weights in GB: linear modules at their bits, everything else (embeddings, output matrix, norms) at 16 bits.

    Raises UserError for an unknown quantization.
    """
    if quantization not in WEIGHT_BITS:
        raise UserError(f"unknown quantization {quantization!r}", hint=nearest(quantization, list(WEIGHT_BITS)))
    bits = WEIGHT_BITS[quantization]
    linear = architecture.linear_params
    return (linear * bits / 8 + (architecture.params - linear) * (max(bits, 16.0) / 8)) / 1e9


def layer_activation_bytes(architecture: Architecture) -> float:
    """Bytes one token keeps in one layer for the backward pass, with flash attention.

    16h + 4kv + 8I for a gated MLP with q = h: attention 2(2h + 2q + 2kv), SwiGLU 8I, two norm inputs in fp32 8h. A
    plain MLP keeps 4I. After Korthikanti et al., arXiv 2205.05198, equation 2, without dropout and the softmax term.
    """
    a = architecture
    mlp = 8.0 if a.gated else 4.0
    return 8.0 * a.hidden + 4.0 * (a.hidden + a.q_width + a.kv_width) + mlp * a.ffn * a.experts_per_token


def activations_gb(setup: TrainingMemory) -> float:
    """Activations in GB: all layers (no checkpointing), or each layer's input plus one layer recomputed.

    Without flash attention 5 * n_h * s bytes per token and layer more (arXiv 2205.05198, equation 2).
    """
    a = setup.architecture
    tokens = setup.micro_batch * setup.seq_len
    layer = layer_activation_bytes(a) + (0.0 if setup.flash_attention else 5.0 * a.heads * setup.seq_len)
    if setup.checkpointing:
        return tokens * (2.0 * a.layers * a.hidden + SOFTWARE[setup.software].layer_share * layer) / 1e9
    return tokens * a.layers * layer / 1e9


def logits_gb(setup: TrainingMemory) -> float:
    """Logits and cross-entropy in GB: c * tokens * V; half of c where the model runs in fp16 (GPTQ: no fp32 copy)."""
    c = SOFTWARE[setup.software].logits_bytes * (0.5 if setup.quantization == "gptq" else 1.0)
    return c * setup.micro_batch * setup.seq_len * setup.architecture.vocab / 1e9


def static_gb(setup: TrainingMemory) -> float:
    """Weights and trained state in GB before sharding: what stays allocated between steps."""
    a = setup.architecture
    if setup.method == "full":
        return STATE_BYTES[setup.state] * a.params / 1e9
    adapter = SOFTWARE[setup.software].state_bytes * setup.trainable
    return weights_gb(a, setup.quantization) + (adapter + TRAINED_EMBEDDING_BYTES * setup.extra_trained) / 1e9


def peak_gb(setup: TrainingMemory) -> float:
    """Peak memory of one GPU in GB."""
    a, n = setup.architecture, setup.sharded_over
    moving = activations_gb(setup) + logits_gb(setup)
    fixed = unsharded_gb(setup) + SOFTWARE[setup.software].context_gb
    if setup.method == "full":
        in_backward = setup.state.endswith("in_backward")
        gradients = (2.0 * a.vocab * a.hidden if in_backward else 2.0 * a.params / n) / 1e9
        kept = static_gb(setup) / n - (0.0 if in_backward else gradients)
        working = DEEPSPEED_WORKING_BYTES * min(a.params, 1e9) / 1e9 if setup.software == "deepspeed" else 0.0
        # Activations and gradients do not peak together where gradients are freed between steps.
        return kept + max(moving, gradients) + working + fixed
    return static_gb(setup) / n + moving + _copies_gb(setup) + fixed


def _copies_gb(setup: TrainingMemory) -> float:
    """GB of dequantized weights beside the quantized ones, of adapters' frozen base."""
    a = setup.architecture
    kept = 0.0
    if setup.quantization not in ("bf16", "fp32") and not setup.checkpointing:
        kept = TRANSIENT_BYTES * a.linear_params / 1e9
    if setup.quantization == "gptq":
        kept += GPTQ_LAYER_BYTES * a.linear_params / a.layers / 1e9 + GPTQ_WORKSPACE_GB
    return kept


def unsharded_gb(setup: TrainingMemory) -> float:
    """What sharding does not divide: two layers and one embedding matrix gathered whole (FSDP and ZeRO-3 prefetch)."""
    if setup.sharded_over == 1:
        return 0.0
    a = setup.architecture
    if SOFTWARE[setup.software].replicated_init:
        return weights_gb(a, setup.quantization)
    bits = WEIGHT_BITS[setup.quantization]
    return (2.0 * a.linear_params / a.layers * bits / 8 + 2.0 * a.vocab * a.hidden) / 1e9


def lora_targets(text: str) -> tuple[str, ...]:
    """Target modules from a comma-separated option; `all-linear` is all seven. Raises UserError for none."""
    if text in ("all-linear", "all"):
        return ALL_LINEAR
    found = tuple(name.strip() for name in text.split(",") if name.strip())
    if not found:
        raise UserError(
            "no target module is named", where="--targets", hint="all-linear, or some of them: q_proj,v_proj"
        )
    return found
