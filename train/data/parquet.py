"""Parquet rows as plain values. Arrow has already fixed the types here; what is not JSON by nature is refused by name."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.rows import JSON_KEYS, parse_json

# Columns that may hold JSON text, because Arrow cannot hold ragged objects without filling them with nulls.
JSON_TEXT = (*JSON_KEYS, "conversations")
# Columns that hold turns.
TURNS = ("messages", "conversations", "prompt", "completion")
# Keys of a message that Arrow fills with null where the message had none.
FILLED = ("name", "tool_calls", "tool_call_id", "reasoning_content", "refusal", "weight")


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, record, or the error in it) of a Parquet file, a batch at a time.

    Raises UserError for a damaged file and for a column whose type is no JSON type.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _refuse_types(file.schema_arrow, path)
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield number, plain(record, f"{path}:{number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"not a readable Parquet file: {str(error).splitlines()[0]}", where=str(path)) from None


def _refuse_types(schema: Any, path: Path) -> None:
    import pyarrow

    def refuse(kind: Any, name: str) -> None:
        types = pyarrow.types
        if types.is_struct(kind):
            for field in kind:
                refuse(field.type, f"{name}.{field.name}")
        elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            refuse(kind.value_type, name)
        elif not (
            types.is_string(kind)
            or types.is_large_string(kind)
            or types.is_integer(kind)
            or types.is_floating(kind)
            or types.is_boolean(kind)
            or types.is_null(kind)
            or types.is_dictionary(kind)
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


def plain(record: dict[str, Any], where: str) -> dict[str, Any] | UserError:
    """A record as JSON values, without the nulls that Arrow fills in; the error where a cell is no JSON."""
    try:
        for key in JSON_TEXT:
            if isinstance(record.get(key), str):
                record[key] = parse_json(record[key].encode("utf-8"), f"{where} /{key}")
    except UserError as error:
        return error
    kept = {key: value for key, value in record.items() if value is not None}
    for key in TURNS:
        if isinstance(kept.get(key), list):
            kept[key] = [_without_fill(turn) for turn in kept[key]]
    if (pointer := _not_finite(kept)) is not None:
        return UserError("NaN or infinite, which is not JSON", where=f"{where} {pointer}")
    return kept


def _not_finite(value: Any, pointer: str = "") -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else pointer
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _not_finite(item, f"{pointer}/{key}")) is not None), None)


def _without_fill(turn: Any) -> Any:
    if not isinstance(turn, dict):
        return turn
    return {key: value for key, value in turn.items() if value is not None or key not in FILLED}
