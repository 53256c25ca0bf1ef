"""The core end-to-end job on the real embedded model, run once for the session: data, train, merge, quantize; then one
vLLM server with the base model and one with the quantized release. The tests look at what came out."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.machine import lacks_avx512

BIN = Path(sys.executable).parent
KEY = "test-key-1234"
# vLLM's 4-bit product needs AVX-512: elsewhere what is served is the 8-bit kind.
SCHEME = "w8a8" if lacks_avx512() else "awq"


@dataclass(frozen=True)
class Done:
    """A finished command: its exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    def ok(self) -> "Done":
        """Itself, when the command ended well; else show what it said."""
        assert self.code == 0, f"exit {self.code}\n{self.out}\n{self.err}"
        return self

    def json(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(self.out)
        return value


@dataclass(frozen=True)
class Job:
    """The folder everything is made in, and a way to run commands there as a user would."""

    folder: Path
    run: Callable[..., Done]


@pytest.fixture(scope="session")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    environment = {**os.environ, "TUNEGATE_HOME": str(folder / "registry"), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)

    def run(*words: str, **extra: str) -> Done:
        command = [str(BIN / words[0]), *words[1:]]
        done = subprocess.run(
            command, cwd=folder, env={**environment, **extra}, capture_output=True, text=True, timeout=900, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return Job(folder, run)


@pytest.fixture(scope="session")
def data(job: Job) -> Path:
    job.run("ft", "data", "prepare", "builtin:bfcl", "--out", "data").ok()
    task = """\
name: function-calling
data: data/eval.jsonl
validators:
  - {name: json_valid, kind: json}
  - {name: schema, kind: json_schema}
  - {name: admissible, kind: tool_call}
primary: admissible
slices: [category]
generation: {max_tokens: 64, temperature: 0, seed: 0}
"""
    (job.folder / "task.yaml").write_text(task)
    return job.folder / "data"


@pytest.fixture(scope="session")
def trained(job: Job, data: Path) -> Path:
    job.run("ftadvise", "recommend", "data/train.jsonl", "--model", "builtin:smollm2-135m", "--needs", "format,cost,privacy",
               "--privacy", "no-egress", "--hardware", "cpu", "--calls-per-day", "20000", "--out", "recommendation.yaml").ok()  # fmt: skip
    job.run(
        "ft",
        "train",
        "data",
        "--from",
        "recommendation.yaml",
        "--max-steps",
        "12",
        "--max-length",
        "512",
        "--out",
        "run",
    ).ok()
    return job.folder / "run"


@pytest.fixture(scope="session")
def release(job: Job, trained: Path) -> Path:
    job.run("ft", "merge", "run", "--out", "release").ok()
    return job.folder / "release"


@pytest.fixture(scope="session")
def quantized(job: Job, release: Path) -> Path:
    job.run("ft", "quantize", "release", "--out", "release-quantized", "--rows", "16", "--scheme", SCHEME).ok()
    return job.folder / "release-quantized"


@pytest.fixture(scope="session")
def server(job: Job, quantized: Path) -> Iterator[str]:
    """The quantized release, served once for all tests that need an engine."""
    port = "18471"
    job.run(
        "ft",
        "serve",
        "release-quantized",
        "--port",
        port,
        "--detach",
        "--start",
        "fast",
        "--max-model-len",
        "1536",
        TUNEGATE_API_KEY=KEY,
    ).ok()
    yield f"http://127.0.0.1:{port}/v1"
    job.run("ft", "serve", "stop", "--port", port).ok()


@pytest.fixture(scope="session")
def key() -> str:
    """The API key of the server."""
    return KEY


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A private copy of a folder, to break."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))
