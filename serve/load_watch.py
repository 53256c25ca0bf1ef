"""Watches the load generator itself: its processor time, and how late its event loop runs."""

import asyncio
import time
from types import TracebackType
from typing import Self

TICK_S = 0.01  # seconds between looks at the clock; what comes late by more than this shows in every latency


class OwnLoad:
    """Use as `async with`. cpu_share: processor time of this process over wall time, 1.0 is one core.

    lags_ms: by how much each of the regular wake-ups came late: a chunk that arrived meanwhile was stamped as late as
    that.
    """

    def __init__(self) -> None:
        self.lags_ms: list[float] = []
        self.cpu_share = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        wall = time.perf_counter() - self._wall
        self.cpu_share = (time.process_time() - self._cpu) / wall if wall > 0 else 0.0

    async def _look(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.lags_ms.append(max(0.0, 1000 * (time.perf_counter() - before - TICK_S)))
