"""An asynchronous client for any OpenAI-compatible chat endpoint (vLLM, llama.cpp, Ollama, OpenAI, ...).

Streams every answer, so that time to first token is measured and a stream that dies half-way is seen: without a finish
reason it is an infrastructure error, never an answer.
"""

import asyncio
import contextlib
import errno
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from tunegate.core.errors import UserError, nearest
from tunegate.core.fast_json import decode, encode
from tunegate.core.files import no_file
from tunegate.core.rows import Message
from tunegate.serve.chat_stream import LARGEST_ANSWER, ChatStream, Completion, EndpointError, without_key
from tunegate.serve.endpoint_url import certificate_problem, checked_url
from tunegate.serve.http_errors import said_in, seconds_of
from tunegate.serve.prompting.middleware import USED_HEADER

if TYPE_CHECKING:
    import aiohttp

__all__ = [
    "ChatClient",
    "Completion",
    "EndpointError",
    "api_key",
]  # what an answer is, and its error, belong to its client

# Longest pause before another attempt, whatever `Retry-After` asks for: an hour of silence helps nobody.
LONGEST_WAIT_S = 60.0
# An unused connection is closed before the server closes it (uvicorn, and so vLLM: after 5 s), or a request may meet the end.
IDLE_S = 4.0
CONNECT_S = 10.0
NOT_RUNNING = "is the server running? ft serve status"
# Longest wait for the end of a stream whose answer is whole.
SETTLE_S = 0.25
LARGEST_REFUSAL = 64_000  # bytes read of an error's body
JSON_BODY = {"Content-Type": "application/json"}
RETRIED = frozenset({408, 409, 425, 429})  # and what a server or proxy says of itself, from 500 on
NOT_RETRIED = frozenset({501, 505})
NO_FILES = (errno.EMFILE, errno.ENFILE)
Answer = TypeVar("Answer")
CLIENT = "client"  # the cause of a request that this process could not send
TIMEOUT = "timeout"  # the cause of one that got no answer, or not all of it, within its time


def api_key(key_file: Path | None = None) -> str | None:
    """The key from `--api-key-file`, else from `TUNEGATE_API_KEY`; never from a command line."""
    if key_file is not None:
        if not key_file.is_file():
            raise no_file(key_file, "key file")
        found = _as_header(key_file.read_bytes(), str(key_file))
        if not found:  # a server asked to have a key must not be one without
            raise UserError("there is no key in this file", where=str(key_file), hint="one line: the key")
        return found
    return _as_header(os.fsencode(os.environ.get("TUNEGATE_API_KEY", "")), "TUNEGATE_API_KEY") or None


