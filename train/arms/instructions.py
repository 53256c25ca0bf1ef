"""A system prompt written from the data: which form the answers have, said in as few words as a model needs."""

import json
from collections import Counter
from collections.abc import Sequence
from statistics import median

from tunegate.core.profile import is_json
from tunegate.core.rows import Row
from tunegate.core.schema_inference import infer_schema

LABELS = 100  # distinct short answers up to which they are listed
LONGEST_LABEL = 60  # characters
CALLS = "Answer by calling the functions that you are given, and with nothing else."
LONGEST_SCHEMA = 3000  # characters of an inferred schema that is worth its tokens


def write_instructions(rows: Sequence[Row]) -> tuple[str, str]:
    """(instructions, what the answers are: calls, json, label, number or text), from the expected answers of training rows.

    Calls: that functions are called, where all or some answers do; the rest is said of the other answers. JSON: the schema
    that all answers meet, or their common keys where each row has a schema of its own. Labels: the list. Numbers: the word.
    Text: its usual length.
    """
    others = [row for row in rows if not row.messages[-1].get("tool_calls")]
    if not others:
        return CALLS, "calls"
    if len(others) < len(rows):
        text, form = write_instructions(others)
        return f"{CALLS}\nWhere none of them fits: {text[0].lower()}{text[1:]}", f"calls and {form}"
    answers = [row.expected for row in rows]
    if all(is_json(answer) for answer in answers):
        return _for_json(rows, [json.loads(answer) for answer in answers]), "json"
    distinct = Counter(answer.strip() for answer in answers)
    if len(distinct) <= min(LABELS, max(2, len(rows) // 2)) and max(map(len, distinct)) <= LONGEST_LABEL:
        listed = "\n".join(f"- {label}" for label, _ in distinct.most_common())
        return f"Answer with exactly one of these labels and nothing else:\n{listed}", "label"
    if all(_is_number(answer) for answer in answers):
        return "Answer with one number and nothing else.", "number"
    words = round(median(len(answer.split()) for answer in answers))
    return f"Answer directly, without an introduction, in about {max(1, words)} words.", "text"


def _for_json(rows: Sequence[Row], values: list[object]) -> str:
    kind = "object" if all(isinstance(v, dict) for v in values) else "value"
    start = f"Answer with exactly one JSON {kind} and nothing else: no explanation, no code fence."
    own = {json.dumps(row.schema, sort_keys=True) for row in rows if row.schema is not None}
    if len(own) == 1:
        return f"{start}\nIt must match this JSON Schema: {own.pop()}"
    if (
        len(own) > 1
    ):  # every request has its own schema, which its messages must tell: only the common keys are said here
        keys = [key for key in _keys(values[0]) if all(key in _keys(v) for v in values)]
        return f"{start}\nIts keys are {', '.join(map(json.dumps, keys))}." if keys else start
    schema = json.dumps(infer_schema(values), ensure_ascii=False)
    if len(schema) > LONGEST_SCHEMA:
        return start
    return f"{start}\nIt must match this JSON Schema: {schema}"


def _keys(value: object) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace(",", ""))
    except ValueError:
        return False
    return True
