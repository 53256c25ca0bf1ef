"""Parquet and Arrow rows as plain values. Arrow has already fixed the types here; what is not JSON by nature is refused by name."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, first_line
from tunegate.core.rows import JSON_KEYS, parse_json

# Columns that may hold JSON text, because Arrow cannot hold ragged objects without filling them with nulls.
JSON_TEXT = (*JSON_KEYS, "conversations")
# Columns that hold turns.
TURNS = ("messages", "conversations", "prompt", "completion")
# Keys of a message that Arrow fills with null where the message had none.
FILLED = ("name", "tool_calls", "tool_call_id", "reasoning_content", "refusal", "weight")
# Columns of ragged objects: a null in one of them may be another row's key.
RAGGED = ("tools", "schema", "accept", "tags")
# What a file of Arrow's file format starts with; its stream format has no such mark.
ARROW_FILE = b"ARROW1"
# From here a float does not hold every whole number: it may be an integer whose digits are gone.
WHOLE_FLOATS = 2.0**53


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, record, or the error in it) of a Parquet or an Arrow file (its file or its stream format), a batch at a time.

    Raises UserError for a damaged file and for a column whose type is no JSON type.
    """
    import pyarrow

    try:
        with _opened(path) as (schema, batches):
            _refuse_types(schema, path)
            number = 0
            for batch in batches:
                for start in range(0, batch.num_rows, 1000):
                    for record in _values(batch.slice(start, 1000)):
                        number += 1
                        where = f"{path}:{number}"
                        yield number, plain(record, schema, where) if record else UserError("not UTF-8", where=where)
    except (pyarrow.ArrowException, OSError) as error:
        kind = "Arrow" if path.suffix.lower() == ".arrow" else "Parquet"
        raise UserError(f"not a readable {kind} file: {first_line(error)}", where=str(path)) from None


def _values(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of a batch; None for one whose text is not UTF-8."""
    try:
        found: list[dict[str, Any] | None] = batch.to_pylist()
    except UnicodeDecodeError:
        return [None] if len(batch) == 1 else [row for at in range(len(batch)) for row in _values(batch.slice(at, 1))]
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Iterable[Any]]]:
    """(schema, batches) of a file."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".arrow":
        with pyarrow.OSFile(str(path)) as source:
            start = source.read(len(ARROW_FILE))
            source.seek(0)
            if start == ARROW_FILE:
                with pyarrow.ipc.open_file(source) as file:
                    yield file.schema, map(file.get_batch, range(file.num_record_batches))
            else:
                with pyarrow.ipc.open_stream(source) as stream:
                    yield stream.schema, stream
        return
    with pyarrow.parquet.ParquetFile(path) as file:
        yield file.schema_arrow, file.iter_batches(batch_size=1000)


def _refuse_types(schema: Any, path: Path) -> None:
    import pyarrow

    def refuse(kind: Any, name: str) -> None:
        types, kind = pyarrow.types, _unpacked(kind)
        if types.is_struct(kind):
            for field in kind:
                refuse(field.type, f"{name}.{field.name}")
        elif _is_list(kind):
            refuse(kind.value_type, name)
        elif not (
            _is_text(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_boolean(kind)
            or types.is_null(kind)
            or isinstance(kind, pyarrow.JsonType)
        ):
            raise UserError(
                f"column {name!r} has type {kind}, which is no JSON type",
                where=str(path),
                hint="cast it to text in the form you want, or leave the column out",
            )

    if twice := sorted({name for name in schema.names if schema.names.count(name) > 1}):
        raise UserError(f"two columns are named {twice[0]!r}", where=str(path), hint="rename one of them")
    for field in schema:
        refuse(field.type, field.name)


def plain(record: dict[str, Any], schema: Any, where: str) -> dict[str, Any] | UserError:
    """A record as JSON values, without the nulls that Arrow fills in; the error where a cell is no JSON or its null may be
    one of those."""
    try:
        for key, value in record.items():
            record[key] = _parsed(schema.field(key).type, value, f"{where} /{key}")
        ragged = [f"/{key}" for key in RAGGED if isinstance(record.get(key), dict | list)]
        for key in JSON_TEXT:
            if isinstance(record.get(key), str):
                record[key] = parse_json(record[key].encode("utf-8"), f"{where} /{key}")
    except UserError as error:
        return error
    kept = {key: value for key, value in record.items() if value is not None}
    for key in TURNS:
        if isinstance(kept.get(key), list):
            kept[key] = [_without_fill(turn) for turn in kept[key]]
            ragged += [f"/{key}/{at}/tool_calls" for at, turn in enumerate(kept[key]) if isinstance(turn, dict)]
    return _fault(kept, ragged, schema, where) or kept


def _fault(record: dict[str, Any], ragged: list[str], schema: Any, where: str) -> UserError | None:
    if (pointer := _first(record, lambda value: isinstance(value, float) and not math.isfinite(value))) is not None:
        return UserError("NaN or infinite, which is not JSON", where=f"{where} {pointer}")
    if (pointer := _first(record, lambda value: isinstance(value, float) and abs(value) >= WHOLE_FLOATS)) is not None:
        message = "a number that Arrow holds as a float, too large to hold every digit"
        return UserError(message, where=f"{where} {pointer}", hint="store it as text")
    for start in ragged:
        if _is_json(schema, start.split("/")[1]):
            continue
        value: Any = record
        for part in start.split("/")[1:]:
            value = value[int(part)] if isinstance(value, list) else value.get(part)
        if value is not None and (pointer := _first(value, lambda value: value is None, start)) is not None:
            message = "a null that Arrow may have filled in for a key of another row"
            return UserError(message, where=f"{where} {pointer}", hint="store the column as JSON text")
    return None


def _is_json(schema: Any, column: str) -> bool:
    """Whether a column holds JSON text, whose nulls are its own."""
    import pyarrow

    kind = _unpacked(schema.field(column).type)
    return isinstance(kind, pyarrow.JsonType) or _is_text(kind)


def _unpacked(kind: Any) -> Any:
    """The type of the values of a column that holds each once (a dictionary, runs)."""
    import pyarrow

    packed = pyarrow.types.is_dictionary(kind) or pyarrow.types.is_run_end_encoded(kind)
    return kind.value_type if packed else kind


def _is_text(kind: Any) -> bool:
    """Whether a type is one of Arrow's texts; polars writes views."""
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _parsed(kind: Any, value: Any, where: str) -> Any:
    """The value with what Arrow's JSON type holds as text parsed."""
    import pyarrow

    kind = _unpacked(kind)
    if value is None:
        return None
    if isinstance(kind, pyarrow.JsonType):
        return parse_json(value.encode("utf-8"), where)
    if isinstance(value, dict):
        return {key: _parsed(kind.field(key).type, item, f"{where}/{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_parsed(kind.value_type, item, f"{where}/{at}") for at, item in enumerate(value)]
    return value


def _first(value: Any, holds: Any, pointer: str = "") -> str | None:
    """Pointer to the first scalar of which `holds` is true."""
    if not isinstance(value, dict | list):
        return pointer if holds(value) else None
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return next((found for key, item in items if (found := _first(item, holds, f"{pointer}/{key}")) is not None), None)


def _without_fill(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    return {key: value for key, value in turn.items() if value is not None or key not in FILLED}
