"""Ctrl-C and SIGTERM during training: the first ends it after a checkpoint, the second at once."""

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from tunegate.core.console import say
from tunegate.train import ranks


class Interrupted(KeyboardInterrupt):
    """Training stopped on a signal, after a checkpoint."""


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
