"""Asks an endpoint every item of a task: asynchronous, at an adaptive pace, resumable."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from tunegate.core.console import Ticker, progress, say
from tunegate.core.errors import InfrastructureError
from tunegate.core.files import canonical_json, sha256_text
from tunegate.core.rows import Row
from tunegate.core.statistics import wilson
from tunegate.evalkit.outcomes import DEAD_AFTER, REJECTIONS, Answer, is_spent
from tunegate.evalkit.pace import Pace
from tunegate.evalkit.result_log import ResultLog, key_of
from tunegate.evalkit.system import Target
from tunegate.evalkit.task import EvalTask
from tunegate.serve.client import ChatClient, Completion, EndpointError

DEAD_S = 60.0  # DEAD_AFTER requests that were told to wait, or of an error: for so long, because an overload passes
DEAD_AT_LATEST_S = 600.0  # where each waits long, fewer
ESTIMATE_EVERY_S, ESTIMATE_COST_S = 0.25, 0.02  # the running estimate: how often, and how long it may judge each time
PROBED = 8  # prompts whose token ids are recorded, where the endpoint tells them


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """concurrency: most requests at once. retries: after a passing fault. timeout_s: of one request. retry_errors: take the
    answers beside a finished report and ask only what it lost again."""

    concurrency: int = 32
    retries: int = 4
    timeout_s: float = 300.0
    retry_errors: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run brought. answers: by item id, one for each repeat. asked: requests made now, the rest was in the log.

    prompt_ids_digest: over the token ids of the first prompts; None where the endpoint does not tell.
    """

    answers: dict[str, list[Answer]]
    asked: int
    wall_s: float
    model: str
    prompt_ids_digest: str | None


@dataclass(frozen=True)
class _Request:
    row: Row
    repeat: int
    key: str


def prompt_digest(task: EvalTask, row: Row) -> str:
    """SHA-256 over the messages and tools that one item is asked with."""
    return sha256_text(canonical_json([task.messages(row), task.tools(row)]))


def ask(
    task: EvalTask,
    target: Target,
    log: ResultLog,
    *,
    model_digest: str,
    options: RunOptions,
    judge: Callable[[Row, Answer], bool] | None = None,
) -> Asked:
    """Ask every item that the log does not hold yet. judge: whether an answer is right, for the running estimate.

    Raises EndpointError when the endpoint is gone or wrong; what was answered until then is in the log.
    """
    return asyncio.run(_ask(task, target, log, model_digest, options, judge))


async def _ask(
    task: EvalTask,
    target: Target,
    log: ResultLog,
    model_digest: str,
    options: RunOptions,
    judge: Callable[[Row, Answer], bool] | None,
) -> Asked:
    client = ChatClient(
        target.base_url,
        target.model,
        key=target.key,
        timeout_s=options.timeout_s,
        connections=options.concurrency,
        retries=options.retries,
    )
    start = time.perf_counter()
    async with client:
        await client.choose_model()
        requests = _requests(task, model_digest if target.facts else f"{model_digest} {client.model}")
        todo = [request for request in requests if log.get(request.key) is None]
        kept = [(r.row, answer) for r in requests if (answer := log.get(r.key)) is not None]
        _say_resumed(log, len(kept))
        failed: dict[str, Answer] = {}
        with progress("asking", len(requests)) as tick:
            tick(len(kept))
            estimate = _Estimate(tick, judge, kept)
            await _Run(task, client, log, failed, estimate, options, requests).all(todo)
            estimate.show()
        wall_s = time.perf_counter() - start
        ids = await _prompt_ids(task, client)
    answers: dict[str, list[Answer]] = {}
    for request in requests:
        answers.setdefault(request.row.id, []).append(log.get(request.key) or failed[request.key])
    return Asked(answers=answers, asked=len(todo), wall_s=wall_s, model=client.model, prompt_ids_digest=ids)


def _say_resumed(log: ResultLog, kept: int) -> None:
    if len(log):
        others = f"; {len(log) - kept} more are of other settings, questions or models" if len(log) > kept else ""
        say(f"resuming: {kept} answers found in {log.path}{others}")


