"""What is wrong or doubtful about a row that was read well: each finding has a code, a JSON pointer and one line."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tunegate.core.chat_template import MaskError, is_learnt
from tunegate.core.errors import UserError
from tunegate.core.json_schema import SchemaFaultError, checker
from tunegate.core.profile import answer_text, is_json, strict_json
from tunegate.core.rows import Row
from tunegate.train.data.labels import LABEL_CHARACTERS
from tunegate.train.data.secrets import secrets_in

# Below this many tokens an answer that is free text teaches little (the article's checklist).
MIN_OUTPUT_TOKENS = 20
# A set claims JSON when at least this share of its answers is JSON.
CLAIMS_JSON = 0.8
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x9f]")
# UTF-8 read as Latin-1 or Windows-1252 and saved again: a lead byte's character and a continuation byte's.
_MOJIBAKE = re.compile("[\u00c2-\u00c5\u00e2][\u0080-\u00bf\u20ac\u2018-\u201e\u2020-\u2026\u2030\u2122]|\ufffd")
_BOILERPLATE = re.compile(
    r"(?i)\b(as an? (ai|artificial intelligence|large)( language)?( model| assistant)?\b|i am an ai\b|i'm an ai\b"
    r"|(my )?knowledge cut-?off|as of my last (update|training))"
)
_REFUSAL = re.compile(
    r"(?i)^\s*(i'?m (really |very )?sorry,? (but )?(i |as an )"
    r"|(i cannot|i can't|i can not|i'?m unable to|i am unable to|i'?m not able to|i am not able to|i won't) "
    r"(help|assist|provide|fulfil|answer|comply|do that|create|generate)"
    # an apology alone is none: "I apologize for the delay. Your order ..."
    r"|((i'?m )?((really|very|so) )?sorry|(i |my )?(sincere(ly)? )?apolog(i[sz]e|ies))( for [^.,;:]{1,60})?[,.;:]? *"
    r"(but |however,? )?(i (cannot|can't|can not|am unable|am not able|won't)|i'?m (unable|not able)|as an (ai|a\.i\.)))"
)
# Apostrophes that editors and models write for the straight one, a character for a character.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u02bc\u00b4\u0060\uff07", "'"))


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing found in a row. code: what, from CODES. pointer: JSON pointer into the row."""

    code: str
    file: str
    line: int
    pointer: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """As `ft data check --json` prints it."""
        return {
            "code": self.code,
            "where": f"{self.file}:{self.line} {self.pointer}".rstrip(),
            "message": self.message,
        }


CODES = {
    "duplicate_id": "an id that an earlier row has",
    "empty_turn": "a turn without text",
    "role_order": "two turns of one role in a row, or the first turn not system or user",
    "tool_calls": "tool calls and tool answers that do not belong together",
    "weight": "a weight that is neither 0 nor 1, or no turn that is learnt: `ft train` refuses such a row",
    "invalid_json": "an answer that is not JSON in a set whose answers are JSON",
    "schema": "an answer that does not satisfy its JSON Schema",
    "bad_schema": "a schema that is no JSON Schema, or one that no answer can be checked by",
    "control_character": "control characters in the text",
    "mixed_encoding": "text that was read in the wrong encoding once",
    "short_output": f"an answer under {MIN_OUTPUT_TOKENS} tokens",
    "too_long": "more tokens than --max-length: `ft train` leaves such a row out",
    "untrainable": "a prompt that alone fills --max-length: nothing of the answer would be learnt",
    "template": "a conversation that the model's chat template refuses, or whose tool calls it leaves out",
    "refusal": "an answer that refuses",
    "boilerplate": "an answer that speaks of itself as an AI",
    "secret": "what looks like a key, a token or a password",
    "personal_data": "what looks like personal data",
}


def check_row(row: Row, *, claims_json: bool) -> Iterator[Finding]:
    """The findings of one row that need no other row and no tokenizer."""
    for index, turn in enumerate(row.messages):
        pointer = f"/messages/{index}/content"
        text = turn.get("content")
        if isinstance(text, str):
            yield from _check_text(row, text, pointer, assistant=turn["role"] == "assistant")
        if not (text or turn.get("tool_calls")) or (isinstance(text, str) and text and not text.strip()):
            yield _found(row, "empty_turn", pointer, f"the {turn['role']} turn has no text")
    yield from _check_roles(row)
    yield from _check_weights(row)
    yield from _check_tools(row)
    yield from _check_answer(row, claims_json=claims_json)
    for pointer, secret in secrets_in(secret_places(row)):
        code = "personal_data" if secret.personal else "secret"
        key = ", in a key" if secret.in_key else ""
        yield _found(row, code, pointer, f"{secret.kind} at character {secret.start}{key}")


def secret_places(row: Row) -> dict[str, Any]:
    """Where secrets are looked for, and masked: all of a row but its id, group, schema and tools, under the row's keys."""
    return {"messages": list(row.messages), "accept": row.accept, "tags": row.tags, **row.extra}


def claims_json(rows: Iterable[Row]) -> bool:
    """Whether a set's answers are JSON by nature: at least 80 % of its first 1,000 rows."""
    sample = [is_json(row.expected) for _, row in zip(range(1000), rows, strict=False) if row.expected]
    return bool(sample) and sum(sample) >= CLAIMS_JSON * len(sample)


