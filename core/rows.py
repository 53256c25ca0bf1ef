"""One row of data, and the JSONL reader that every stage uses. Lines are parsed as JSON and nothing else is inferred."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from tunegate.core.errors import UserError, nearest
from tunegate.core.files import canonical_json, finite, no_constant, sha256_text

ROLES = ("system", "developer", "user", "assistant", "tool")
# Keys whose values are objects or lists: JSON text where a file has only cells (CSV, Parquet).
JSON_KEYS = ("messages", "tools", "tags", "schema", "accept")
KEYS = ("messages", "id", "group", "tags", "schema", "accept", "tools")
TYPES: dict[str, type | tuple[type, ...]] = {
    "id": (str, int),
    "group": (str, int),
    "tags": dict,
    "schema": (dict, bool),
    "accept": list,
    "tools": list,
}
Message = dict[str, Any]
_FAST = msgspec.json.Decoder()
_ENCODER = msgspec.json.Encoder()


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One example: a conversation whose last assistant turn is what is expected.

    id: given, else the first 16 hex digits of the content's SHA-256. schema: JSON Schema of the answer. accept: list of
    admissible outputs. extra: keys we do not know, kept as they are. file, line: where it was read. numeric: which
    of `id` and `group` came as numbers, to be written as numbers again.
    """

    id: str
    messages: tuple[Message, ...]
    group: str | None = None
    tags: dict[str, Any] = {}  # msgspec gives each row its own
    schema: dict[str, Any] | bool | None = None
    accept: list[Any] | None = None
    tools: list[Any] | None = None
    extra: dict[str, Any] = {}
    file: str = ""
    line: int = 0
    numeric: tuple[str, ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The turns the model is given."""
        return self.messages[:-1]

    @property
    def expected(self) -> str:
        """The answer's text; empty for an answer that only calls tools."""
        return str(self.messages[-1].get("content") or "")

    def to_json(self) -> dict[str, Any]:
        """The row as it is written to JSONL; absent fields are left out."""
        optional = {"group": self.group, "schema": self.schema, "accept": self.accept, "tools": self.tools}
        kept = {key: value for key, value in optional.items() if value is not None}
        tags = {"tags": self.tags} if self.tags else {}
        value = {"id": self.id, "messages": list(self.messages), **tags, **kept, **self.extra}
        return value | {key: int(value[key]) for key in self.numeric}


def content_id(messages: Iterable[Message], tools: list[Any] | None) -> str:
    """16 hex digits that name a row by its content (messages and tools)."""
    return sha256_text(canonical_json({"messages": list(messages), "tools": tools}))[:16]


def read_rows(path: Path) -> Iterator[Row]:
    """Read a JSONL file of rows, streaming.

    Byte order mark, CRLF and blank lines are accepted; U+2028 inside a string does not end a line.
    Raises UserError with file and line for anything else that is not a row, and when there is no row at all.
    """
    number = 0
    for number, value in read_jsonl(path):
        yield parse_row(value, str(path), number)
    if number == 0:
        raise UserError("the file is empty", where=str(path), hint='expected one {"messages": [...]} per line')


def read_unique_rows(path: Path) -> list[Row]:
    """All rows of a file. Raises UserError when two rows share an id (results could not be told apart)."""
    rows = list(read_rows(path))
    seen: dict[str, int] = {}
    for row in rows:
        if row.id in seen:
            raise UserError(
                f"id {row.id!r} is also on line {seen[row.id]}",
                where=f"{path}:{row.line}",
                hint="ids must be unique; leave them out to get one from the content",
            )
        seen[row.id] = row.line
    return rows


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, parsed value) of a JSONL file; blank lines are passed over."""
    if not path.exists():
        raise UserError("no such file", where=str(path))
    if path.is_dir():
        raise UserError("is a folder, a JSONL file is needed here", where=str(path))
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, 1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield number, parse_json(line, f"{path}:{number}")


def parse_json(raw: bytes, where: str) -> Any:
    """Strict JSON: UTF-8, no NaN or Infinity, no key twice in one object, no lone surrogate, no number beyond a double.

    Integers keep every digit. The fast parser (msgspec) takes a line when writing it again gives as many quotation marks:
    a key that stood twice would be missing. Whatever it refuses, or this count does, is read by the slow, exact one.
    Raises UserError with `where`.
    """
    try:
        value = _FAST.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _parse_exactly(raw, where)
    if raw.count(b'"') != _ENCODER.encode(value).count(b'"') or b"\\u0022" in raw:
        return _parse_exactly(raw, where)
    return value


def _parse_exactly(raw: bytes, where: str) -> Any:
    try:
        text = raw.rstrip(b"\r\n").decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"not UTF-8 (byte {error.start + 1} of the line)", where=where, hint="save the file as UTF-8"
        ) from None
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=no_constant, parse_float=finite)
        if pointer := lone_surrogate(value):
            raise UserError("a lone surrogate: half of a character", where=f"{where} {pointer}")
    except json.JSONDecodeError as error:
        raise UserError(f"not valid JSON: {error.msg} at column {error.colno}", where=where) from None
    except RecursionError:
        raise UserError("JSON nested too deeply", where=where) from None
    except ValueError as error:
        raise UserError(str(error), where=where) from None
    return value


def lone_surrogate(value: Any, pointer: str = "") -> str | None:
    """JSON pointer of the first text that holds half of a surrogate pair (it cannot be written as UTF-8), else None."""
    if isinstance(value, str):
        return (pointer or "/") if any("\ud800" <= c <= "\udfff" for c in value) else None
    if isinstance(value, dict):
        items: Iterable[tuple[Any, Any]] = value.items()
        if any(lone_surrogate(key) for key in value):
            return pointer or "/"
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return None
    return next((found for key, item in items if (found := lone_surrogate(item, f"{pointer}/{key}"))), None)


def parse_row(value: Any, file: str, line: int) -> Row:
    """Check one parsed JSON value and make a Row of it. Raises UserError naming file, line and JSON pointer."""
    if not isinstance(value, dict):
        raise UserError(f"expected an object, found {json_kind(value)}", where=f"{file}:{line}")
    if "messages" not in value:
        found = ", ".join(map(repr, list(value)[:6])) or "no keys"
        raise UserError(f'no "messages" (found {found})', where=f"{file}:{line}", hint=nearest_key(list(value)))
    messages = _messages(value["messages"], file, line)
    for key, item in value.items():
        kind = TYPES.get(key)
        boolean = isinstance(item, bool) and key != "schema"
        if kind is not None and item is not None and (boolean or not isinstance(item, kind)):
            raise UserError(f'"{key}" must not be {json_kind(item)}', where=f"{file}:{line} /{key}")
    group = value.get("group")
    identity = value.get("id")
    return Row(
        id=content_id(messages, value.get("tools")) if identity is None else str(identity),
        messages=messages,
        group=None if group is None else str(group),
        tags=value.get("tags") or {},
        schema=value.get("schema"),
        accept=value.get("accept"),
        tools=value.get("tools"),
        extra={key: item for key, item in value.items() if key not in KEYS},
        file=file,
        line=line,
        numeric=tuple(key for key in ("id", "group") if isinstance(value.get(key), int)),
    )


def nearest_key(found: list[str]) -> str:
    """A hint for a row without `messages`: a key misspelt, or another known format."""
    for key in found:
        if "did you mean" in (hint := nearest(key, ["messages"])):
            return hint
    return 'a row is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}; "ft data prepare" reads other formats'


def _messages(value: Any, file: str, line: int) -> tuple[Message, ...]:
    where = f"{file}:{line}"
    if not isinstance(value, list) or not value:
        raise UserError(f'"messages" must be a non-empty list, found {json_kind(value)}', where=where)
    for index, message in enumerate(value):
        if not _is_plain(message):
            _check_message(message, f"{where} /messages/{index}")
    if value[-1]["role"] != "assistant":
        if not any(message["role"] == "assistant" for message in value):
            raise UserError("no assistant turn: there is nothing to learn from or to compare with", where=where)
        raise UserError(
            f"the last turn is {value[-1]['role']!r}, it must be the assistant's expected answer", where=where
        )
    return tuple(value)


def _is_plain(message: Any) -> bool:
    """Whether a message is the common kind, right without a closer look: a known role and text, no tool calls."""
    return (
        isinstance(message, dict)
        and message.get("role") in ROLES
        and isinstance(message.get("content"), str)
        and "tool_calls" not in message
        and "function_call" not in message
    )


def _check_message(message: Any, pointer: str) -> None:
    """Raises UserError with what is wrong with a message."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UserError('a message needs "role" and "content"', where=pointer)
    role = message["role"]
    if role not in ROLES:
        raise UserError(f"unknown role {role!r}", where=pointer, hint=nearest(role, list(ROLES)))
    if not isinstance(message.get("tool_calls"), list | None):
        raise UserError("tool_calls must be a list", where=f"{pointer}/tool_calls")
    if message.get("function_call") is not None:
        hint = 'put it under "tool_calls": [{"type": "function", "function": {"name": ..., "arguments": ...}}]'
        raise UserError(
            "the former form of a tool call, which is not read", where=f"{pointer}/function_call", hint=hint
        )
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise UserError("a message without content", where=pointer)
    if content is not None and not isinstance(content, str):
        raise UserError(f"content must be text, found {json_kind(content)}", where=pointer)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice!r} stands twice in one object")
    return value


def json_kind(value: Any) -> str:
    """A JSON value's type, in JSON's words: `a number`, `text`, `a list that is empty`."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__) + (" that is empty" if value in ([], {}, "") else "")
