"""Environments for tools that cannot live beside vLLM. Made once with uv from a pinned list, found again by its hash."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError
from tunegate.core.files import sha256_text
from tunegate.core.model_source import cache_folder

WORKERS = Path(__file__).parent / "workers"
# llm-compressor asks for torchvision and torchaudio through nothing we use; their registry builds are CUDA ones.
OVERRIDES = "torchvision; sys_platform == 'never'\ntorchaudio; sys_platform == 'never'\n"
# AutoAWQ's setup imports torch, and its triton kernels are for CUDA.
MORE_OVERRIDES = {"autoawq": "triton; sys_platform == 'never'\n"}
BUILT_WITH = {"autoawq": ("torch", "setuptools", "numpy")}


def folder(name: str) -> Path:
    """Where environment `name` is, whether made yet or not; another pinned list is another folder."""
    pinned = (WORKERS / f"{name}.txt").read_text(encoding="utf-8")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache_folder() / "environments" / f"{name}-{sha256_text(pinned + _overrides(name) + version)[:12]}"


def _overrides(name: str) -> str:
    return OVERRIDES + MORE_OVERRIDES.get(name, "")


def is_made(name: str) -> bool:
    """Whether environment `name` is complete."""
    return (folder(name) / "complete").is_file()


def ensure(name: str) -> Path:
    """The Python of environment `name`, made first where it is missing; by one process at a time.

    Raises InfrastructureError with uv's last line when it cannot be installed.
    """
    python = folder(name) / "bin" / "python"
    if not is_made(name):
        with alone(name):
            if not is_made(name):  # by whoever was waited for
                _make(name, python)
    return python


@contextmanager
def alone(name: str) -> Iterator[None]:
    """Hold the lock beside environment `name`; the system gives back that of a process that dies."""
    place = folder(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes the environment for {name}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(name: str, python: Path) -> None:
    place = folder(name)
    say(f"making the environment for {name} (once, about a minute)")
    shutil.rmtree(place, ignore_errors=True)
    _uv(["venv", "--quiet", "--python", sys.executable, str(place)])
    overrides = place / "overrides.txt"
    overrides.write_text(_overrides(name), encoding="utf-8")
    links = os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS") or ""
    local = any(list(Path(p.removeprefix("file://")).glob("torch-*cpu*.whl")) for p in links.split())
    backend = [] if local else ["--torch-backend=auto"]
    requirements = ["-r", str(WORKERS / f"{name}.txt"), "--overrides", str(overrides)]
    install = ["pip", "install", "--quiet", "--python", str(python), *backend]
    if first := BUILT_WITH.get(name):
        pinned = (WORKERS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        _uv([*install, *(line for line in pinned if line.partition("==")[0] in first)], links if local else "")
        install += ["--no-build-isolation-package", name]
    _uv([*install, *requirements], links if local else "")
    (place / "complete").touch()


def clean(settings: dict[str, str]) -> dict[str, str]:
    """This process's environment variables without those of its own Python, and with `settings`."""
    return {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")} | settings


def _uv(arguments: list[str], links: str = "") -> None:
    settings = clean({"UV_FIND_LINKS": links} if links else {})
    command = [sys.executable, "-m", "uv", *arguments]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise InfrastructureError(
            f"uv could not make the environment: {lines[-1].strip()}", hint="is the package index reachable? ft doctor"
        )
