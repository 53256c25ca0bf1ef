"""Checkpoints that a kill at any moment cannot spoil: temporary folder, fsync, marker last, rename.

A checkpoint holds weights or adapter (safetensors), optimizer, schedule and random states (torch files, only ever read
with `weights_only`), the trainer's state, our counters, and `complete.json` with the hash of each. All of them go when
the run is finished.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tunegate.core.console import say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import read_json, relative_files, sha256_file, write_json
from tunegate.train import ranks

MARKER = "complete.json"
KEPT = 2
# Written by the libraries, of no use to us: a pickle of the arguments and a model card.
UNWANTED = ("training_args.bin", "README.md")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.rpartition("-")[2])


@contextmanager
def writing(work: Path, step: int, *, best_step: int = -1) -> Iterator[Path]:
    """Give a temporary folder; when the block ends well it becomes `checkpoint-STEP`, whole or not at all.

    The newest two and the best one stay, older ones go. Every process of a run calls it; the first one makes the folder
    and seals it, so the block ends with a barrier. Raises InfrastructureError when it cannot be written: the
    checkpoints before it are as they were.
    """
    temporary = work / f".checkpoint-{step}.partial"
    if ranks.rank() > 0:
        ranks.barrier()
        yield temporary
        return
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        ranks.barrier()
        yield temporary
        for name in UNWANTED:
            (temporary / name).unlink(missing_ok=True)
        _seal(temporary, step)
    except (OSError, RuntimeError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not _is_full(error, work):
            raise
        before = last_complete(work)
        kept = f"{before.name} is whole" if before else "there is none before it"
        raise InfrastructureError(
            f"the checkpoint of step {step} could not be written: no space left on the device; {kept}",
            where=str(work),
            hint="free disk space, then the same command with --resume",
        ) from error
    _move(temporary, work / f"checkpoint-{step}")
    _prune(work, best_step)


def problem(path: Path) -> str | None:
    """What is wrong with a checkpoint (a file missing, cut or changed, or never finished); None when it is whole."""
    if not (path / MARKER).is_file():
        return f"{MARKER} is missing: it was never finished"
    try:
        files = read_json(path / MARKER)["files"]
        for name, known in files.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != known["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, {known['bytes']} were written"
            if sha256_file(file) != known["sha256"]:
                return f"{name} was changed"
    except (UserError, KeyError, TypeError, AttributeError):
        return f"{MARKER} cannot be read"
    return None


def last_complete(work: Path) -> Path | None:
    """The newest checkpoint that is whole; each one passed over is said with its fault."""
    for path in sorted(_all(work), key=step_of, reverse=True):
        fault = problem(path)
        if fault is None:
            return path
        say(f"{path.name} is passed over: {fault}")
    return None


def _all(work: Path) -> list[Path]:
    return [p for p in work.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]


def _seal(folder: Path, step: int) -> None:
    """Flush every file to the disk, then write the marker with their hashes."""
    files = {}
    for name in relative_files(folder):
        _sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    write_json(folder / MARKER, {"step": step, "files": files})
    _sync(folder)


def _move(temporary: Path, final: Path) -> None:
    """Rename into place; a damaged checkpoint of the same step makes way first."""
    retired = final.with_name(f".{final.name}.old")
    shutil.rmtree(retired, ignore_errors=True)
    if final.exists():
        final.rename(retired)
    temporary.rename(final)
    _sync(final.parent)
    shutil.rmtree(retired, ignore_errors=True)


def _prune(work: Path, best_step: int) -> None:
    newest = sorted(_all(work), key=step_of, reverse=True)
    for path in newest[KEPT:]:
        if step_of(path) != best_step:
            # The marker goes first: a kill while the rest goes leaves no folder that looks whole.
            (path / MARKER).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error of the libraries means a full disk: they turn ENOSPC into their own RuntimeError."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    words = ("no space left", "file too large", "failed writing file", "unexpected pos", "disk quota")
    return any(word in str(error).lower() for word in words) or shutil.disk_usage(folder).free < 1_000_000
