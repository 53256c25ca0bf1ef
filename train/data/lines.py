"""The lines of text files as parsed values: JSON Lines, JSON arrays, CSV and TSV. A line that is none gives a Fault."""

import csv
import io
import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tunegate.core.errors import UserError, first_line
from tunegate.core.rows import JSON_KEYS, parse_json
from tunegate.train.data.formats import candidates

Line = tuple[int, Any]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A line that is not a row: why (one line), where (`file:line` and a JSON pointer), and its text as far as it can be
    read (at most 2,000 characters)."""

    error: UserError
    file: str
    line: int
    text: str


def json_lines(path: Path, stream: IO[bytes], first: int = 1) -> Iterator[Line]:
    """One JSON value a line, of which the first is line `first`; blank lines are passed over."""
    for number, raw in enumerate(stream, first):
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if line.strip():
            try:
                yield number, parse_json(line, f"{path}:{number}")
            except UserError as error:
                yield number, fault(error, path, number, line)


def fault(error: UserError, path: Path, number: int, raw: bytes) -> Fault:
    """The fault of a line whose bytes are `raw`."""
    return Fault(error=error, file=str(path), line=number, text=raw[:2000].decode("utf-8", "backslashreplace"))


def json_file(path: Path, stream: IO[bytes]) -> Iterator[Line]:
    """A JSON array of records; JSON Lines under the suffix .json are read too."""
    raw = stream.read().removeprefix(b"\xef\xbb\xbf")
    head = raw.lstrip()[:1]
    if head != b"[":
        first, _, more = raw.strip().partition(b"\n")
        try:
            record = json.loads(first)
            alone = not more and isinstance(record, dict) and not candidates(record)
        except (ValueError, RecursionError):
            alone = not _goes_on_in_lines(raw, more)
        if alone:
            _refuse_document(raw, path)
        yield from json_lines(path, io.BytesIO(raw))
        return
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError("not UTF-8", where=f"{path}:{line}", hint="save the file as UTF-8") from None
    yield from _array(path, text)


def _goes_on_in_lines(raw: bytes, more: bytes) -> bool:
    """Whether a text whose first line is no JSON is JSON Lines all the same: it is no JSON as a whole, and a line of `more`,
    which follows, is an object."""
    return not _is_object(raw) and any(line[:1] == b"{" and _is_object(line) for line in more.split(b"\n"))


def _is_object(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _refuse_document(raw: bytes, path: Path) -> None:
    document = parse_json(raw, str(path))
    lists = [key for key, value in document.items() if isinstance(value, list)] if isinstance(document, dict) else []
    hint = (
        f"write the list under {lists[0]!r} to a file of its own" if lists else "a file is a JSON array or JSON Lines"
    )
    if isinstance(document, dict) and candidates(document):
        hint = "this is one record: put it between [ and ], or on one line"
    raise UserError("one JSON object, not a list of records", where=str(path), hint=hint)


def _array(path: Path, text: str) -> Iterator[Line]:
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
            yield line, fault(error, path, line, part)
        at, expected = end, ("]", ",")
    if text[at + 1 :].strip():
        raise UserError("not valid JSON: text after the array", where=f"{path}:{line}")


def table(path: Path, stream: IO[bytes], delimiter: str) -> Iterator[Line]:
    """CSV with a header line; every cell stays text, but for those that hold JSON (JSON_KEYS and `conversations`).

    A byte that is no UTF-8 reaches its cell as half a surrogate pair, which no UTF-8 gives, so that its own line is named.
    """
    csv.field_size_limit(sys.maxsize)
    number = 1
    with io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        lines = _Lines(text)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader, None)
                if cells is None:
                    return
                if header is None:
                    header = _header(cells, path)
                elif cells:
                    yield number, _cells(header, cells, path, number, delimiter)
            except csv.Error as error:
                wrong = UserError(f"not valid CSV: {error}", where=f"{path}:{number}")
                if header is None or "end of data" in str(
                    error
                ):  # a quotation mark never closed takes in all that follows
                    raise wrong from None
                if lines.closed(len(header), delimiter):
                    wrong = UserError(f"{wrong.message}; it ends on line {lines.number}", where=wrong.where)
                yield number, fault(wrong, path, number, "".join(lines.record).encode("utf-8", "surrogateescape"))
            number = lines.number + 1
            lines.record.clear()


class _Lines:
    """The lines of a file for the CSV parser. number: of the last one given; record: those given since it was cleared, so that
    a record the parser refuses can be shown."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines, self._back = iter(lines), deque[str]()
        self.number, self.record = 0, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.record.append(self._back.popleft() if self._back else next(self._lines))
        self.number += 1
        return self.record[-1]

    def closed(self, columns: int, delimiter: str) -> bool:
        """Go on to the line that closes a refused record with a quotation mark left open, so that its tail is no row. Nothing is
        passed over, and False given, where none is open, or a line that is a record of its own comes first."""
        first = len(self.record)
        if sum(line.count('"') for line in self.record) % 2:
            for line in self:
                if line.count('"') % 2:
                    return True
                if _is_record(line, columns, delimiter):
                    break
        self._back.extendleft(reversed(self.record[first:]))
        self.number -= len(self.record) - first
        del self.record[first:]
        return False


def _is_record(line: str, columns: int, delimiter: str) -> bool:
    try:
        return [len(cells) for cells in csv.reader([line], delimiter=delimiter, strict=True)] == [columns]
    except csv.Error:
        return False


def _header(cells: list[str], path: Path) -> list[str]:
    where = f"{path}:1"
    if not _is_utf8(cells):
        raise UserError("not UTF-8", where=where, hint="save the file as UTF-8")
    if len(set(cells)) != len(cells) or "" in cells:
        raise UserError("the header has an empty or repeated column name", where=where)
    if len(cells) == 1 and (found := next((c for c in ";\t|," if c in cells[0]), None)):
        hint = f"the cells seem to be separated by {found!r}: write commas (.csv) or tabs (.tsv)"
        raise UserError("the header has a single column", where=where, hint=hint)
    return cells


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _cells(header: list[str], cells: list[str], path: Path, number: int, delimiter: str) -> Any:
    where = f"{path}:{number}"
    try:
        if not _is_utf8(cells):
            raise UserError("not UTF-8", where=where, hint="save the file as UTF-8")
        if len(cells) != len(header):
            raise UserError(f"{len(cells)} cells under {len(header)} column names", where=where)
        record: dict[str, Any] = dict(zip(header, cells, strict=True))
        for key in (*JSON_KEYS, "conversations"):
            if record.get(key):
                record[key] = parse_json(record[key].encode("utf-8"), f"{where} /{key}")
        absent = {key for key in (*JSON_KEYS, "conversations", "id", "group") if record.get(key) == ""}
        return {key: cell for key, cell in record.items() if key not in absent}
    except UserError as error:
        return fault(error, path, number, delimiter.join(cells).encode("utf-8", "surrogateescape"))
