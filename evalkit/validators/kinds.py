"""The kinds of validators by name; a kind's code is imported when a task uses it."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.evalkit.options import build
from tunegate.evalkit.validators.base import Validator

KINDS = {
    "exact_match": "exact_match:ExactMatch",
    "any_of": "any_of:AnyOf",
    "regex": "regex:Regex",
    "number": "number:Number",
    "set": "set_match:SetMatch",
    "json": "json_valid:JsonValid",
    "json_schema": "json_schema:JsonSchema",
    "json_equal": "json_equal:JsonEqual",
    "tool_call": "tool_call:ToolCall",
    "sql": "sql:Sql",
    "judge": "judge:Judge",
    "python": "python:Python",
}


def make(given: Any, *, where: str, base: Path) -> Validator:
    """A validator from one entry of a task's `validators`. Raises UserError with `where` and the key."""
    if not isinstance(given, Mapping):
        raise UserError("a validator is a mapping with name and kind", where=where)
    kind = given.get("kind", given.get("name"))
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"no validator kind {kind!r}", where=f"{where} kind", hint=nearest(str(kind), list(KINDS)))
    options = {key: value for key, value in given.items() if key != "kind"}
    options.setdefault("name", kind)
    if kind == "python":
        options.setdefault("folder", "")  # beside the task file
    return build(class_of(kind), options, where=where, base=base)


def class_of(kind: str) -> type[Validator]:
    """The class behind a kind, imported now."""
    module, _, name = KINDS[kind].partition(":")
    cls: type[Validator] = getattr(importlib.import_module(f"tunegate.evalkit.validators.{module}"), name)
    return cls
