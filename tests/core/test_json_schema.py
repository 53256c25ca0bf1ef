"""Verdicts on a compact set of our own, and hostile schemas that must come to an end."""

import io
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

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
    fetched = []  # an error would be caught by jsonschema on its way

    def note(request, *_, **__):
        fetched.append(request)
        return io.BytesIO(b"{}")

    monkeypatch.setattr(urllib.request, "urlopen", note)
    with pytest.raises(SchemaFaultError, match="does not hold"):
        checker({"$ref": "https://example.com/remote.json"}).violations(1)
    assert fetched == []


def doubling(levels):
    definitions = {"a0": {"type": "integer"}}
    for i in range(1, levels):
        definitions[f"a{i}"] = {"allOf": [{"$ref": f"#/$defs/a{i - 1}"}] * 2}
    return {"$defs": definitions, "$ref": f"#/$defs/a{levels - 1}"}


SLOW = "a" * 24 + "b"  # 2^24 ways to find that ^(a|a)*$ does not match


def test_hostile_schemas_come_to_an_end():
    start = time.monotonic()
    with pytest.raises(SchemaBoundsError):
        checker({"$ref": "#"}).violations(1)
    with pytest.raises(SchemaBoundsError, match="too long"):
        checker(doubling(40)).violations(1)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("loosened", "words"),
    [({"MAX_SECONDS": 1e9}, "more than 200000 steps"), ({"MAX_STEPS": 10**9, "MAX_SECONDS": 0.1}, "more than 0.1 s")],
)
def test_steps_and_seconds_each_bound_a_check_by_themselves(monkeypatch, loosened, words):
    for name, value in loosened.items():
        monkeypatch.setattr(json_schema, name, value)
    with pytest.raises(SchemaBoundsError, match=words):
        checker(doubling(20)).violations(1)


def test_a_schema_too_large_to_be_checked_itself_is_a_fault(monkeypatch):
    monkeypatch.setattr(json_schema, "MAX_STEPS", 100)
    with pytest.raises(SchemaFaultError, match="too large"):
        checker({"properties": {f"too large {i}": {"type": "string"} for i in range(100)}})


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {SLOW: {"pattern": "^(a|a)*$"}}},
        {"patternProperties": {"^(a|a)*$": {}}},
        {"patternProperties": {"^(a|a)*$": {}}, "additionalProperties": False},
    ],
)
def test_a_pattern_that_blows_up_is_bounded(monkeypatch, schema):
    """Without a limit these end too, after some seconds."""
    monkeypatch.setattr(json_schema, "PATTERN_SECONDS", 0.05)
    with pytest.raises(SchemaBoundsError, match="too long: the pattern"):
        checker(schema).violations({SLOW: SLOW})


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


def only(schema, instance):
    (violation,) = checker(schema).violations(instance)
    return violation


def test_what_our_own_keywords_say():
    assert only({"pattern": "^a$"}, "ab").message == "'ab' does not match '^a$'"
    assert only({"uniqueItems": True}, [1, 2, 1, 1.0]).message == "2 of 4 items stand there twice"
    assert only({"multipleOf": 3}, 7).message == "7 is not a multiple of 3"
    extra = only({"additionalProperties": False, "properties": {"a": {}}}, dict.fromkeys("abcdefgh", 1))
    assert (extra.message, extra.rule) == ("additional properties: 'b', 'c', 'd', 'e', 'f'", "additionalProperties")
    assert only({"additionalProperties": {"type": "string"}, "patternProperties": {"^x": {}}}, {"x": 1, "b": 1}).pointer == "/b"  # fmt: skip
    deeper = only({"patternProperties": {"^x": {"type": "string"}}}, {"x1": 1, "y": 1})
    assert (deeper.pointer, deeper.rule) == ("/x1", "type")
    assert only({"type": "string"}, 1).pointer == ""
    long = only({"pattern": "^a$"}, "b" * 500).message
    assert long == "'" + "b" * 78 + "… does not match '^a$'", "the pattern is told however long the text is"


@pytest.mark.parametrize(
    ("schema", "instance"),
    [
        ({"pattern": "^a"}, 5),
        ({"patternProperties": {"^a": False}}, ["a"]),
        ({"additionalProperties": False}, ["a"]),
        ({"additionalProperties": True}, {"a": 1}),
        ({"uniqueItems": True}, "aa"),
        ({"uniqueItems": False}, [1, 1]),
        ({"multipleOf": 2}, "3"),
        ({"format": "regex"}, 5),
        ({"format": "regex"}, "^a"),
        ({"format": "email"}, 5),
        ({"format": "of our own"}, "x" * 9000),
    ],
)
def test_a_keyword_judges_only_its_own_type(schema, instance):
    assert checker(schema).violations(instance) == []


def test_at_most_twenty_places_are_told():
    found = checker({"items": {"type": "string"}}).violations(list(range(30)))
    assert [v.pointer for v in found] == [f"/{i}" for i in range(20)]


def test_a_long_string_is_of_no_format():
    mail = "@b.example"
    assert only({"format": "email"}, "a" * 9000 + mail).message == "a string of 9010 characters is not a 'email'"
    assert checker({"format": "email"}).violations("a" * (8192 - len(mail)) + mail) == []
    assert checker({"format": "email"}).violations("a" * (8193 - len(mail)) + mail) != []


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"pattern": "("}, "/pattern"),
        ({"patternProperties": {"(": {}}}, "/patternProperties/("),
        ({"allOf": [{}, {"items": {"pattern": "("}}]}, "/allOf/1/items/pattern"),
        ({"$defs": {"enum": {}}, "properties": {"pattern": {"pattern": "("}}}, "/properties/pattern/pattern"),
        ({"properties": {"patternProperties": {"patternProperties": {"(": {}}}}}, "/properties/patternProperties/patternProperties/("),
    ],
)  # fmt: skip
def test_a_bad_pattern_is_named_by_its_place(schema, place):
    with pytest.raises(SchemaFaultError, match="not a regular expression") as caught:
        checker(schema, "s.json")
    assert caught.value.where == f"s.json {place}"


