"""Verdicts of each validator; the defects measured in other tools (B1 to B6) are cases here."""

import contextlib
import json
import sqlite3
from pathlib import Path

import msgspec
import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import parse_row
from tunegate.evalkit.extract import extract
from tunegate.evalkit.outcomes import Answer, Outcome, outcome_of
from tunegate.evalkit.validators import sql
from tunegate.evalkit.validators.kinds import make


def row(expected="x", **more):
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": expected}]
    return parse_row({"messages": messages, **more}, "d.jsonl", 1)


def judge(kind, text, expected="x", options=None, **more):
    validator = make({"name": "v", "kind": kind, **(options or {})}, where="t", base=Path())
    return validator.judge(Answer(text=text), row(expected, **more))


EQUAL = [
    ('{"b": 2, "a": 1}', '{"a": 1, "b": 2}', True),  # B1: the order of keys plays no part
    ('{"a": null}', '{"a": null}', True),  # B2
    ("true", "1", False),  # B2
    ('{"a": 1}', '{"a": 1.0}', True),
    ("{}", '{"a": null}', False),  # B3: null is not a missing key
    ('{"id": "abc1"}', '{"id": "abc2"}', False),  # B3: no credit for nearly
    ("null", "null", True),  # B5: null stays null
    ('Sure: {"a": 1}', '{"a": 1}', False),
    ('{"a": 1, "a": 1}', '{"a": 1}', False),
    ("NaN", "1", False),
]


@pytest.mark.parametrize(("got", "expected", "passed"), EQUAL)
def test_json_equal(got, expected, passed):
    assert judge("json_equal", got, expected).passed is passed


def test_json_equal_names_the_field():
    verdict = judge("json_equal", '{"s": {"x/y": 2}}', '{"s": {"x/y": 1, "z": null}}')
    assert "/s/x~1y: expected 1, got 2" in verdict.reason
    assert "/s/z: expected null, got nothing" in verdict.reason
    assert verdict.score == 0.0
    assert judge("json_equal", '{"a": 1, "b": 3}', '{"a": 1, "b": 2}', {"partial": True}).score == 0.5


def test_json_schema_is_strict_and_asks_no_model():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "additionalProperties": False}
    assert judge("json_schema", '{"n": 5}', schema=schema).passed
    assert not judge("json_schema", '{"n": "5"}', schema=schema).passed  # B6
    assert not judge("json_schema", '{"n": 5, "m": 1}', schema=schema).passed  # B6
    with pytest.raises(UserError, match='no "schema"'):
        make({"name": "v", "kind": "json_schema"}, where="t", base=Path()).check_row(row())


SETS = [
    {"name": "f", "arguments": {"city": ["New York, NY", "NYC"], "n": [5], "unit": ["", "m"], "o": [{"k": ["a", "b"]}]}}
]


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"city": "new-york ny", "n": 5, "o": {"k": "B"}}, ""),
        ({"city": "NYC", "n": 5.0, "unit": "M", "o": {"k": "a"}}, ""),
        ({"city": "Boston", "n": 5, "o": {"k": "a"}}, "wrong_field"),
        ({"city": "NYC", "o": {"k": "a"}}, "missing_field"),
        ({"city": "NYC", "n": 5, "o": {"k": "a"}, "z": 1}, "extra_field"),
        ({"city": "NYC", "n": True, "o": {"k": "a"}}, "wrong_field"),
        ({"city": "NYC", "n": 5, "o": {"k": "c"}}, "wrong_field"),
    ],
)
def test_tool_call_with_admissible_sets(arguments, cause):
    verdict = judge("tool_call", json.dumps({"name": "f", "arguments": arguments}), accept=SETS)
    assert verdict.cause == cause
    assert verdict.passed is (cause == "")


def test_tool_call_whole_and_real_calls():
    whole = [{"name": "f", "arguments": {"tags": ["a", "b"]}}]
    expected = json.dumps(whole[0])
    assert judge("tool_call", expected, expected, accept=whole).passed
    assert not judge("tool_call", '{"name": "f", "arguments": {"tags": "a"}}', expected, accept=whole).passed
    assert judge("tool_call", '{"name": "g", "arguments": {}}', accept=SETS).cause == "wrong_function"
    assert not judge("tool_call", "[]", accept=SETS).parsable
    validator = make({"name": "v", "kind": "tool_call"}, where="t", base=Path())
    call = {"type": "function", "function": {"name": "f", "arguments": '{"tags": ["a", "b"]}'}}
    assert validator.judge(Answer(tool_calls=[call]), row(expected)).passed


def test_a_list_of_calls_in_the_text_is_all_of_them():
    one, two = {"name": "f", "arguments": {"n": 1}}, {"name": "g", "arguments": {}}
    both = json.dumps([one, two])
    assert judge("tool_call", json.dumps([{"id": "c1", "type": "function", **two}, {"function": one}]), both).passed
    assert judge("tool_call", json.dumps(one), both).cause == "missing_call"
    assert judge("tool_call", both, json.dumps(one)).cause == "extra_call"
    assert judge("tool_call", json.dumps([one]), json.dumps(one)).passed
    assert not judge("tool_call", json.dumps([one, "g"]), both).parsable
    assert not judge("tool_call", json.dumps({**one, "comment": "x"}), json.dumps(one)).parsable


