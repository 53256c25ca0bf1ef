"""The cheapest machine that a fine-tuning fits on, and what it takes there."""

import dataclasses
import math
from dataclasses import dataclass

from tunegate.advisor import calibrate
from tunegate.advisor import training_memory as memory
from tunegate.advisor import training_time as timing
from tunegate.advisor.gpus import Gpu
from tunegate.core.architecture import Architecture
from tunegate.core.methods import ALL_LINEAR

LEAST_RANK, MOST_RANK = 16, 128
BITS_A_PARAMETER = 2.0
FIT_MARGIN = 0.95  # of the GPU's memory that the estimate may reach


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings a training run would have; the `train:` section of a recommendation."""

    method: str
    rank: int = 16
    alpha: int = 32
    targets: tuple[str, ...] = ALL_LINEAR
    learning_rate: float = 5e-4
    epochs: float = 3.0
    micro_batch: int = 4
    accumulation: int = 1
    max_length: int = 1024
    checkpointing: bool = True


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A run on a machine. memory_gb: peak per GPU. hours: wall clock. usd: rent, 0 for owned machines."""

    recipe: Recipe
    gpu: Gpu
    gpus: int
    memory_gb: float
    fits: bool
    tokens_per_s: float
    hours: float
    usd: float
    trainable: int


def rank_for(architecture: Architecture, loss_tokens: float) -> int:
    """The smallest power of two from 16 to 128 whose adapter can hold the data: 2 bits a parameter against 1 bit a token
    of loss (LoRA Without Regret, Thinking Machines 2025: capacity; the two constants are its order of magnitude)."""
    rank = LEAST_RANK
    while rank < MOST_RANK and BITS_A_PARAMETER * architecture.lora_params(rank) < loss_tokens:
        rank *= 2
    return rank


def epochs_for(rows: int) -> float:
    """Passes over the data: 3 up to 10,000 rows, 2 from 15,000 to 50,000, 1 from 100,000 on; between them as many rows are seen
    as at the lower end, so that more data never costs less to train on. The three numbers are customary."""
    return min(3.0, max(2.0, 30_000 / max(1, rows)), max(1.0, 100_000 / max(1, rows)))


def recipe_for(
    architecture: Architecture, method: str, *, examples: int, longest_tokens: float, loss_tokens: float = 0.0
) -> Recipe:
    """Starting values by size (LoRA Without Regret; the Tinker learning-rate sweep; below 1B: our demo's).

    loss_tokens: tokens of all answers. The optimizer batch is 16 rows up to 3B, else 32.
    """
    size = architecture.params / 1e9
    adapter_rate = 5e-4 if size < 4 else (3e-4 if size < 27 else 2e-4)
    rows = 4 if size < 1 else (16 if size <= 3 else 32)
    micro = 4 if size < 15 else 1
    length = 256 * math.ceil(max(longest_tokens, 1.0) / 256)
    rank = rank_for(architecture, loss_tokens)
    return Recipe(
        method=method,
        rank=rank,
        alpha=2 * rank,
        learning_rate=adapter_rate / (10.0 if method == "full" else 1.0),
        epochs=epochs_for(examples),
        micro_batch=micro,
        accumulation=max(1, rows // micro),
        max_length=min(32_768, architecture.context or 32_768, max(512, length)),
    )


def plan(
    architecture: Architecture, recipe: Recipe, gpu: Gpu, gpus: int, *, examples: int, mean_tokens: float, owned: bool
) -> TrainingPlan:
    """Memory, time and cost of one run on one machine. Several GPUs shard the model (FSDP), but for QLoRA (DDP)."""
    full = recipe.method == "full"
    recomputes = recipe.checkpointing and not gpu.is_cpu  # as `ft train` does of itself
    shards = memory.shards(recipe.method, gpus)
    trainable = architecture.params if full else architecture.lora_params(recipe.rank, recipe.targets)
    quantization = "nf4-dq" if recipe.method == "qlora" else "bf16"
    setup = memory.TrainingMemory(
        architecture=architecture,
        method=recipe.method,
        micro_batch=recipe.micro_batch,
        seq_len=recipe.max_length,
        checkpointing=recomputes,
        trainable=0 if full else trainable,
        quantization="bf16" if full else quantization,
        state="amp" if full else "pure_bf16",
        sharded_over=shards,
    )
    peak = memory.peak_gb(setup)
    step = timing.TrainingStep(
        architecture=architecture,
        gpu=gpu,
        method=recipe.method,
        tokens=recipe.micro_batch * mean_tokens,
        seq_len=mean_tokens,
        checkpointing=recomputes,
        quantization="bf16" if full else quantization,
        software="cpu" if gpu.is_cpu else "hf",
        accumulation=recipe.accumulation,
        sharded_over=shards,
    )
    speed = timing.tokens_per_s(step) * calibrate.factor("train_tps", gpu.name)
    hours = timing.hours(
        examples=max(1, examples), mean_tokens=mean_tokens, epochs=recipe.epochs, tokens_per_second=speed, gpus=gpus
    )
    price = 0.0 if owned else (gpu.price or math.inf)
    return TrainingPlan(
        recipe=recipe,
        gpu=gpu,
        gpus=gpus,
        memory_gb=peak,
        fits=peak <= FIT_MARGIN * gpu.memory_gb,
        tokens_per_s=speed * timing.scaling(gpus),
        hours=hours,
        usd=price * gpus * hours,
        trainable=trainable,
    )


def cheapest(
    architecture: Architecture,
    recipe: Recipe,
    machines: list[tuple[Gpu, int]],
    *,
    examples: int,
    mean_tokens: float,
    owned: bool,
) -> TrainingPlan:
    """The cheapest fitting machine, of several as cheap the fastest (micro-batch 1 where 4 does not fit); else the one that
    misses by the least memory.

    More of a GPU that a run fits on are tried where they may pay: they are owned, or share the optimizer (full tuning); as
    many as the rows of an optimizer batch can be dealt out to.
    """
    plans: list[TrainingPlan] = []
    fitted: set[str] = set()
    for gpu, gpus in machines:
        how = recipe
        if gpu.name in fitted:
            if not (owned or recipe.method == "full") or recipe.micro_batch * recipe.accumulation % gpus:
                continue
            how = _dealt_out(recipe, gpus)
        found = plan(architecture, how, gpu, gpus, examples=examples, mean_tokens=mean_tokens, owned=owned)
        if not found.fits and how.micro_batch > 1:
            smaller = _with_micro_batch(how, 1)
            found = plan(architecture, smaller, gpu, gpus, examples=examples, mean_tokens=mean_tokens, owned=owned)
        plans.append(found)
        if found.fits:
            fitted.add(gpu.name)
    fitting = [p for p in plans if p.fits]
    if fitting:
        return min(fitting, key=lambda p: (p.usd, p.hours))
    return min(plans, key=lambda p: p.memory_gb / p.gpu.memory_gb)


def _dealt_out(recipe: Recipe, gpus: int) -> Recipe:
    """With a micro-batch small enough that so many GPUs share the rows of one optimizer batch."""
    rows = recipe.micro_batch * recipe.accumulation
    return _with_micro_batch(recipe, min(recipe.micro_batch, rows // gpus))


def _with_micro_batch(recipe: Recipe, size: int) -> Recipe:
    rows = recipe.micro_batch * recipe.accumulation
    return dataclasses.replace(recipe, micro_batch=size, accumulation=rows // size)
