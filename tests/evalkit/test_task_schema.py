"""The shipped JSON Schemas of task.yaml and gate.yaml against the reader: what one refuses the other refuses."""

import copy
import json
import re
import sqlite3
from importlib.resources import files
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tunegate.core.errors import UserError
from tunegate.evalkit.policy import load_policy, make_policy
from tunegate.evalkit.task import load_task
from tunegate.evalkit.task_schema import schemas
from tunegate.evalkit.validators.kinds import KINDS

GATE = {
    "alpha": 0.05,
    "max_infra_error_rate": 0.05,
    "conditions": [
        {"metric": "exact", "rule": "non_inferior", "margin": 0.02, "slice": "k"},
        {"metric": "exact", "rule": "superior"},
        {"metric": "exact", "rule": "at_least", "value": 0.95},
    ],
}
TASK = {
    "name": "t",
    "data": "eval.jsonl",
    "validators": [
        {"name": "exact", "kind": "exact_match", "weight": 0.5, "normalize": ["strip"]},
        {"name": "number", "abs_tolerance": 0.1, "which": "last"},
        {"name": "valid", "kind": "json", "type": "object"},
        {"name": "schema", "kind": "json_schema", "schema": {"type": "object"}},
        {"name": "same", "kind": "json_equal", "ignore": ["/a"], "partial": True},
        {"name": "found", "kind": "regex", "pattern": "a", "compare": False},
        {"name": "any", "kind": "any_of", "values": ["1"]},
        {"name": "set", "separator": ";"},
        {"name": "mine", "kind": "python", "function": "json:dumps"},
        {"name": "rows", "kind": "sql", "database": "d.sqlite", "ordered": None},
        {"name": "said", "kind": "judge", "endpoint": "http://h/v1", "model": "m", "labelled": "l.jsonl"},
    ],
    "primary": "exact",
    "slices": ["k"],
    "group": "k",
    "generation": {"max_tokens": 8, "temperature": 0, "seed": None, "top_p": 1.0, "stop": ["x"]},
    "system": "s",
    "prompt": "{input}",
    "few_shot": {"file": "shots.jsonl", "n": 1},
    "extract": ["code_fence"],
    "repeats": 1,
    "gate": GATE,
    "send_tools": True,
    "price": {"prompt_usd_per_1m": 1, "completion_usd_per_1m": 2.5},
    "train": "shots.jsonl",
}
WRONG = [None, True, -1, 0, 1.0, 1.5, "x", "", [], [1], {"x": 1}]
# Faults that only the reader can see: what a name or a file stands for.
BEYOND = ("no such", "not a JSON Schema", "is a folder", "no row has", "is called", "metric of ours", "a URL up to", "not a regular", "cannot", "not a file")  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Everything that TASK names, so that the reader has no reason to refuse it; rows are not judged here."""
    turns = lambda q: [{"role": "user", "content": q}, {"role": "assistant", "content": "1"}]  # noqa: E731
    (tmp_path / "eval.jsonl").write_text(json.dumps({"id": "a", "messages": turns("q"), "tags": {"k": "v"}}) + "\n")
    (tmp_path / "shots.jsonl").write_text(json.dumps({"id": "b", "messages": turns("other")}) + "\n")
    (tmp_path / "l.jsonl").write_text("{}\n")
    sqlite3.connect(tmp_path / "d.sqlite").close()
    monkeypatch.setattr("tunegate.evalkit.task._check_rows", lambda *_: None)
    return tmp_path


def mutants(value, rebuild=lambda v: v):
    """The document with one value replaced, one key left out, or one key too many."""
    for wrong in WRONG:
        yield rebuild(wrong)
    if isinstance(value, dict):
        yield rebuild({**value, "unheard_of": 1})
        for key, inner in value.items():
            yield rebuild({k: v for k, v in value.items() if k != key})
            yield from mutants(inner, lambda v, key=key: rebuild({**value, key: v}))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from mutants(inner, lambda v, i=index: rebuild([*value[:i], v, *value[i + 1 :]]))


def said(read, path, document):
    path.write_text(yaml.safe_dump(document))
    try:
        read(path)
    except UserError as error:
        return error.message
    return None


def test_files_are_made_from_the_classes():
    for name, schema in schemas().items():
        Draft202012Validator.check_schema(schema)
        file = files("tunegate.evalkit").joinpath(f"schemas/{name}.schema.json")
        assert json.loads(file.read_text()) == schema, f"ft eval schema {name} > evalkit/schemas/{name}.schema.json"
    kinds = {v.get("kind", v["name"]) for v in TASK["validators"]} | {"tool_call"}
    assert kinds == set(KINDS), "every kind is tried below"


def agree(name, read, path, document):
    schema = Draft202012Validator(schemas()[name])
    assert said(read, path, document) is None
    assert schema.is_valid(document)
    refused = 0
    for mutant in mutants(document):
        reader, fits = said(read, path, mutant), schema.is_valid(mutant)
        if fits and reader is not None:
            assert any(word in reader for word in BEYOND), (reader, mutant)
        else:
            assert fits == (reader is None), (reader, mutant)
            refused += not fits
    assert refused > 60


def test_gate_schema_and_reader_agree(folder):
    agree("gate", load_policy, folder / "gate.yaml", GATE)


@pytest.mark.parametrize("part", ["top", "generation", "few_shot", "price", "validators", "gate"])
def test_task_schema_and_reader_agree(folder, part):
    """In parts, because every value is replaced by every wrong one: the parts that are not under test stay whole."""
    read = lambda path: load_task(path, allow_python=True)  # noqa: E731
    if part == "top":
        whole = {k: v for k, v in TASK.items() if k not in ("generation", "few_shot", "price", "validators", "gate")}
        agree("task", read, folder / "task.yaml", {**whole, "validators": [{"name": "exact", "kind": "exact_match"}]})
        return
    small = {"name": "t", "data": "eval.jsonl", "validators": [{"name": "exact", "kind": "exact_match"}]}
    agree("task", read, folder / "task.yaml", {**small, part: copy.deepcopy(TASK[part])})


def test_a_number_that_no_double_holds_is_wrong_use():
    condition = {"metric": "exact", "rule": "at_least", "value": 10**400}
    with pytest.raises(UserError, match="beyond the range"):
        make_policy({"conditions": [condition]}, "gate")


def test_the_command_writes_it(tmp_path, ft):
    assert ft("eval", "schema", "gate", "--json").json == schemas()["gate"]
    assert ft("eval", "schema", "task", "--out", tmp_path / "s.json").code == 0
    assert json.loads((tmp_path / "s.json").read_text()) == schemas()["task"]
    assert ft("eval", "schema", "task", "--out", tmp_path / "s.json").code == 2
    assert ft("eval", "schema", "other").code == 2


def test_the_schema_that_answers_are_judged_by_is_not_written_over(tmp_path, ft):
    """`ft eval init` writes task.schema.json too; with the task file's own schema in its place every answer failed."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": '{"a": 1}'}]
    (tmp_path / "eval.jsonl").write_text(
        "".join(json.dumps({"id": str(n), "messages": turns}) + "\n" for n in range(3))
    )
    assert ft("eval", "init", tmp_path / "eval.jsonl", "--out", tmp_path / "task.yaml").code == 0
    (tmp_path / "broken.yaml").write_text("a: [")
    before = (tmp_path / "task.schema.json").read_text()
    for more in ((), ("--force",)):
        found = ft("eval", "schema", "task", "--out", tmp_path / "task.schema.json", *more, "--json")
        assert found.code == 2
        assert "judges answers by this file" in found.json["error"]["message"]
        assert "task-file.schema.json" in found.json["error"]["hint"]
    assert (tmp_path / "task.schema.json").read_text() == before
    assert ft("eval", "schema", "task", "--out", tmp_path / "task-file.schema.json").code == 0


