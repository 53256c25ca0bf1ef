"""llama.cpp in an environment of its own: the library built from llama-cpp-python's source package, and the converter that
lies in the same package, so that both are of one version."""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tunegate.core.artifacts import GgufExport
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError
from tunegate.core.files import new_folder, sha256_file, sha256_text
from tunegate.core.machine import cores
from tunegate.core.model_source import cache_folder
from tunegate.serve.plain_http import call
from tunegate.serve.vllm_process import free_port
from tunegate.train.release import environments, worker

VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"  # of the source package on PyPI
# Only the library: no tools, tests or server. NATIVE off, so that a cached build runs on other machines (AVX2, FMA, F16C).
CMAKE = (
    "-DGGML_NATIVE=OFF", "-DLLAVA_BUILD=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_SERVER=OFF",
)  # fmt: skip
CONVERTER = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")


@dataclass(frozen=True)
class LlamaCpp:
    """A Python that can `import llama_cpp`, and the converter's script."""

    python: Path
    converter: Path


def ensure() -> LlamaCpp:
    """The environment with llama.cpp in it, made where it is missing (about 5 minutes on two cores, once).

    Raises InfrastructureError when something cannot be fetched or built, with the last line of the log.
    """
    python = environments.ensure("gguf")
    place = environments.folder("gguf")
    found = LlamaCpp(python, place / "converter" / CONVERTER[0])
    if not is_built():
        with environments.alone("gguf"):
            if not is_built():  # by whoever was waited for
                _build(python, place)
    return found


def _build(python: Path, place: Path) -> None:
    wheel = _wheel(python)
    _uv(["pip", "install", "--quiet", "--python", str(python), "--no-deps", str(wheel)])
    shutil.rmtree(place / "converter", ignore_errors=True)
    shutil.copytree(wheel.parent / "converter", place / "converter")
    (place / "llama.cpp").write_text(f"{VERSION}\n", encoding="utf-8")


@contextmanager
def serving(artifact: GgufExport, *, context: int = 2048, start_timeout_s: float = 300.0) -> Iterator[str]:
    """An OpenAI-compatible server on the file, its own template applied: the URL ending in /v1, until the block ends.

    Raises InfrastructureError when it does not start.
    """
    tools = ensure()
    port = free_port("127.0.0.1")
    name = artifact.path.resolve().name
    arguments = [str(artifact.model_path.resolve()), str(port), name, str(context), str(cores())]
    with tempfile.TemporaryFile() as log:
        process = worker.start(tools.python, "llama_server.py", arguments, log)
        try:
            _wait(process, port, time.monotonic() + start_timeout_s, log)
            say(f"llama.cpp serves {artifact.model_path.name} on port {port}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            worker.stop(process)


def _wait(process: "subprocess.Popen[bytes]", port: int, deadline: float, log: IO[bytes]) -> None:
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if call(f"http://127.0.0.1:{port}/health").status == 200:
                return
        except OSError:
            pass
        time.sleep(0.2)
    log.seek(0)
    lines = log.read().decode("utf-8", "replace").strip().splitlines() or ["no message"]
    raise InfrastructureError(f"llama.cpp does not serve the file: {lines[-1][:300]}")


def is_built() -> bool:
    """Whether llama.cpp stands in the environment, complete."""
    marker = environments.folder("gguf") / "llama.cpp"
    return marker.is_file() and marker.read_text(encoding="utf-8").strip() == VERSION


def _wheel(python: Path) -> Path:
    """The built wheel, with the converter beside it, in the cache."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = (
        cache_folder() / "wheels" / f"llama-cpp-python-{VERSION}-{sha256_text(SHA256 + ' '.join(CMAKE) + version)[:12]}"
    )
    if not folder.is_dir():
        say("building llama.cpp (once, about 5 minutes on two cores)")
        with new_folder(folder) as work:
            source = _source(python, work)
            cores = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(min(8, os.cpu_count() or 2))
            settings = {
                "CMAKE_ARGS": " ".join(CMAKE),
                "CMAKE_BUILD_PARALLEL_LEVEL": cores,
                "SKBUILD_BUILD_TARGETS": "llama;llama-common",
            }
            _uv(["build", "--quiet", "--wheel", "--python", str(python), "--out-dir", str(work), str(source)], settings)
            source.unlink()
    return next(folder.glob("*.whl"))


def _source(python: Path, work: Path) -> Path:
    """The source package, its hash checked, its converter unpacked to `work`/converter."""
    command = [str(python), "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
               "--dest", str(work), f"llama-cpp-python=={VERSION}"]  # fmt: skip
    _run(command, "llama.cpp's source package cannot be fetched")
    source = next(work.glob("*.tar.gz"))
    if sha256_file(source) != SHA256:
        raise InfrastructureError("llama-cpp-python's source package is not the one that is known", where=source.name)
    inside = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
    with tarfile.open(source) as archive:
        for member in archive.getmembers():
            name = member.name.removeprefix(inside)
            if member.isfile() and name != member.name and name.startswith(CONVERTER):
                member.name = name
                archive.extract(member, work / "converter", filter="data")
    return source


def _uv(arguments: list[str], settings: dict[str, str] | None = None) -> None:
    _run([sys.executable, "-m", "uv", *arguments], "llama.cpp cannot be built", settings)


def _run(command: list[str], what: str, settings: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, env=environments.clean(settings or {}), capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()] or ["no message"]
        telling = next((line for line in lines if "error" in line.lower()), lines[-1])
        raise InfrastructureError(f"{what}: {telling}", hint="a C++ compiler and the package index are needed")
