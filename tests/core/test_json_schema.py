"""Verdicts on a compact set of our own, and hostile schemas that must come to an end."""

import json
import time
import urllib.request

import pytest

from tunegate.core import json_schema
from tunegate.core.errors import UserError
from tunegate.core.json_schema import SchemaBoundsError, SchemaFaultError, canonical, checker, is_multiple

D4 = {"$schema": "http://json-schema.org/draft-04/schema#"}
D7 = {"$schema": "http://json-schema.org/draft-07/schema#"}
D19 = {"$schema": "https://json-schema.org/draft/2019-09/schema"}

CASES = [
    ({"type": "integer"}, 1.0, True),
    ({"type": "integer"}, "5", False),  # B6: no lax conversion
    ({"type": "integer"}, True, False),
    ({"additionalProperties": False, "properties": {"a": {}}}, {"b": 1}, False),
    ({"additionalProperties": False, "patternProperties": {"^x": {}}}, {"x1": 1}, True),
    ({"additionalProperties": {"type": "string"}}, {"x1": 1}, False),
    ({"const": 1}, True, False),
    ({"enum": [None]}, None, True),
    ({"multipleOf": 0.01}, 19.99, True),
    ({"multipleOf": 0.01}, 19.995, False),
    ({"uniqueItems": True}, [1, True], True),
    ({"uniqueItems": True}, [{"a": 1}, {"a": 1.0}], False),
    ({"format": "date"}, "2026-02-30", False),
    ({"format": "email"}, "nobody", False),
    ({"format": "regex"}, "(", False),
    ({"pattern": "^\\d+$"}, "12\n", False),
    ({"pattern": "^\\d+$"}, "١٢", False),
    ({"pattern": "^\\p{L}+$"}, "été", True),
    ({"prefixItems": [{"type": "string"}]}, [1], False),  # B4: 2020-12 is known
    ({**D4, "maximum": 3, "exclusiveMaximum": True}, 3, False),  # B4: draft 4 is known
    ({**D7, "items": [{"type": "string"}], "additionalItems": False}, ["a", 1], False),
    ({**D7, "$ref": "#/definitions/a", "definitions": {"a": {"type": "string"}}, "type": "integer"}, "x", True),
    ({**D19, "$ref": "#/$defs/a", "$defs": {"a": {"type": "string"}}, "type": "integer"}, "x", False),
    ({"unevaluatedProperties": False, "allOf": [{"properties": {"a": {}}}]}, {"b": 1}, False),
    (True, {"anything": 1}, True),
    (False, 1, False),
]


@pytest.mark.parametrize(("schema", "instance", "valid"), CASES)
def test_verdicts(schema, instance, valid):
    assert (not checker(schema).violations(instance)) is valid


def test_two_schemas_with_one_id_do_not_disturb_each_other():
    """B4: one global registry made the second schema fail with "already exists"."""
    one = {"$id": "https://example.com/s", "type": "string"}
    two = {"$id": "https://example.com/s", "type": "number"}
    assert not checker(one).violations("a")
    assert not checker(two).violations(1)
    assert checker(two).violations("a")


def test_pointer_and_rule():
    schema = {"properties": {"a/b": {"items": {"type": "string"}}}}
    (violation,) = checker(schema).violations({"a/b": ["x", 1]})
    assert violation.pointer == "/a~1b/1"
    assert violation.rule == "type"


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "strin"}, "not a JSON Schema"),
        ({"pattern": "("}, "not a regular expression"),
        ({"$schema": "http://json-schema.org/draft-8/schema"}, "unknown $schema"),
        ([], "an object is needed"),
        ("x", "an object is needed"),
        ({"minimum": float("nan")}, "not a JSON Schema"),
    ],
)
def test_what_is_no_schema_is_a_user_error(schema, words):
    with pytest.raises(UserError, match=r"^") as caught:
        checker(schema, "task.yaml schema")
    assert words in caught.value.line()
    assert caught.value.line().startswith("task.yaml schema")


def test_remote_references_are_never_fetched(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("fetched")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(SchemaFaultError, match="does not hold"):
        checker({"$ref": "https://example.com/remote.json"}).violations(1)


def doubling(levels):
    definitions = {"a0": {"type": "integer"}}
    for i in range(1, levels):
        definitions[f"a{i}"] = {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2}
    return {"$defs": definitions, "$ref": f"#/$defs/a{levels - 1}"}


def test_hostile_schemas_come_to_an_end():
    start = time.monotonic()
    with pytest.raises(SchemaBoundsError):
        checker({"$ref": "#"}).violations(1)
    with pytest.raises(SchemaBoundsError, match="too long"):
        checker(doubling(40)).violations(1)
    assert time.monotonic() - start < 20


def test_a_pattern_that_blows_up_is_bounded(monkeypatch):
    monkeypatch.setattr(json_schema, "PATTERN_SECONDS", 0.2)
    start = time.monotonic()
    try:
        checker({"pattern": r"^(\w+\s?)*\1$"}).violations("a" * 35 + " !")
    except SchemaBoundsError as error:
        assert "pattern" in error.message  # noqa: PT017
    assert time.monotonic() - start < 5


def test_a_deep_instance_is_bounded():
    deep = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(SchemaBoundsError):
        checker({"$defs": {"l": {"type": "array", "items": {"$ref": "#/$defs/l"}}}, "$ref": "#/$defs/l"}).violations(
            deep
        )


def test_multiples_are_exact():
    assert is_multiple(19.99, 0.01)
    assert is_multiple(0.3, 0.1)
    assert not is_multiple(0.35, 0.1)
    assert not is_multiple(float("inf"), 2)


def test_canonical_equality():
    assert canonical({"a": 1, "b": [2]}) == canonical(json.loads('{"b": [2.0], "a": 1.0}'))
    assert canonical(True) != canonical(1)
    assert canonical({"a": None}) != canonical({})


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"properties": {"x": {"$schema": "http://json-schema.org/draft-07/schema#", "pattern": "^(a|a)*$"}}}, "x"),
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "properties": {"x": {"$ref": "#"}},
                "pattern": "^(a|a)*$",
            },
            "x",
        ),
    ],
)
def test_a_schema_that_names_its_draft_again_inside_stays_bounded(schema, instance):
    """jsonschema takes a plain, unbounded class wherever a subschema carries `$schema`; 2^40 steps in Python's own engine."""
    with pytest.raises(SchemaFaultError, match="too long"):
        checker(schema).violations({instance: "a" * 40 + "b"})
