"""Runs the stages of a load test against one endpoint and keeps a record of every request.

A latency counts from when the request was due: in open loop its arrival, in closed loop the end of the one before. A
server that stalls therefore shows in every request it held up, and a client that is late adds to its own figures.
"""

import asyncio
import contextlib
import random
import resource
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tunegate.core.console import Ticker
from tunegate.serve import load_counters
from tunegate.serve.client import CLIENT, ChatClient, EndpointError
from tunegate.serve.load_plan import LoadOptions, Prompt, Prompts, Stage, arrivals
from tunegate.serve.load_watch import OwnLoad

GONE_AFTER = 20  # requests in a row that nothing answered, and twice as many as run at once: the endpoint is gone


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request. due_s, started_s, ended_s: seconds from the stage's start. ttft_ms, e2e_ms: from when it was due.

    tpot_ms: (E2E - TTFT) / (completion tokens that were sent - 1), None for a single token. error_kind: an EndpointError's `cause`,
    None for an answer.
    """

    number: int
    warm_up: bool
    prompt: str
    repeated: bool
    due_s: float
    started_s: float
    ended_s: float
    ttft_ms: float | None = None
    e2e_ms: float | None = None
    tpot_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    error_kind: str | None = None
    error: str | None = None

    @property
    def late_ms(self) -> float:
        """How long after it was due it was sent: the client's own delay."""
        return 1000 * (self.started_s - self.due_s)

    @property
    def waited_ms(self) -> float:
        """From when it was due until it ended, with an answer or without one."""
        return 1000 * (self.ended_s - self.due_s)


@dataclass(kw_only=True)
class StageRun:
    """What one stage brought. unfinished: requests under way when the test was stopped. stopped: why, else None."""

    stage: Stage
    records: list[Record] = field(default_factory=list)
    unfinished: int = 0
    stopped: str | None = None
    cpu_share: float = 0.0
    lags_ms: list[float] = field(default_factory=list)
    counters: dict[str, Any] | None = None


def run_load(
    client: ChatClient,
    prompts: list[Prompt],
    options: LoadOptions,
    *,
    tick: Ticker,
    key: str | None,
) -> list[StageRun]:
    """Run every stage, one after the other; Ctrl-C ends the running one and keeps what was measured.

    client: not entered yet, with retries=0. tick: told of each request that ended. key: for the server's counters. Raises
    EndpointError for what no request can mend (wrong key, unknown model).
    """
    _allow_files()
    return asyncio.run(_run_all(client, prompts, options, tick, key))


def _allow_files() -> None:
    """Raise this process' limit of open files to what it may be: each request under way is one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a system may name a limit that it does not take
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _run_all(
    client: ChatClient, prompts: list[Prompt], options: LoadOptions, tick: Ticker, key: str | None
) -> list[StageRun]:
    runs: list[StageRun] = []
    source = Prompts(prompts, options.seed)
    async with client, _interruptible() as stop:
        for index, stage in enumerate(options.stages):
            before = await asyncio.to_thread(load_counters.read, client.base_url, key)
            loop = _Loop(client, source, options, stage, stop, tick)
            await loop.run(random.Random(f"{options.seed} {index}"))
            after = await asyncio.to_thread(load_counters.read, client.base_url, key)
            loop.result.counters = after.since(before) if before and after else None
            runs.append(loop.result)
            if loop.failure is not None:
                raise loop.failure
            if loop.result.stopped is not None:
                break
    return runs


@asynccontextmanager
async def _interruptible() -> AsyncIterator[asyncio.Event]:
    """An event that the first Ctrl-C sets; the second acts as ever."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def asked() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    with contextlib.suppress(ValueError, RuntimeError):  # not in the main thread: nothing to catch
        loop.add_signal_handler(signal.SIGINT, asked)
    try:
        yield stop
    finally:
        with contextlib.suppress(ValueError, RuntimeError):
            loop.remove_signal_handler(signal.SIGINT)


