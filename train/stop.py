"""Ctrl-C and SIGTERM during training: the first ends it after a checkpoint, the second at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from tunegate.core.console import emit_json, say
from tunegate.core.errors import ExitCode
from tunegate.train import ranks, work

GO_ON = "go on with the same command and --resume"


class Interrupted(KeyboardInterrupt):
    """Training stopped on a signal, after a checkpoint. hint: how to go on; None where nothing was kept."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.message, self.hint = message, hint


@contextmanager
def told(out: Path, *, as_json: bool) -> Iterator[None]:
    """Make SIGTERM the interruption that Ctrl-C is, from the first moment on; with `--json` either one is told on standard
    output and leaves by `typer.Exit`. out: the run's folder."""
    here = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, _interrupt) if here else None
    try:
        yield
    except KeyboardInterrupt as stopped:
        if not as_json:
            raise
        emit_json({"error": _as_json(stopped, work.working_folder(out))})
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _as_json(stopped: KeyboardInterrupt, folder: Path) -> dict[str, Any]:
    """What `--json` says of an interruption, in the form of an error."""
    kept = any(folder.glob("checkpoint-*"))
    message, hint = "interrupted", GO_ON if kept else None
    if isinstance(stopped, Interrupted):
        message, hint = stopped.message, stopped.hint
    return {"kind": "interrupted", "message": message, "where": str(folder) if kept else None, "hint": hint}


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a checkpoint and a clean end; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether to stop after this step."""
        return self.asked is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        say("stopping after this step, with a checkpoint (once more: at once)")


class StopFile:
    """The same in one of several processes: the process that started them leaves a file, and all stop after the same step."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = False

    def __enter__(self) -> "StopFile":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wanted(self) -> bool:
        """Whether to stop after this step; every process asks at the same point."""
        self._seen = self._seen or ranks.any_of(self._path.exists())
        return self._seen
