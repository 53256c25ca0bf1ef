"""What a user sees: results on standard output, progress and messages on standard error.

With `--json` standard output carries exactly one JSON object. When standard error is not a terminal, progress is one
plain line now and then instead of a bar that redraws itself.
"""

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Protocol, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from tunegate.core.visible_text import HIDDEN

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]

# Joiners stay: emoji and scripts such as Persian are written with them.
_OBEYED = re.compile(f"(?![\u200c\u200d]){HIDDEN.pattern}")


class _Visible(Console):
    """A console whose lines may hold text of others: what a terminal would obey is shown as a sign."""

    def print(self, *objects: Any, **options: Any) -> None:
        """As Rich's, of strings as `visible` makes them."""
        super().print(*(visible(o) if isinstance(o, str) else o for o in objects), **options)


def out() -> Console:
    """Standard output, for results. Plain when it is not a terminal: no colour, lines as long as they are, tables up to
    140 columns."""
    if sys.stdout.isatty():
        return _Visible(highlight=False, emoji=False)
    return _Visible(soft_wrap=True, highlight=False, emoji=False, width=140)


def err() -> Console:
    """Standard error, for progress and messages."""
    return _Visible(stderr=True, soft_wrap=not sys.stderr.isatty(), highlight=False, emoji=False)


def say(message: str) -> None:
    """Print one message line to standard error; `message` is text, not markup."""
    err().print(message, markup=False)


def warn(message: str) -> None:
    """Print one warning line to standard error."""
    err().print(f"warning: {message}", style="yellow", markup=False)


def visible(text: str) -> str:
    """Text of others with each control character as a sign: ESC is U+241B, those without a sign of their own U+FFFD."""
    return _OBEYED.sub(lambda found: _sign(ord(found[0])), text)


def _sign(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def show(text: str, *, end: str = "\n") -> None:
    """Print text of others (a log) on standard output as it is; on a terminal as `visible` makes it."""
    sys.stdout.write((visible(text) if sys.stdout.isatty() else text) + end)
    sys.stdout.flush()


def emit_json(payload: dict[str, Any]) -> None:
    """Print the one JSON object of `--json`. NaN and infinity are refused: they are not JSON."""
    ascii_only = not (sys.stdout.encoding or "utf-8").lower().startswith(("utf-8", "utf8"))
    sys.stdout.write(json.dumps(payload, ensure_ascii=ascii_only, allow_nan=False, indent=2) + "\n")
    sys.stdout.flush()


def table(title: str | None, columns: list[str], rows: list[list[str]], *, left: int = 1) -> None:
    """Print a table on standard output; the first `left` columns are left-aligned, the others right-aligned."""
    grid = Table(title=title, title_justify="left", header_style="bold", title_style="bold")
    for index, name in enumerate(columns):
        grid.add_column(name, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(visible(cell).replace("[", "\\[") for cell in row))
    out().print(grid)


class Ticker(Protocol):
    """Called as work goes on: `advance` more units done, and the text shown beside the bar."""

    def __call__(self, advance: int = 1, text: str | None = None) -> None:
        """Count `advance` more units done and show `text`."""
        ...


@contextmanager
def progress(description: str, total: int | None, *, bar_after_s: float = 0.0) -> Iterator[Ticker]:
    """Show progress of `total` units (None: unknown) on standard error: a bar on a terminal, else plain lines.

    bar_after_s: the bar of what is done by then is never shown (seconds)."""
    if sys.stderr.isatty():
        with _bar(description, total, bar_after_s) as ticker:
            yield ticker
    else:
        yield _PlainTicker(description, total)


A = TypeVar("A")


def ticked(items: Iterable[A], description: str, each: int = 1) -> Iterator[A]:
    """The items as they are, with progress told as they go by; nothing is told of what takes a second or two.

    each: units that one item is. The number of all is not known."""
    with progress(description, None, bar_after_s=2.0) as tick:
        for item in items:
            yield item
            tick(each)


@contextmanager
def _bar(description: str, total: int | None, after_s: float) -> Iterator[Ticker]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
    )
    bar = Progress(*columns, console=err(), transient=False)
    task = bar.add_task(description, total=total, text="")
    shown_at = time.monotonic() + after_s

    def tick(advance: int = 1, text: str | None = None) -> None:
        bar.advance(task, advance)
        if text is not None:
            bar.update(task, text=text)
        if not bar.live.is_started and time.monotonic() >= shown_at:
            bar.start()

    if not after_s:
        bar.start()
    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.stop()


class _PlainTicker:
    """One line every ten seconds and one at the end: readable in a CI log."""

    def __init__(self, description: str, total: int | None, every_s: float = 10.0) -> None:
        self._description, self._total, self._every_s = description, total, every_s
        self._done, self._text = 0, ""
        self._start = self._last = time.monotonic()

    def __call__(self, advance: int = 1, text: str | None = None) -> None:
        self._done += advance
        self._text = self._text if text is None else text
        now = time.monotonic()
        if now - self._last >= self._every_s or (advance and self._done == self._total):
            self._last = now
            of = f"/{self._total}" if self._total is not None else ""
            say(f"{self._description}: {self._done}{of} after {now - self._start:.0f} s {self._text}".rstrip())
