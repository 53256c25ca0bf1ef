"""Recorded outputs: `{"id", "output"}` lines from any system, judged without a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.rows import Row, read_jsonl, read_unique_rows
from tunegate.evalkit.interchange.foreign import format_of, read_foreign
from tunegate.evalkit.outcomes import NUMBERS, Answer, amount


def read_recorded(
    path: Path,
    rows: tuple[Row, ...],
    *,
    known: frozenset[str],
    repeats: int = 1,
    data: Path | None = None,
    system: str | None = None,
) -> dict[str, list[Answer]]:
    """The answers by item id; several lines with one id are its repeats, in order.

    known: ids of the whole data set (the file `data`), of which `rows` may be the first part. repeats: records that each
    item must have. system: which model's, where another evaluator's file holds several.
    Raises UserError with file and line for a record that is none, an unknown id, an id that stands too often, and for
    items that have no record or too few.
    """
    answers: dict[str, list[Answer]] = {}
    lines: dict[str, str] = {}
    for where, identity, answer in _records(path, rows, data, system):
        if identity not in known:
            raise UserError(
                f"no item has the id {identity!r}", where=where, hint="ids must be those of the task's data"
            )
        answers.setdefault(identity, []).append(answer)
        if len(answers[identity]) > repeats:
            times = "" if repeats == 1 else f"; the task asks for {repeats} repeats"
            raise UserError(
                f"id {identity!r} is also on {lines[identity]}{times}",
                where=where,
                hint="one record an item; for several answers each set `repeats:` in the task",
            )
        lines[identity] = where.removeprefix(f"{path} ").replace(f"{path}:", "line ")
    missing = [row.id for row in rows if row.id not in answers]
    if missing:
        shown = ", ".join(repr(i) for i in missing[:3]) + (", ..." if len(missing) > 3 else "")
        hint = 'record {"id": ..., "error": "..."} for an item that got no answer'
        raise UserError(f"{len(missing)} of {len(rows)} items have no output: {shown}", where=str(path), hint=hint)
    few = [row.id for row in rows if len(answers[row.id]) < repeats]
    if few:
        raise UserError(
            f"{len(few)} of {len(rows)} items have fewer than the task's {repeats} repeats: {few[0]!r} has {len(answers[few[0]])}",
            where=str(path),
            hint='record {"id": ..., "error": "..."} for an answer that never came',
        )
    return {row.id: answers[row.id] for row in rows}


def _records(
    path: Path, rows: tuple[Row, ...], data: Path | None, system: str | None
) -> Iterator[tuple[str, str, Answer]]:
    """(place, item id, answer) of our own lines, or of lm-eval's, promptfoo's and Inspect's result files."""
    found = format_of(path)
    if found is not None:
        yield from read_foreign(found, path, data=rows if data is None else read_unique_rows(data), system=system)
        return
    for number, record in read_jsonl(path):
        where = f"{path}:{number}"
        yield (where, *_parse(record, where))


def _parse(record: Any, where: str) -> tuple[str, Answer]:
    if (
        not isinstance(record, dict)
        or not isinstance(record.get("id"), str | int)
        or isinstance(record.get("id"), bool)
    ):
        raise UserError('a record needs an "id"', where=where, hint='one {"id": ..., "output": "..."} per line')
    output, error = record.get("output"), record.get("error")
    if record.get("unjudged"):  # the answer came, its judge said nothing
        error = None
    elif record.get("outcome") == "infra_error" and not error:
        error = record.get("reason") or "recorded as an infrastructure error"
    if output is None and not any(record.get(key) or error for key in ("tool_calls", "refusal", "rejected")):
        raise UserError('a record needs an "output"', where=where, hint='an item without an answer carries "error"')
    if output is not None and not isinstance(output, str):
        raise UserError('"output" must be text, as the model wrote it', where=f"{where} /output")
    figures = {key: _figure(record, key, where) for key in NUMBERS}
    if not isinstance(record.get("tool_calls") or [], list):
        raise UserError('"tool_calls" must be a list', where=f"{where} /tool_calls")
    answer = Answer(
        text=output or "",
        finish_reason=None if record.get("finish_reason") is None else str(record["finish_reason"]),
        refusal=None if not record.get("refusal") else str(record["refusal"]),
        tool_calls=record.get("tool_calls") or [],
        error=None if not error else str(error),
        rejected=None if output or not record.get("rejected") else str(record["rejected"]),
        **figures,
    )
    return str(record["id"]), answer


def _figure(record: dict[str, Any], key: str, where: str) -> Any:
    try:
        return amount(key, record.get(key))
    except ValueError as error:
        raise UserError(f'"{key}" {error}', where=f"{where} /{key}") from None
