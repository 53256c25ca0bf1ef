"""The formats that rows come in, and how each is turned into the one row format: `{"messages": [...], ...}`.

Nothing is inferred but the format: values are kept as they were parsed. Keys that a format does not know stay in the row.
"""

import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.rows import json_kind, nearest_key, parse_json

Record = dict[str, Any]
FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion")
# ShareGPT's speakers, with the tool speakers of LLaMA-Factory's documented variant.
SPEAKERS = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """How to read columns that are no known format: the key of the input, of the output and, where there is one, of the
    system text."""

    prompt: str
    completion: str
    system: str | None = None


def candidates(record: Record) -> list[str]:
    """The formats whose keys the record has."""
    found = []
    if "messages" in record:
        found.append("messages")
    if "conversations" in record:
        found.append("sharegpt")
    if "instruction" in record and "output" in record:
        found.append("alpaca")
    if "prompt" in record and "completion" in record:
        found.append("prompt_completion")
    return found


def detect(record: Any, where: str) -> str:
    """The one format of a record. Raises UserError when there is none, or more than one (naming the candidates)."""
    if not isinstance(record, dict):
        raise UserError(f"expected an object, found {json_kind(record)}", where=where)
    found = candidates(record)
    if len(found) == 1:
        return found[0]
    if not found:
        keys = ", ".join(map(repr, list(record)[:6])) or "no keys"
        raise UserError(f"no known format (found {keys})", where=where, hint=_columns_hint(record))
    raise UserError(
        f"ambiguous: this can be read as {' or as '.join(found)}", where=where, hint=f"say which: --format {found[0]}"
    )


def _columns_hint(record: dict[str, Any]) -> str:
    """What to do about a record of no known format: with two columns the very options."""
    if len(record) == 2 and all(isinstance(key, str) for key in record):
        prompt, completion = (shlex.quote(key) for key in record)
        return f"name the columns; if the first is the question: --prompt-key {prompt} --completion-key {completion}"
    return f"{nearest_key(list(record))}, or name the columns: --prompt-key KEY --completion-key KEY"


def to_row(record: Any, form: str, where: str, columns: Columns | None = None) -> Record:
    """One record of format `form` (or of the named `columns`) as a row. Raises UserError with a JSON pointer."""
    if not isinstance(record, dict):
        raise UserError(f"expected an object, found {json_kind(record)}", where=where)
    if "messages" in record and (columns is not None or form != "messages"):
        raise UserError(
            'a key "messages" beside another format', where=f"{where} /messages", hint="rename it, or --format messages"
        )
    if columns is not None:
        return _from_columns(record, columns, where)
    if form not in READERS:
        raise UserError(f"unknown format {form!r}", where="--format", hint=nearest(form, list(FORMATS)))
    return READERS[form](record, where)


def _messages(record: Record, where: str) -> Record:
    return record


def _sharegpt(record: Record, where: str) -> Record:
    turns = _list(record, "conversations", where)
    messages = [_system(record["system"], where)] if record.get("system") else []
    for index, turn in enumerate(turns):
        messages.append(_turn(turn, f"{where} /conversations/{index}"))
    rest = {key: value for key, value in record.items() if key not in ("conversations", "system", "tools")}
    return {"messages": messages, **_tools(record, where), **rest}


def _turn(turn: Any, where: str) -> Record:
    if isinstance(turn, dict) and "role" in turn:
        return turn
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or "value" not in turn:
        raise UserError('a turn needs "from" and "value"', where=where)
    speaker = turn["from"]
    if speaker not in SPEAKERS:
        raise UserError(f"unknown speaker {speaker!r}", where=f"{where}/from", hint=nearest(speaker, list(SPEAKERS)))
    rest = {key: value for key, value in turn.items() if key not in ("from", "value")}
    if speaker == "function_call":
        return {"role": "assistant", "content": None, "tool_calls": _calls(turn["value"], f"{where}/value"), **rest}
    return {"role": SPEAKERS[speaker], "content": turn["value"], **rest}


