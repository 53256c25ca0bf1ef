"""JSON Schema, bounded: the draft by `$schema`, formats asserted, nothing fetched, and an end in time and depth.

`jsonschema` gives the verdict. What it does without a bound is replaced: patterns run in the `regex` engine under a time
limit (and with Unicode classes, which Python's own engine lacks), every keyword counts against a budget of steps, uniqueItems
hashes, multipleOf is exact. A schema's fault is a `SchemaFaultError`, never a wrong answer and never a traceback.
"""

import functools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tunegate.core.ecma_regex import compiled
from tunegate.core.errors import UserError, nearest
from tunegate.core.files import canonical_json

MAX_STEPS = 200_000  # keyword evaluations of one check; a 1 MB instance of ordinary shape takes about a tenth
MAX_SECONDS = 5.0  # of processor time of one check, looked at every 64 steps
PATTERN_SECONDS = 1.0  # of one pattern on one string
MAX_FORMATTED = 8192  # characters of a string whose format is asserted; longer ones are not of any format
MAX_ERRORS = 20  # reported of one instance


class SchemaFaultError(UserError):
    """The schema itself is at fault: not a schema, refers to what is not there, or cannot be checked within bounds."""


class SchemaBoundsError(SchemaFaultError):
    """Checking one instance would take too long or too deep; the schema or the instance may be to blame."""


@dataclass(frozen=True, kw_only=True)
class Violation:
    """One place where an instance breaks its schema. pointer: JSON pointer into the instance; rule: the keyword."""

    pointer: str
    message: str
    rule: str


class Checker:
    """A schema, ready to check instances with. Made by `checker`, which keeps one for each schema.

    registry: a `referencing.Registry` of the schemas that this one may refer to; the drafts' meta-schemas if not given.
    """

    def __init__(self, schema: dict[str, Any] | bool, where: str, registry: Any = None) -> None:
        cls = _class_of(schema, where)
        _refuse_bad_schema(cls, schema, where)
        self._where = where
        self._budget = _Budget()
        bounded = _bounded(cls, self._budget, {})
        known = _specifications() if registry is None else registry
        self._validator = bounded(schema, registry=known, format_checker=_formats(cls))

    def violations(self, instance: Any) -> list[Violation]:
        """Where `instance` breaks the schema, at most `MAX_ERRORS` places; empty when it is valid.

        Raises SchemaFaultError when the schema refers to what it does not hold or cannot be checked within the bounds.
        """
        from referencing.exceptions import Unresolvable

        self._budget.start()
        found: list[Violation] = []
        try:
            for error in self._validator.iter_errors(instance):
                found.append(
                    Violation(
                        pointer=pointer(error.absolute_path), message=_short(error.message), rule=str(error.validator)
                    )
                )
                if len(found) >= MAX_ERRORS:
                    break
        except Unresolvable as error:
            raise SchemaFaultError(
                f"the schema refers to {error.ref!r}, which it does not hold",
                where=self._where,
                hint="references are never fetched; put the schema under $defs",
            ) from None
        except RecursionError:
            raise SchemaBoundsError("the schema or the instance nests too deeply to check", where=self._where) from None
        except _ExhaustedError as error:
            raise SchemaBoundsError(f"checking takes too long: {error}", where=self._where) from None
        except Exception as error:
            # A reference that is no address, or one to a part that is no schema (`{"$ref": "#/x", "x": {"type": 5}}`): the
            # meta-schema looks at neither, and the libraries raise what they happen to.
            raise SchemaFaultError(
                f"the schema refers to what is no schema: {type(error).__name__}: {_short(str(error))}",
                where=self._where,
            ) from None
        return found


def checker(schema: dict[str, Any] | bool, where: str = "schema") -> Checker:
    """The checker of a schema; equal schemas share one. Raises SchemaFaultError when it is not a schema."""
    try:
        return _cached(canonical_json(schema), where)
    except RecursionError:
        raise SchemaFaultError("the schema nests too deeply", where=where) from None
    except (ValueError, TypeError) as error:
        raise SchemaFaultError(f"not a JSON Schema: {error}", where=where) from None


@functools.lru_cache(maxsize=4096)
def _cached(text: str, where: str) -> Checker:
    return Checker(json.loads(text), where)