@pytest.mark.parametrize(
    ("kind", "text", "expected", "options", "passed"),
    [
        ("exact_match", " Yes ", "Yes", {}, True),
        ("exact_match", "yes", "Yes", {}, False),
        ("exact_match", "The  Yes!", "yes", {"normalize": ["articles", "case", "punctuation", "whitespace"]}, True),
        ("number", "It is 1,234.50 dollars", "1234.5", {}, True),
        ("number", "0.3", "0.1", {"abs_tolerance": 0.2}, True),
        ("number", "3 or 4", "4", {"which": "only"}, False),
        ("set", "b, a", "a,b", {}, True),
        ("set", '["b","a"]', "a,b", {"ordered": True}, False),
        ("regex", "Answer: 42.", "42", {"pattern": r"Answer: (\d+)"}, True),
        ("regex", "no", "42", {"pattern": r"Answer: (\d+)"}, False),
        ("json", "```json\n{}\n```", "", {}, False),
        ("json", "[1]", "", {"type": "object"}, False),
    ],
)
def test_plain_validators(kind, text, expected, options, passed):
    assert judge(kind, text, expected, options).passed is passed


def test_any_of():
    assert judge("any_of", "b", accept=["a", "b"]).passed
    assert not judge("any_of", "c", accept=["a", "b"]).passed


def test_sql_is_read_only_and_bounded(tmp_path):
    database = tmp_path / "d.sqlite"
    with sqlite3.connect(database) as connection:
        connection.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1), (2);")
    connection.close()
    before = database.read_bytes()
    options = {"database": str(database)}
    assert judge("sql", "SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t", options).passed
    assert not judge("sql", "SELECT a FROM t WHERE a = 1", "SELECT a FROM t", options).passed
    for hostile in ("DROP TABLE t", "DELETE FROM t", "ATTACH 'x.db' AS x", "PRAGMA writable_schema=1", ""):
        assert not judge("sql", hostile, "SELECT a FROM t", options).passed, hostile
    assert database.read_bytes() == before


COUNT = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT {}) SELECT {} FROM n"


@pytest.mark.parametrize(
    ("loosened", "query", "words"),
    [
        ({}, "ATTACH ':memory:' AS x", "not authorized"),
        ({}, "PRAGMA table_info(t)", "not authorized"),
        ({"_ALLOWED": range(256)}, "DROP TABLE t", "readonly"),
        ({"SECONDS": 0}, COUNT.format(10_000, "count(*)"), "more than 0 s"),
        ({}, COUNT.format(10_001, "i"), "more than 10000 rows"),
        ({}, COUNT.format(300, "zeroblob(200000)"), "rows of more than 50000000 bytes"),
        ({}, "SELECT length(zeroblob(200001))", "too big"),
        ({}, "SELECT 'a' LIKE replace(hex(zeroblob(501)), '0', '%')", "pattern too complex"),
    ],
)
def test_each_bound_of_sql_holds_by_itself(tmp_path, monkeypatch, loosened, query, words):
    database = tmp_path / "d.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE t(a)")
    for name, value in loosened.items():
        monkeypatch.setattr(sql, name, value)
    with pytest.raises(sql.QueryError, match=words):
        sql.run(query, database)


def test_the_clock_of_sql_is_asked_between_calls_that_take_long(tmp_path, monkeypatch):
    """Thirty calls are a few hundred of SQLite's steps; each may take a tenth of a second."""
    (tmp_path / "d.sqlite").touch()
    monkeypatch.setattr(sql, "SECONDS", 0)
    with pytest.raises(sql.QueryError, match="more than 0 s"):
        sql.run(COUNT.format(30, "instr(zeroblob(9), 'x')"), tmp_path / "d.sqlite")


def test_extraction_is_named_and_keeps_null():
    assert extract("```json\nnull\n```", ("code_fence",)) == "null"  # B5: `.strip("json")` made `ull` of it
    assert extract('Sure: {"a": "}\\""} done', ("json_in_prose",)) == '{"a": "}\\""}'
    assert extract("null", ("code_fence", "json_in_prose")) == "null"


F, G = {"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [F]),
        (
            'I ask.\n<tool_call>{"name":"f","arguments":{"x":1}}</tool_call>\n<tool_call>{"name":"g","arguments":{}}</tool_call>',
            [F, G],
        ),
        ('<think>f?</think><tool_call>{"name": "g", "arguments": {}}', [G]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "a1b2c3d4e"}]', [F]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [F]),
        ('{"name": "f", "parameters": {"x": 1}}', [F]),
        ('{"name": "f", "arguments": {"x": 1}}', [F]),
    ],
)
def test_calls_written_as_text_are_read_where_the_task_says_so(text, calls):
    assert json.loads(extract(text, ("tool_calls",))) == calls


