"""A JSON Schema read off examples."""

from typing import Any


def infer_schema(values: list[Any]) -> dict[str, Any]:
    """A JSON Schema (2020-12) that allows all the values: types, required and known keys, few texts as an enum."""
    types = sorted({_type(v) for v in values})
    if "integer" in types and "number" in types:
        types.remove("integer")
    schema: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
    objects = [v for v in values if isinstance(v, dict)]
    if objects:
        keys = list(dict.fromkeys(k for v in objects for k in v))
        schema["properties"] = {k: infer_schema([v[k] for v in objects if k in v]) for k in keys}
        schema["required"] = [k for k in keys if all(k in v for v in objects)]
        schema["additionalProperties"] = False
    items = [item for v in values if isinstance(v, list) for item in v]
    if items:
        schema["items"] = infer_schema(items)
    texts = {v for v in values if isinstance(v, str)}
    if types == ["string"] and len(texts) <= 20 and len(values) >= 10 * len(texts):
        schema["enum"] = sorted(texts)
    return schema


def _type(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names[type(value)]
