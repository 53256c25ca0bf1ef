"""vLLM's flags behind `--`, for a server that runs elsewhere: none may name a file of this machine."""

import os
import re
from pathlib import PurePath

from tunegate.core.errors import UsageError
from tunegate.serve import preflight

# Folders that vLLM writes into or reads requests' files from: of the container, whatever is called so here.
FOLDERS = ("--download-dir", "--allowed-local-media-path")


def check_passed_on(extra: tuple[str, ...], source: str | None) -> None:
    """Refuse what `preflight.check_flags` does, and a value that is a path of this machine. source: where a release is in the
    container; None for a model of the hub, beside which nothing is put. Raises UsageError."""
    flag = ""
    for word in extra:
        head, equals, value = word.partition("=")
        if head.startswith("-"):
            flag = head
        value = value if equals else word
        for text in (value, *re.findall(r'"([^"]*)"', word)):  # in JSON too
            if _is_here(text) and flag.replace("_", "-") not in FOLDERS and not _is_there(text, source):
                raise UsageError(
                    f"{text} is a path of this machine, which the server will not see", where=f"-- {flag}",
                    hint=f"put it into the release's folder and name it there: {source}/{PurePath(text).name}"
                    if source else "name a file of the container's image, or a hub id",
                )  # fmt: skip
    template = preflight.flag(extra, "--chat-template") or ""
    if template.startswith("/"):  # a file of the container
        extra = tuple(w for w in extra if template not in w and w.replace("_", "-") != "--chat-template")
    preflight.check_flags(extra)


def _is_there(text: str, source: str | None) -> bool:
    """Whether a path is in the release's folder in the container, though this machine has one that is called so too."""
    return source is not None and PurePath(text).is_relative_to(source)


def _is_here(text: str) -> bool:
    """Whether a text is a path that exists; a bare word (`auto`, `hermes`) is none, whatever folder is called so. os.path: it
    takes a text that is too long for a path."""
    named = "/" in text or text.startswith(".")
    return (named and os.path.exists(text)) or (bool(PurePath(text).suffix) and os.path.isfile(text))  # noqa: PTH110, PTH113
