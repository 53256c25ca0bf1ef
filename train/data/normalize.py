"""The named rules by which two texts count as the same, from strict to loose. Digits are never dropped."""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from tunegate.core.answers import answer_of, call_of
from tunegate.core.files import canonical_json
from tunegate.core.rows import Row

_SPACES = re.compile(r"\s+")
# A sign, point or comma before a digit, which is quick to seek; numbers that have one.
_MARK = re.compile(r"[-.,]\d")
_SIGNED = re.compile(r"(?<![^\s(])-\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)+")


def lower_spaces(text: str) -> str:
    """Lower case, runs of white space to one space, none at the ends."""
    return _SPACES.sub(" ", text.lower()).strip()


def normalized(text: str) -> str:
    """NFKC, case-folded, punctuation (Unicode categories P*) to space, white space collapsed.

    Symbols such as `<`, `+` and currency signs stay: they change what is asked. A text of punctuation alone keeps it.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.translate(_PUNCTUATION).split()) or " ".join(folded.split())


def alphanumeric(text: str) -> str:
    """Letters and digits only, of the normalised text; that text itself when it has neither."""
    folded = normalized(text)
    return "".join(c for c in folded if c.isalnum()) or folded


RULES: dict[str, Callable[[str], str]] = {
    "raw": str,
    "lower_spaces": lower_spaces,
    "normalized": normalized,
    "alphanumeric": alphanumeric,
}
RULE_NAMES = {
    "raw": "raw text",
    "lower_spaces": "lower case, white space collapsed",
    "normalized": "NFKC, case-folded, punctuation to space",
    "alphanumeric": "letters and digits only",
}


def user_text(row: Row) -> str:
    """What the user said: all user turns, one a line."""
    return "\n".join(str(turn.get("content") or "") for turn in row.messages if turn["role"] == "user")


def prompt_key(row: Row, rule: Callable[[str], str] = normalized) -> str:
    """The whole input under a rule: every turn but the answer, with roles and tool calls, and the tools offered."""
    turns = [[turn["role"], rule(str(turn.get("content") or ""))] for turn in row.prompt]
    return canonical_json([turns, row.tools or [], calls_of(row)])


def calls_of(row: Row) -> list[Any]:
    """The tool calls of the input by value, and which of them each tool turn answers. Their ids are names that anyone may
    give: one stands for the call that it came with."""
    names: dict[str, int] = {}
    found: list[Any] = []
    for at, turn in enumerate(row.prompt):
        for call in turn.get("tool_calls") or ():
            if isinstance(call, dict) and "id" in call:
                names.setdefault(str(call["id"]), len(found))
            found.append([at, call_of(call)])
        if "tool_call_id" in turn:
            found.append([at, names.get(str(turn["tool_call_id"]), turn["tool_call_id"])])
    return found


def exact_numbers(row: Row) -> list[list[str]]:
    """The numbers of each turn of the input that have a sign, a point or a comma, which `normalized` takes away: "-5" is not
    5, nor "1.5" "1 5". Empty without such a number."""
    texts = [unicodedata.normalize("NFKC", str(turn.get("content") or "")) for turn in row.prompt]
    if not any(map(_MARK.search, texts)):
        return []
    found = [_SIGNED.findall(text) for text in texts]
    return found if any(found) else []


def input_key(row: Row) -> str:
    """What a model is asked, normalised: system, developer and user turns and the tools offered; empty without text."""
    turns = [
        [turn["role"], normalized(str(turn.get("content") or ""))]
        for turn in row.prompt
        if turn["role"] in ("system", "developer", "user")
    ]
    return canonical_json([turns, row.tools or []]) if any(text for _, text in turns) else ""


def target_key(row: Row) -> str:
    """All that a row teaches for its input: its answer, the reasoning before it, and what else is admissible."""
    answer, more = answer_key(row), [row.messages[-1].get("reasoning_content"), row.accept]
    return answer if more == [None, None] else canonical_json([answer, *more])


def answer_key(row: Row) -> str:
    """The answer, so that equal answers compare equal."""
    return json.dumps(answer_of(row), ensure_ascii=False, sort_keys=True)


class _Table(dict[int, int]):
    """A `str.translate` table, filled as characters are met: punctuation becomes a space."""

    def __missing__(self, code: int) -> int:
        mapped = 32 if unicodedata.category(chr(code)).startswith("P") else code
        self[code] = mapped
        return mapped


_PUNCTUATION = _Table()