def test_every_key_of_the_schemas_stands_in_evaluation_md():
    """The page's two files hold every key and fit their schema; its table has each kind's own options, and no others."""
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    found = dict(re.findall(r"```yaml\n# (task|gate)\.yaml\n(.*?)```", page, re.DOTALL))
    keys = lambda schema: set(schema["properties"])  # noqa: E731
    task, gate = (schemas()[name] for name in ("task", "gate"))
    for name, schema in (("task", task), ("gate", gate)):
        document = yaml.safe_load(found[name])
        assert list(Draft202012Validator(schema).iter_errors(document)) == []
        assert set(document) == keys(schema)
    document = yaml.safe_load(found["task"])
    for key, shared in (("generation", "Generation"), ("price", "Price"), ("few_shot", "FewShot")):
        assert set(document[key]) == keys(task["$defs"][shared])
    conditions = yaml.safe_load(found["gate"])["conditions"]
    assert {key for condition in conditions for key in condition} == keys(gate["$defs"]["Condition"])
    assert set(task["properties"]["extract"]["items"]["enum"]) <= set(re.findall(r"\w+", found["task"]))

    table = dict(
        re.findall(r"^\| `(\w+)` \| (.*) \|$", page.partition("| kind | options")[2].partition("\n\n")[0], re.MULTILINE)
    )
    assert list(table) == list(KINDS)
    shared = {
        schema["properties"]["kind"]["const"]: schema
        for schema in task["$defs"].values()
        if "kind" in schema.get("properties", {})
    }
    every = {key for schema in shared.values() for key in schema["properties"]} - {"name", "kind", "weight"}
    for kind, schema in shared.items():
        named = set(re.findall(r"`(\w+)`", table[kind])) & every
        assert named == keys(schema) - {"name", "kind", "weight"}, kind
        for key in set(schema["required"]):
            assert re.search(rf"`{key}`[^;]*must be there", table[kind]), (kind, key)
