"""How many requests are under way at once: more while the endpoint keeps up, half as soon as it does not."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

FIRST = 32  # requests at once to begin with: what a small server takes without a queue


class Pace:
    """Slow start, then additive increase and multiplicative decrease, as TCP does (Chiu & Jain 1989; RFC 5681, section
    3.1), between 1 and `largest`.

    It begins at `FIRST`. Until the first fault each good request raises the limit by one, which doubles it a round;
    afterwards `limit` good ones do. A request that needed a retry or failed halves it, once for all requests that were
    under way then.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.limit = float(min(largest, FIRST))
        self._faultless = True
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._started = self._spared_until = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Wait until one more request may go; gives its number."""
        if self._under_way < int(self.limit) and not self._waiting:
            self._under_way += 1
        else:
            await self._turn()
        self._started += 1
        try:
            yield self._started
        finally:
            self._under_way -= 1
            self._wake()

    def good(self) -> None:
        """A request succeeded at the first attempt."""
        self.limit = min(float(self.largest), self.limit + (1.0 if self._faultless else 1.0 / self.limit))

    def bad(self, number: int) -> None:
        """Request `number` met a fault or was told to wait."""
        self._faultless = False
        if number > self._spared_until:
            self.limit = max(1.0, self.limit / 2.0)
            self._spared_until = self._started

    async def _turn(self) -> None:
        """Wait in line; who is woken has the place already, so that nobody else takes it in between."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._under_way -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._under_way < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self._under_way += 1
                turn.set_result(None)