def _requests(task: EvalTask, model_digest: str) -> list[_Request]:
    settings = task.file.generation.request()
    return [
        _Request(row, repeat, key_of(f"{row.id} {digest}", settings, model_digest, repeat))
        for row in task.rows
        for digest in [prompt_digest(task, row)]
        for repeat in range(task.file.repeats)
    ]


async def _prompt_ids(task: EvalTask, client: ChatClient) -> str | None:
    """Digest over the token ids of the first prompts by id, as the server makes them; None where it does not tell."""
    probed = sorted(task.rows, key=lambda row: row.id)[:PROBED]
    try:
        how = task.file.generation.extra_body.get("chat_template_kwargs")
        ids = [await client.tokenize(task.messages(row), task.tools(row), how) for row in probed]
    except (EndpointError, KeyError, TypeError):
        return None
    return sha256_text(canonical_json(ids))


class _Estimate:
    """Progress, with the share of right answers so far and its interval.

    Judging is the estimate's cost: now and then, and never for long, so that the requests do not wait for it. Where
    answers come faster than they are judged, the share is over those judged. kept: what was answered before this run.
    """

    def __init__(
        self, tick: Ticker, judge: Callable[[Row, Answer], bool] | None, kept: Sequence[tuple[Row, Answer]] = ()
    ) -> None:
        self._tick, self._judge = tick, judge
        self._waiting = deque(kept if judge is not None else ())
        self._n = self._passed = self._errors = self._unseen = 0
        self._last = time.monotonic()

    def add(self, row: Row, answer: Answer) -> None:
        """Count one answer."""
        self._unseen += 1
        if answer.error is not None:
            self._errors += 1
        elif self._judge is not None:
            self._waiting.append((row, answer))
        if time.monotonic() - self._last >= ESTIMATE_EVERY_S:
            self.show()

    def show(self) -> None:
        """Judge what waits, for a moment at most, and show what is known."""
        start = time.monotonic()
        while self._waiting and self._judge is not None and time.monotonic() - start < ESTIMATE_COST_S:
            self._passed += self._judge(*self._waiting.popleft())
            self._n += 1
        self._tick(self._unseen, self._text())
        self._unseen, self._last = 0, time.monotonic()

    def _text(self) -> str:
        parts = []
        if self._n:
            i = wilson(self._passed, self._n)
            of = f" of {self._n} judged" if self._waiting else ""
            parts.append(f"right {i.value:.1%} [{i.low:.1%}, {i.high:.1%}]{of}")
        if self._errors:
            parts.append(f"{self._errors} infrastructure errors")
        return ", ".join(parts)


