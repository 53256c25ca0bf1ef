"""The tables the advisor ships, read with the standard library. Every row keeps its source."""

import csv
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path

from tunegate.core.errors import UserError

Record = dict[str, str]
# A number in a cell, with signs before and a unit after it; one whose commas part thousands, which of them may as well have a
# decimal comma, and one that has.
# Columns whose commas are no part of a number.
TEXTS = {
    "notes", "note", "comment", "comments", "remarks", "source", "source_repo_or_paper", "source_path_or_table", "model", "name",
    "provider", "gpu", "engine", "software", "targets", "date",
}  # fmt: skip
_NUMBER_CELL = re.compile(r"([-+~≈<>=\s]*)([\d.,]+)(\s*[A-Za-z]{0,3})")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
_UNCLEAR = re.compile(r"\d+,\d+")
_DECIMAL = re.compile(r"(\d+|\d{1,3}(?:\.\d{3})+),(\d+)")
_NO_PART_OF_A_NAME = (
    "instruct|chat|it|hf|base|bf16|fp16|fp8|nvfp4|mxfp4|fp4|int4|int8|4bit|8bit|awq|gptq|marlin|bnb|unsloth|gguf|quantized|"
    "dynamic|g128|128g|w4a16|w8a8|w8a16"
)
UNVERIFIED = "not verified"  # in a row's source: written from general knowledge, no public file was read for it


@cache
def table(name: str) -> tuple[Record, ...]:
    """Rows of `advisor/tables/NAME.csv`, as text."""
    text = (resources.files("tunegate.advisor") / "tables" / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def read_csv(path: Path, needed: tuple[str, ...]) -> list[Record]:
    """Rows of a user's CSV file, cells stripped. Raises UserError when it is missing, not UTF-8, or lacks a needed column.

    Columns may stand in any order and case, parted by comma, semicolon or tab; lines before them that are empty or begin
    with # are passed over. A row without any cell is none. A decimal comma becomes a point.
    """
    return [row for _, row in read_csv_lines(path, needed)]


def read_csv_lines(path: Path, needed: tuple[str, ...]) -> list[tuple[int, Record]]:
    """As `read_csv`, each row with the number of the line it ends on."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            passed, header = 0, ""
            for header in stream:
                passed += 1
                if header.strip(" \t\r\n,;") and not header.lstrip().startswith("#"):
                    break
            mark = max(",;\t", key=header.count)
            names = {name.lower(): name for name in needed}
            columns = [cell.strip() for cell in next(csv.reader([header], delimiter=mark), [])]
            columns = [names.get(column.lower(), column) for column in columns]
            reader = csv.reader(stream, delimiter=mark)
            rows = [
                (
                    passed + reader.line_num,
                    dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, cells), strict=False)),
                )
                for cells in reader
                if any(cells)
            ]
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, a CSV file is needed here", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not a CSV file: {error}", where=str(path)) from None
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"no column {', '.join(missing)}", where=f"{path}:1", hint=f"needed: {', '.join(needed)}")
    return [
        (
            line,
            {k: cell if k.lower() in TEXTS else _with_point(cell, mark, f"{path}:{line}") for k, cell in row.items()},
        )
        for line, row in rows
    ]


def _with_point(cell: str, mark: str, where: str) -> str:
    """A number with a decimal comma (`0,15`, `~7,5B`, `1.234,5`) with a point; any other cell as it is.

    Raises UserError for `1,234`, which may be either, unless commas part the columns: there it is 1234.
    """
    found = _NUMBER_CELL.fullmatch(cell)
    if found is None or "," not in cell:
        return cell
    before, digits, after = found.groups()
    if _THOUSANDS.fullmatch(digits):
        if mark == "," or not _UNCLEAR.fullmatch(digits):
            return cell
        either = f"{digits.replace(',', '.')} or {digits.replace(',', '')}"
        raise UserError(f"{cell!r} may be {either}", where=where, hint="write it without the comma")
    decimal = _DECIMAL.fullmatch(digits)
    return f"{before}{decimal[1].replace('.', '')}.{decimal[2]}{after}" if decimal else cell


def doubt(name: str, source: str) -> str | None:
    """A sentence to show beside whatever rests on a row whose source says so; None for a row that was checked."""
    return f"{name}: {source}" if UNVERIFIED in source else None


def number(text: str) -> float | None:
    """A number in a table cell, whose commas part thousands; None for an empty cell, text (such as `OOM`), other commas, NaN
    and infinity."""
    if "," in text and not _THOUSANDS.fullmatch(text.strip().lstrip("+-")):
        return None
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def key(name: str) -> str:
    """A name reduced to what identifies it: lower case, letters and digits, no owner, no `-Instruct`, `-chat`, `-hf`, no
    weight format (`-FP8-dynamic`, `-GPTQ-Int4`, `-quantized.w4a16`): the shape is that of the model it was made from."""
    short = name.strip().lower().rsplit("/", 1)[-1]
    short = re.sub(rf"[-_ .]({_NO_PART_OF_A_NAME})(?=$|[-_ .])", "", short)
    return re.sub(r"[^a-z0-9.:]+", "", short)
