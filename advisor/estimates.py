"""What `ftadvise estimate` prints: one configuration, each number with the interval its class earned in back-testing."""

from dataclasses import dataclass
from typing import Any

from tunegate.advisor import calibrate, serving_speed, training_memory, training_time
from tunegate.advisor.errors import Estimate, estimate
from tunegate.advisor.gpus import Gpu
from tunegate.advisor.models import KnownModel
from tunegate.advisor.training_plan import FIT_MARGIN
from tunegate.core.errors import UserError

Json = dict[str, Any]
MEASURED_SIZES_B = (0.49, 406.0)  # of the collection; outside them we extrapolate
# Published speeds of mixtures were 0.2 to 0.3 in log units off where held against this, those of dense models 0.1.
MIXTURE_WIDEN = 2.0


@dataclass(frozen=True, kw_only=True)
class TrainQuestion:
    """A training configuration. seq: tokens of the longest row. examples and epochs give the hours; mean_tokens: mean
    tokens of a row, None for seq. accumulation: micro-batches an optimizer step. state: of full tuning, a key of STATE_BYTES. software: hf, torchtune, unsloth, ..."""

    model: KnownModel
    method: str
    gpu: Gpu
    gpus: int = 1
    batch: int = 4
    accumulation: int = 1
    seq: int = 1024
    rank: int = 16
    targets: tuple[str, ...] = ()
    examples: int = 1000
    epochs: float = 3.0
    mean_tokens: float | None = None
    checkpointing: bool = True
    state: str = "amp"
    software: str = "hf"


def widen_of(model: KnownModel, gpu: Gpu, kind: str) -> tuple[float, str]:
    """How much wider than back-tested an interval of a class is, and why (empty when it is not)."""
    size = model.architecture.params / 1e9
    if gpu.is_cpu:
        how = calibrate.corrected(kind, gpu.name)
        return calibrate.widening(kind, gpu), f"no CPU is in the back-test{'; ' if how else ''}{how}"
    if not model.architecture.exact:
        return 2.0, "the shape was scaled from a size"
    if model.architecture.experts > 1:
        return MIXTURE_WIDEN, "few mixtures of experts are in the back-test"
    if not MEASURED_SIZES_B[0] <= size <= MEASURED_SIZES_B[1]:
        return 1.5, f"{size:.2g}B lies outside the sizes measured ({MEASURED_SIZES_B[0]:g}-{MEASURED_SIZES_B[1]:g}B)"
    return 1.0, ""


def train(q: TrainQuestion) -> Json:
    """Memory, speed, hours and cost of a training run. Raises UserError for a target the model lacks."""
    a = q.model.architecture
    full = q.method == "full"
    shards = training_memory.shards(q.method, q.gpus)
    trainable = a.params if full else a.lora_params(q.rank, q.targets)
    setup = training_memory.TrainingMemory(
        architecture=a,
        method=q.method,
        micro_batch=q.batch,
        seq_len=q.seq,
        checkpointing=q.checkpointing,
        trainable=0 if full else trainable,
        quantization="nf4-dq" if q.method == "qlora" else "bf16",
        state=q.state,
        software=q.software,
        sharded_over=shards,
    )
    peak = training_memory.peak_gb(setup)
    mean = q.mean_tokens or q.seq
    step = training_time.TrainingStep(
        architecture=a,
        gpu=q.gpu,
        method=q.method,
        tokens=q.batch * mean,
        seq_len=mean,
        checkpointing=q.checkpointing,
        quantization=setup.quantization,
        software="cpu" if q.gpu.is_cpu else q.software,
        accumulation=q.accumulation,
        sharded_over=shards,
    )
    speed = training_time.tokens_per_s(step) * calibrate.factor("train_tps", q.gpu.name)
    hours = training_time.hours(
        examples=q.examples, mean_tokens=mean, epochs=q.epochs, tokens_per_second=speed, gpus=q.gpus
    )
    widen, reason = widen_of(q.model, q.gpu, "train_tps")
    memory_widen = min(widen, 2.0)
    usd: Estimate | None = None
    if q.gpu.price is not None:
        rent = hours * q.gpus * q.gpu.price
        usd = estimate(rent, "train_tps", widen=widen, beside=q.gpu.price_spread)
    return {
        "memory_gb": estimate(peak, "train_mem", widen=memory_widen),
        "fits": bool(peak <= FIT_MARGIN * q.gpu.memory_gb) and not a.beyond(q.seq),
        "tokens_per_s": estimate(speed * training_time.scaling(q.gpus), "train_tps", widen=widen),
        "hours": estimate(hours, "train_tps", widen=widen),
        "usd": usd,
        "trainable_params": trainable,
        "total_params": a.params + (0 if full else trainable),
        "extrapolates": reason or None,
        "terms_gb": {
            "static": training_memory.static_gb(setup) / shards,
            "activations": training_memory.activations_gb(setup),
            "logits": training_memory.logits_gb(setup),
        },
        "price": q.gpu.prices or None,
        "notes": _train_notes(q, whole_copy=shards < q.gpus),
    }


