"""Named steps that take the answer out of what stands around it. Off unless the task lists them: what a caller's parser
would choke on must not pass here."""

import re
from collections.abc import Callable

from tunegate.core.errors import UserError, nearest

_FENCE = re.compile(r"```[^\n`]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_OPENED, _CLOSED = "<think>", "</think>"
_MARK = re.compile(r'\\.|["{}\[\]]', re.DOTALL)  # an escaped character is one mark, so that \" ends no text


def code_fence(text: str) -> str:
    """The content of the one ``` block; the text as it is when there is none, or several."""
    blocks = _FENCE.findall(text)
    return blocks[0] if len(blocks) == 1 else text


def json_in_prose(text: str) -> str:
    """The first balanced {...} or [...] in the text; the text as it is when there is none. `null` stays `null`."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    if start < 0:
        return text
    depth, in_string = 0, False
    for match in _MARK.finditer(text, start):
        mark = match.group()
        if mark == '"':
            in_string = not in_string
        elif mark[0] != "\\" and not in_string:
            depth += 1 if mark in "{[" else -1
            if depth == 0:
                return text[start : match.end()]
    return text


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


STEPS: dict[str, Callable[[str], str]] = {
    "code_fence": code_fence,
    "json_in_prose": json_in_prose,
    "thinking": thinking,
    "last_line": last_line,
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
