"""How a machine's devices are used: pure functions from model, load and machine to vLLM's flags and environment."""

from dataclasses import dataclass

from tunegate.advisor.serving_speed import MEMORY_SHARE, RUNTIME_GB
from tunegate.core.architecture import Architecture
from tunegate.core.errors import UserError

# The two ways to start, measured (docs/serving.md), as the user is told.
CPU_STARTS = "on 2 cores, a 135M model: fast answers after some 40 s, --start compiled after 105 and then 40 % quicker for a crowd"
HIGHEST_SHARE = 0.95  # of a GPU's memory; the driver and vLLM's own measuring need the rest
GIB = 1024**3


@dataclass(frozen=True, kw_only=True)
class Need:
    """What one copy of the model needs. weights_gb: 1e9 bytes. tokens: longest request; sequences: computed together.
    value_bytes: of a key or value in the cache."""

    architecture: Architecture
    weights_gb: float
    tokens: int
    sequences: int
    value_bytes: float = 2.0

    def cache_gb(self, sequences: int) -> float:
        """Keys and values of so many full-length sequences, 1e9 bytes."""
        return (
            self.architecture.kv_bytes_per_token(self.value_bytes)
            * self.architecture.kv_tokens(self.tokens)
            * sequences
            / 1e9
        )


@dataclass(frozen=True, kw_only=True)
class GpuPlan:
    """tensor, pipeline, data: parallel sizes. share: of each GPU's memory. says: why, for the user."""

    tensor: int
    pipeline: int
    data: int
    share: float
    says: str

    def flags(self) -> list[str]:
        """vLLM's flags; those that are its defaults are left out, but for the share of memory."""
        sizes = (("--tensor-parallel-size", self.tensor), ("--pipeline-parallel-size", self.pipeline),
                 ("--data-parallel-size", self.data))  # fmt: skip
        flags = [word for name, size in sizes if size > 1 for word in (name, str(size))]
        return [*flags, "--gpu-memory-utilization", f"{self.share:.2f}"]


def plan_gpus(need: Need, memory_gb: float, count: int) -> GpuPlan:
    """Use all `count` GPUs of `memory_gb` (1e9 bytes) each: the fewest that hold a copy by tensor parallelism, more
    copies on the others; pipeline stages where the heads cannot be split so often.

    The need is the advisor's: weights and 2 GB of runtime per GPU, and the cache of one full-length request at least.
    Raises UserError when all of them do not hold one copy.
    """
    heads = need.architecture.heads
    splits = [n for n in range(1, count + 1) if heads % n == 0 and n & (n - 1) == 0]
    for tensor in splits:
        share = _share(need, memory_gb, tensor)
        if share is not None:
            data = count // tensor
            return GpuPlan(tensor=tensor, pipeline=1, data=data, share=share, says=_says(need, tensor, 1, data, count))
    for pipeline in range(2, count + 1):
        tensor = max(t for t in splits if t * pipeline <= count) if pipeline <= count else 1
        if pipeline <= need.architecture.layers:
            share = _share(need, memory_gb, tensor * pipeline)
            if share is not None:
                says = _says(need, tensor, pipeline, 1, count)
                return GpuPlan(tensor=tensor, pipeline=pipeline, data=1, share=share, says=says)
    missing = need.weights_gb + need.cache_gb(1) + RUNTIME_GB * count - HIGHEST_SHARE * memory_gb * count
    raise UserError(
        f"the model needs {need.weights_gb:.0f} GB for its weights and {need.cache_gb(1):.1f} GB for one request of "
        f"{need.tokens} tokens; {count} GPU of {memory_gb:.0f} GB are {missing:.0f} GB short",
        hint="quantize it (ft quantize), lower --max-model-len, or use more or larger GPUs",
    )


def _share(need: Need, memory_gb: float, parts: int) -> float | None:
    """The share of each GPU's memory to give vLLM when a copy is split over `parts`; None when it does not fit."""
    least = (need.weights_gb + need.cache_gb(1)) / parts + RUNTIME_GB
    return next((s for s in (MEMORY_SHARE, HIGHEST_SHARE) if least <= s * memory_gb), None)


def _says(need: Need, tensor: int, pipeline: int, data: int, count: int) -> str:
    parts = tensor * pipeline
    used = f"{parts * data} of {count} GPU: {data} {'copy' if data == 1 else 'copies'} over {parts} each"
    return f"{used} (tensor {tensor}, pipeline {pipeline}); weights {need.weights_gb:.1f} GB a copy"


def cache_gib(need: Need, memory_gb: float) -> int:
    """Whole GiB of KV cache on a CPU: room for every sequence at full length, at most a quarter of the memory (1e9
    bytes); vLLM fills it at the start (6 GiB cost 16 s more than 1 GiB on 2 cores)."""
    wanted = -(-need.cache_gb(need.sequences) * 1e9 // GIB)
    return int(max(1, min(wanted, memory_gb * 1e9 / 4 // GIB)))


def cpu_processes(*, compiled: bool, cores: int) -> tuple[list[str], dict[str, str]]:
    """(flags, environment) for how a CPU's cores are used.

    A fast start on 2 cores computes with one thread in the engine's own process: one import less. More cores need
    vLLM's worker process, which binds its threads. vLLM keeps one core free; on few cores it is worth having.
    Measured on 2 cores, SmolLM2-135M in bf16, tokens/s of 16 requests together (to the first answer): fast in one
    process 292 (38 s), fast with a worker on one core 268 (50 s), on both 314 (46 s); compiled on one core 331, on both
    411 (101 s, 109 s the first time).
    """
    if not compiled and cores <= 2:
        return ["--distributed-executor-backend", "uni"], {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": "1",
        }
    return [], {"VLLM_CPU_NUM_OF_RESERVED_CPU": "0"} if cores <= 4 else {}


def choose_start(asked: str, *, service: bool, on_gpu: bool, adapters: bool) -> tuple[bool, str]:
    """(compile?, in words). asked: fast, compiled or auto; service: it is to run for long (--detach, --restart).

    Measured on 2 cores (see `cpu_processes`): 38 s against about 105 s to the first answer; 292 against 411 tokens/s for
    16 requests together, 25 against 30 for one alone.
    """
    if asked != "auto":
        return asked == "compiled", f"start: {asked}, as asked"
    if adapters and not on_gpu:
        return False, "start: fast (vLLM compiles nothing on a CPU where adapters are served)"
    if on_gpu:
        return True, "start: compiled (--start fast answers sooner and serves less)"
    if service:
        return True, f"start: compiled, for a server that runs for long ({CPU_STARTS})"
    return False, f"start: fast ({CPU_STARTS})"
