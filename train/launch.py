"""Training in several processes: builds the command that starts them, shows the first one's messages, passes signals on,
and turns how they ended into a result or an error. The processes run `train.worker`; data, model and output must be
under the same paths on every machine.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from tunegate.core import machine
from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, TunegateError, UsageError, UserError
from tunegate.core.files import read_json
from tunegate.train import watch
from tunegate.train.job import Job
from tunegate.train.launch_options import Launch
from tunegate.train.stop import Interrupted, StopRequest
from tunegate.train.worker import FACTS, MAIN, STOP

POLL_S = 0.2
PATIENCE_S = 10.0  # for processes that were told to end


def command(launch: Launch, job: Path) -> list[str]:
    """The command that starts the processes of this machine."""
    worker = ["-m", "tunegate.train.worker", str(job)]
    if launch.launch == "ray":
        words = ["--processes", str(launch.num_processes), "--address", launch.address]
        return [sys.executable, "-m", "tunegate.train.ray_driver", str(job), *words]
    if launch.launch_config:
        words = ["--config_file", str(launch.launch_config), "--num_processes", str(launch.num_processes)]
        return [sys.executable, "-m", "accelerate.commands.launch", *words, *worker]
    here = launch.num_processes // launch.num_machines
    words = [
        "--nproc-per-node",
        str(here),
        "--nnodes",
        str(launch.num_machines),
        "--node-rank",
        str(launch.machine_rank),
    ]
    place = (
        ["--rdzv-backend", "static", "--rdzv-endpoint", launch.rdzv_endpoint]
        if launch.rdzv_endpoint
        else ["--standalone"]
    )
    return [sys.executable, "-m", "torch.distributed.run", *words, *place, *worker]


def environment(launch: Launch, device: str) -> dict[str, str]:
    """What accelerate reads in each process: its names for FSDP2, and threads for a CPU's share of the cores."""
    found = {} if launch.launch == "ray" else {MAIN: str(os.getpid())}
    if device == "cpu":
        here = max(1, launch.num_processes // launch.num_machines)
        found |= {"OMP_NUM_THREADS": str(max(1, machine.cores() // here)), "ACCELERATE_USE_CPU": "true"}
    if launch.strategy == "fsdp2" and not launch.launch_config:
        found |= {
            "ACCELERATE_USE_FSDP": "true",
            "FSDP_VERSION": "2",
            "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
            "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
            "FSDP_RESHARD_AFTER_FORWARD": "true",
        }
    return found


def run(launch: Launch, job: Job, final: Path) -> dict[str, Any]:
    """Train in the processes of `launch`, files into `final`, and return the facts for the manifest.

    Raises what a process raised; Interrupted after a signal; InfrastructureError when one ended without a word.
    """
    from tunegate.train.model_loading import pick_device

    for old in [*job.folder.glob("rank-*"), job.folder / STOP, job.folder / FACTS]:
        old.unlink(missing_ok=True)
    path = job.folder / "job.json"
    job.write(path, final)
    say(f"{launch.told} processes, by {launch.launch}; logs: {job.folder}/rank-N.log")
    return _outcome(job.folder, _started(launch, path, job.folder, pick_device(job.config)))


def join(launch: Launch, job: Job) -> None:
    """The part of a machine other than the first, which writes the run. Raises as `run` does."""
    from tunegate.train.model_loading import pick_device

    with tempfile.TemporaryDirectory() as own:
        path = Path(own) / "job.json"
        job.write(path, job.folder)
        if code := _started(launch, path, job.folder, pick_device(job.config)):
            logs = "".join(p.read_text(errors="replace")[-2000:] for p in sorted(Path(own).glob("rank-*.log")))
            sys.stderr.write(logs)
            raise InfrastructureError(f"a process of this machine ended with exit code {code}", where=str(job.folder))
    say(f"this machine's part is done; the run is written by machine 0: {job.name}")


def _started(launch: Launch, path: Path, folder: Path, device: str) -> int:
    """Start the processes of this machine for the job at `path`; their exit code."""
    with (path.parent / "rank-launcher.log").open("wb") as log:
        process = subprocess.Popen(
            command(launch, path),
            env={**os.environ, **environment(launch, device)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        return _attend(process, folder, path.parent / "rank-0.log")


def _attend(process: "subprocess.Popen[bytes]", folder: Path, log: Path) -> int:
    """Show the first process's messages and pass a signal on until all have ended; a second signal ends them at once."""
    shown = 0
    try:
        with StopRequest() as stop:
            while (code := process.poll()) is None:
                shown = _show(log, shown)
                if stop.wanted():
                    (folder / STOP).touch()
                time.sleep(POLL_S)
        _show(log, shown)
        return code
    finally:
        if process.poll() is None:
            _end(process)


def _show(log: Path, shown: int) -> int:
    """Print what was added to a log after `shown` bytes, whole lines; the new length."""
    if not log.is_file():
        return shown
    with log.open("rb") as stream:
        stream.seek(shown)
        new = stream.read()
    whole = new[: new.rfind(b"\n") + 1]
    stderr: IO[str] = sys.stderr
    stderr.write(whole.decode("utf-8", "replace"))
    stderr.flush()
    return shown + len(whole)


def _end(process: "subprocess.Popen[bytes]") -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(PATIENCE_S)
            return
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def _outcome(folder: Path, code: int) -> dict[str, Any]:
    told = [read_json(path) for path in sorted(folder.glob("rank-*.json"))]
    if told:
        first = told[0]
        if first["class"] == "Interrupted":
            raise Interrupted(first["message"], hint=first["hint"])
        kinds: dict[str, type[TunegateError]] = {
            "UserError": UserError, "UsageError": UsageError, "TrainingDivergedError": watch.TrainingDivergedError,
        }  # fmt: skip
        kind = kinds.get(first["class"], InfrastructureError)
        raise kind(first["message"], where=first["where"], hint=first["hint"])
    if code or not (folder / FACTS).is_file():
        raise InfrastructureError(
            f"a process of the run ended with exit code {code}", where=str(folder), hint="see its rank-N.log there"
        )
    facts: dict[str, Any] = read_json(folder / FACTS)
    return facts
