"""Trains in forked children that are killed for real, then goes on with --resume; prints what the finished run is.

    python kill_driver.py '{"model": ..., "dataset": ..., "out": ..., "settings": {...}, "kills": [...]}'

Each kill is {"event": n}: SIGKILL at the n-th file operation below the working folder, from within; or {"after_s": x}:
SIGKILL from outside, at any machine instruction. The libraries are imported once, before the forks.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from tunegate.core.artifacts import Dataset
from tunegate.core.files import sha256_file
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.work import working_folder

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree")


def die_at(event: int, below: str) -> None:
    """Kill this process at the n-th file operation on a path below a folder."""
    seen = 0

    def hook(name: str, arguments: tuple) -> None:
        nonlocal seen
        if name in WATCHED and arguments and below in str(arguments[0]):
            seen += 1
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(order: dict, out: Path, *, resume: bool, kill: dict) -> str:
    """One try in a forked child: `killed`, `done` or `failed`."""
    pid = os.fork()
    if pid == 0:
        try:
            sink = os.open(str(out.parent / "child.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(sink, 2)
            torch.set_num_threads(1)
            config = resolve_config([("test", {"model": order["model"], **order["settings"]})])[0]
            dataset, source = Dataset.open(Path(order["dataset"])), resolve(order["model"])
            if "event" in kill:
                die_at(kill["event"], working_folder(out).name)
            sft.train(dataset, source, config, out, resume=resume, force=False)
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    if "after_s" in kill:
        time.sleep(kill["after_s"])
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "done" if os.WEXITSTATUS(status) == 0 else "failed"


def main() -> None:
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401

    order = json.loads(sys.argv[1])
    out = Path(order["out"])
    out.parent.mkdir(parents=True, exist_ok=True)
    history = []
    for kill in [*order["kills"], {}]:
        resume = working_folder(out).is_dir()
        outcome = attempt(order, out, resume=resume, kill=kill)
        partial = [p.name for p in working_folder(out).glob(".checkpoint-*")] if working_folder(out).is_dir() else []
        whole = sorted(p.name for p in working_folder(out).glob("checkpoint-*")) if working_folder(out).is_dir() else []
        history.append({"kill": kill, "outcome": outcome, "resumed": resume, "partial": partial, "whole": whole})
        if outcome != "killed":
            break
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] if out.is_dir() else []
    for line in lines:
        line.pop("tokens_per_s", None)
        line.pop("peak_memory_gb", None)
    facts = json.loads((out / "manifest.json").read_text())["facts"] if out.is_dir() else {}
    facts.pop("peak_memory_gb", None)
    weights = [sha256_file(p) for p in sorted(out.glob("*.safetensors"))]
    print(json.dumps({"history": history, "weights": weights, "metrics": lines, "facts": facts}))


if __name__ == "__main__":
    main()
