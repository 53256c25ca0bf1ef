"""One of the processes that train one run together: `python -m tunegate.train.worker JOB`, started by `launch`.

Its messages go to `rank-N.log` in the working folder (what went wrong at last to `rank-N.json`): the process that started
it shows the first one's.
"""

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from tunegate.core.errors import ExitCode, TunegateError
from tunegate.core.files import write_json
from tunegate.train.job import Job
from tunegate.train.stop import Interrupted, StopFile

STOP, FACTS = "stop", "facts.json"
MAIN = "TUNEGATE_LAUNCHED_BY"  # process id of `ft train`, on this machine


def work(path: Path) -> int:
    """Train this process's share and return its exit code."""
    from tunegate.train import ranks, sft
    from tunegate.train.work import began

    job, final = Job.read(path)
    number = os.environ.get("RANK", "0")
    try:
        ready = sft.prepare(job.dataset, job.source, job.config, began(job.folder))
        facts = sft.finish(job, sft.session_of(job, ready, StopFile(job.folder / STOP)), final)
        if ranks.rank() == 0:
            write_json(job.folder / FACTS, facts)
        return ExitCode.OK
    except Interrupted as stopped:
        told = {"class": "Interrupted", "message": stopped.message, "hint": stopped.hint}
        write_json(job.folder / f"rank-{number}.json", told)
        return ExitCode.OK
    except TunegateError as error:
        told = {"class": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        write_json(job.folder / f"rank-{number}.json", told)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return ExitCode.INTERNAL


def end_with(parents: set[int]) -> None:
    """End this process when one of those that started it is gone, however they ended."""

    def watch() -> None:
        while all(Path(f"/proc/{pid}").exists() for pid in parents):
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGKILL)

    if Path("/proc/self").exists():
        threading.Thread(target=watch, daemon=True).start()


def main(path: Path) -> int:
    """`work` with its output in a file; the process group is left in order."""
    import torch

    if MAIN in os.environ:
        end_with({os.getppid(), int(os.environ[MAIN])})

    log = path.parent / f"rank-{os.environ.get('RANK', '0')}.log"
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    code = work(path)
    if code == ExitCode.OK and MAIN in os.environ and torch.distributed.is_initialized():  # Ray does it itself
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    return int(code)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