def pointer(path: Any) -> str:
    """A JSON pointer (RFC 6901) from path elements; empty for the whole document."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _class_of(schema: dict[str, Any] | bool, where: str) -> Any:
    from jsonschema import Draft202012Validator, validators

    if not isinstance(schema, dict | bool):
        raise SchemaFaultError(f"not a JSON Schema: an object is needed, found {type(schema).__name__}", where=where)
    named = schema.get("$schema") if isinstance(schema, dict) else None
    if named is None:
        return Draft202012Validator
    known = {
        str(cls.META_SCHEMA.get("$id") or cls.META_SCHEMA.get("id")).rstrip("#"): cls
        for cls in validators._META_SCHEMAS.values()  # type: ignore[attr-defined]
    }
    if not isinstance(named, str) or named.rstrip("#") not in known:
        raise SchemaFaultError(f"unknown $schema {named!r}", where=where, hint=nearest(str(named), sorted(known)))
    return known[named.rstrip("#")]


def _refuse_bad_schema(cls: Any, schema: Any, where: str) -> None:
    from jsonschema.exceptions import SchemaError

    budget = _Budget()
    budget.start()
    meta = _bounded(cls, budget, {})
    try:
        validator = meta(cls.META_SCHEMA, registry=_specifications())
        error = next(validator.iter_errors(schema), None)
    except (RecursionError, _ExhaustedError):
        raise SchemaFaultError("the schema is too large or nests too deeply", where=where) from None
    except SchemaError as bad:
        raise SchemaFaultError(f"not a JSON Schema: {_short(bad.message)}", where=where) from None
    if error is not None:
        raise SchemaFaultError(
            f"not a JSON Schema: {_short(error.message)}", where=f"{where} {pointer(error.absolute_path)}".strip()
        )
    for path, pattern in _patterns(schema, ()):
        try:
            compiled(pattern)
        except ValueError as bad:
            raise SchemaFaultError(
                f"the pattern {_short(pattern)!r} is not a regular expression: {bad}", where=f"{where} {path}"
            ) from None
    if _uses(schema, "unevaluatedProperties"):
        for path, pattern in _patterns(schema, ()):
            if compiled(pattern).groups or len(pattern) > 200:
                # jsonschema matches these in Python's own engine, without a time limit
                raise SchemaFaultError(
                    "unevaluatedProperties beside a pattern with groups cannot be bounded", where=f"{where} {path}"
                )


def _specifications() -> Any:
    """The drafts' own meta-schemas, which a schema may refer to; nothing else is known and nothing is fetched."""
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    return REGISTRY


def _patterns(schema: Any, path: tuple[Any, ...]) -> Iterator[tuple[str, str]]:
    """Every pattern in a schema, with its JSON pointer. enum, const, default and examples hold data, not schemas."""
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from _patterns(item, (*path, index))
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key == "pattern" and isinstance(value, str) and (not path or path[-1] != "properties"):
            yield pointer((*path, key)), value
        elif key == "patternProperties" and isinstance(value, dict) and (not path or path[-1] != "properties"):
            for name in value:
                yield pointer((*path, key, name)), name
        if key not in ("enum", "const", "default", "examples"):
            yield from _patterns(value, (*path, key))


def _uses(schema: Any, keyword: str) -> bool:
    if isinstance(schema, dict):
        return keyword in schema or any(_uses(value, keyword) for value in schema.values())
    return isinstance(schema, list) and any(_uses(item, keyword) for item in schema)


class _ExhaustedError(Exception):
    """The budget of one check is spent."""


class _Budget(threading.local):
    """Steps and seconds of processor time left of one check; each thread has its own, for equal schemas share a checker."""

    def __init__(self) -> None:
        self.steps, self.deadline = 0, 0.0

    def start(self) -> None:
        """A fresh budget."""
        self.steps, self.deadline = 0, time.thread_time() + MAX_SECONDS

    def step(self) -> None:
        """Count one keyword."""
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise _ExhaustedError(f"more than {MAX_STEPS} steps")
        if not self.steps % 64 and time.thread_time() > self.deadline:
            raise _ExhaustedError(f"more than {MAX_SECONDS:g} s")


Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]


def _bounded(cls: Any, budget: _Budget, made: dict[Any, Any]) -> Any:
    """`cls` with every keyword counted and the unbounded ones replaced. made: those of this budget, by class."""
    from jsonschema import validators

    if cls in made:
        return made[cls]
    own: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "uniqueItems": _unique_items,
        "multipleOf": _multiple_of,
    }
    keywords = {name: _counted(own.get(name, function), budget) for name, function in cls.VALIDATORS.items()}
    bounded = validators.create(
        meta_schema=cls.META_SCHEMA,
        validators=keywords,  # type: ignore[arg-type]
        type_checker=cls.TYPE_CHECKER,
        format_checker=_formats(cls),
        id_of=cls.ID_OF,
        applicable_validators=_applicable(cls),
    )
    made[cls] = bounded
    _keep_bounds(bounded, budget, made)
    return bounded


