"""`ft eval init`: a task file from a look at the expected outputs."""

import json
import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import refuse_input, write_json, write_text
from tunegate.core.rows import Row, read_unique_rows
from tunegate.core.schema_inference import infer_schema
from tunegate.evalkit.validators.base import NotJsonError, strict_json
from tunegate.evalkit.validators.number import numbers
from tunegate.evalkit.validators.tool_call import call_of

MIXED = "native_call_or_text"
LABELS = 200  # distinct texts up to which short outputs are labels
MAX_SLICES = 30  # values of a tag that make a slice
SQL_SHARE = 0.8  # of answers that look like SQL, from which the set is taken for one of queries
_READS = re.compile(r"\bselect\b[^;]*\bfrom\b")
# What may stand beside a number that is the whole answer: a currency, percent, degrees, a short unit.
_MONEY = r"[$€£¥₹]|[A-Z]{3}"
_UNIT = rf"{_MONEY}|[%‰°]|°?[A-Za-zµΩ]{{1,3}}[²³]?(?:/[a-z]{{1,3}}[²³]?)?"
_DIGITS = r"[-+\N{MINUS SIGN}]?(?!0\d)(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?P<before>{_MONEY}|) ?{_DIGITS} ?(?P<after>{_UNIT}|)")


def init_task(data: Path, out: Path, *, force: bool) -> dict[str, Any]:
    """Write a task file for `data`, rows or a Dataset folder (its held-out rows); where outputs are JSON objects also the schema inferred from them.

    Returns what was found: `outputs`, `primary`, `text`, `schema`. Raises UserError when `out` exists already.
    """
    if out.exists() and not force:
        raise UserError("exists already", where=str(out), hint="pass --force to replace it")
    refuse_input(out, data)
    name = data.stem
    if data.is_dir():
        data = Dataset.open(data).eval_path
    rows = read_unique_rows(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    kind = _kind(rows)
    schema = None
    if kind == "json" and all(row.schema is None for row in rows):
        schema = out.with_name(f"{out.stem}.schema.json")
        if schema.exists() and not force:
            raise UserError("exists already", where=str(schema), hint="pass --force to replace it")
        write_json(schema, infer_schema([strict_json(row.expected) for row in rows]))
    lines, primary = _validators(kind, rows, None if schema is None else schema.name)
    if kind == MIXED:
        calling = sum(map(_calls, rows))
        say(
            f"{calling} of {len(rows)} expected answers call tools: the others pass when nothing is called, whatever the text says"
        )
    if kind == "text" and not all(row.accept for row in rows):
        _warn_of_text(rows)
    text = "\n".join(
        [
            f"name: {_quoted(name)}",
            f"data: {_quoted(_relative(data, out.parent))}",
            "validators:",
            *(f"  - {line}" for line in lines),
            f"primary: {primary}",
            f"slices: [{', '.join(_slices(rows))}]",
            *(["group: group  # rows that share it are not independent"] if any(row.group for row in rows) else []),
            f"generation: {{max_tokens: {_max_tokens(rows)}, temperature: 0, seed: 0}}",
            "",
        ]
    )
    write_text(out, text)
    return {
        "outputs": kind,
        "primary": primary,
        "text": text,
        "task": str(out),
        "schema": None if schema is None else str(schema),
    }


def _kind(rows: list[Row]) -> str:
    """What the outputs are: tool_call (as text), native_call (the endpoint's own), MIXED (those, and answers without a call),
    json, number, label or text."""
    values = []
    for row in rows:
        try:
            values.append(strict_json(row.expected))
        except NotJsonError:
            break
    if len(values) == len(rows) and all(isinstance(v, dict | list) for v in values):
        return "tool_call" if all(isinstance(v, dict) and _is_call(v) for v in values) else "json"
    if any(map(_calls, rows)):
        return "native_call" if all(map(_calls, rows)) else MIXED
    texts = [row.expected.strip() for row in rows]
    units = {_unit(t) for t in texts}
    if len(units) == 1 and None not in units:
        return "number"
    distinct = len(set(texts))
    return "label" if distinct <= min(LABELS, max(2, len(rows) // 2)) and max(map(len, texts)) <= 80 else "text"


def _warn_of_text(rows: list[Row]) -> None:
    """Say that equal texts alone pass, and what judges free text better."""
    sql = sum(map(_is_query, rows)) >= SQL_SHARE * len(rows)
    better = ["kind sql, which runs both queries on a SQLite file and compares the rows"] if sql else []
    better += ["accept in the rows: every answer that is right", "kind judge: a model decides"]
    warn(
        "the answers are free text and only an equal text passes: a paraphrase counts as wrong. Better: "
        + "; ".join(better)
    )


def _is_query(row: Row) -> bool:
    """Whether an answer looks like SQL that reads."""
    text = row.expected.strip().lower()
    return text.startswith(("select ", "select\n", "with ", "with\n")) and bool(_READS.search(text))


def _calls(row: Row) -> bool:
    return bool(row.messages[-1].get("tool_calls"))


def _unit(text: str) -> tuple[str, str] | None:
    """The signs before and after a number that is the whole text: both empty for a bare one. None for a text that only holds
    a number, and for a code such as 007, which is another text than 7."""
    found = _NUMBER.fullmatch(text)
    return (found["before"], found["after"]) if found and len(numbers(text)) == 1 else None


def _tolerance(rows: list[Row]) -> str:
    """Room for rounding: half a unit of the last digit that the most exact answer has; none where all are whole."""
    found = [numbers(row.expected)[0].as_tuple().exponent for row in rows]
    places = max(0, *(-exponent for exponent in found if isinstance(exponent, int)))
    return f", abs_tolerance: {Decimal(5).scaleb(-places - 1):f}" if places else ""


def _quoted(text: str) -> str:
    """A double-quoted scalar of YAML. JSON's escapes are right there but for characters above U+FFFF, which it halves."""
    plain = json.dumps(text, ensure_ascii=False)
    return "".join(
        c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 0x10000 else f"\\U{ord(c):08x}" for c in plain
    )


def _is_call(value: dict[str, Any]) -> bool:
    try:
        call_of(value)
    except NotJsonError:
        return False
    return True


def _validators(kind: str, rows: list[Row], schema: str | None) -> tuple[list[str], str]:
    valid = "{name: json_valid, kind: json}"
    if kind in ("json", "tool_call"):
        with_schema = schema is not None or all(row.schema is not None for row in rows)
        option = f", schema: {_quoted(schema)}" if schema else ""
        lines = [valid, *([f"{{name: schema, kind: json_schema{option}}}"] if with_schema else [])]
        exact = "tool_call" if kind == "tool_call" else "json_equal"
        return [*lines, f"{{name: exact, kind: {exact}}}"], "exact"
    if kind == "native_call":
        return ["{name: exact, kind: tool_call}"], "exact"
    if kind == MIXED:
        return [
            "{name: exact, kind: tool_call, no_call: true}  # where no call is expected, none is right; texts are not judged"
        ], "exact"
    if kind == "number":
        return [f"{{name: number, kind: number{_tolerance(rows)}}}"], "number"
    if any(row.accept for row in rows):
        return ["{name: exact, kind: any_of}"], "exact"
    return ["{name: exact, kind: exact_match, normalize: [strip, case]}"], "exact"


def _slices(rows: list[Row]) -> list[str]:
    found = []
    for key in dict.fromkeys(k for row in rows for k in (*row.tags, *row.extra)):
        values = [row.tags.get(key, row.extra.get(key)) for row in rows]
        if (
            all(isinstance(v, str | int | bool) or v is None for v in values)
            and 2 <= len(Counter(map(str, values))) <= MAX_SLICES
        ):
            found.append(_quoted(key))
    return found


def _max_tokens(rows: list[Row]) -> int:
    """Room for the longest output, in steps of 64."""
    longest = max(
        _most_tokens(row.expected + json.dumps(row.messages[-1].get("tool_calls") or "", ensure_ascii=False))
        for row in rows
    )
    return max(64, -(-(int(longest) + 16) // 64) * 64)


def _most_tokens(text: str) -> float:
    """More than a text takes with most tokenizers: two letters or spaces a token, each digit and sign one of its own, other scripts
    three of four UTF-8 bytes."""
    plain = sum(c.isascii() and (c.isalpha() or c.isspace()) for c in text)
    signs = sum(c.isascii() for c in text) - plain
    return plain / 2 + signs + 0.75 * (len(text.encode("utf-8", "replace")) - plain - signs)


def _relative(data: Path, folder: Path) -> str:
    try:
        return data.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return str(data.resolve())
