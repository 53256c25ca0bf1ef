"""builtin:bfcl: all 858 questions, each with an answer its schema and its admissible values accept."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tunegate.core.errors import UserError
from tunegate.train.data import bfcl
from tunegate.train.data.bfcl import json_schema, load, resolve

pytestmark = pytest.mark.skipif(importlib.util.find_spec(bfcl.PACKAGE) is None, reason="bfcl-eval is not installed")


@pytest.fixture(scope="module")
def task() -> bfcl.Task:
    return load()


def test_counts_and_ids(task: bfcl.Task) -> None:
    assert Counter(r.tags["category"] for r in task.rows) == {"simple_python": 400, "multiple": 200, "live_simple": 258}
    assert len({row.id for row in task.rows}) == 858
    assert {row.tags["functions"] for row in task.rows if row.tags["category"] == "simple_python"} == {"one"}
    assert {row.tags["functions"] for row in task.rows if row.tags["category"] == "multiple"} == {"many"}


def test_the_package_itself_is_not_imported() -> None:
    """Its own dependencies are not installed; in a process of its own, since other tests do import its checker."""
    script = (
        f"from tunegate.train.data import bfcl; import sys; bfcl.load(); assert {bfcl.PACKAGE!r} not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_every_schema_accepts_its_answer_and_is_a_schema(task: bfcl.Task) -> None:
    for row in task.rows:
        Draft202012Validator.check_schema(row.schema)  # type: ignore[arg-type]
        error = next(iter(Draft202012Validator(row.schema).iter_errors(json.loads(row.expected))), None)  # type: ignore[arg-type]
        assert error is None, (row.id, error)


def test_every_schema_accepts_every_admissible_value(task: bfcl.Task) -> None:
    for row in task.rows:
        answer, (accept,) = json.loads(row.expected), row.accept or []
        valid = Draft202012Validator(row.schema).is_valid  # type: ignore[arg-type]
        for name, options in accept["arguments"].items():
            for option in options:
                if option != "":
                    other = {**answer, "arguments": {**answer["arguments"], name: resolve(option)}}
                    assert valid(other), (row.id, name, option)


def test_schemas_are_closed_and_name_a_function_that_is_offered(task: bfcl.Task) -> None:
    for row in task.rows:
        answer = json.loads(row.expected)
        valid = Draft202012Validator(row.schema).is_valid  # type: ignore[arg-type]
        assert not valid({**answer, "more": 1})
        assert not valid({**answer, "name": "no.such.function"})
        assert not valid({**answer, "arguments": {**answer["arguments"], "no_such_parameter": 1}})
        assert not valid({"name": answer["name"]})


def test_answers_are_plain_json_and_leave_optional_parameters_out(task: bfcl.Task) -> None:
    for row in task.rows:
        answer, (accept,) = json.loads(row.expected), row.accept or []
        assert row.expected == json.dumps(answer, ensure_ascii=False)
        assert list(answer) == ["name", "arguments"]
        assert answer["name"] == accept["name"]
        for name, options in accept["arguments"].items():
            if name not in answer["arguments"]:
                assert "" in options, (row.id, name)


def test_answers_are_admissible(task: bfcl.Task) -> None:
    def admits(options: list[Any], value: Any) -> bool:
        return any(value == resolve(option) for option in options if option != "")

    for row in task.rows:
        answer, (accept,) = json.loads(row.expected), row.accept or []
        for name, value in answer["arguments"].items():
            assert admits(accept["arguments"][name], value), (row.id, name)


def test_repairs_are_counted(task: bfcl.Task) -> None:
    assert task.repairs == {"widened_parameters": 67, "empty_lists": 7}
    by_id = {row.id: row for row in task.rows}
    assert json.loads(by_id["live_simple_106-63-0"].expected)["arguments"]["bank_hours_start"] == []
    items = by_id["live_simple_71-35-0"].schema["properties"]["arguments"]["properties"]["metrics"]["items"]  # type: ignore[index]
    assert "favorability" in items["enum"]


def test_the_prompt_shows_real_json_schema(task: bfcl.Task) -> None:
    for row in task.rows:
        system = row.messages[0]["content"]
        assert row.messages[0]["role"] == "system"
        assert [m["role"] for m in row.messages].count("system") == 1
        shown = [json.loads(line) for line in system.split("\n") if line.startswith('{"name":')]
        assert len(shown) >= 1
        for function in shown:
            Draft202012Validator.check_schema(function["parameters"])
            for foreign in ('"type":"dict"', '"type":"float"', '"type":"tuple"', '"type":"any"'):
                assert foreign not in system


def test_a_question_in_two_categories_has_one_group(task: bfcl.Task) -> None:
    assert len({row.group for row in task.rows}) == 752
    users = {(row.group, row.messages[-2]["content"].lower().strip("?. ")) for row in task.rows}
    assert len({user for _, user in users}) >= 752


def test_an_existing_system_turn_is_kept(task: bfcl.Task) -> None:
    folder = bfcl.data_folder()
    kept = 0
    for line in (folder / "BFCL_v4_live_simple.json").read_text().splitlines():
        question = json.loads(line)
        for turn in question["question"][0]:
            if turn["role"] == "system":
                row = next(r for r in task.rows if r.id == question["id"])
                assert row.messages[0]["content"].endswith("\n" + turn["content"])
                kept += 1
    assert kept == 11


def test_types_are_translated_at_every_depth() -> None:
    definition = {
        "type": "dict",
        "description": "d",
        "properties": {
            "type": {"type": "float", "default": 1.0, "optional": True},
            "list": {"type": "tuple", "items": {"type": "dict", "properties": {"x": {"type": "any"}}}},
        },
        "required": ["type"],
    }
    assert json_schema(definition, explain=False) == {
        "type": "object",
        "properties": {
            "type": {"type": "number"},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {}}}},
        },
        "required": ["type"],
    }
    explained = json_schema(definition, explain=True)
    assert explained["description"] == "d"
    assert explained["properties"]["type"] == {"type": "number", "default": 1.0}


def test_nested_values_are_lists_of_admissible_ones() -> None:
    value = {"a": ["", 5], "b": [[{"c": ["x", "y"], "d": [""]}]], "e": [None]}
    assert resolve(value) == {"b": [{"c": "x"}], "e": None}


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfcl, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed") as caught:
        load()
    assert caught.value.hint == bfcl.INSTALL
