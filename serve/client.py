"""An asynchronous client for any OpenAI-compatible chat endpoint (vLLM, llama.cpp, Ollama, OpenAI, ...).

Streams every answer, so that time to first token is measured and a stream that dies half-way is seen: without a finish
reason it is an infrastructure error, never an answer.
"""

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.rows import Message
from tunegate.serve.prompting.middleware import USED_HEADER

if TYPE_CHECKING:
    import aiohttp

# Longest pause before another attempt, whatever `Retry-After` asks for: an hour of silence helps nobody.
LONGEST_WAIT_S = 60.0
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


class EndpointError(InfrastructureError):
    """A request that got no usable answer. status: HTTP status, None when there was none.

    fatal: no later request can fare better (wrong key, unknown model, nothing listening), so a run should stop.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        fatal: bool = False,
        hint: str | None = None,
        where: str | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.status = status
        self.fatal = fatal
        self.retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. finish_reason: `stop`, `length`, ... as the endpoint says. Latencies from sending the request that
    succeeded; ttft_ms to the first content. Token counts as the endpoint reports them, None when it does not. context:
    what our server put into the prompt (`ids` of examples or passages, how many were `dropped`), None elsewhere."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float
    ttft_ms: float | None
    refusal: str | None = None
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    attempts: int = 1
    context: dict[str, Any] | None = None


def api_key(key_file: Path | None = None) -> str | None:
    """The key from `--api-key-file`, else from `TUNEGATE_API_KEY`; never from a command line."""
    if key_file is not None:
        if not key_file.is_file():
            raise UserError("no such key file", where=str(key_file))
        return key_file.read_text(encoding="utf-8").strip() or None
    return os.environ.get("TUNEGATE_API_KEY") or None


class ChatClient:
    """Talks to one endpoint and one model over pooled connections; use as `async with`.

    base_url: up to and including `/v1`. timeout_s: for one whole request. connections: upper bound of the pool.
    retries: further attempts after a passing fault, with exponential back-off, jitter and `Retry-After`.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        key: str | None = None,
        timeout_s: float = 300.0,
        connections: int = 256,
        retries: int = 4,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.model = model
        self._key, self._timeout_s, self._connections, self._retries = key, timeout_s, connections, retries
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=10.0)
        connector = aiohttp.TCPConnector(limit=self._connections)
        self._session = aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> list[str]:
        """Names of the models served. Raises EndpointError."""
        answer = await self._json("GET", f"{self.base_url}/models", None)
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise EndpointError(
                "not an OpenAI-compatible endpoint: /models has no data", where=self.base_url, fatal=True
            )
        return [str(item.get("id")) for item in answer["data"] if isinstance(item, dict)]

    async def tokenize(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """The prompt's token ids as the server makes them (vLLM's `/tokenize`). Raises EndpointError."""
        body = {
            "model": self.model,
            "messages": list(messages),
            "add_generation_prompt": True,
            "add_special_tokens": False,
        }
        if tools:
            body["tools"] = tools
        answer = await self._json("POST", f"{self.base_url.removesuffix('/v1')}/tokenize", body)
        return list(answer["tokens"])

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        generation: dict[str, Any],
        tools: list[Any] | None = None,
        response_format: dict[str, Any] | None = None,
    ) -> Completion:
        """One chat completion. generation: request fields such as max_tokens, temperature, seed, top_p, stop.

        Raises EndpointError after the last attempt, or at once for what a retry cannot mend.
        """
        body = {"model": self.model, "messages": list(messages), "stream": True, **generation}
        body["stream_options"] = {"include_usage": True}
        if tools:
            body["tools"] = tools
        if response_format:
            body["response_format"] = response_format
        for attempt in range(1, self._retries + 2):
            try:
                return await self._attempt(body, attempt)
            except EndpointError as error:
                retryable = error.status is None or error.status in RETRIED
                if error.fatal or not retryable or attempt > self._retries:
                    raise
                asked = error.retry_after_s
                wait = 0.5 * 2 ** (attempt - 1) if asked is None else asked
                wait = min(LONGEST_WAIT_S, wait)
                await asyncio.sleep(wait * (1 + 0.25 * random.random()))
        raise AssertionError("unreachable")

    async def _attempt(self, body: dict[str, Any], attempt: int) -> Completion:
        import aiohttp

        assert self._session is not None, "use ChatClient as `async with`"
        start = time.perf_counter()
        stream = _Stream()
        try:
            async with self._session.post(f"{self.base_url}/chat/completions", json=body) as response:
                if response.status != 200:
                    raise await _refusal(response, self.base_url)
                stream.context = _context(response.headers.get(USED_HEADER))
                if "event-stream" not in response.headers.get("Content-Type", ""):
                    await _take_whole(response, stream)
                else:
                    async for event in _events(response.content):
                        stream.take(event, time.perf_counter() - start)
        except aiohttp.ClientConnectorError as error:
            raise EndpointError(
                f"nothing answers: {error.os_error.strerror or error}",
                where=self.base_url,
                hint="is the server running? ft serve status",
            ) from None
        except TimeoutError:
            raise EndpointError(f"no answer within {self._timeout_s:.0f} s", where=self.base_url) from None
        except (aiohttp.ClientError, OSError) as error:
            raise EndpointError(f"the connection broke: {_words(error)}", where=self.base_url) from None
        return stream.completion(1000 * (time.perf_counter() - start), attempt, self.base_url)

    async def _json(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        import aiohttp

        assert self._session is not None, "use ChatClient as `async with`"
        try:
            async with self._session.request(method, url, json=body) as response:
                if response.status != 200:
                    raise await _refusal(response, url)
                return json.loads(await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EndpointError(
                f"nothing answers: {_words(error)}",
                where=url,
                fatal=True,
                hint="is the server running? ft serve status",
            ) from None
        except json.JSONDecodeError:
            raise EndpointError(
                "the endpoint answered something that is not JSON (a web page?)",
                where=url,
                fatal=True,
                hint="give the URL up to /v1",
            ) from None


class _Stream:
    """Collects the chunks of one streamed answer."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.tool_calls: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] = {}
        self.ttft_s: float | None = None
        self.context: dict[str, Any] | None = None

    def take(self, chunk: dict[str, Any], elapsed_s: float) -> None:
        """Add one chunk that came `elapsed_s` after the request."""
        if error := chunk.get("error"):
            text = error.get("message") if isinstance(error, dict) else error
            raise EndpointError(f"the engine failed in mid-stream: {text}")
        self.usage = chunk.get("usage") or self.usage
        for choice in chunk.get("choices") or []:
            delta = choice.get("delta") or choice.get("message") or {}
            content, refusal = delta.get("content"), delta.get("refusal")
            if (content or refusal or delta.get("tool_calls")) and self.ttft_s is None:
                self.ttft_s = elapsed_s
            self.text.append(content or "")
            self.refusal.append(refusal or "")
            for call in delta.get("tool_calls") or []:
                self._take_call(call)
            self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _take_call(self, call: dict[str, Any]) -> None:
        index = call.get("index", len(self.tool_calls))
        known = self.tool_calls.setdefault(
            index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        known["id"] = call.get("id") or known["id"]
        function = call.get("function") or {}
        known["function"]["name"] += function.get("name") or ""
        known["function"]["arguments"] += function.get("arguments") or ""

    def completion(self, latency_ms: float, attempt: int, where: str) -> Completion:
        """The finished answer. Raises EndpointError when the stream ended without a finish reason."""
        if self.finish_reason is None:
            raise EndpointError(
                "the stream ended without a finish reason: the engine died or a proxy cut it", where=where
            )
        return Completion(
            text="".join(self.text),
            finish_reason=self.finish_reason,
            prompt_tokens=self.usage.get("prompt_tokens"),
            completion_tokens=self.usage.get("completion_tokens"),
            latency_ms=latency_ms,
            ttft_ms=None if self.ttft_s is None else 1000 * self.ttft_s,
            refusal="".join(self.refusal) or None,
            tool_calls=[self.tool_calls[index] for index in sorted(self.tool_calls)],
            attempts=attempt,
            context=self.context,
        )


async def _events(content: "aiohttp.StreamReader") -> AsyncIterator[dict[str, Any]]:
    """Server-sent events' data as JSON, to `[DONE]` or the end; a line may come in any number of pieces."""
    pending = b""
    async for piece in content.iter_any():
        *lines, pending = (pending + piece).split(b"\n")
        for line in lines:
            data = line.strip()
            if not data.startswith(b"data:"):
                continue
            data = data[5:].strip()
            if data == b"[DONE]":
                return
            try:
                yield json.loads(data)
            except json.JSONDecodeError:
                raise EndpointError("the stream carried something that is not JSON") from None


async def _take_whole(response: "aiohttp.ClientResponse", stream: _Stream) -> None:
    """An endpoint that ignores `stream: true` and answers in one piece."""
    raw = await response.read()
    try:
        answer = json.loads(raw)
    except json.JSONDecodeError:
        raise EndpointError(
            "the endpoint answered something that is not JSON (a web page?)",
            where=str(response.url),
            fatal=True,
            hint="give the URL up to /v1",
        ) from None
    if not isinstance(answer, dict):
        raise EndpointError("the endpoint's answer is not an object", where=str(response.url), fatal=True)
    stream.take(answer, 0.0)
    stream.ttft_s = None


async def _refusal(response: "aiohttp.ClientResponse", where: str) -> EndpointError:
    """The error that an HTTP status other than 200 means."""
    raw = (await response.read())[:2000]
    try:
        error = json.loads(raw).get("error", {})
        text = str(error.get("message") if isinstance(error, dict) else error)
    except (json.JSONDecodeError, AttributeError):
        text = raw.decode("utf-8", "replace").strip().splitlines()[0][:200] if raw.strip() else (response.reason or "")
    fatal = response.status in (401, 403, 404, 405)
    hint = "set TUNEGATE_API_KEY or --api-key-file" if response.status in (401, 403) else None
    failure = EndpointError(
        f"HTTP {response.status}: {text}", status=response.status, fatal=fatal, hint=hint, where=where
    )
    after = response.headers.get("Retry-After", "")
    failure.retry_after_s = float(after) if after.isdigit() else None
    return failure


def _context(header: str | None) -> dict[str, Any] | None:
    """The header of a prompted run; None where there is none, or it is not ours."""
    try:
        found = json.loads(header) if header else None
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None


def _words(error: BaseException) -> str:
    """An exception's text, or its type's name where it has none."""
    return str(error) or type(error).__name__