class _Run:
    """The requests of one run."""

    def __init__(
        self,
        task: EvalTask,
        client: ChatClient,
        log: ResultLog,
        failed: dict[str, Answer],
        estimate: _Estimate,
        options: RunOptions,
        requests: list[_Request],
    ) -> None:
        self._task, self._client, self._log, self._failed = task, client, log, failed
        self._estimate, self._options, self._requests = estimate, options, requests
        self._pace = Pace(options.concurrency)
        self._settings, self._probing = task.file.generation.request(), asyncio.Lock()
        self._silent = self._failing = 0
        self._failing_since = 0.0

    async def all(self, todo: list[_Request]) -> None:
        """Ask them all; the first error that ends the run cancels the others. Requests that were rejected stay mere errors where
        one that was answered before is rejected by now too: that is not theirs."""
        pending = iter(todo)
        workers = [asyncio.create_task(self._work(pending)) for _ in range(min(self._pace.largest, len(todo)))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        rejected = {key: answer for key, answer in self._failed.items() if answer.rejected}
        known = self._answered() if rejected else None
        error = await self._fault(known) if known else None
        if error is not None and error.status in REJECTIONS:
            self._failed |= {key: replace(answer, rejected=None) for key, answer in rejected.items()}

    async def _work(self, pending: Iterator[_Request]) -> None:
        for request in pending:
            async with self._pace.slot() as number:
                await self._one(request, number)

    async def _complete(self, request: _Request) -> Completion:
        settings = self._settings
        if request.repeat and "seed" in settings:
            settings = {**settings, "seed": settings["seed"] + request.repeat}
        row = request.row
        return await self._client.complete(self._task.messages(row), generation=settings, tools=self._task.tools(row))

    async def _one(self, request: _Request, number: int) -> None:
        try:
            completion = await self._complete(request)
        except EndpointError as error:
            self._pace.bad(number)
            await self._look_at(error, request)
            answer = Answer(
                error=error.line(),
                attempts=self._options.retries + 1,
                rejected=error.message if error.status in REJECTIONS else None,
                timed_out_ms=1000.0 * self._options.timeout_s if error.cause == "timeout" else None,
            )
            self._failed[request.key] = answer
        else:
            self._silent = self._failing = 0
            self._pace.good() if completion.attempts == 1 else self._pace.bad(number)
            answer = answer_of(completion)
            self._log.add(request.key, answer)
        self._estimate.add(request.row, answer)

    async def _look_at(self, error: EndpointError, request: _Request) -> None:
        """Raise where an error says that no later request would fare better."""
        if error.fatal:
            raise error
        if is_spent(error.status, error.message) and await self._is_spent(request):
            raise self._end(f"the account pays for no more requests: {error.message}", "see to it")
        self._silent = self._silent + 1 if error.status is None else 0
        if error.status in REJECTIONS:
            self._failing = 0
            return
        if not self._failing:
            self._failing_since = time.monotonic()
        self._failing += 1
        if self._seems_gone() and await self._is_gone():
            said = f"{self._failing} requests in a row failed, the last with: {error.message}"
            raise self._end(f"the endpoint is gone: {said}", "start it")

    def _seems_gone(self) -> bool:
        lasted_s = time.monotonic() - self._failing_since if self._failing else 0.0
        failing = self._failing >= DEAD_AFTER and lasted_s >= DEAD_S
        return self._silent >= DEAD_AFTER or failing or lasted_s >= DEAD_AT_LATEST_S

    async def _is_gone(self) -> bool:
        """Whether an item that was answered before is not answered any more; where it is, the others' errors are their own."""
        async with self._probing:
            if not self._seems_gone():  # another request has found an answer in the meantime
                return False
            if self._silent < DEAD_AFTER and not await self._fails_by_now():
                self._silent = self._failing = 0
                return False
            return self._seems_gone()

    def _answered(self) -> _Request | None:
        return next((request for request in self._requests if self._log.get(request.key) is not None), None)

    async def _fails_by_now(self) -> bool:
        known = self._answered()
        return known is None or await self._fault(known) is not None

    async def _is_spent(self, request: _Request) -> bool:
        """Whether another item meets an empty account too: the words may be those of `request` itself, which the error repeats."""
        other = self._answered() or next((r for r in self._requests if r.row.id != request.row.id), None)
        error = await self._fault(other) if other else None
        return other is None or (error is not None and is_spent(error.status, error.message))

    async def _fault(self, request: _Request) -> EndpointError | None:
        """The error with which an item fails that was answered before; None where it is answered again."""
        try:
            await self._complete(request)
        except EndpointError as error:
            return error
        return None

    def _end(self, message: str, mend: str) -> InfrastructureError:
        hint = f"{mend} and run the command again; the {len(self._log)} answers so far are kept"
        return InfrastructureError(message, where=self._client.base_url, hint=hint)


def answer_of(completion: Completion) -> Answer:
    """A completion as the answer that is judged and kept."""
    return Answer(
        text=completion.text,
        finish_reason=completion.finish_reason,
        refusal=completion.refusal,
        tool_calls=completion.tool_calls,
        latency_ms=round(completion.latency_ms, 3),
        ttft_ms=None if completion.ttft_ms is None else round(completion.ttft_ms, 3),
        prompt_tokens=completion.prompt_tokens,
        completion_tokens=completion.completion_tokens,
        attempts=completion.attempts,
        context=completion.context,
    )
