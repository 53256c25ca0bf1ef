"""One chat answer as it comes over the wire: server-sent events or one JSON object, checked, put together.

Whatever an endpoint sends that is not such an answer is an EndpointError, never an answer and never a crash.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tunegate.core.errors import InfrastructureError
from tunegate.core.fast_json import decode

# An answer larger than this is no answer: the endpoint repeats itself, or is something else. Bytes.
LARGEST_ANSWER = 64_000_000  # bytes, of which a request holds up to three times as many
MOST_TOKENS = 10**12  # of one answer: beyond any
BOM = b"\xef\xbb\xbf"
GIVEN_UP = ("abort", "error")  # finish reasons of engines for an answer that has no end (vLLM, SGLang, OpenRouter)
_LINE_END = re.compile(rb"\r\n|\n|\r")
_NOT_YET = object()
SHORTEST_KEY = 6  # characters: a shorter one stands in ordinary words


class EndpointError(InfrastructureError):
    """A request that got no usable answer. status: HTTP status, None when there was none.

    fatal: no later request can fare better (wrong key, unknown model, nothing listening), so a run should stop.
    cause: what a count of failures puts it under: `http_503` and the like, timeout, unreachable, connection, cut_off,
    engine, malformed, client (of this process: the request was not sent).
    """

    def __init__(
        self,
        message: str,
        *,
        cause: str,
        status: int | None = None,
        fatal: bool = False,
        hint: str | None = None,
        where: str | None = None,
    ) -> None:
        super().__init__(message, where=where, hint=hint)
        self.cause = cause
        self.status = status
        self.fatal = fatal
        self.retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One answer. finish_reason: `stop`, `length`, ... as the endpoint says. Latencies from sending the request that
    succeeded; ttft_ms to the first content or reasoning. Token counts as the endpoint reports them, None when it does not;
    kept_tokens: of completion_tokens, reasoning that it kept to itself. context: what our server put into the prompt (`ids`
    of examples or passages, how many were `dropped`), None elsewhere."""

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
    kept_tokens: int = 0


def without_key(text: str, key: str | None) -> str:
    """What an endpoint said, with `***` for our key, as it is, in a URL or in JSON: its errors go to terminals, reports and logs of
    CI. A key of fewer than 6 characters stays."""
    if not key or len(key) < SHORTEST_KEY:
        return text
    forms = {key, quote(key), quote(key, safe=""), json.dumps(key)[1:-1], json.dumps(key, ensure_ascii=False)[1:-1]}
    longest_first = sorted(forms, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "***", text, flags=re.IGNORECASE)  # %2F is %2f