def _as_header(raw: bytes, where: str) -> str:
    """A key as it goes into a header, without the space around it. Raises UserError, which never holds a part of it."""
    try:
        key = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        key = "\0"
    if not key.isprintable():
        raise UserError("the key is not one line of text", where=where, hint="one line: the key, and nothing else")
    return key


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
        self.base_url = checked_url(base_url)
        self.model = model
        self._key, self._timeout_s, self._connections, self._retries = key, timeout_s, connections, retries
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S)
        connector = aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=IDLE_S)
        self._session = aiohttp.ClientSession(
            headers=headers, timeout=timeout, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def models(self) -> list[str]:
        """Names of the models served. Raises EndpointError."""
        answer = await self._until_it_passes(lambda _: self._json("GET", f"{self.base_url}/models", None))
        if not isinstance(answer, dict) or not isinstance(answer.get("data"), list):
            raise EndpointError(
                "not an OpenAI-compatible endpoint: /models has no data",
                cause="malformed",
                where=self.base_url,
                fatal=True,
            )
        named = (item.get("id") for item in answer["data"] if isinstance(item, dict))
        return [name for name in named if name and isinstance(name, str)]

    async def choose_model(self) -> str:
        """The model asked for, which the endpoint must serve; the only one it serves when none is named.

        `model` is that one from now on; one that is named is taken where the endpoint has no list. Raises UserError, with the
        models there are, and EndpointError.
        """
        try:
            served = await self.models()
        except EndpointError as error:
            if not self.model or error.status not in (404, 405):
                raise
            served = []
        if self.model and served and self.model not in served:
            raise UserError(
                f"the endpoint does not serve {self.model!r}", where=self.base_url, hint=nearest(self.model, served)
            )
        if not self.model and len(served) != 1:
            raise UserError(
                f"the endpoint serves {len(served)} models",
                where=self.base_url,
                hint=f"choose one with --model: {', '.join(served[:8])}"
                if served
                else "name the one to ask: --model NAME",
            )
        self.model = self.model or served[0]
        return self.model

    async def tokenize(
        self, messages: Sequence[Message], tools: list[Any] | None = None, template: dict[str, Any] | None = None
    ) -> list[int]:
        """The prompt's token ids as the server makes them (vLLM's `/tokenize`). template: its `chat_template_kwargs`.

        Raises EndpointError.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "add_generation_prompt": True,
            "add_special_tokens": False,
        }
        if tools:
            body["tools"] = tools
        if template:
            body["chat_template_kwargs"] = template
        url = f"{self.base_url.removesuffix('/v1')}/tokenize"
        answer = await self._json("POST", url, body)
        tokens = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(tokens, list):
            raise EndpointError("/tokenize gave no tokens", cause="malformed", where=url)
        return tokens

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
        raw = encode(body)
        return await self._until_it_passes(lambda attempt: self._attempt(raw, attempt))

    async def _until_it_passes(self, ask: Callable[[int], Awaitable[Answer]]) -> Answer:
        """What `ask` (given the number of the attempt, from 1) answers, asked again after a passing fault. Raises the last
        EndpointError."""
        for attempt in range(1, self._retries + 2):
            try:
                return await ask(attempt)
            except EndpointError as error:
                if error.fatal or not _passes(error.status) or attempt > self._retries:
                    raise
                wait = min(LONGEST_WAIT_S, error.retry_after_s or 0.5 * 2 ** (attempt - 1))
                await asyncio.sleep(wait * (1 + 0.25 * random.random()))
        raise AssertionError("unreachable")

    async def _attempt(self, body: bytes, attempt: int) -> Completion:
        import aiohttp

        assert self._session is not None, "use ChatClient as `async with`"
        start = time.perf_counter()
        stream = ChatStream(self.base_url, self._key)
        try:
            url = f"{self.base_url}/chat/completions"
            async with self._session.post(url, data=body, headers=JSON_BODY, allow_redirects=False) as response:
                if response.status != 200:
                    raise await _refusal(response, self.base_url, self._key)
                context = _context(response.headers.get(USED_HEADER))
                if "event-stream" not in response.headers.get("Content-Type", "").lower():
                    await self._take_whole(response, stream)
                    latency_s = time.perf_counter() - start
                else:
                    latency_s = await _take_stream(response.content, stream, start)
        except (aiohttp.ClientError, OSError) as error:
            raise self._failure(error) from None
        return stream.completion(1000 * latency_s, attempt, context)

    def _failure(self, error: "aiohttp.ClientError | OSError") -> EndpointError:
        """What aiohttp's or the system's exception says of one request."""
        import aiohttp

        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            return _not_trusted(error, self.base_url)
        message, cause, hint = f"the connection broke: {self._words(error)}", "connection", None
        if isinstance(error, OSError) and error.errno in NO_FILES:  # first: it says nothing about the endpoint
            message, cause, hint = f"this client may open no more files: {self._words(error)}", CLIENT, "ulimit -n"
        elif isinstance(error, aiohttp.ClientConnectorError):
            message, cause = f"nothing answers: {error.os_error.strerror or error}", "unreachable"
            hint = NOT_RUNNING
        elif isinstance(error, aiohttp.ConnectionTimeoutError):
            message, cause, hint = f"no connection within {CONNECT_S:.0f} s", "unreachable", NOT_RUNNING
        elif isinstance(error, TimeoutError):
            message, cause = f"no answer within {self._timeout_s:.0f} s", TIMEOUT
        return EndpointError(message, cause=cause, where=self.base_url, hint=hint)

    def _words(self, error: BaseException) -> str:
        """An exception's text, or its type's name where it has none; aiohttp's may hold a line of the answer."""
        return without_key(str(error), self._key) or type(error).__name__

    async def _take_whole(self, response: "aiohttp.ClientResponse", stream: ChatStream) -> None:
        """An endpoint that ignores `stream: true` and answers in one piece."""
        try:
            answer = decode(await _whole_body(response))
        except ValueError:
            raise _no_json(str(response.url), fatal=False) from None
        if not isinstance(answer, dict):
            raise EndpointError("the endpoint's answer is not an object", cause="malformed", where=str(response.url))
        stream.take(answer, 0.0)
        stream.ttft_s = None

    async def _json(self, method: str, url: str, body: dict[str, Any] | None) -> Any:
        import aiohttp

        assert self._session is not None, "use ChatClient as `async with`"
        raw = None if body is None else encode(body)
        try:
            headers = JSON_BODY if raw else None
            async with self._session.request(method, url, data=raw, headers=headers, allow_redirects=False) as response:
                if response.status != 200:
                    raise await _refusal(response, url, self._key)
                return decode(await _whole_body(response))
        except aiohttp.ClientConnectorCertificateError as error:
            raise _not_trusted(error, url) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise EndpointError(
                f"nothing answers: {self._words(error)}",
                cause="unreachable",
                where=url,
                fatal=True,
                hint=NOT_RUNNING,
            ) from None
        except ValueError:
            raise _no_json(url) from None


async def _take_stream(content: "aiohttp.StreamReader", stream: ChatStream, start: float) -> float:
    """Read a stream of events to `[DONE]` or its end: seconds from `start` to its last piece."""
    while not stream.done:
        piece = await content.readany()
        elapsed_s = time.perf_counter() - start
        if not piece:
            stream.end(elapsed_s)
            return elapsed_s
        stream.feed(piece, elapsed_s)
    await _settle(content)
    return elapsed_s


async def _settle(content: "aiohttp.StreamReader") -> None:
    """Read what follows an answer that is whole, so that its connection is used again; a slow end is not waited for."""
    import aiohttp

    with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(SETTLE_S):
            while await content.readany():
                pass


async def _body(response: "aiohttp.ClientResponse", limit: int) -> bytes:
    """The body of an answer in one piece, cut at `limit` bytes."""
    pieces, size = [], 0
    while size <= limit and (piece := await response.content.readany()):
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)[:limit]