def _train_notes(q: TrainQuestion, *, whole_copy: bool) -> list[str]:
    return [
        *doubts(q.model, q.gpu),
        *corrections("train_tps", q.gpu),
        *([STATE_NOTES[q.state]] if q.method == "full" else []),
        *([WHOLE_COPY] if whole_copy else []),
        *filter(None, [q.model.architecture.beyond(q.seq)]),
    ]


CORRECTED = {"train_tps": "tokens_per_s is", "tpot": "tpot_ms is"}

WHOLE_COPY = "qlora on several GPUs runs as DDP: each holds a whole copy of the 4-bit base, more of them save no memory"

STATE_NOTES = {
    "amp": "full: 16 bytes a parameter; ft train keeps fp32 weights, gradients and two AdamW moments (4 bytes each) and "
    "computes in bf16 by autocast, whose bf16 copies are not counted",
    **{
        name: f"full: {size:g} bytes a parameter for weights, gradients and optimizer; ft train itself needs 16 (state amp)"
        for name, size in training_memory.STATE_BYTES.items()
        if name != "amp"
    },
}


def corrections(kind: str, gpu: Gpu) -> list[str]:
    """Where a GPU's speed is not the formula's but was corrected by `ftadvise calibrate`. Of a CPU `extrapolates` says it."""
    how = "" if gpu.is_cpu else calibrate.corrected(kind, gpu.name)
    return [f"{CORRECTED[kind]} {how}"] if how else []


def doubts(model: KnownModel, gpu: Gpu) -> list[str]:
    """What in the tables behind an estimate was never checked against a public file."""
    return [text for text in (gpu.doubt, model.doubt) if text]


@dataclass(frozen=True, kw_only=True)
class ServeQuestion:
    """A serving configuration under `concurrency` calls at a time."""

    model: KnownModel
    gpu: Gpu
    gpus: int = 1
    quantization: str = "bf16"
    input_tokens: float
    output_tokens: float
    concurrency: float = 1.0
    prefix_hit: float = 0.0


QUEUE = (
    "{:g} calls at a time are more than max_concurrency: the others wait for a place in the cache, and ttft_ms holds that "
    "wait (just above max_concurrency, measured waits were shorter)"
)


WHOLE_CALL = "one whole call takes {:.1f} GB of KV cache per GPU, {:.1f} are left: the engine would not start"


def serve(q: ServeQuestion) -> Json:
    """Memory, latency, throughput and cost of serving. Raises UserError for FP8 on a chip without it."""
    from tunegate.advisor.serving_plan import setup_for

    if q.quantization == "fp8" and q.gpu.fp8_tflops is None:
        raise UserError(f"{q.gpu.name} has no FP8 units", where="--quant", hint="use awq or bf16")
    a = q.model.architecture
    setup = setup_for(a, q.gpu, q.gpus, q.quantization, (q.input_tokens, q.output_tokens), q.prefix_hit)
    times = serving_speed.curve(setup)
    reasons = [text for text in (serving_speed.unsplit(a, q.gpus), a.beyond(q.input_tokens + q.output_tokens)) if text]
    if serving_speed.cache_room_gb(setup) > 0 and times.fits < 1:
        reasons.append(WHOLE_CALL.format(serving_speed.call_gb(setup), serving_speed.cache_room_gb(setup)))
    fits = (
        serving_speed.memory_gb(setup) <= serving_speed.MEMORY_SHARE * q.gpu.memory_gb
        and times.fits >= 1
        and not reasons
    )
    running = min(q.concurrency, max(1.0, times.fits))
    speedup = calibrate.factor("tpot", q.gpu.name)
    tpot = times.tpot_s(running) * speedup
    out_per_s = running / tpot
    waits = times.fits >= 1 and q.concurrency > times.fits
    queue_s = (q.concurrency / times.fits - 1) * (times.ttft_s(running) + q.output_tokens * tpot) if waits else 0.0
    cache = running * serving_speed.sequence_gb(setup) + serving_speed.shared_gb(setup)
    widen, reason = widen_of(q.model, q.gpu, "tpot")
    usd: Estimate | None = None
    if q.gpu.price is not None:
        calls_per_hour = out_per_s / q.output_tokens * 3600
        rent = 1000 * q.gpu.price * q.gpus / calls_per_hour
        usd = estimate(rent, "infer_tps", widen=widen, beside=q.gpu.price_spread)
    return {
        "memory_gb": estimate(serving_speed.memory_gb(setup) + cache, "infer_mem", widen=min(widen, 2.0)),
        "fits": fits,
        "ttft_ms": estimate(1e3 * (times.ttft_s(running) + queue_s), "ttft", widen=min(widen, 2.0)),
        "tpot_ms": estimate(1e3 * tpot, "tpot", widen=widen),
        "tokens_per_s": estimate(out_per_s, "infer_tps", widen=widen),
        "max_concurrency": max(0, int(times.fits)),
        "usd_per_1k_calls": usd,
        "extrapolates": reason or None,
        "price": q.gpu.prices or None,
        "notes": [
            *doubts(q.model, q.gpu),
            *corrections("tpot", q.gpu),
            *reasons,
            *([QUEUE.format(q.concurrency)] if waits else []),
        ],
    }
