"""Speed of serving: prefill and decode rooflines with per-layer overhead, continuous batching, the KV cache's cap.

    t_dec(B)  = max((W + B * ctx * kv) / (eff * BW * n), 2 Nc B / (mfu * peak * n)) + ov * L + ov_seq * B + allreduce
    t_pre     = (2 Nc s + 2 L q s^2) / (mfu * peak * n) + allreduce
    TPOT(B)   = t_dec(B) + B * t_pre / out_tokens            (continuous batching, closed loop)

Roofline after Williams et al. 2009; prefill compute-bound and decode bandwidth-bound as in the transformer inference
arithmetic of kipply (2022). Seconds inside, milliseconds at the edge. Constants fitted on measured.csv are marked.
"""

import math
from dataclasses import dataclass

from tunegate.advisor.gpus import Gpu
from tunegate.advisor.training_memory import weights_gb
from tunegate.advisor.training_time import expert_share
from tunegate.core.architecture import Architecture

QUANTIZATIONS = ("bf16", "fp8", "awq")
ALLREDUCE_S = 3.3e-6  # start of one all-reduce; two a layer. Fitted.
LINK_SHARE = 0.5  # of the link's bandwidth that an all-reduce reaches. Fitted.
BURST = 0.89  # time to first token over one prefill and the root of the clients, where all start at once. Fitted.
RUNTIME_GB = 2.0  # per GPU, beside weights and cache: CUDA graphs, activations, workspace
MEMORY_SHARE = 0.9  # of the GPU that the engine may take (vLLM's default gpu_memory_utilization)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One serving program, all fitted.

    bandwidth: share of the memory bandwidth reached in decoding, of at most max_gbps. layer_ms, sequence_ms: overhead per step and layer,
    per step and sequence. product_ms: per step, sequence and 1e9 parameters multiplied, shared by the GPUs, where small
    matrix products do not batch. attention_ns: per step, cached token, layer and query head, shared likewise, where the
    attention kernel, not bandwidth, is the bound. prefill_floor_ms: least time of a prefill. reserves_whole: a sequence gets cache for its whole
    length when it is taken in (TensorRT-LLM's GUARANTEED_NO_EVICT), not as it grows. eager: without captured graphs, whose
    launches hide under the kernels' work or the other way round. waits: share of the others' prefills that a sequence
    sits through before its first token, not between its tokens, where prefills go first (SGLang). mfu: share of the dense
    peak reached in matrix products, by weight format.
    """

    bandwidth: float = 0.88
    max_gbps: float = 1e9
    layer_ms: float = 0.059
    sequence_ms: float = 0.045
    product_ms: float = 0.0
    attention_ns: float = 0.0
    prefill_floor_ms: float = 0.0
    reserves_whole: bool = False
    eager: bool = False
    waits: float = 0.0
    mfu_bf16: float = 0.78
    mfu_fp8: float = 0.65
    mfu_fp4: float = 0.47
    mfu_4bit: float = 0.40

    def mfu(self, quantization: str) -> float:
        """Share of the peak of `quantization`."""
        return {"bf16": self.mfu_bf16, "fp8": self.mfu_fp8, "fp4": self.mfu_fp4}.get(quantization, self.mfu_4bit)


ENGINES = {
    "vllm": Engine(),
    "vllm-cpu": Engine(layer_ms=0.5, sequence_ms=5.5, mfu_bf16=0.5),
    "trtllm": Engine(layer_ms=0.042, sequence_ms=0.013, reserves_whole=True),
    "vllm-0.6": Engine(layer_ms=0.12, sequence_ms=0.08),
    "vllm-rocm": Engine(layer_ms=0.17, sequence_ms=0.1, product_ms=0.024, attention_ns=0.3),
    "lmdeploy": Engine(layer_ms=0.04, sequence_ms=0.15),
    "llamacpp": Engine(layer_ms=0.08, bandwidth=0.85, max_gbps=1300.0),
    "autoawq-gemm": Engine(layer_ms=0.05, bandwidth=0.85, prefill_floor_ms=57.0),
    "autoawq-gemv": Engine(layer_ms=0.03, bandwidth=0.85, prefill_floor_ms=57.0, mfu_4bit=0.065),
    "sglang": Engine(waits=0.5),
    "hf": Engine(layer_ms=0.5, eager=True),
    "litgpt": Engine(layer_ms=1.05, eager=True),
    "litgpt-bnb": Engine(layer_ms=1.8, eager=True),
}


@dataclass(frozen=True, kw_only=True)
class ServingSetup:
    """One configuration. gpus: tensor parallel size. kv_bytes: bytes of one cached value. prefix_hit: share of the
    input found in the prefix cache."""

    architecture: Architecture
    gpu: Gpu
    gpus: int = 1
    quantization: str = "bf16"
    input_tokens: float
    output_tokens: float
    engine: str = "vllm"
    kv_bytes: float = 2.0
    prefix_hit: float = 0.0

    @property
    def fresh_tokens(self) -> float:
        """Input tokens that must be computed."""
        return max(1.0, self.input_tokens * (1.0 - self.prefix_hit))

    @property
    def shared_tokens(self) -> float:
        """Input tokens that are found in the prefix cache."""
        return max(0.0, self.input_tokens - self.fresh_tokens)

    @property
    def mean_context(self) -> float:
        """Mean tokens in the cache of a sequence while it is decoded."""
        return self.input_tokens + self.output_tokens / 2


def splits(architecture: Architecture, gpus: int) -> bool:
    """Whether tensor parallelism can spread this model over so many GPUs: query heads are dealt out whole, key-value heads
    too, or each is copied to the same number of GPUs where there are fewer (vLLM's ModelConfig.verify_with_parallel_config
    and its QKVParallelLinear)."""
    heads, kv = architecture.heads, architecture.kv_heads
    return heads % gpus == 0 and (kv % gpus == 0 or gpus % kv == 0)


def unsplit(architecture: Architecture, gpus: int) -> str:
    """Why it cannot, in words; empty where it can."""
    if splits(architecture, gpus):
        return ""
    return (
        f"{architecture.heads} query and {architecture.kv_heads} key-value heads cannot be spread over {gpus} GPUs "
        "(tensor parallelism)"
    )


def most_split(architecture: Architecture, limit: int) -> int:
    """The most GPUs up to `limit` that the model can be spread over."""
    return next(n for n in range(limit, 0, -1) if splits(architecture, n))


def kv_copies(architecture: Architecture, gpus: int) -> float:
    """How often each cached key and value is kept: beyond one GPU for each key-value head, the heads are copied."""
    return max(1.0, gpus / architecture.kv_heads)


def peak_flops(setup: ServingSetup) -> float:
    """FLOP/s that matrix products reach on all GPUs. 4-bit weights compute in 16 bits, FP4 at twice the FP8 rate
    where the chip has units for it."""
    gpu, quantization = setup.gpu, setup.quantization
    peak = gpu.tflops
    if quantization == "fp8":
        peak = gpu.fp8_tflops or gpu.tflops
    elif quantization == "fp4" and gpu.fp8_tflops and gpu.has_fp4:
        peak = 2.0 * gpu.fp8_tflops
    elif quantization == "fp4":
        quantization = "awq"
    share = ENGINES[setup.engine].mfu(quantization) * expert_share(setup.architecture)
    return share * peak * 1e12 * setup.gpus


def allreduce_s(setup: ServingSetup, tokens: float) -> float:
    """Seconds of the two all-reduces a layer that tensor parallelism needs for one step over `tokens` tokens.

    A ring moves 2 (n - 1) / n of the message through each link (Patarasuk & Yuan 2009, section 3).
    """
    if setup.gpus == 1:
        return 0.0
    a, n = setup.architecture, setup.gpus
    moved = 2.0 * (n - 1) / n * 2.0 * tokens * a.hidden  # bytes in and out of each GPU, 16 bits a value
    return 2.0 * a.layers * (ALLREDUCE_S + moved / (LINK_SHARE * setup.gpu.link_gbps * 1e9))


def prefill_s(setup: ServingSetup) -> float:
    """Seconds to prefill one prompt."""
    a, s = setup.architecture, setup.fresh_tokens
    flops = 2.0 * a.compute_params * s + 2.0 * a.layers * a.q_width * s * min(s, a.kv_tokens(setup.input_tokens))
    floor = ENGINES[setup.engine].prefill_floor_ms / 1e3
    return max(flops / peak_flops(setup), floor) + allreduce_s(setup, s)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A configuration's times as functions of the sequences in the engine; all in seconds.

    dense_s: reading the weights every step reads. expert_s, expert_share: reading all experts, and the share one token
    is routed to. cache_s, compute_s, sequence_s: per sequence. fixed_s: per step. prefill_s: of one prompt. fits:
    sequences that the cache holds. output_tokens: mean answer. factor: this machine's time per token over the formula's.
    eager, waits: as Engine's.
    """

    dense_s: float
    expert_s: float
    expert_share: float
    cache_s: float
    compute_s: float
    sequence_s: float
    fixed_s: float
    prefill_s: float
    fits: float
    output_tokens: float
    factor: float = 1.0
    eager: bool = False
    waits: float = 0.0

    def decode_s(self, concurrency: float) -> float:
        """One decoding step. Of the experts those are read that some sequence is routed to: 1 - (1 - share)^B of them."""
        experts = self.expert_s * (1.0 - math.pow(1.0 - self.expert_share, concurrency))
        memory = self.dense_s + experts + concurrency * self.cache_s
        work = max(memory, concurrency * self.compute_s)
        step = max(work, self.fixed_s) if self.eager else work + self.fixed_s
        return step + concurrency * self.sequence_s

    def tpot_s(self, concurrency: float) -> float:
        """Per output token in a closed loop; sequences that do not fit the cache wait."""
        running = min(concurrency, max(1.0, self.fits))
        prefills = (1.0 - self.waits) * running * self.prefill_s / self.output_tokens
        return self.factor * (self.decode_s(running) + prefills)

    def waiting_s(self, concurrency: float) -> float:
        """Of a whole call in a closed loop: others' prefills before its first token."""
        return self.waits * min(concurrency, max(1.0, self.fits)) * self.prefill_s

    def ttft_s(self, concurrency: float) -> float:
        """To the first token at a steady load: its own prefill, those that overlap it, half a step, the front end.

        Each other sequence prefills once per service time, so (B - 1) * t_pre / S of them overlap.
        """
        running = min(concurrency, max(1.0, self.fits))
        service = self.prefill_s + self.output_tokens * self.tpot_s(running)
        overlapping = max(0.0, running - 1.0) * self.prefill_s / service
        return self.prefill_s * (1.0 + overlapping) + 0.5 * self.decode_s(running) + 0.015

    def service_s(self, concurrency: float) -> float:
        """A whole call."""
        return self.ttft_s(concurrency) + self.output_tokens * self.tpot_s(concurrency)


def curve(setup: ServingSetup) -> Curve:
    """The times of a configuration, worked out once."""
    a, engine = setup.architecture, ENGINES[setup.engine]
    bandwidth = engine.bandwidth * min(setup.gpu.bandwidth_gbps, engine.max_gbps) * 1e9 * setup.gpus
    weights = weights_gb(a, setup.quantization) * 1e9
    read = weights - (0.0 if a.tied else 2.0 * a.vocab * a.hidden)  # of the input embedding one row is read
    experts = (
        read
        * (a.linear_params - a.active_linear_params)
        / a.params
        * a.experts
        / max(1, a.experts - a.experts_per_token)
    )
    experts = experts if a.experts > 1 else 0.0
    cache = a.kv_tokens(setup.mean_context) * a.kv_bytes_per_token(setup.kv_bytes) / bandwidth
    cache *= kv_copies(a, setup.gpus)
    cache = max(cache, engine.attention_ns * 1e-9 * setup.mean_context * a.layers * a.heads / setup.gpus)
    products = engine.product_ms / 1e3 * a.compute_params / 1e9 / setup.gpus
    start, per_sequence = allreduce_s(setup, 0.0), allreduce_s(setup, 1.0) - allreduce_s(setup, 0.0)
    return Curve(
        dense_s=(read - experts) / bandwidth,
        expert_s=experts / bandwidth,
        expert_share=a.experts_per_token / a.experts,
        cache_s=cache,
        compute_s=2.0 * a.compute_params / peak_flops(setup),
        sequence_s=engine.sequence_ms / 1e3 + products + per_sequence,
        fixed_s=engine.layer_ms * a.layers / 1e3 + start,
        prefill_s=prefill_s(setup),
        fits=max_concurrency(setup),
        output_tokens=setup.output_tokens,
        eager=engine.eager,
        waits=engine.waits,
    )


def memory_gb(setup: ServingSetup) -> float:
    """GB needed per GPU before any cache: weights and the runtime."""
    return weights_gb(setup.architecture, setup.quantization) / setup.gpus + RUNTIME_GB


def sequence_gb(setup: ServingSetup) -> float:
    """GB of cache per GPU that one sequence takes of its own: its mean context, its whole one where it is reserved; without
    the prefix that it shares."""
    whole = ENGINES[setup.engine].reserves_whole
    context = setup.input_tokens + setup.output_tokens if whole else setup.mean_context
    return _cache_gb(setup, context - setup.shared_tokens)


def shared_gb(setup: ServingSetup) -> float:
    """GB of cache per GPU of the prefix that all sequences share: it is kept once."""
    return _cache_gb(setup, setup.shared_tokens)


def call_gb(setup: ServingSetup) -> float:
    """GB of cache per GPU that one call takes when its last token comes: an engine that has not as much does not start."""
    own = setup.input_tokens + setup.output_tokens - setup.shared_tokens
    return _cache_gb(setup, own) + shared_gb(setup)


def cache_room_gb(setup: ServingSetup) -> float:
    """GB per GPU that weights and runtime leave for the cache; below 0 they do not fit themselves."""
    return MEMORY_SHARE * setup.gpu.memory_gb - memory_gb(setup)


def _cache_gb(setup: ServingSetup, tokens: float) -> float:
    a = setup.architecture
    of_all = a.kv_tokens(tokens) * a.kv_bytes_per_token(setup.kv_bytes) * kv_copies(a, setup.gpus)
    return of_all / setup.gpus / 1e9


def max_concurrency(setup: ServingSetup) -> float:
    """Sequences that fit the KV cache, each of mean length; below 1 the model does not, or one whole call does not."""
    room, whole = cache_room_gb(setup), call_gb(setup)
    return (room - shared_gb(setup)) / sequence_gb(setup) if room >= whole else room / whole


def throughput(setup: ServingSetup, concurrency: float) -> float:
    """Output tokens per second of the whole engine in a closed loop."""
    of = curve(setup)
    whole = of.tpot_s(concurrency) + of.waiting_s(concurrency) / of.output_tokens
    return min(concurrency, max(1.0, of.fits)) / whole


def benchmark_ttft_s(setup: ServingSetup, concurrency: float) -> float:
    """Mean seconds to the first token as closed-loop benchmarks report it: all clients start at once, so prefills queue.

    The ratio to one prefill grows as BURST * sqrt(B); sequences beyond the cache wait for a whole service.
    """
    of = curve(setup)
    fits = max(1.0, of.fits)
    running = min(concurrency, fits)
    burst = max(of.prefill_s * max(1.0, BURST * math.sqrt(running)), of.waiting_s(running))
    service = of.prefill_s + of.output_tokens * of.tpot_s(running)
    return burst + 0.5 * of.decode_s(running) + 0.015 + max(0.0, concurrency / fits - 1.0) * service


def memory_in_use_gb(setup: ServingSetup, concurrency: float) -> float:
    """GB on all GPUs of a program that allocates as it goes: weights, the cache at full length, one layer's MLP.

    The MLP of a prefill holds three arrays of width I in 16 bits: 6I bytes per prompt token.
    """
    a = setup.architecture
    tokens = setup.input_tokens + setup.output_tokens
    cache = concurrency * a.kv_tokens(tokens) * a.kv_bytes_per_token(setup.kv_bytes)
    return weights_gb(a, setup.quantization) + (cache + 6.0 * a.ffn * setup.input_tokens * concurrency) / 1e9 + 0.2
