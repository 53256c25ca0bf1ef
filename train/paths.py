"""Paths and names that options give."""

from pathlib import Path

import typer

from tunegate.core.errors import UsageError


def given_path(text: str) -> Path:
    """A path that an option gives (a `parser`). Raises typer.BadParameter for an empty one, which would mean the current
    folder."""
    if not text:
        raise typer.BadParameter("it is empty, a path is needed here")
    return Path(text)


def given_name(option: str, text: str) -> str:
    """A name that an option gives. Raises UsageError for an empty one, which would mean the current folder, or nothing."""
    if not text.strip():
        raise UsageError("it is empty", where=option, hint="name something, or leave the option out")
    return text
