"""JSON Schemas (draft 2020-12) of `task.yaml` and `gate.yaml`, for editors and for checks without us.

They are made from the dataclasses that the reader builds, bounds included, and stand in `schemas/` as files; a test holds
the files to the classes. What no schema can see is left to the reader: files that are missing, names that are not there.
"""

import types
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tunegate.core.errors import UserError
from tunegate.core.files import home_path
from tunegate.core.strict_yaml import read_yaml
from tunegate.evalkit.options import BOUNDS
from tunegate.evalkit.policy import TAKES, Condition, Policy
from tunegate.evalkit.task import TaskFile
from tunegate.evalkit.validators.base import Validator
from tunegate.evalkit.validators.kinds import KINDS, class_of

Schema = dict[str, Any]
DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {str: "string", Path: "string", bool: "boolean", int: "integer", float: "number", dict: "object"}


def schemas() -> dict[str, Schema]:
    """Both schemas by the name of the file they describe: `task` and `gate`."""
    found = {}
    for name, cls in (("task", TaskFile), ("gate", Policy)):
        shared: dict[str, Schema] = {}
        document = _object(cls, shared)
        found[name] = {"$schema": DRAFT, "title": f"{name}.yaml", **document, "$defs": dict(sorted(shared.items()))}
    return found


def refuse_schema_of_answers(out: Path) -> None:
    """Raise UserError where a task file beside `out` judges answers by a schema of that name, as `ft eval init` writes one:
    with this schema in its place no answer would pass."""
    for file in sorted(out.parent.glob("*.y*ml")):
        try:
            document = read_yaml(file)
        except (UserError, OSError):
            continue
        entries = document.get("validators") if isinstance(document, dict) else None
        named = [v.get("schema") for v in entries if isinstance(v, dict)] if isinstance(entries, list) else []
        if any(isinstance(name, str) and _same(file.parent / home_path(name), out) for name in named):
            hint = f"another name: --out {out.with_name('task-file.schema.json')}"
            raise UserError(f"{file} judges answers by this file", where=str(out), hint=hint)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _object(cls: type[Any], shared: dict[str, Schema]) -> Schema:
    """A mapping whose keys are the fields of `cls`. shared: the `$defs`, added to."""
    known = {f.name: f for f in fields(cls) if f.init}
    hints = get_type_hints(cls)
    needed = [name for name, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    properties = {name.rstrip("_"): _property(f, hints[name], shared) for name, f in known.items()}
    described = {"description": " ".join((cls.__doc__ or "").split())}
    return {**described, "type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def _property(field: Field[Any], hint: Any, shared: dict[str, Schema]) -> Schema:
    found = _of(hint, shared)
    if "holds" in field.metadata:  # mappings whose class their own `kind` decides
        found = {"type": "array", "items": _shared(field.metadata["holds"], shared)}
    return found | {
        key: field.metadata[key] for key in (*BOUNDS, "minItems", "items", "pattern") if key in field.metadata
    }


def _of(hint: Any, shared: dict[str, Schema]) -> Schema:
    """What values the reader takes for a type; null stands for None."""
    if hint is Any:
        return {}
    if is_dataclass(hint) and isinstance(hint, type):
        return _shared(hint, shared)
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (Union, types.UnionType):
        cases = [{"type": "null"} if a is type(None) else _of(a, shared) for a in arguments]
        if any("$ref" in case for case in cases):
            return {"anyOf": cases}
        return {"type": list(dict.fromkeys(case["type"] for case in cases))}
    if origin is tuple:
        return {"type": "array", "items": _of(arguments[0], shared)}
    return {"type": _TYPES[origin or hint]}


def _shared(cls: type[Any], shared: dict[str, Schema]) -> Schema:
    """A reference to the definition of `cls` among the `$defs`, which is made when it is not there."""
    if cls.__name__ not in shared:
        shared[cls.__name__] = {}
        made = _validator(shared) if cls is Validator else _object(cls, shared)
        shared[cls.__name__] = made | (_rules() if cls is Condition else {})
    return {"$ref": f"#/$defs/{cls.__name__}"}


def _rules() -> Schema:
    """Which of `margin` and `value` a rule takes, and which it needs."""
    cases = []
    for rule, wanted in TAKES.items():
        others = {name: {"type": "null"} for name in ("margin", "value") if name != wanted}
        given = {} if wanted is None else {wanted: {"type": "number"}}
        then = {"properties": {**others, **given}, "required": list(given)}
        cases.append({"if": {"properties": {"rule": {"const": rule}}}, "then": then})
    return {"allOf": cases}


def _validator(shared: dict[str, Schema]) -> Schema:
    """One entry of `validators`: its kind is `kind`, else its name, and decides the other keys."""
    cases = []
    for kind in KINDS:
        cls = class_of(kind)
        shared[cls.__name__] = _validator_of(cls, kind, shared)
        by_kind = {"properties": {"kind": {"const": kind}}, "required": ["kind"]}
        by_name = {"properties": {"name": {"const": kind}, "kind": False}, "required": ["name"]}
        cases.append({"if": {"anyOf": [by_kind, by_name]}, "then": {"$ref": f"#/$defs/{cls.__name__}"}})
    kinds = {"enum": list(KINDS)}
    known = {"anyOf": [{"properties": {"kind": kinds}, "required": ["kind"]}, {"properties": {"name": kinds, "kind": False}, "required": ["name"]}]}  # fmt: skip
    return {"type": "object", "allOf": [known, *cases]}


def _validator_of(cls: type[Any], kind: str, shared: dict[str, Schema]) -> Schema:
    found = _object(cls, shared)
    found["properties"] = {"kind": {"const": kind}, **found["properties"]}
    found["required"] = [name for name in found["required"] if name != "name"]
    return found
