"""Named steps that take the answer out of what stands around it. Off unless the task lists them: what a caller's parser
would choke on must not pass here."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.evalkit.validators.base import NotJsonError, strict_json

_FENCED_LINES = re.compile(r"^[ \t]*(`{3,})[^\n`]*\n(.*?)^[ \t]*\1`*[ \t]*$", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_OPENED, _CLOSED = "<think>", "</think>"
_CALL_TAGS = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_MISTRAL_CALL = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)\[ARGS\]\s*")
_MISTRAL, _LLAMA = "[TOOL_CALLS]", "<|python_tag|>"
_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)  # an escaped character is one mark, so that \" ends no text
_BEGIN = re.compile(r'\{\s*["}]|\[\s*["{\[\]tfn\d-]')  # how it begins; of LaTeX's many {x} none is parsed


def code_fence(text: str) -> str:
    """The content of the one ``` block; the text as it is when there is none, or several."""
    blocks = [block.removesuffix("\n") for _, block in _FENCED_LINES.findall(text)] or _FENCE.findall(text)
    return blocks[0] if len(blocks) == 1 else text


def json_in_prose(text: str) -> str:
    """The first balanced {...} or [...] in the text that is strict JSON; a list of nothing but whole numbers, as the citations [1]
    and [2, 3] are, only where no other follows. The first balanced one where none is JSON, the text as it is where there is none.
    What is expected plays no part. `null` stays `null`."""
    first = numbers = None
    for block in _balanced(text):
        first = first or block
        value = _json(block) if _BEGIN.match(block) else None
        if isinstance(value, list) and value and all(type(member) is int for member in value):
            numbers = numbers or block
        elif value is not None:
            return block
    return numbers or first or text


def _balanced(text: str) -> Iterator[str]:
    """The outermost {...} and [...], in order, up to one that never ends. Quotes count inside of them only."""
    start, depth, in_string = 0, 0, False
    for match in _MARK.finditer(text):
        mark = match.group()
        if mark == '"':
            in_string = depth > 0 and not in_string
        elif mark[0] == "\\" or in_string:
            continue
        elif mark in "{[":
            start = start if depth else match.start()
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                yield text[start : match.end()]


def thinking(text: str) -> str:
    """The text after a leading <think>...</think> block, whose opening tag may stand in the prompt. A block that never ends
    leaves nothing: the last number of a train of thought is no answer."""
    opened, closed = text.lstrip().startswith(_OPENED), text.find(_CLOSED)
    if closed >= 0 and (opened or _OPENED not in text[:closed]):
        return text[closed + len(_CLOSED) :]
    return "" if opened else text


def last_line(text: str) -> str:
    """The last line that is not blank."""
    return next((line for line in reversed(text.splitlines()) if line.strip()), "")


def tool_calls(text: str) -> str:
    """The calls that a model writes as text, as a JSON list of {"name", "arguments"}: in <tool_call> tags (Hermes, Qwen), after
    [TOOL_CALLS] (Mistral, with and without [ARGS]), after <|python_tag|> or bare with "parameters" (Llama 3). The text as it is where it is none of
    these. A server with a tool parser gives them as tool calls instead."""
    if blocks := _CALL_TAGS.findall(text):
        values = [_json(block) for block in blocks]
    elif _MISTRAL in text:
        said = text.partition(_MISTRAL)[2].strip().removesuffix("</s>")
        values = [_named_args(said) or _json(said)]
    else:
        values = [_json(text.strip().removeprefix(_LLAMA))]
        if isinstance(values[0], list):
            return text
    calls = [call for value in values for call in (value if isinstance(value, list) else [value])]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return text
    named = [{"name": call["name"], "arguments": call.get("arguments", call.get("parameters"))} for call in calls]
    return json.dumps(named, ensure_ascii=False)


def _named_args(text: str) -> list[dict[str, Any]]:
    """Mistral's later form, name[ARGS]{...} one after another; none where the text is of another, or breaks off."""
    found, at = [], 0
    while start := _MISTRAL_CALL.match(text, at):
        try:
            _, at = json.JSONDecoder().raw_decode(text, start.end())
        except (ValueError, RecursionError):
            return []
        found.append({"name": start[1], "arguments": _json(text[start.end() : at])})
    return [] if text[at:].strip() else found


def _json(text: str) -> Any:
    """The JSON value that a text is; None where it is none, or holds a key twice."""
    try:
        return strict_json(text)
    except NotJsonError:
        return None


STEPS: dict[str, Callable[[str], str]] = {
    "code_fence": code_fence,
    "json_in_prose": json_in_prose,
    "thinking": thinking,
    "last_line": last_line,
    "tool_calls": tool_calls,
}


def extract(text: str, steps: tuple[str, ...]) -> str:
    """`text` after the named steps, in order."""
    for step in steps:
        text = STEPS[step](text)
    return text


def check(steps: tuple[str, ...], where: str) -> None:
    """Raises UserError for a step there is not."""
    for step in steps:
        if step not in STEPS:
            raise UserError(f"no extraction step {step!r}", where=where, hint=nearest(step, list(STEPS)))