class ChatStream:
    """Collects one answer: `feed` pieces of an event stream (WHATWG HTML, section 9.2.6) and `end` it, or `take` one whole
    object.

    key: ours, which no error repeats. done: `[DONE]` came. ttft_s: seconds from the request to the first content, or the first
    of a model's reasoning.
    """

    def __init__(self, where: str, key: str | None = None) -> None:
        self.done = False
        self.ttft_s: float | None = None
        self._where, self._key = where, key
        self._pending: list[bytes] = []
        self._data: list[bytes] = []
        self._at_start, self._after_cr = True, False
        self._size = 0
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._usage: dict[str, Any] = {}
        self._thought = False

    def feed(self, piece: bytes, elapsed_s: float) -> None:
        """Bytes of the stream that came `elapsed_s` after the request, cut anywhere. Raises EndpointError."""
        self._size += len(piece)
        if self._size > LARGEST_ANSWER:
            raise self._odd(f"more than {LARGEST_ANSWER:,} bytes")
        if self._after_cr and piece:  # the second half of CR LF ends no other line
            piece, self._after_cr = piece.removeprefix(b"\n"), False
        first, *lines = _LINE_END.split(piece) if b"\r" in piece else piece.split(b"\n")
        self._pending.append(first)
        if not lines:
            return
        self._after_cr = piece[-1:] == b"\r"
        self._line(b"".join(self._pending), elapsed_s)
        self._pending = [lines.pop()]
        for line in lines:
            self._line(line, elapsed_s)

    def end(self, elapsed_s: float) -> None:
        """The stream is over; its last line, and the empty one behind it, may be missing. Raises EndpointError."""
        self._line(b"".join(self._pending), elapsed_s)
        self._pending = []
        self._dispatch(elapsed_s)

    def _line(self, line: bytes, elapsed_s: float) -> None:
        """One line of the stream: fields other than `data`, comments and what follows `[DONE]` say nothing. A byte order
        mark may stand before the first one, whose text would be lost with it.

        An event ends with an empty line, and has a chunk in its `data` lines together. A first one that is whole JSON by
        itself can only be all of it, and is taken at once: the empty line may come with the next token.
        """
        if self._at_start:
            line, self._at_start = line.removeprefix(BOM), False
        if self.done:
            return
        if not line:
            self._dispatch(elapsed_s)
        if not line.startswith(b"data:"):  # `data` alone is an empty line of data, which is nothing to JSON
            return
        data = line[5:].strip()
        if data == b"[DONE]":
            self._dispatch(elapsed_s)
            self.done = True
        elif self._data or (data and (chunk := _json(data)) is _NOT_YET):
            self._data.append(data)
        elif data:
            self.take(chunk, elapsed_s)

    def _dispatch(self, elapsed_s: float) -> None:
        """Take the event whose lines were kept, if there is one."""
        if not self._data:
            return
        chunk, self._data = _json(b"\n".join(self._data)), []
        if chunk is _NOT_YET:
            raise self._odd("something that is not JSON")
        self.take(chunk, elapsed_s)

    def take(self, chunk: Any, elapsed_s: float) -> None:
        """Add one chunk that came `elapsed_s` after the request. Raises EndpointError for what is none."""
        chunk = self._typed(chunk, dict, "a chunk")
        if error := chunk.get("error") or (chunk if chunk.get("object") == "error" else None):  # vLLM's old form
            text = (error.get("message") or error) if isinstance(error, dict) else error
            said = without_key(str(text), self._key)
            raise EndpointError(f"the engine failed in mid-stream: {said}", cause="engine", where=self._where)
        self._usage = self._typed(chunk.get("usage"), dict, "usage") or self._usage
        for choice in self._typed(chunk.get("choices"), list, "choices"):
            choice = self._typed(choice, dict, "a choice")
            if choice.get("index") not in (0, None):
                raise self._odd("several answers to one request")
            delta = self._typed(
                choice.get("message") if choice.get("delta") is None else choice["delta"], dict, "a delta"
            )
            content = self._content(delta.get("content"))
            refusal = self._typed(delta.get("refusal"), str, "refusal")
            calls = self._typed(delta.get("tool_calls"), list, "tool_calls")
            # vLLM's and other engines' names for what a model thinks: the usage counts those tokens too
            thought = delta.get("reasoning") or delta.get("reasoning_content")
            self._thought = self._thought or bool(thought)
            if self.ttft_s is None and (content or refusal or calls or thought):
                self.ttft_s = elapsed_s
            self._text.append(content)
            self._refusal.append(refusal)
            for call in calls:
                self._take_call(self._typed(call, dict, "a tool call"))
            self._finish_reason = self._typed(choice.get("finish_reason"), str, "finish_reason") or self._finish_reason

    def _content(self, content: Any) -> str:
        """Text, or a list of parts whose texts are joined (some endpoints answer in the form of a user's turn)."""
        if not isinstance(content, list):
            found: str = self._typed(content, str, "content")
            return found
        parts = [self._typed(part, dict, "a part of the content") for part in content]
        return "".join(self._typed(part.get("text"), str, "a part's text") for part in parts)

    def _take_call(self, call: dict[str, Any]) -> None:
        index = call.get("index")
        if index is None:  # the rest of a call has neither id nor name
            function = call.get("function")
            named = call.get("id") or (isinstance(function, dict) and function.get("name"))
            index = max(self._calls, default=-1) + (1 if named or not self._calls else 0)
        if not isinstance(index, int):
            raise self._odd("a tool call whose index is no whole number")
        known = self._calls.setdefault(
            index, {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        known["id"] = self._typed(call.get("id"), str, "a tool call's id") or known["id"]
        function = self._typed(call.get("function"), dict, "a tool call's function")
        for key in ("name", "arguments"):
            known["function"][key] += self._typed(function.get(key), str, f"a tool call's {key}")

    def _typed(self, value: Any, kind: type, name: str) -> Any:
        """`value`, which must be of this type; null means an empty one, as endpoints use it."""
        if value is None:
            return kind()
        if not isinstance(value, kind):
            raise self._odd(f"{name} that is {type(value).__name__}, not {kind.__name__}")
        return value

    def _odd(self, what: str) -> EndpointError:
        return EndpointError(f"the answer holds {what}", cause="malformed", where=self._where)

    def completion(self, latency_ms: float, attempt: int, context: dict[str, Any] | None) -> Completion:
        """The finished answer. Raises EndpointError when it ended without a finish reason, or the engine gave it up."""
        if self._finish_reason is None:
            raise EndpointError(
                "the stream ended without a finish reason: the engine died or a proxy cut it",
                cause="cut_off",
                where=self._where,
            )
        if self._finish_reason in GIVEN_UP:
            raise EndpointError(
                f"the engine gave the answer up ({self._finish_reason}): it stops, sleeps or failed",
                cause="engine",
                where=self._where,
            )
        for call in self._calls.values():
            call["function"] = {key: whole(value) for key, value in call["function"].items()}
        details = self._usage.get("completion_tokens_details")
        thoughts = details.get("reasoning_tokens") if isinstance(details, dict) else None
        return Completion(
            text=whole("".join(self._text)),
            finish_reason=self._finish_reason,
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            completion_tokens=_count(self._usage.get("completion_tokens")),
            latency_ms=latency_ms,
            ttft_ms=None if self.ttft_s is None else 1000 * self.ttft_s,
            refusal=whole("".join(self._refusal)) or None,
            tool_calls=[self._calls[index] for index in sorted(self._calls)],
            attempts=attempt,
            context=context,
            kept_tokens=0 if self._thought else _count(thoughts) or 0,
        )


def _json(data: bytes) -> Any:
    try:
        return decode(data)
    except ValueError:
        return _NOT_YET


def whole(text: str) -> str:
    """The text with halves of surrogate pairs joined, where a chunk ended between them; a half alone becomes U+FFFD, because
    no file in UTF-8 can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _count(value: Any) -> int | None:
    """A token count; None where the endpoint reports something that is none, or beyond any."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS else None