def short_outputs_matter(rows: Iterable[Row]) -> tuple[bool, str]:
    """(whether the rule of 20 tokens fits this set, why not): labels, short JSON and tool calls are short by nature. A call
    is as long as its JSON."""
    sample = [row for _, row in zip(range(1000), rows, strict=False)]
    texts = [answer_text(row) for row in sample]
    if not texts:
        return True, ""
    if sum(map(is_json, texts)) >= CLAIMS_JSON * len(texts):
        calls = any(row.messages[-1].get("tool_calls") for row in sample)
        return False, f"{'tool calls' if calls else 'answers in JSON'} are short by nature"
    if sorted(map(len, texts))[len(texts) // 2] <= LABEL_CHARACTERS:
        return False, "the answers are labels or a few words each"
    return True, ""


def _check_text(row: Row, text: str, pointer: str, *, assistant: bool) -> Iterator[Finding]:
    if match := _CONTROL.search(text):
        yield _found(row, "control_character", pointer, f"U+{ord(match[0]):04X} at character {match.start()}")
    if match := _MOJIBAKE.search(text):
        yield _found(row, "mixed_encoding", pointer, f"{match[0]!r} at character {match.start()}")
    if assistant:
        plain = text.translate(_APOSTROPHES)
        if match := _BOILERPLATE.search(plain):
            yield _found(row, "boilerplate", pointer, f"{match[0]!r}")
        if match := _REFUSAL.match(plain):
            yield _found(row, "refusal", pointer, f"begins {match[0].strip()!r}")


def _check_roles(row: Row) -> Iterator[Finding]:
    roles = [turn["role"] for turn in row.messages]
    if roles[0] not in ("system", "developer", "user"):
        yield _found(row, "role_order", "/messages/0", f"begins with {roles[0]}")
    for index in range(1, len(roles)):
        if roles[index] == roles[index - 1] and roles[index] in ("user", "assistant"):
            yield _found(row, "role_order", f"/messages/{index}", f"{roles[index]} follows {roles[index]}")
        if roles[index] in ("system", "developer") and roles[index - 1] not in ("system", "developer"):
            yield _found(row, "role_order", f"/messages/{index}", f"{roles[index]} after {roles[index - 1]}")


def _check_weights(row: Row) -> Iterator[Finding]:
    """As `ft train` reads weights."""
    learnt = False
    for index, turn in enumerate(row.messages):
        try:
            learnt = is_learnt(turn) or learnt
        except MaskError as error:
            learnt = True  # what is wrong is said
            yield _found(row, "weight", f"/messages/{index}/weight", error.message)
    if not learnt:
        yield _found(row, "weight", "/messages", "no turn is learnt: every answer has weight 0")


def _check_tools(row: Row) -> Iterator[Finding]:
    offered = set()
    for at, tool in enumerate(row.tools or []):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            offered.add(function["name"])
        else:
            yield _found(row, "tool_calls", f"/tools/{at}", "a tool without function name")
    open_ids: Counter[str] = Counter()
    for index, turn in enumerate(row.messages):
        for at, call in enumerate(turn.get("tool_calls") or []):
            pointer = f"/messages/{index}/tool_calls/{at}"
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                yield _found(row, "tool_calls", pointer, "a tool call without function name")
                continue
            if row.tools and function["name"] not in offered:
                yield _found(
                    row, "tool_calls", f"{pointer}/function/name", f"{function['name']!r} is not among the tools"
                )
            arguments = function.get("arguments")
            if isinstance(arguments, str) and arguments and not is_json(arguments):
                yield _found(row, "tool_calls", f"{pointer}/function/arguments", "arguments are not a JSON object")
            if isinstance(call.get("id"), str):
                open_ids[call["id"]] += 1
        if turn["role"] == "tool":
            called = turn.get("tool_call_id")
            if isinstance(called, str) and not open_ids[called]:
                yield _found(row, "tool_calls", f"/messages/{index}/tool_call_id", f"no call has the id {called!r}")


def _check_answer(row: Row, *, claims_json: bool) -> Iterator[Finding]:
    pointer = f"/messages/{len(row.messages) - 1}/content"
    if row.messages[-1].get("tool_calls") and not row.expected.strip():
        return
    if claims_json and not is_json(row.expected):
        yield _found(row, "invalid_json", pointer, f"not a JSON object or list{_why_not(row.expected)}")
    if row.schema is not None:
        yield from _check_schema(row, pointer)


def _why_not(text: str) -> str:
    try:
        strict_json(text)
    except UserError as error:
        return f": {error.message}"
    return ""


def _check_schema(row: Row, pointer: str) -> Iterator[Finding]:
    """By the parser and the validator that `ft eval` has: the draft by `$schema`, formats asserted, an end in time and depth."""
    assert row.schema is not None
    try:
        found = checker(row.schema, "/schema")
        broken = found.violations(strict_json(row.expected))
    except SchemaFaultError as fault:
        inside = (fault.where or "").removeprefix("/schema").strip()
        yield _found(row, "bad_schema", "/schema", f"{f'at {inside}: ' if inside else ''}{fault.message}"[:300])
    except UserError as error:
        yield _found(row, "schema", pointer, f"{error.message}: the row has a schema")
    else:
        if broken:
            yield _found(row, "schema", pointer, f"at {broken[0].pointer or '/'}: {broken[0].message[:200]}")


def _found(row: Row, code: str, pointer: str, message: str) -> Finding:
    return Finding(code=code, file=row.file, line=row.line, pointer=pointer, message=message)
