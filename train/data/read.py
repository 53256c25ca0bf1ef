"""Reading what users have: JSONL, JSON, CSV, TSV, Parquet and Arrow, plain or compressed, into rows that know where they stood.

Every line gives a Row or a Fault; nothing is skipped in silence, and a fault in one line does not hide the next.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tunegate.core import manifest
from tunegate.core.errors import UserError, nearest
from tunegate.core.rows import Row, json_kind, parse_row
from tunegate.train.data import bfcl, hub
from tunegate.train.data.formats import Columns, candidates, detect, to_row
from tunegate.train.data.lines import Fault, Line, fault, json_file, json_lines, table
from tunegate.train.data.plain import BLOCK, plain_rows
from tunegate.train.data.stream import decompressed

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "arrow",
    ".arrow": "arrow",
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read. format: None finds it out per file; columns: for data in no known format; tag_keys: keys of
    the record that become tags."""

    format: str | None = None
    columns: Columns | None = None
    tag_keys: tuple[str, ...] = ()


def sources(names: Iterable[str]) -> list[Path]:
    """The files that `names` mean: a builtin's files, those of a data set of `datasets`, a file, or all data files of a folder, in order of name.

    Raises UserError for a missing path, a folder without data files, and a file named twice.
    """
    files: list[Path] = []
    for name in names:
        if not name:
            raise UserError("an empty name: no file or folder is named", where="IN")
        if name.startswith("builtin:"):
            _known_builtin(name)
            files += bfcl.files()
            continue
        if name.startswith(hub.PREFIX):
            files += hub.files(name)
            continue
        path = Path(name)
        if path.is_dir():
            inside = (
                _dataset(path)
                or hub.saved(path)
                or sorted(p for p in path.iterdir() if p.is_file() and file_kind(p, strict=False))
            )
            if not inside:
                raise UserError("no data file in this folder", where=name, hint="known: " + ", ".join(SUFFIXES))
            files += inside
        elif path.is_file():
            files.append(path)
        elif path.exists():
            hint = "a file is read more than once: write what it gives to one, and name that"
            raise UserError("is no file but a pipe or a device", where=name, hint=hint)
        else:
            raise UserError("no such file", where=name)
    seen: set[Path] = set()
    for file in files:
        place = file.resolve()
        if place in seen:
            raise UserError("given twice", where=str(file), hint="every row would be a duplicate of itself")
        seen.add(place)
    return files


def _dataset(path: Path) -> list[Path]:
    """The rows of a folder that we wrote: a Dataset's train and eval, what `clean` and `dedup` kept; empty for any other."""
    kind = manifest.read(path).kind if manifest.is_finished(path) else ""
    return [path / name for name in {"dataset": ("train.jsonl", "eval.jsonl"), "rows": ("rows.jsonl",)}.get(kind, ())]


def read(names: Iterable[str], reading: Reading) -> Iterator[Row | Fault]:
    """All rows and faults of all sources, streaming, in order.

    Raises UserError for what spoils a whole file: missing, given twice, empty, wrong compression, no known format.
    """
    names = list(names)
    sources(names)
    for name in names:
        if name.startswith("builtin:"):
            _known_builtin(name)
            yield from bfcl.load().rows
        else:
            for file in sources([name]):
                yield from read_file(file, reading)


def strictly(rows: Iterable[Row | Fault]) -> Iterator[Row]:
    """The rows; the first fault is raised."""
    for row in rows:
        if isinstance(row, Fault):
            raise row.error
        yield row


def read_file(path: Path, reading: Reading) -> Iterator[Row | Fault]:
    """The rows and faults of one file."""
    if not _quick(reading) or file_kind(path) != "jsonl":
        yield from (item for item, _, _ in read_records(path, reading))
        return
    none = True
    with decompressed(path) as stream:
        for item in _blocks(path, stream, 1, reading):
            none = False
            yield item
    if none:
        raise _no_rows(path)


def form_of(path: Path, reading: Reading) -> str | None:
    """The format of a file's first record that has one; None where columns are named or no record has a format."""
    if reading.format is not None:
        return reading.format
    return next((form for _, _, form in _records(path, _lines(path), reading) if form is not None), None)


def stretch(path: Path, text: bytes, first: int, reading: Reading) -> Iterator[Row | Fault]:
    """The rows and faults of whole lines of a JSON Lines file, of which the first is line `first`, as `read_file` gives."""
    stream = io.BytesIO(text)
    if _quick(reading):
        return _blocks(path, stream, first, reading)
    return (item for item, _, _ in _records(path, json_lines(path, stream, first), reading))