async def _whole_body(response: "aiohttp.ClientResponse") -> bytes:
    """The body of an answer. Raises EndpointError for one of more than `LARGEST_ANSWER` bytes."""
    body = await _body(response, LARGEST_ANSWER + 1)
    if len(body) > LARGEST_ANSWER:
        said = f"the endpoint's answer is of more than {LARGEST_ANSWER:,} bytes"
        raise EndpointError(said, cause="malformed", where=str(response.url))
    return body


def _passes(status: int | None) -> bool:
    """Whether an HTTP status (None: there was no answer) may be another one the next time."""
    return status is None or status in RETRIED or (status >= 500 and status not in NOT_RETRIED)


def _no_json(where: str, *, fatal: bool = True) -> EndpointError:
    """fatal: not where it may be one proxy's page among many answers."""
    return EndpointError(
        "the endpoint answered something that is not JSON (a web page?)",
        cause="malformed",
        where=where,
        fatal=fatal,
        hint="give the URL up to /v1",
    )


def _not_trusted(error: "aiohttp.ClientConnectorCertificateError", where: str) -> EndpointError:
    message, hint = certificate_problem(error.certificate_error) or (str(error), None)
    return EndpointError(message, cause="unreachable", where=where, fatal=True, hint=hint)


async def _refusal(response: "aiohttp.ClientResponse", where: str, key: str | None) -> EndpointError:
    """The error that an HTTP status other than 200 means. A redirect is one: prompts and key go to the address given only.
    key: ours, which the endpoint may repeat and the error does not."""
    raw = await _body(response, LARGEST_REFUSAL)
    sent_on = response.headers.get("Location", "") if 300 <= response.status < 400 else ""
    elsewhere = without_key(sent_on, key)[:500]
    hint = "set TUNEGATE_API_KEY or --api-key-file" if response.status in (401, 403) else None
    text = without_key(said_in(raw) or response.reason or "", key)[:500]
    no_parser = response.status == 400 and "--tool-call-parser" in text  # vLLM's word on a request with tools
    if no_parser:
        hint = (
            "ft serve finds the parser by the chat template; start any other vLLM with both flags, or send_tools: false"
        )
    fatal = no_parser or response.status in (401, 403, 404, 405) or bool(elsewhere)
    if elsewhere:
        text, hint = f"it sends on to {elsewhere!r}", "redirects are not followed: give that address if you trust it"
    failure = EndpointError(
        f"HTTP {response.status}: {text}",
        cause=f"http_{response.status}",
        status=response.status,
        fatal=fatal,
        hint=hint,
        where=where,
    )
    failure.retry_after_s = seconds_of(response.headers.get("Retry-After", ""))
    return failure


def _context(header: str | None) -> dict[str, Any] | None:
    """The header of a prompted run; None where there is none, or it is not ours."""
    try:
        found = decode(header.encode("utf-8", "surrogateescape")) if header else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
