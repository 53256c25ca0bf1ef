"""A process in an environment of its own: files in, files out, the lines it says read along. It never outlives us."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tunegate.core.files import read_json, write_json
from tunegate.train.release import environments

LAUNCHER = Path(__file__).parent / "workers" / "with_parent.py"
LAST_LINES = 40


def start(python: Path, script: str, arguments: list[str], errors: "int | IO[bytes]") -> "subprocess.Popen[bytes]":
    """Start a script of `workers/` as the head of a process group, which ends when this process does, by SIGKILL too."""
    command = [str(python), str(LAUNCHER), str(environments.WORKERS / script), *arguments]
    return subprocess.Popen(
        command,
        env=environments.clean({}),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        process_group=0,
    )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """End it and what it started, now; it holds nothing that a kind end would save."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def answer(
    python: Path, script: str, job: dict[str, Any], heard: Callable[[str], None]
) -> tuple[int, list[str], dict[str, Any] | None]:
    """Run a script on a job: (exit code, its last lines on standard error, what it wrote to the file the job calls `result`;
    None where it failed or wrote nothing)."""
    with tempfile.TemporaryDirectory(prefix="tunegate-job-") as temporary:
        path, result = Path(temporary) / "job.json", Path(temporary) / "result.json"
        write_json(path, {**job, "result": str(result)})
        code, lines = run(python, script, path, heard)
        return code, lines, None if code or not result.is_file() else read_json(result)


def run(python: Path, script: str, job: Path, heard: Callable[[str], None]) -> tuple[int, list[str]]:
    """Run a script on a job file to its end: (exit code, its last lines on standard error). heard: called with each line."""
    process = start(python, script, [str(job)], subprocess.PIPE)
    assert process.stderr is not None
    lines: list[str] = []
    try:
        with process.stderr:
            for raw in process.stderr:
                line = raw.decode("utf-8", "replace").rstrip()
                lines = [*lines[1 - LAST_LINES :], line]
                heard(line)
        code = process.wait()
    finally:
        stop(process)
    return code, lines
