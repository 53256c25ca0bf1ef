"""The tables the advisor ships, read with the standard library. Every row keeps its source."""

import csv
import math
import re
from functools import cache
from importlib import resources
from pathlib import Path

from tunegate.core.errors import UserError

Record = dict[str, str]
UNVERIFIED = "not verified"  # in a row's source: written from general knowledge, no public file was read for it


@cache
def table(name: str) -> tuple[Record, ...]:
    """Rows of `advisor/tables/NAME.csv`, as text."""
    text = (resources.files("tunegate.advisor") / "tables" / f"{name}.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def read_csv(path: Path, needed: tuple[str, ...]) -> list[Record]:
    """Rows of a user's CSV file. Raises UserError when it is missing, not UTF-8, or lacks a needed column."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            rows = [{k: v or "" for k, v in row.items() if k is not None} for row in reader]
            columns = reader.fieldnames or []
    except FileNotFoundError:
        raise UserError("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise UserError("is a folder, a CSV file is needed here", where=str(path)) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"not a CSV file: {error}", where=str(path)) from None
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"no column {', '.join(missing)}", where=f"{path}:1", hint=f"needed: {', '.join(needed)}")
    return rows


def doubt(name: str, source: str) -> str | None:
    """A sentence to show beside whatever rests on a row whose source says so; None for a row that was checked."""
    return f"{name}: {source}" if UNVERIFIED in source else None


def number(text: str) -> float | None:
    """A number in a table cell; None for an empty cell, text (such as `OOM`), NaN and infinity."""
    try:
        value = float(text.replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def key(name: str) -> str:
    """A name reduced to what identifies it: lower case, letters and digits, no owner, no `-Instruct`, `-chat`, `-hf`."""
    short = name.strip().lower().rsplit("/", 1)[-1]
    short = re.sub(r"[-_ ](instruct|chat|it|hf|base|bf16|fp16)(?=$|[-_ .])", "", short)
    return re.sub(r"[^a-z0-9.:]+", "", short)
