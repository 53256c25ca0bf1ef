"""Result files of other evaluators as recorded outputs: found out by content, mapped to the task's items by id or question."""

import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tunegate.core.console import say
from tunegate.core.errors import UserError, first_line, nearest
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import NUMBERS, Answer, amount

SHOWN = 3  # items named in an error
SNIFFED = 4096  # bytes


@dataclass(frozen=True, kw_only=True)
class Record:
    """One answer of another evaluator. ids: what may be the item's id, likeliest first; questions: texts of which one may be
    the item's question; prompts: texts as they were sent, which may end with it; expected: what it was compared with; system:
    which model, where a file holds several."""

    place: str
    ids: tuple[str, ...]
    answer: Answer
    questions: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    expected: str | None = None
    system: str = ""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One evaluator's result file. read: its records; lacks: what of an answer it does not hold."""

    name: str
    read: Callable[[Path], list[Record]]
    lacks: str


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is an object, else an empty one: foreign files leave out what they please."""
    return value if isinstance(value, dict) else {}


def asked_in(prompt: Any) -> tuple[str, ...]:
    """The text of a prompt; of a chat, as messages or as their JSON (lm-eval puts that in a list of one), of its last user
    turn (of the last turn where no user speaks). None where there is no text."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        prompt = prompt[0]
    text = prompt if isinstance(prompt, str) else ""
    if text.lstrip().startswith("["):
        try:
            prompt = json.loads(text)
        except (ValueError, RecursionError):
            return (text,)
    if isinstance(prompt, list) and any(mapping(turn).get("role") for turn in prompt):
        turns = [mapping(turn) for turn in prompt]
        asked = [turn for turn in turns if turn.get("role") == "user"] or turns
        text = text_of(asked[-1].get("content"))
    return (text,) if text else ()


def text_of(content: Any) -> str:
    """A message's text; of several parts those that are text (not the reasoning)."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "".join(str(part.get("text") or "") for part in parts if mapping(part).get("type") == "text")


def format_of(path: Path) -> Format | None:
    """Whose result file this is; None where it is none that is known (recorded outputs of our own form)."""
    from tunegate.evalkit.interchange import inspect_log, lm_eval, promptfoo

    if not path.is_file():
        return None
    with path.open("rb") as stream:
        head = stream.read(SNIFFED)
    if path.suffix == ".eval" or (path.suffix == ".json" and b'"eval"' in head and b'"version"' in head):
        return inspect_log.FORMAT
    if path.suffix == ".json" and b'"results"' in head and (b'"group_subtasks"' in head or b'"configs"' in head):
        return lm_eval.FORMAT
    if path.suffix == ".json" and (b'"evalId"' in head or (b'"results"' in head and b'"version"' in head)):
        return promptfoo.FORMAT
    lines = path.suffix in (".jsonl", ".ndjson")
    if (path.suffix == ".json" and b'"results"' in head) or (lines and _is_lm_eval(path)):
        return lm_eval.FORMAT
    return None


def _is_lm_eval(path: Path) -> bool:
    """Whether the first line is a sample of lm-eval's, not an output of our own form that holds a key of that name."""
    with path.open("rb") as stream:
        line = next((line for line in stream if line.strip()), b"")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return b'"doc_id"' in line[:SNIFFED]
    return isinstance(found, dict) and "doc_id" in found and "output" not in found


def read_foreign(
    found: Format, path: Path, *, data: Sequence[Row], system: str | None
) -> list[tuple[str, str, Answer]]:
    """(place, item id, answer) of each record that belongs to `data`.

    system: which of the file's models. Raises UserError for records that fit no item, or several, and says what the file
    does not hold.
    """
    records = _of_one_system(_read(found, path), system, path)
    if not records:
        raise UserError(f"the {found.name} file holds no answers", where=str(path))
    known = {row.id: row for row in data}
    by_question = _by_question(data)
    mapped = [(record, _item(record, known, by_question)) for record in records]
    lost = [record for record, identity in mapped if identity is None]
    if lost:
        names = "; ".join(
            f"{r.place} (id {r.ids[0] if r.ids else 'none'!r}, {_cut((*r.questions, *r.prompts))})"
            for r in lost[:SHOWN]
        )
        raise UserError(
            f"{len(lost)} of {len(records)} {found.name} records fit no item by id or question: {names}",
            where=str(path),
            hint="the task's data must hold the items that the file was made from",
        )
    wrong = [(r, known[i]) for r, i in mapped if i is not None and _contradicts(r, known[i])]
    if wrong:
        record, row = wrong[0]
        raise UserError(
            f"{len(wrong)} {found.name} records expect another answer than the task's data; "
            f"item {row.id!r}: {record.expected!r:.60}, the data has {row.expected!r:.60}",
            where=f"{path} {record.place}",
        )
    say(f"{found.name}: {len(records)} answers mapped; not in such a file: {found.lacks}")
    return [(f"{path} {record.place}", str(identity), record.answer) for record, identity in mapped]


