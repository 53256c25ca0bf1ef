"""Rows in the formats of others. A row is written only if reading it back gives the same row; else it is refused, by field.

Known losses of the formats: `openai` has no place for id, group, tags, schema, accept and unknown keys (`--drop` leaves them
out); `alpaca` has one text for the input and no tools; `sharegpt` has neither call ids nor text beside a call.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.rows import Row, content_id, parse_row
from tunegate.train.data.formats import to_row

TARGETS = ("openai", "sharegpt", "alpaca", "trl")
READ_AS = {"openai": "messages", "sharegpt": "sharegpt", "alpaca": "alpaca", "trl": "prompt_completion"}
# Keys of a training example the OpenAI fine-tuning API takes (platform.openai.com, "Fine-tuning", chat format).
OPENAI_KEYS = ("messages", "tools", "parallel_tool_calls", "functions")
SPEAKER = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def export(rows: Iterable[Row], target: str, drop: tuple[str, ...] = ()) -> Iterator[str]:
    """Each row as one JSON line of format `target`.

    drop: keys of the row to leave out knowingly. Raises UserError, naming row and field, for a row the format cannot hold.
    """
    if target not in TARGETS:
        raise UserError(f"unknown format {target!r}", where="--to", hint=nearest(target, list(TARGETS)))
    for row in rows:
        where = f"{row.file}:{row.line}"
        plain = _plain(row, drop)
        record = WRITERS[target](plain, where)
        _prove(plain, record, target, where)
        yield json.dumps(record, ensure_ascii=False, allow_nan=False)


def _plain(row: Row, drop: tuple[str, ...]) -> dict[str, Any]:
    """The row as JSON without dropped keys, and without an id that only repeats its content."""
    value = row.to_json()
    if row.id == content_id(row.messages, row.tools):
        del value["id"]
    return {key: item for key, item in value.items() if key not in drop}


def _prove(plain: dict[str, Any], record: dict[str, Any], target: str, where: str) -> None:
    """Raises UserError with the pointer of the first field that does not come back as it was."""
    text = json.dumps(record, ensure_ascii=False)
    try:
        back = _plain(parse_row(to_row(json.loads(text), READ_AS[target], where), "", 0), ())
    except UserError as error:
        raise UserError(f"{target} cannot hold this row: {error.message}", where=error.where or where) from None
    pointer = first_difference(plain, back)
    if pointer is not None:
        raise UserError(
            f"{target} cannot hold this field unchanged", where=f"{where} {pointer}", hint="choose another format"
        )


def first_difference(a: Any, b: Any, pointer: str = "") -> str | None:
    """JSON pointer of the first place where two JSON values differ (type, value, key order aside), else None."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                return f"{pointer}/{key}"
            if (found := first_difference(a[key], b[key], f"{pointer}/{key}")) is not None:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list):
        for index, (left, right) in enumerate(zip(a, b, strict=False)):
            if (found := first_difference(left, right, f"{pointer}/{index}")) is not None:
                return found
        return None if len(a) == len(b) else f"{pointer}/{min(len(a), len(b))}"
    return None if type(a) is type(b) and a == b else pointer or "/"


def _openai(row: dict[str, Any], where: str) -> dict[str, Any]:
    for key in row:
        if key not in OPENAI_KEYS:
            raise UserError(
                "openai has no place for this field", where=f"{where} /{key}", hint=f"leave it out with --drop {key}"
            )
    for index, turn in enumerate(row["messages"]):
        for at, call in enumerate(turn.get("tool_calls") or []):
            arguments = call.get("function", {}).get("arguments") if isinstance(call, dict) else None
            if not isinstance(arguments, str):
                pointer = f"/messages/{index}/tool_calls/{at}/function/arguments"
                raise UserError("openai wants the arguments as JSON text", where=f"{where} {pointer}")
    return row


def _trl(row: dict[str, Any], where: str) -> dict[str, Any]:
    messages = row["messages"]
    return _beside({"prompt": messages[:-1], "completion": messages[-1:]}, row, where)


def _alpaca(row: dict[str, Any], where: str) -> dict[str, Any]:
    turns = row["messages"]
    first = int(turns[0]["role"] == "system")
    system = {"system": turns[0].get("content")} if first else {}
    for index, turn in enumerate(turns):
        role = "system" if first and index == 0 else ("user", "assistant")[(index - first) % 2]
        if turn["role"] != role:
            raise UserError(f"alpaca wants a {role} turn here", where=f"{where} /messages/{index}/role")
        if extra := next((key for key in turn if key not in ("role", "content")), None):
            raise UserError("alpaca has no place for this field", where=f"{where} /messages/{index}/{extra}")
    texts = [turn["content"] for turn in turns[first:]]
    history = [list(pair) for pair in zip(texts[:-2:2], texts[1:-2:2], strict=True)]
    record = {"instruction": texts[-2], "input": "", "output": texts[-1], **system}
    return _beside({**record, **({"history": history} if history else {})}, row, where)


def _sharegpt(row: dict[str, Any], where: str) -> dict[str, Any]:
    turns = []
    for index, turn in enumerate(row["messages"]):
        if turn["role"] not in SPEAKER:
            raise UserError("sharegpt has no such speaker", where=f"{where} /messages/{index}/role")
        rest = {key: value for key, value in turn.items() if key not in ("role", "content", "tool_calls")}
        if turn.get("tool_calls"):
            turns.append({"from": "function_call", "value": _calls(turn, f"{where} /messages/{index}"), **rest})
        else:
            turns.append({"from": SPEAKER[turn["role"]], "value": turn.get("content"), **rest})
    return _beside({"conversations": turns}, row, where)


def _calls(turn: dict[str, Any], where: str) -> str:
    if turn.get("content"):
        raise UserError("sharegpt has no place for text beside a tool call", where=f"{where}/content")
    calls = []
    for index, call in enumerate(turn["tool_calls"]):
        if not isinstance(call, dict) or set(call) != {"type", "function"}:
            key = next((k for k in call if k not in ("type", "function")), "") if isinstance(call, dict) else ""
            raise UserError(
                "sharegpt has no place for this field", where=f"{where}/tool_calls/{index}/{key}".rstrip("/")
            )
        calls.append(call["function"])
    return json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)


def _beside(record: dict[str, Any], row: dict[str, Any], where: str) -> dict[str, Any]:
    """The record with the row's other fields. Raises UserError when one has a name the format uses itself."""
    rest = {key: value for key, value in row.items() if key != "messages"}
    taken = {*record, *(("system",) if "conversations" in record or "instruction" in record else ())}
    for key in rest:
        if key in taken:
            raise UserError(
                "the format uses this name itself", where=f"{where} /{key}", hint=f"leave it out with --drop {key}"
            )
    return {**record, **rest}


WRITERS: dict[str, Callable[[dict[str, Any], str], dict[str, Any]]] = {
    "openai": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "trl": _trl,
}
