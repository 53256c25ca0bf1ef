"""Ctrl-C and SIGTERM during training: the first ends it after a checkpoint, the second at once."""

import signal
from types import FrameType
from typing import Any

from tunegate.core.console import say


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

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        say("stopping after this step, with a checkpoint (once more: at once)")