def _read(found: Format, path: Path) -> list[Record]:
    """The records of another program's file, whose form is not ours to define: whatever cannot be taken from it as it is
    known to be is one error, and so is a figure that is no amount."""
    try:
        records = found.read(path)
    except (
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
        ArithmeticError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"not a {found.name} file as this version knows it: {type(error).__name__}, {first_line(error)}",
            where=str(path),
        ) from None
    return [replace(record, answer=_counted(record, path)) for record in records]


def _counted(record: Record, path: Path) -> Answer:
    """A record's answer, its figures being amounts."""
    figures = {}
    for name in NUMBERS:
        try:
            figures[name] = amount(name, getattr(record.answer, name))
        except ValueError as error:
            raise UserError(f"{name} {error}", where=f"{path} {record.place}") from None
    return replace(record.answer, **figures)


def _of_one_system(records: list[Record], system: str | None, path: Path) -> list[Record]:
    systems = list(dict.fromkeys(record.system for record in records))
    if system is not None:
        if system not in systems:
            raise UserError(f"the file has no model {system!r}", where=str(path), hint=nearest(system, systems))
        return [record for record in records if record.system == system]
    if len(systems) > 1:
        raise UserError(
            f"the file holds answers of {len(systems)} systems",
            where=str(path),
            hint=f"choose one with --model: {', '.join(systems[:8])}",
        )
    return records


def question_of(row: Row) -> str:
    """The text of a row's last user turn."""
    asked = [m for m in row.prompt if m["role"] == "user"]
    return str(asked[-1].get("content") or "").strip() if asked else ""


def _by_question(data: Sequence[Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in data:
        found.setdefault(question_of(row), []).append(row.id)
    return found


def _item(record: Record, known: dict[str, Row], by_question: dict[str, list[str]]) -> str | None:
    """The one item that a record answers: by its question, else by an id that is known, else by the end of its prompt or of a
    question that opens with a cue.

    A number that is only a position counts as an id where the question agrees with it. What is but a part of a sentence of the
    record's own question is another question.
    """
    for question in (*record.questions, *record.prompts):
        whole = by_question.get(question.strip(), [])
        if whole:
            named = [i for i in record.ids if i in whole]
            return named[0] if named else whole[0] if len(whole) == 1 else None
    named = [i for i in record.ids if i in known and not _position_only(i, record)]
    if named:
        return named[0]
    inside = [
        ids[0]
        for text, ids in by_question.items()
        if text and len(ids) == 1 and _holds((*record.prompts, *record.questions), text)
        if all(_opens(question, text) for question in record.questions if text in question)
    ]
    longest = sorted(inside, key=lambda i: len(question_of(known[i])), reverse=True)
    return longest[0] if longest else None


def _position_only(identity: str, record: Record) -> bool:
    return identity.isdigit() and bool(record.questions or record.prompts)


def _holds(prompts: Sequence[str], text: str) -> bool:
    """Whether a prompt ends with this question, but for a short cue such as `Answer:` behind it."""
    return any((at := q.rfind(text)) >= 0 and len(q) - at - len(text) <= 32 for q in prompts)


def _opens(question: str, text: str) -> bool:
    """Whether a text stands in a question at the start of a line, or behind a cue such as `Question:`."""
    before = question[: question.rfind(text)].rstrip(" \t")
    return not before or before.endswith(("\n", ":"))


def _contradicts(record: Record, row: Row) -> bool:
    if record.expected is None or not record.expected.strip():
        return False
    given = record.expected.strip()
    accepted = [str(a).strip() for a in row.accept or []]
    return given not in (row.expected.strip(), *accepted) and given not in row.expected


def _cut(questions: Sequence[str]) -> str:
    text = " ".join(questions[0].split()) if questions else "no question"
    return repr(text if len(text) <= 50 else text[:49] + "…")
