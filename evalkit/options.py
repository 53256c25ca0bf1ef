"""Frozen dataclasses from mappings a user wrote: every fault is one line with file and key, a misspelt key its nearest."""

import operator
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from tunegate.core.errors import UserError, nearest

T = TypeVar("T")
_WORDS: dict[type, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    dict: "a mapping",
}
# What a field's metadata may bound, by JSON Schema's keyword: how to check it, and in words.
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    "minimum": (operator.ge, "at least"),
    "exclusiveMinimum": (operator.gt, "above"),
    "maximum": (operator.le, "at most"),
    "exclusiveMaximum": (operator.lt, "below"),
}


def build(cls: type[T], given: Any, *, where: str, base: Path) -> T:
    """An instance of the dataclass `cls`; keys are its field names (a trailing underscore left out).

    A field that is itself a dataclass is built likewise. Paths are taken relative to the folder `base`. Raises UserError
    with `where` and the key for an unknown key, a missing one, or a value of the wrong type or beyond the bounds in its
    field's metadata (`minimum`, `maximum`, ... as JSON Schema names them; `minItems`).
    """
    if not isinstance(given, Mapping):
        raise UserError(f"a mapping is needed here, found {_shown(given)}", where=where)
    known: dict[str, Field[Any]] = {f.name.rstrip("_"): f for f in fields(cls) if f.init}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in known:
            raise UserError(f"unknown key {str(key)!r}", where=where, hint=nearest(str(key), list(known)))
        found = converted(value, hints[known[key].name], f"{where} {key}", base)
        _keep_bounds(found, known[key].metadata, f"{where} {key}")
        values[known[key].name] = found
    for key, field in known.items():
        needed = field.default is MISSING and field.default_factory is MISSING
        if needed and field.name not in values:
            raise UserError(f"{key!r} is missing", where=where)
    return cls(**values)


def _keep_bounds(value: Any, metadata: Mapping[str, Any], where: str) -> None:
    bounds = {name: bound for name, bound in metadata.items() if name in BOUNDS}
    if value is not None and not all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
        wanted = " and ".join(f"{BOUNDS[name][1]} {bound:g}" for name, bound in bounds.items())
        raise UserError(f"must be {wanted}, found {_shown(value)}", where=where)
    if isinstance(value, tuple) and len(value) < metadata.get("minItems", 0):
        raise UserError(f"at least {metadata['minItems']} needed here", where=where)


def converted(value: Any, hint: Any, where: str, base: Path) -> Any:
    """`value` as the type that `hint` names. Raises UserError with `where`."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(value, arguments, where, base)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            raise UserError(
                f"{_shown(value)} is not possible here",
                where=where,
                hint=nearest(str(value), [str(a) for a in arguments]),
            )
        return value
    if origin in (tuple, list):
        if not isinstance(value, list):
            raise UserError(f"a list is needed here, found {_shown(value)}", where=where)
        return tuple(converted(item, arguments[0], f"{where}[{index}]", base) for index, item in enumerate(value))
    if hint is Path:
        if not isinstance(value, str):
            raise UserError(f"a file name is needed here, found {_shown(value)}", where=where)
        return base / value
    if is_dataclass(hint) and isinstance(hint, type):
        return build(hint, value, where=where, base=base)
    plain = origin or hint
    if plain is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:
            raise UserError("beyond the range of a number", where=where)
        return float(value)
    if plain is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1.0 is a whole number, as JSON Schema has it
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise UserError(f"{_WORDS.get(plain, plain.__name__)} is needed here, found {_shown(value)}", where=where)
    return value


def _one_of(value: Any, hints: tuple[Any, ...], where: str, base: Path) -> Any:
    if value is None and type(None) in hints:
        return None
    problem: UserError | None = None
    for hint in (h for h in hints if h is not type(None)):
        try:
            return converted(value, hint, where, base)
        except UserError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