@pytest.mark.parametrize(
    "text",
    [
        "It rains.", "", "null", "[]", '[{"name": "f", "arguments": {"x": 1}}]', '{"x": 1}', "<tool_call>{cut", "[TOOL_CALLS] none",
        '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call><tool_call>{"arguments": {}}</tool_call>',
        '<tool_call>{"name": "f", "name": "g", "arguments": {}}</tool_call>',
    ],
)  # fmt: skip
def test_what_holds_no_calls_stays_as_it_is(text):
    assert extract(text, ("tool_calls",)) == text


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(text="x", finish_reason="length"), Outcome.PASS),
        (Answer(text="y", finish_reason="length"), Outcome.TRUNCATED),
        (Answer(text="I'm sorry, I can't help with that."), Outcome.REFUSED),
        (Answer(text="y", refusal="no"), Outcome.REFUSED),
        (Answer(text=""), Outcome.UNPARSABLE),
        (Answer(text="y"), Outcome.FAIL),
        (Answer(error="HTTP 500"), Outcome.INFRA_ERROR),
    ],
)
def test_outcomes(answer, outcome):
    verdict = make({"name": "v", "kind": "exact_match"}, where="t", base=Path()).judge(answer, row())
    assert outcome_of(answer, verdict) is outcome


def test_json_schema_says_where_and_how_often(tmp_path):
    schema = {"properties": {"n": {"type": "integer"}, "m": {"type": "integer"}}, "required": ["n"]}
    wrong = judge("json_schema", '{"n": "5"}', schema=schema)
    assert (wrong.passed, wrong.score, wrong.cause, wrong.parsable) == (False, 0.0, "schema_invalid", True)
    assert wrong.reason == "/n: '5' is not of type 'integer'"
    assert judge("json_schema", '{"n": "5", "m": "6"}', schema=schema).reason.endswith(" (and 1 more)")
    assert judge("json_schema", "{}", schema=schema).reason == "the whole: 'n' is a required property"
    assert judge("json_schema", '{"n": 5}', schema=schema).reason == ""
    prose = judge("json_schema", "n is 5", schema=schema)
    assert (prose.passed, prose.cause, prose.parsable) == (False, "unparsable", False)
    assert prose.reason
    (tmp_path / "s.json").write_text(json.dumps(schema))
    of_file = make({"name": "v", "kind": "json_schema", "schema": "s.json"}, where="t", base=tmp_path)
    assert of_file.judge(Answer(text='{"n": 5}'), row()).passed
    assert not of_file.judge(Answer(text="{}"), row(schema=True)).passed, "the task's schema stands above the row's"


def test_json_schema_without_an_end_is_the_answers_fault_while_judging():
    """Before anything is asked it is the schema's; an answer made to be hard to check must not end a run."""
    verdict = judge("json_schema", "1", schema={"$ref": "#"})
    assert (verdict.passed, verdict.cause, verdict.parsable) == (False, "schema_invalid", True)
    assert "nests too deeply to check" in verdict.reason
    validator = make({"name": "v", "kind": "json_schema"}, where="t", base=Path())
    with pytest.raises(UserError, match="nests too deeply"):
        validator.check_row(row("1", schema={"$ref": "#"}))
    with pytest.raises(UserError, match="nests too deeply"):
        validator.check_row(row("no JSON", schema={"$ref": "#"}))
    validator.check_row(row("no JSON", schema={"type": "integer"}))


def test_json_schema_names_the_place_of_a_fault(tmp_path):
    validator = make({"name": "v", "kind": "json_schema"}, where="t", base=Path())
    with pytest.raises(UserError) as caught:
        validator.check_row(row())
    assert caught.value.line() == 'd.jsonl:1: no "schema" in the row, and none in the task (give v a schema: file.json)'
    with pytest.raises(UserError, match="not a JSON Schema") as caught:
        validator.check_row(row(schema={"type": "strin"}))
    assert caught.value.where == "d.jsonl:1 /schema /type"
    unread = msgspec.structs.replace(row(schema={"type": "strin"}), file="", line=0)
    with pytest.raises(UserError, match="not a JSON Schema") as caught:
        validator.check_row(unread)
    assert caught.value.where == "schema /type"
    with pytest.raises(UserError, match="not a JSON Schema") as caught:
        make({"name": "v", "kind": "json_schema", "schema": {"type": "strin"}}, where="t", base=Path())
    assert caught.value.where == "v schema /type"
    (tmp_path / "s.json").write_text('{"type": "strin"}')
    with pytest.raises(UserError, match="not a JSON Schema") as caught:
        make({"name": "v", "kind": "json_schema", "schema": "s.json"}, where="t", base=tmp_path)
    assert caught.value.where == f"{tmp_path / 's.json'} /type"
