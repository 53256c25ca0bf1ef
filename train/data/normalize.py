"""The named rules by which two texts count as the same, from strict to loose. Digits are never dropped."""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from tunegate.core.answers import answer_of, call_of
from tunegate.core.files import canonical_json
from tunegate.core.rows import Message, Row

_SPACES = re.compile(r"\s+")
# What may be of one of the kinds below, which is quick to seek.
_MARK = re.compile(r"[-.,]\d|[*/%!#&@]|\S - ")
# A minus between two operands; between words it is a dash.
_MINUS = r"(?:(?<=[\d)%] )|(?<=\b\w ))-(?= (?:\w?\d|\w\b|\())|(?<=\d)-(?=\d)"
# An operator between operands; beside words it is emphasis, a heading, "and/or".
_BETWEEN = r"[*/%&](?:(?<=[\d)\]*].)|(?<=[\d)\]] .)|(?<=\b\w.)|(?<=\b\w .))(?=\s?(?:\d|[(\[*]|-?\w\b))"
# What `normalized` takes away though it changes what is asked: signs, points and commas of numbers, operators; not the mark a
# sentence ends with.
_EXACT = (
    r"(?<![^\s(])-\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)+"
    rf"|{_BETWEEN}|(?<=\d)%|(?<=\d )%|(?<=\w)#|(?<=\w)@(?=\w)|{_MINUS}|!(?=[=\w(\[{{])|(?<=[\d)])!(?=\s*[-+*/^=%<>])"
)
_MARKS = re.compile(_EXACT)
_OPERATOR = re.compile(rf"[+^=<>]|{_BETWEEN}|{_MINUS}")
# In an expression brackets count as well.
_IN_EXPRESSION = re.compile(_EXACT + r"|[()\[\]{}]")
_DASHES = dict.fromkeys(range(0x2010, 0x2016), "-")


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


def is_taught(turn: Message) -> bool:
    """Whether `ft train` learns a turn: an assistant's without `"weight": 0`. A weight it refuses counts as one."""
    return turn["role"] == "assistant" and turn.get("weight") != 0


def given(row: Row) -> list[Message]:
    """The input as far as it is given: the turns before the answer, of an earlier answer that is learnt its place alone."""
    return [{"role": "assistant"} if is_taught(turn) else turn for turn in row.prompt]


def prompt_key(row: Row) -> str:
    """What is given, normalised: every turn of `given` with its role and tool calls, the tools offered, and which turns are
    learnt."""
    learnt = [at for at, turn in enumerate(row.messages) if is_taught(turn)]
    return canonical_json([_turns(given(row)), row.tools or [], calls_of(row), learnt])


def asked_key(row: Row) -> str:
    """What a model is given when it is evaluated, normalised: the same with earlier answers as they stand."""
    return canonical_json([_turns(row.prompt), row.tools or [], calls_of(row, learnt=True)])


def input_key(row: Row) -> str:
    """What a model is asked, normalised: system, developer and user turns and the tools offered; empty without text."""
    turns = _turns(turn for turn in row.prompt if turn["role"] in ("system", "developer", "user"))
    return canonical_json([turns, row.tools or []]) if any(text for _, text, *_ in turns) else ""


def said_key(row: Row) -> str:
    """What the user said, normalised; empty without text."""
    text = user_text(row)
    return canonical_json([normalized(text), exact_marks(text)]) if normalized(text) else ""


def _turns(turns: Iterable[Message]) -> list[Any]:
    """Role and normalised text of each, with the marks that count."""
    texts = [(turn["role"], str(turn.get("content") or "")) for turn in turns]
    return [[role, normalized(text), *exact_marks(text)] for role, text in texts]


def calls_of(row: Row, *, learnt: bool = False) -> list[Any]:
    """The tool calls that are given (`learnt`: of earlier answers too) by value, and which call each tool turn answers. Their
    ids are names that anyone may give: one stands for the call that it came with."""
    names: dict[str, int] = {}
    found: list[Any] = []
    count = 0
    for at, turn in enumerate(row.prompt):
        for call in turn.get("tool_calls") or ():
            if isinstance(call, dict) and "id" in call:
                names.setdefault(str(call["id"]), count)
            count += 1
            if learnt or not is_taught(turn):
                found.append([at, call_of(call)])
        if "tool_call_id" in turn:
            found.append([at, names.get(str(turn["tool_call_id"]), turn["tool_call_id"])])
    return found


def exact_marks(text: str) -> list[str]:
    """What `normalized` takes away and two texts must share to ask the same, in order: numbers with a sign, a point or a comma
    ("-5" is not 5, nor "1.5" "1 5"), operators ("12 * 1" is not "12 - 1"), and brackets where there are operators."""
    folded = text if text.isascii() else unicodedata.normalize("NFKC", text).translate(_DASHES)
    if not _MARK.search(folded) and not ("(" in folded or "[" in folded):
        return []
    return (_IN_EXPRESSION if _OPERATOR.search(folded) else _MARKS).findall(folded)


def target_key(row: Row) -> str:
    """All that a row teaches for its input: every answer that is learnt, and the last, with the reasoning before it and its
    weight, and what else is admissible for the last."""
    cuts = [row.messages[: at + 1] for at, turn in enumerate(row.prompt) if is_taught(turn)]
    lessons = [_lesson(msgspec.structs.replace(row, messages=cut)) for cut in (*cuts, row.messages)]
    return (
        lessons[0] if len(lessons) == 1 and row.accept is None else json.dumps([*lessons, row.accept], sort_keys=True)
    )


def _lesson(row: Row) -> str:
    """The last answer with its reasoning and its weight."""
    turn = row.messages[-1]
    more = [turn.get("reasoning_content"), None if turn.get("weight") == 1 else turn.get("weight")]
    return answer_key(row) if more == [None, None] else json.dumps([answer_key(row), *more])


def admissible(row: Row) -> frozenset[str]:
    """The answers that are right for a row, by value: its `accept`, else its own."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in row.accept or ()]
    turns = ({"role": "assistant", "content": text} for text in texts)
    found = frozenset(answer_key(msgspec.structs.replace(row, messages=(turn,))) for turn in turns)
    return found or frozenset([answer_key(row)])


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