def _keep_bounds(bounded: Any, budget: _Budget, made: dict[Any, Any]) -> None:
    """A subschema that names its own `$schema` is checked by that draft's class, bounded too; jsonschema takes the plain one."""
    plain = bounded.evolve

    def evolve(self: Any, **changes: Any) -> Any:
        new = plain(self, **changes)
        if type(new) is bounded:
            return new
        cls: Any = type(new)
        formats = _formats(cls) if new.format_checker else None
        return _bounded(cls, budget, made)(
            new.schema, format_checker=formats, registry=new._registry, _resolver=new._resolver
        )

    bounded.evolve = evolve


def _applicable(cls: Any) -> Any:
    """Before 2019-09 a `$ref` hides its siblings; jsonschema keeps that rule beside the class."""
    from jsonschema import _legacy_keywords

    old = {"draft-03", "draft-04", "draft-06", "draft-07"}
    name = str(cls.META_SCHEMA.get("$schema"))
    return (
        _legacy_keywords.ignore_ref_siblings if any(draft in name for draft in old) else lambda schema: schema.items()
    )


def _counted(function: Keyword, budget: _Budget) -> Keyword:
    def keyword(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any] | None:
        budget.step()
        return function(validator, value, instance, schema)

    return keyword


@functools.lru_cache(maxsize=16)
def _formats(cls: Any) -> Any:
    """The draft's format checks; a string too long to check in bounded time is of no format."""
    from jsonschema import FormatChecker
    from jsonschema.exceptions import FormatError

    class Bounded(FormatChecker):
        def check(self, instance: object, format: str) -> None:  # noqa: A002
            if format == "regex":
                if isinstance(instance, str):
                    try:
                        compiled(instance)
                    except ValueError:
                        raise FormatError(f"{_short(instance)!r} is not a 'regex'") from None
                return
            if isinstance(instance, str) and len(instance) > MAX_FORMATTED and format in self.checkers:
                raise FormatError(f"a string of {len(instance)} characters is not a {format!r}")
            super().check(instance, format)

    bounded = Bounded(())
    bounded.checkers = dict(cls.FORMAT_CHECKER.checkers)
    return bounded


def _search(pattern: str, text: str) -> bool:
    try:
        return compiled(pattern).search(text, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        raise _ExhaustedError(f"the pattern {_short(pattern)!r} on a string of {len(text)} characters") from None
    except ValueError as error:
        raise _ExhaustedError(f"the pattern {_short(pattern)!r} is not a regular expression: {error}") from None


def _error(message: str) -> Any:
    from jsonschema.exceptions import ValidationError

    return ValidationError(message)


def _pattern(validator: Any, pattern: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _search(pattern, instance):
        yield _error(f"{_short(repr(instance), 80)} does not match {_short(repr(pattern), 80)}")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for key, value in instance.items():
                if _search(pattern, key):
                    yield from validator.descend(value, subschema, path=key, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not validator.is_type(instance, "object"):
        return
    known, patterns = schema.get("properties", {}), list(schema.get("patternProperties", {}))
    extras = [key for key in instance if key not in known and not any(_search(p, key) for p in patterns)]
    if isinstance(allowed, dict):
        for key in extras:
            yield from validator.descend(instance[key], allowed, path=key)
    elif allowed is False and extras:
        yield _error(f"additional properties: {', '.join(map(repr, extras[:5]))}")


def _unique_items(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if wanted and validator.is_type(instance, "array"):
        keys = {canonical(item) for item in instance}
        if len(keys) != len(instance):
            yield _error(f"{len(instance) - len(keys)} of {len(instance)} items stand there twice")


def _multiple_of(validator: Any, factor: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "number") and not is_multiple(instance, factor):
        yield _error(f"{instance!r} is not a multiple of {factor!r}")


def is_multiple(number: Any, factor: Any) -> bool:
    """Whether `number` is a whole multiple of `factor`, in the decimal digits they are written with: 19.99 of 0.01 is."""
    try:
        return (Fraction(str(number)) / Fraction(str(factor))).denominator == 1
    except (ValueError, ZeroDivisionError):  # infinity from an overflowing literal
        return False


def canonical(value: Any) -> Any:
    """A hashable that is equal exactly for equal JSON values: 1 is 1.0, true is not 1, null is not absent."""
    if isinstance(value, bool) or value is None:
        return ("constant", value)
    if isinstance(value, int | float):
        return ("number", value)
    if isinstance(value, list):
        return ("list", tuple(canonical(item) for item in value))
    if isinstance(value, dict):
        return ("object", frozenset((key, canonical(item)) for key, item in value.items()))
    return ("text", value)


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
