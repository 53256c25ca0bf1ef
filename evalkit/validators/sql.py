"""`sql`: run the answer and the expected query on a SQLite file and compare the rows. Read-only, bounded in time, rows and size."""

import functools
import re
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, place, shown

MAX_ROWS = 10_000
MAX_SIZE = 50_000_000  # characters and bytes of all rows
SECONDS = 5.0  # of processor time, so that a busy machine changes no verdict
WAITED = 60.0  # of waiting, for the disk too
# SQLite looks at the clock between its steps only, and one call on long texts is one step: `instr` on texts of 1,000,000
# characters takes 3.5 s, LIKE with a pattern of 40,000 29 s. So texts and patterns are short, and the clock is asked often.
MAX_LENGTH = 200_000  # of one text or blob
MAX_PATTERN = 1000  # of LIKE and GLOB
STEPS = 100  # between two looks at the clock
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)
# Texts, quoted names and comments of a query; then its innermost parentheses.
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_INNER = re.compile(r"\([^()]*\)")
DIGITS = 12  # of a fraction, when compared: the order of a sum moves the 16th


class QueryError(Exception):
    """The query could not be run within bounds; the text says why."""


@dataclass(frozen=True, kw_only=True)
class Sql(Admitting):
    """database: a SQLite file. ordered: the order of rows counts (else only where the expected query itself, not a part of it
    in parentheses, says ORDER BY)."""

    database: Path
    ordered: bool | None = None
    kind: ClassVar[str] = "sql"

    def __post_init__(self) -> None:
        if not self.database.is_file():
            raise UserError("no such database", where=str(self.database))

    def check_row(self, row: Row) -> None:
        """The expected query must run."""
        for query in self.admissible(row):
            try:
                _expected(str(query), self.database)
            except QueryError as error:
                raise UserError(f"the expected query does not run: {error}", where=place(row)) from None

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when both queries give the same rows; column names play no part."""
        try:
            got = run(answer.text, self.database)
        except QueryError as error:
            return Verdict.unparsable(f"the query does not run: {error}")
        reason = "the row accepts nothing"
        for query in self.admissible(row):
            expected = _expected(str(query), self.database)
            ordered = is_ordered(str(query)) if self.ordered is None else self.ordered
            if (got == expected) if ordered else sorted(got, key=repr) == sorted(expected, key=repr):
                return Verdict.yes()
            reason = f"expected {len(expected)} rows {shown(expected[:2])}, got {len(got)} rows {shown(got[:2])}"
        return Verdict.no(reason, "wrong_value")


def is_ordered(query: str) -> bool:
    """Whether a query orders its rows: ORDER BY outside of parentheses (subqueries, OVER), texts and comments."""
    text, inner = _QUOTED.sub(" ", query), 1
    while inner:
        text, inner = _INNER.subn(" ", text)
    return bool(_ORDER_BY.search(text))


@functools.lru_cache(maxsize=4096)
def _expected(query: str, database: Path) -> list[Any]:
    return run(query, database)


def run(query: str, database: Path) -> list[Any]:
    """Rows of one SELECT. Raises QueryError for anything else, after 5 s of processor time, over 10,000 rows or 50 MB, or when SQLite refuses."""
    connection = _opened(database)
    spent, waited = time.thread_time() + SECONDS, time.monotonic() + WAITED
    rows: list[Any] = []
    size = 0
    try:
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_LENGTH)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, MAX_PATTERN)
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
        connection.set_progress_handler(lambda: int(time.thread_time() > spent or time.monotonic() > waited), STEPS)
        cursor = connection.execute(query)
        if cursor.description is None:  # nothing to run, which is not a query that finds no rows
            raise QueryError("no query in it")
        for row in cursor:
            size += sum(len(v) for v in row if isinstance(v, str | bytes))
            if len(rows) == MAX_ROWS or size > MAX_SIZE:
                raise QueryError(
                    f"more than {MAX_ROWS} rows" if size <= MAX_SIZE else f"rows of more than {MAX_SIZE} bytes"
                )
            rows.append(_plain(row))
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError) as error:
        raise QueryError(f"more than {SECONDS:g} s" if "interrupted" in str(error) else str(error)) from None
    finally:
        connection.close()
    return rows


def _opened(database: Path) -> sqlite3.Connection:
    """The database, read-only. As a URI with its marks escaped: after a bare ? or # another file would be made."""
    try:
        return sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
    except sqlite3.Error as error:
        raise UserError(f"cannot be opened: {error}", where=str(database)) from None


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row in which 1.0 is 1, fractions have `DIGITS` digits and bytes are hex, so that rows can be compared and shown."""
    return tuple(_number(v) if isinstance(v, float) else v.hex() if isinstance(v, bytes) else v for v in row)


def _number(value: float) -> float | int:
    rounded = value if value.is_integer() else float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