class _Loop:
    """One stage under way."""

    def __init__(
        self,
        client: ChatClient,
        prompts: Prompts,
        options: LoadOptions,
        stage: Stage,
        stop: asyncio.Event,
        tick: Ticker,
    ) -> None:
        self.tick = tick
        self.client, self.prompts, self.options, self.stage, self.stop = client, prompts, options, stage, stop
        self.result = StageRun(stage=stage)
        self.failure: EndpointError | None = None
        self._zero = 0.0
        self._given = 0
        self._measured_from: float | None = None
        self._lost = 0
        self._gone, self._why = asyncio.Event(), "the endpoint is gone"
        self._under_way = 0

    async def run(self, rng: random.Random) -> None:
        """All requests of the stage, or those until it was stopped."""
        self._zero = time.perf_counter()
        async with OwnLoad() as own:
            work = asyncio.create_task(self._open(rng) if self.stage.kind == "open" else self._closed())
            ends = [asyncio.create_task(event.wait()) for event in (self.stop, self._gone)]
            await asyncio.wait([work, *ends], return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                self.result.unfinished = self._under_way
                self.result.stopped = "interrupted" if self.stop.is_set() else self._why
            for task in (work, *ends):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        self.result.cpu_share, self.result.lags_ms = own.cpu_share, own.lags_ms

    async def _closed(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(int(self.stage.level)):
                group.create_task(self._stream())

    async def _stream(self) -> None:
        """Ask one request after the other; the next is due when the one before has ended."""
        due = self._now()
        while self._more():
            number = self._given
            self._given += 1
            await self._ask(number, due)
            due = self._now()

    def _more(self) -> bool:
        measured = self._given - self.stage.warm_up
        if measured < 0:
            return True
        if self._measured_from is None:
            self._measured_from = self._now()
        if self.stage.duration_s is not None:
            return self._now() - self._measured_from < self.stage.duration_s
        return measured < (self.stage.requests or 0)

    async def _open(self, rng: random.Random) -> None:
        async with asyncio.TaskGroup() as group:
            for number, due in enumerate(arrivals(self.stage, rng)):
                await asyncio.sleep(max(0.0, due - self._now()))
                group.create_task(self._ask(number, due))

    async def _ask(self, number: int, due: float) -> None:
        prompt, repeated = self.prompts.next()
        about: dict[str, Any] = {
            "number": number, "warm_up": number < self.stage.warm_up, "prompt": prompt.key, "repeated": repeated,
            "due_s": due, "started_s": self._now(),
        }  # fmt: skip
        self._under_way += 1
        try:
            answer = await self.client.complete(prompt.messages, generation=self.options.generation, tools=prompt.tools)
        except EndpointError as error:
            self._failed(error, about)
            return
        finally:
            self._under_way -= 1
            with contextlib.suppress(OSError, ImportError):  # where no file can be opened, printing may fail
                self.tick(1, self.stage.name)
        self._lost = 0
        late = 1000 * (about["started_s"] - due)
        tokens, ttft = answer.completion_tokens, answer.ttft_ms
        gaps = (tokens or 0) - answer.kept_tokens - 1  # between tokens that were sent
        self.result.records.append(
            Record(
                **about,
                ended_s=about["started_s"] + answer.latency_ms / 1000,
                ttft_ms=None if ttft is None else late + ttft,
                e2e_ms=late + answer.latency_ms,
                tpot_ms=(answer.latency_ms - ttft) / gaps if ttft is not None and gaps > 0 else None,
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=tokens,
                finish_reason=answer.finish_reason,
            )
        )

    def _failed(self, error: EndpointError, about: dict[str, Any]) -> None:
        record = Record(**about, ended_s=self._now(), error_kind=error.cause, error=error.message)
        self.result.records.append(record)
        if error.cause == CLIENT:
            self._why = "the client could not send a request"
            self._gone.set()
            return
        self._lost = self._lost + 1 if error.status is None else 0
        if error.fatal and error.status is not None:
            self.failure = error
            self._gone.set()
        elif self._lost >= max(GONE_AFTER, 2 * self.stage.level):
            self._gone.set()

    def _now(self) -> float:
        return time.perf_counter() - self._zero