def _quick(reading: Reading) -> bool:
    return reading.columns is None and not reading.tag_keys and reading.format in (None, "messages")


def _blocks(path: Path, stream: IO[bytes], number: int, reading: Reading) -> Iterator[Row | Fault]:
    """JSON Lines a block at a time: the quick way where all its rows are plain, else line by line. The first record that
    has a format says which one the file has."""
    while block := stream.read(BLOCK) + stream.readline():
        text = block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block
        rows = plain_rows(text, str(path), number) if reading.format in (None, "messages") else None
        if rows is None:
            for item, _, form in _records(path, json_lines(path, io.BytesIO(text), number), reading):
                reading = reading if form is None else replace(reading, format=form)
                yield item
        else:
            reading = replace(reading, format="messages") if rows else reading
            yield from rows
        number += block.count(b"\n") if rows is None else len(rows)


def _no_rows(path: Path) -> UserError:
    return UserError("the file holds no rows", where=str(path), hint='expected one {"messages": [...]} per line')


def read_records(path: Path, reading: Reading) -> Iterator[tuple[Row | Fault, Any, str | None]]:
    """The rows and faults of one file, each with the record it was made from and that record's format."""
    none = True
    for found in _records(path, _lines(path), reading):
        none = False
        yield found
    if none:
        raise _no_rows(path)


def _records(path: Path, lines: Iterable[Line], reading: Reading) -> Iterator[tuple[Row | Fault, Any, str | None]]:
    form = reading.format
    for number, value in lines:
        where = f"{path}:{number}"
        try:
            if isinstance(value, Fault):
                raise value.error
            if reading.columns is None and form is None:
                form = detect(value, where)
            record = _tagged(to_row(value, form or "", where, reading.columns), reading, where)
            yield parse_row(record, str(path), number), value, form
        except UserError as error:
            text = value.text if isinstance(value, Fault) else json.dumps(value, ensure_ascii=True)[:2000]
            error = _of_another_form(value, form, where, error) if form and reading.columns is None else error
            yield Fault(error=error, file=str(path), line=number, text=text), None, form


def _of_another_form(record: Any, form: str, where: str, error: UserError) -> UserError:
    """The error of a record, or the plainer one that it has the form of other files."""
    other = candidates(record) if isinstance(record, dict) else []
    if not other or form in other:
        return error
    return UserError(
        f"a row of the format {other[0]} in a file read as {form}",
        where=where,
        hint=f"a file has one format: --format {other[0]} if that is this file's, else a file for each, all of them given; "
        "--on-error reject leaves such rows out",
    )


def file_kind(path: Path, *, strict: bool = True) -> str | None:
    """jsonl, json, csv, tsv or arrow, by the suffix under any .gz or .zst.

    Raises UserError for an unknown suffix when `strict`, else returns None.
    """
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    kind = SUFFIXES.get(suffixes[-1]) if suffixes else None
    if kind is None and strict:
        raise UserError(
            f"unknown kind of file {suffixes[-1] if suffixes else 'without a suffix'!r}",
            where=str(path),
            hint="rename it to one of: " + ", ".join(SUFFIXES) + " (and .gz or .zst after it)",
        )
    return kind


def _known_builtin(name: str) -> None:
    if name != bfcl.NAME:
        raise UserError(f"no builtin data {name!r}", hint=nearest(name, [bfcl.NAME]))


def _tagged(record: dict[str, Any], reading: Reading, where: str) -> dict[str, Any]:
    """The record with the asked-for keys moved into its tags."""
    if not reading.tag_keys:
        return record
    for key in reading.tag_keys:
        if key not in record:
            raise UserError(f"no key {key!r} to make a tag of", where=where, hint=nearest(key, list(record)))
    rest = {key: value for key, value in record.items() if key not in reading.tag_keys}
    tags = {} if rest.get("tags") is None else rest["tags"]
    if not isinstance(tags, dict):
        raise UserError(f'"tags" must not be {json_kind(tags)}', where=f"{where} /tags")
    return {**rest, "tags": {**tags, **{key: record[key] for key in reading.tag_keys}}}


def _lines(path: Path) -> Iterator[Line]:
    kind = file_kind(path)
    if kind == "arrow":
        from tunegate.train.data.arrow import records

        for number, value in records(path):
            yield number, fault(value, path, number, b"") if isinstance(value, UserError) else value
        return
    with decompressed(path) as stream:
        if kind == "jsonl":
            yield from json_lines(path, stream)
        elif kind == "json":
            yield from json_file(path, stream)
        else:
            yield from table(path, stream, "\t" if kind == "tsv" else ",")