def test_data_in_a_schema_is_no_pattern():
    for keyword, value in (("enum", [{"pattern": "("}]), ("const", {"pattern": "("}), ("default", {"pattern": "("}), ("examples", [{"pattern": "("}])):  # fmt: skip
        assert checker({keyword: value}).violations({"pattern": "("}) == []
    assert checker({"properties": {"patternProperties": {"(": 1}, "pattern": {"type": "string"}}}).violations({}) == []


def test_patterns_beside_unevaluated_properties_must_be_plain():
    """jsonschema matches those in Python's own engine, which has no time limit: no groups, at most 200 characters."""
    beside = {"unevaluatedProperties": False}
    for bad in ("^(a|b)$", "a" * 201):
        for schema in ({**beside, "patternProperties": {bad: {}}}, {"allOf": [beside, {"pattern": bad}]}):
            with pytest.raises(SchemaFaultError, match="unevaluatedProperties beside a pattern") as caught:
                checker(schema, "s")
            assert caught.value.where.startswith("s /")
    for good in ("^(?:a|b)$", "a" * 200):
        checker({**beside, "patternProperties": {good: {}}})
    checker({"patternProperties": {"^(a|b)$": {}}})


def test_the_budget_of_steps_and_seconds(monkeypatch):
    monkeypatch.setattr(json_schema, "MAX_STEPS", 100)
    items = checker({"items": {"type": "integer"}}, "a small budget")
    for _ in range(3):  # each check has its own
        assert items.violations([1] * 99) == []
    with pytest.raises(SchemaBoundsError, match="checking takes too long: more than 100 steps") as caught:
        items.violations([1] * 100)
    assert caught.value.where == "a small budget"
    monkeypatch.setattr(json_schema, "MAX_STEPS", 200_000)
    clock = iter(range(1000))
    monkeypatch.setattr(json_schema.time, "thread_time", lambda: float(next(clock)))
    assert items.violations([1] * 300) == []  # looked at 4 times: at 1, 2, 3 and 4 s of 5
    with pytest.raises(SchemaBoundsError, match="more than 5 s"):
        items.violations([1] * 400)


def test_checks_in_threads_do_not_count_together(monkeypatch):
    """Items are judged in threads where a judge is asked too, and equal schemas share a checker."""
    monkeypatch.setattr(json_schema, "MAX_STEPS", 6_500)
    shared = checker({"items": {"type": "integer"}}, "shared by threads")
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(shared.violations, [[1] * 6_000] * 12)) == [[]] * 12


def test_a_schema_that_nests_without_end_is_refused():
    deep = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(SchemaFaultError, match="nests too deeply") as caught:
        checker(deep, "s.json")
    assert caught.value.where == "s.json"


def test_what_a_draft_is_called():
    assert checker({"$schema": "http://json-schema.org/draft-04/schema", "maximum": 3, "exclusiveMaximum": True}).violations(3)  # fmt: skip
    for named, hint in (("http://json-schema.org/draft-8/schema", "draft-07"), (5, "known: ")):
        with pytest.raises(UserError, match=r"unknown \$schema") as caught:
            checker({"$schema": named}, "s")
        assert hint in caught.value.hint
    with pytest.raises(UserError, match="found list"):
        checker([], "s")


@pytest.mark.parametrize("name", ["draft-04", "draft-06", "draft-07"])
def test_before_2019_09_a_reference_hides_what_stands_beside_it(name):
    schema = {"$schema": f"http://json-schema.org/{name}/schema#", "$ref": "#/definitions/a", "type": "integer"}
    assert checker({**schema, "definitions": {"a": {"type": "string"}}}).violations("x") == []


def test_equal_schemas_share_one_checker_of_a_place():
    assert checker({"type": "string", "minLength": 1}) is checker({"minLength": 1, "type": "string"})
    assert checker({"type": "string"}, "here") is not checker({"type": "string"}, "there")


def test_equality_is_that_of_json():
    different = [None, False, True, 0, 1, 1.5, "1", "", [], [1], [1, 2], [2, 1], {}, {"a": 1}, {"a": 2}, {"b": 1}, [["a", 1]]]  # fmt: skip
    assert len({canonical(value) for value in different}) == len(different)
    assert canonical(1) == canonical(1.0)
    assert canonical([{"a": [1, None]}]) == canonical([{"a": [1.0, None]}])
    assert not is_multiple(5, 0)
    assert is_multiple(0, 7)
    assert is_multiple(1e300, 0.5)


@pytest.mark.parametrize(
    "schema",
    [
        {"$id": "http://a/", "$ref": "http://[x"},
        {"$ref": "#/x", "x": {"type": 5}},
        {"$ref": "#/x", "x": {"allOf": 5}},
        {"$ref": "#/x", "x": 5},
    ],
)
def test_a_reference_to_what_is_no_schema_is_a_fault_of_the_schema(schema):
    with pytest.raises(SchemaFaultError, match="refers to what is no schema"):
        checker(schema).violations({"a": 1})
