"""Reading what users have: JSONL, JSON, CSV, TSV, Parquet and Arrow, plain or compressed, into rows that know where they stood.

Every line gives a Row or a Fault; nothing is skipped in silence, and a fault in one line does not hide the next.
"""

import csv
import io
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tunegate.core import manifest
from tunegate.core.errors import UserError, first_line, nearest
from tunegate.core.rows import JSON_KEYS, Row, parse_json, parse_row
from tunegate.train.data import bfcl, hub
from tunegate.train.data.formats import Columns, candidates, detect, to_row
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
class Fault:
    """A line that is not a row: why (one line), where (`file:line` and a JSON pointer), and its text as far as it can be
    read (at most 2,000 characters)."""

    error: UserError
    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How files are read. format: None finds it out per file; columns: for data in no known format; tag_keys: keys of
    the record that become tags."""

    format: str | None = None
    columns: Columns | None = None
    tag_keys: tuple[str, ...] = ()


Line = tuple[int, Any]


def sources(names: Iterable[str]) -> list[Path]:
    """The files that `names` mean: a builtin's files, those of a data set of `datasets`, a file, or all data files of a folder, in order of name.

    Raises UserError for a missing path, a folder without data files, and a file named twice.
    """
    files: list[Path] = []
    for name in names:
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
        elif path.exists():
            files.append(path)
        else:
            raise UserError("no such file", where=name)
    for index, file in enumerate(files):
        if file in files[:index]:
            raise UserError("given twice", where=str(file), hint="every row would be a duplicate of itself")
    return files


def _dataset(path: Path) -> list[Path]:
    """The rows of a Dataset folder, train and eval; empty for any other folder."""
    if not manifest.is_finished(path) or manifest.read(path).kind != "dataset":
        return []
    return [path / "train.jsonl", path / "eval.jsonl"]


def read(names: Iterable[str], reading: Reading) -> Iterator[Row | Fault]:
    """All rows and faults of all sources, streaming, in order.

    Raises UserError for what spoils a whole file: missing, empty, wrong compression, no known format.
    """
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
    return (item for item, _, _ in _records(path, _jsonl(path, stream, first), reading))


def _quick(reading: Reading) -> bool:
    return reading.columns is None and not reading.tag_keys and reading.format in (None, "messages")


def _blocks(path: Path, stream: IO[bytes], number: int, reading: Reading) -> Iterator[Row | Fault]:
    """JSON Lines a block at a time: the quick way where all its rows are plain, else line by line. The first record that
    has a format says which one the file has."""
    while block := stream.read(BLOCK) + stream.readline():
        text = block.removeprefix(b"\xef\xbb\xbf") if number == 1 else block
        rows = plain_rows(text, str(path), number) if reading.format in (None, "messages") else None
        if rows is None:
            for item, _, form in _records(path, _jsonl(path, io.BytesIO(text), number), reading):
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
            yield Fault(error=error, file=str(path), line=number, text=text), None, form


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
    return {**rest, "tags": {**(rest.get("tags") or {}), **{key: record[key] for key in reading.tag_keys}}}


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    kind = file_kind(path)
    if kind == "arrow":
        from tunegate.train.data.arrow import records

        for number, value in records(path):
            yield number, _fault(value, path, number, b"") if isinstance(value, UserError) else value
        return
    with decompressed(path) as stream:
        if kind == "jsonl":
            yield from _jsonl(path, stream)
        elif kind == "json":
            yield from _json(path, stream)
        else:
            yield from _csv(path, stream, "\t" if kind == "tsv" else ",")


def _jsonl(path: Path, stream: IO[bytes], first: int = 1) -> Iterator[Line]:
    for number, raw in enumerate(stream, first):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if line.strip():
            try:
                yield number, parse_json(line, f"{path}:{number}")
            except UserError as error:
                yield number, _fault(error, path, number, line)


def _fault(error: UserError, path: Path, number: int, raw: bytes) -> Fault:
    return Fault(error=error, file=str(path), line=number, text=raw[:2000].decode("utf-8", "backslashreplace"))


def _json(path: Path, stream: IO[bytes]) -> Iterator[tuple[int, Any]]:
    """A JSON array of records; JSON Lines under the suffix .json are read too."""
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    head = raw.lstrip()[:1]
    if head != b"[":
        first, _, more = raw.strip().partition(b"\n")
        try:
            record = json.loads(first)
            alone = not more and isinstance(record, dict) and not candidates(record)
        except (ValueError, RecursionError):
            alone = True
        if alone:
            _refuse_document(raw, path)
        yield from _jsonl(path, io.BytesIO(raw))
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("not UTF-8", where=f"{path}:{line}", hint="save the file as UTF-8") from None
    yield from _array(path, text)


def _refuse_document(raw: bytes, path: Path) -> None:
    document = parse_json(raw, str(path))
    lists = [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    hint = (
        f"write the list under {lists[0]!r} to a file of its own" if lists else "a file is a JSON array or JSON Lines"
    )
    if isinstance(document, dict) and candidates(document):
        hint = "this is one record: put it between [ and ], or on one line"
    raise UserError("one JSON object, not a list of records", where=str(path), hint=hint)


def _array(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    line, counted = 1, 0
    expected: tuple[str, ...] = ("]", "value")
    while True:
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        line, counted = line + text.count("\n", counted, at), at
        where = f"{path}:{line}"
        char = text[at : at + 1]
        if char == "]" and "]" in expected:
            break
        if "," in expected:
            if char != ",":
                raise UserError('not valid JSON: expected "," or "]"', where=where)
            at, expected = at + 1, ("value",)
            continue
        try:
            _, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
        except RecursionError:
            raise UserError("JSON nested too deeply", where=where) from None
        except ValueError as error:  # more digits than Python reads
            raise UserError(f"not valid JSON: {first_line(error)}", where=where) from None
        part = text[at:end].encode("utf-8")
        try:
            yield line, parse_json(part, where)
        except UserError as error:
            yield line, _fault(error, path, line, part)
        at, expected = end, ("]", ",")
    if text[at + 1 :].strip():
        raise UserError("not valid JSON: text after the array", where=f"{path}:{line}")


def _csv(path: Path, stream: IO[bytes], delimiter: str) -> Iterator[tuple[int, Any]]:
    """CSV with a header line; every cell stays text, but for those that hold JSON (JSON_KEYS and `conversations`)."""
    csv.field_size_limit(sys.maxsize)
    number = 1
    try:
        with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, delimiter=delimiter, strict=True)
            header = next(reader, [])
            if len(set(header)) != len(header) or "" in header:
                raise UserError("the header has an empty or repeated column name", where=f"{path}:1")
            if len(header) == 1 and (found := next((c for c in ";\t|," if c in header[0]), None)):
                hint = f"the cells seem to be separated by {found!r}: write commas (.csv) or tabs (.tsv)"
                raise UserError("the header has a single column", where=f"{path}:1", hint=hint)
            number = reader.line_num + 1
            for cells in reader:
                if cells:
                    yield number, _cells(header, cells, path, number, delimiter)
                number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"not valid CSV: {error}", where=f"{path}:{number}") from None
    except UnicodeDecodeError:
        raise UserError(
            "not UTF-8 in or after this line", where=f"{path}:{number}", hint="save the file as UTF-8"
        ) from None


def _cells(header: list[str], cells: list[str], path: Path, number: int, delimiter: str) -> Any:
    where = f"{path}:{number}"
    try:
        if len(cells) != len(header):
            raise UserError(f"{len(cells)} cells under {len(header)} column names", where=where)
        record: dict[str, Any] = dict(zip(header, cells, strict=True))
        for key in (*JSON_KEYS, "conversations"):
            if record.get(key):
                record[key] = parse_json(record[key].encode("utf-8"), f"{where} /{key}")
        absent = {key for key in (*JSON_KEYS, "conversations", "id", "group") if record.get(key) == ""}
        return {key: cell for key, cell in record.items() if key not in absent}
    except UserError as error:
        return _fault(error, path, number, delimiter.join(cells).encode("utf-8"))
