"""How many requests are under way at once: more while the endpoint keeps up, half as soon as it does not."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Pace:
    """Additive increase, multiplicative decrease (Chiu & Jain 1989), between 1 and `largest`.

    A request that needed a retry or failed halves the limit, once for all requests that were under way then; every
    `limit` good ones raise it by one. It begins at a quarter of `largest`.
    """

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.limit = float(max(1, (largest + 3) // 4))
        self._under_way = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._started = self._spared_until = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[int]:
        """Wait until one more request may go; gives its number."""
        if self._under_way >= int(self.limit):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            await turn
        self._under_way += 1
        self._started += 1
        try:
            yield self._started
        finally:
            self._under_way -= 1
            self._wake()

    def good(self) -> None:
        """A request succeeded at the first attempt."""
        self.limit = min(float(self.largest), self.limit + 1.0 / self.limit)

    def bad(self, number: int) -> None:
        """Request `number` met a fault or was told to wait."""
        if number > self._spared_until:
            self.limit = max(1.0, self.limit / 2.0)
            self._spared_until = self._started

    def _wake(self) -> None:
        room = int(self.limit) - self._under_way
        while self._waiting and room > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                room -= 1