def _calls(value: Any, where: str) -> list[Record]:
    """Tool calls written as JSON text: one `{"name", "arguments"}` or a list of them."""
    try:
        parsed = parse_json(value.encode("utf-8"), where) if isinstance(value, str) else value
    except UserError as error:
        raise UserError(f"a function_call must be JSON: {error.message}", where=error.where) from None
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not calls or not all(isinstance(c, dict) and set(c) == {"name", "arguments"} for c in calls):
        raise UserError('a function_call must be {"name", "arguments"} or a list of them', where=where)
    return [{"type": "function", "function": call} for call in calls]


def _tools(record: Record, where: str) -> Record:
    tools = record.get("tools")
    if isinstance(tools, str):
        if not tools.strip():
            return {}
        tools = parse_json(tools.encode("utf-8"), f"{where} /tools")
    return {} if tools is None else {"tools": tools}


def _alpaca(record: Record, where: str) -> Record:
    _require(record, ("instruction", "output"), where)
    instruction, given, output = (_text(record, key, where) for key in ("instruction", "input", "output"))
    messages = [_system(record["system"], where)] if record.get("system") else []
    messages += _history(record.get("history") or [], where)
    messages.append(
        {"role": "user", "content": f"{instruction}\n{given}" if instruction and given else instruction or given}
    )
    messages.append({"role": "assistant", "content": output})
    known = ("instruction", "input", "output", "system", "history")
    return {"messages": messages, **{key: value for key, value in record.items() if key not in known}}


def _history(pairs: Any, where: str) -> Iterator[Record]:
    if not isinstance(pairs, list):
        raise UserError("history must be a list of [question, answer]", where=f"{where} /history")
    for index, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2:
            raise UserError("history must be a list of [question, answer]", where=f"{where} /history/{index}")
        yield {"role": "user", "content": pair[0]}
        yield {"role": "assistant", "content": pair[1]}


def _prompt_completion(record: Record, where: str) -> Record:
    _require(record, ("prompt", "completion"), where)
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) != isinstance(completion, list):
        raise UserError(
            "prompt and completion must both be text or both be lists of messages", where=f"{where} /prompt"
        )
    if isinstance(prompt, list):
        if not completion:
            raise UserError("completion is empty", where=f"{where} /completion")
        messages = [*prompt, *completion]
    else:
        texts = [_text(record, key, where) for key in ("prompt", "completion")]
        messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
    return {"messages": messages, **{k: v for k, v in record.items() if k not in ("prompt", "completion")}}


def _from_columns(record: Record, columns: Columns, where: str) -> Record:
    _require(record, (columns.prompt, columns.completion, *([columns.system] if columns.system else [])), where)
    used = {columns.prompt, columns.completion, columns.system}
    messages = [_system(record[columns.system], where)] if columns.system and record[columns.system] else []
    messages.append({"role": "user", "content": _text(record, columns.prompt, where)})
    messages.append({"role": "assistant", "content": _text(record, columns.completion, where)})
    return {"messages": messages, **{key: value for key, value in record.items() if key not in used}}


def _require(record: Record, keys: tuple[str, ...], where: str) -> None:
    for key in keys:
        if key not in record:
            raise UserError(f"no key {key!r}", where=where, hint=nearest(key, list(record)) if record else None)


def _system(text: Any, where: str) -> Record:
    if not isinstance(text, str):
        raise UserError("the system text must be text", where=f"{where} /system")
    return {"role": "system", "content": text}


def _text(record: Record, key: str, where: str) -> str:
    value = record.get(key, "")
    if value is None and key == "input":
        return ""
    if not isinstance(value, str):
        raise UserError(
            f"{key} must be text, found {json_kind(value)}",
            where=f"{where} /{key}",
            hint="numbers, lists and objects are not turned into text: write the text you mean",
        )
    return value


def _list(record: Record, key: str, where: str) -> list[Any]:
    value = record.get(key)
    if not isinstance(value, list) or not value:
        raise UserError(f'"{key}" must be a non-empty list', where=f"{where} /{key}")
    return value


READERS: dict[str, Callable[[Record, str], Record]] = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
}
