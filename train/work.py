"""The working folder of a run that is not finished: hidden beside it, locked while in use, with what it began with."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import read_json, remove_unfinished, write_json
from tunegate.core.machine import versions
from tunegate.core.manifest import Input
from tunegate.train import checkpoints
from tunegate.train.config import TrainConfig, as_json

MARKER = "training.json"
METRICS = "metrics.jsonl"
# Settings that change nothing of the weights: a resumed run may have others.
FREE = ("save_steps", "logging_steps", "report_to")
# Settings that name a model, an adapter or files: what they name is compared, by digest, not how it is spelt.
NAMES = ("model", "adapter", "docs", "embedder", "system_file")


def working_folder(out: Path) -> Path:
    """Where a run's checkpoints and metrics are until it is finished: hidden, beside the run."""
    return out.parent / f".{out.name}.training"


def began(work: Path) -> str:
    """When the run of this working folder began, in ISO format: where a template writes the date, a resumed run's rows have that
    of its first start. Now, where none did."""
    try:
        found = str(read_json(work / MARKER)["begun"])
        datetime.fromisoformat(found)
    except (UserError, KeyError, TypeError, ValueError):  # of a damaged note `opened` says what to do
        return now()
    return found


def now() -> str:
    """This moment, to the second."""
    return datetime.now().isoformat(timespec="seconds")


def identity(
    config: TrainConfig,
    dataset: Dataset,
    base: Input,
    others: Sequence[Input] = (),
    *,
    began: str,
    processes: str = "1",
) -> dict[str, Any]:
    """What a run was begun with; a resumed one must have the same, or its weights would be a mixture.

    others: the adapter it goes on from, documents that the rows are trained with and their encoder. began: see there.
    processes: their number and how they share the model.
    """
    return {
        "config": as_json(config),
        "dataset": dataset.digest,
        "base": base.digest,
        "inputs": [[other.role, other.digest] for other in others],
        "processes": processes,
        "begun": began,
        "versions": versions(),
    }


@contextmanager
def opened(
    out: Path, begun: dict[str, Any], *, resume: bool, force: bool, same_base: Callable[[str], bool]
) -> Iterator[Path]:
    """Make or reopen the working folder and hold its lock. same_base: whether a digest is that of the base model.

    Raises UserError when another process trains into it; when it holds checkpoints and neither `resume` nor `force` is
    given; when a resumed run would go on with other data, another base model or other settings.
    """
    work = working_folder(out)
    if resume and not work.is_dir():
        raise UserError("there is nothing to resume", where=str(work), hint="run without --resume")
    work.mkdir(parents=True, exist_ok=True)
    lock = os.open(work, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another process is training into this folder", where=str(work)) from None
        if resume and (work / MARKER).is_file():
            _same(_noted(work), begun, work, same_base)
        else:
            _anew(work, begun, force=force)
        for stale in work.glob(".checkpoint-*"):
            shutil.rmtree(stale, ignore_errors=True)
        remove_unfinished(out)
        yield work
    finally:
        os.close(lock)


def _anew(work: Path, begun: dict[str, Any], *, force: bool) -> None:
    found = None if force else checkpoints.last_complete(work)
    if found is not None:
        raise UserError(
            f"an unfinished run is here, at step {checkpoints.step_of(found)}",
            where=str(work),
            hint="--resume goes on with it, --force begins anew",
        )
    for path in work.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    write_json(work / MARKER, begun)


def _noted(work: Path) -> dict[str, Any]:
    """What the unfinished run began with. Raises UserError where the note of it is damaged."""
    found = read_json(work / MARKER)
    kinds = {"config": dict, "dataset": str, "base": str, "inputs": list, "processes": str, "versions": dict}
    if not isinstance(found, dict) or not all(isinstance(found.get(key), kind) for key, kind in kinds.items()):
        raise UserError(
            "the note of what this run began with is damaged", where=str(work / MARKER), hint="--force begins anew"
        )
    return found


def _same(before: dict[str, Any], now: dict[str, Any], work: Path, same_base: Callable[[str], bool]) -> None:
    if before["dataset"] != now["dataset"]:
        raise UserError("the dataset is not the one this run began with", where=str(work), hint="nothing was touched")
    for role, what in (("adapter", "adapter is"), ("documents", "documents are"), ("embedder", "embedder is")):
        if _of_role(before, role) != _of_role(now, role):
            raise UserError(f"the {what} not what this run began with", where=str(work), hint="nothing was touched")
    if before["processes"] != now["processes"]:
        was = f"this run began with {before['processes']} processes, not {now['processes']}"
        raise UserError(was, where=str(work), hint="random states and shards are kept for each")
    changed = [k for k, v in now["config"].items() if before["config"].get(k) != v and k not in (*FREE, *NAMES)]
    if changed:
        told = ", ".join(f"{k} (was {before['config'].get(k)!r})" for k in changed)
        said = f"the settings differ from those this run began with: {told}"
        raise UserError(said, where=str(work), hint="take those again, or begin anew: --force without --resume")
    if not same_base(before["base"]):
        was = before["config"].get("model")
        what = "the base model has changed since this run began"
        if was != now["config"]["model"]:
            what = f"the base model is not the one this run began with, {was}"
        raise UserError(what, where=str(work), hint="nothing was touched")
    if "begun" not in before:
        warn(
            "begun by an earlier version: of a dataset with groups, other rows are set aside for the validation loss now"
        )
    other = [k for k, v in now["versions"].items() if before["versions"].get(k) != v]
    if other:
        warn(f"other versions than at the start ({', '.join(other)}): the result may differ in the last bits")


def _of_role(noted: dict[str, Any], role: str) -> list[Any]:
    return [other for other in noted["inputs"] if isinstance(other, list) and other[:1] == [role]]


def cut_metrics(work: Path, length: int, checkpoint: Path | None) -> int:
    """Cut the metrics to what belongs to the checkpoint: later steps are run again, a torn last line goes.

    length: of the file when the checkpoint was written, in bytes; how many of them are lost is returned, and said.
    """
    path = work / METRICS
    found = path.read_bytes()[:length] if path.is_file() else b""
    step = checkpoints.step_of(checkpoint) if checkpoint else 0
    kept = b"".join(line for line in found.splitlines(keepends=True) if _is_whole(line, step))
    lost = length - len(kept)
    if lost:
        gone = f"{lost} of the {length} bytes of {METRICS} that belong to the first {step} steps are lost"
        warn(f"{path}: {gone}: training goes on, but it and loss.svg will not show them")
        path.write_bytes(kept)
    elif path.is_file() and path.stat().st_size > length:
        os.truncate(path, length)
    return lost


def _is_whole(line: bytes, last: int) -> bool:
    """Whether a line of the metrics is one, of a step up to `last`: lines that were added after others were lost are later."""
    try:
        found = json.loads(line)
    except ValueError:
        return False
    step = found.get("step") if isinstance(found, dict) else None
    return line.endswith(b"\n") and isinstance(step, int) and step <= last


def begin_from(work: Path) -> Path | None:
    """The checkpoint to go on from, said; None: from the first step."""
    found = checkpoints.last_complete(work)
    say(f"resuming from step {checkpoints.step_of(found)}" if found else "no checkpoint is whole: from the first step")
    return found
