"""What a second auditor found by reading the contract word for word: recorded outputs, decisions, and what they lead back to."""

import json

import pytest

from tunegate.core import manifest
from tunegate.evalkit.task import load_task, repr_of
from tunegate.evalkit.task_schema import schemas
from tunegate.train.release.verify import inspect


def write(path, values):
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))


def right(n=60, wrong=()):
    return [{"id": f"i{i}", "output": "no" if i in wrong else f"q{i}"} for i in range(n)]


@pytest.fixture
def two(echo, ft):
    """Folders `base` (5 of 60 wrong) and `new` (3 of 60 wrong, compared with it)."""
    write(echo / "base.jsonl", right(wrong=range(5)))
    write(echo / "new.jsonl", right(wrong=range(4, 7)))
    assert ft("eval", "base.jsonl", "--task", "task.yaml", "--out", "base").code == 0
    assert ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "new", "--against", "base").code == 3
    return echo


def test_a_margin_of_slices_is_not_the_whole_metrics(two, ft):
    conditions = [
        {"metric": "exact", "rule": "non_inferior", "margin": 0.02},
        {"metric": "exact", "rule": "non_inferior", "margin": 0.3, "slice": "half"},
    ]
    write(
        two / "eval.jsonl",
        [
            json.loads(line) | {"tags": {"half": n % 2}}
            for n, line in enumerate((two / "eval.jsonl").read_text().splitlines())
        ],
    )
    (two / "task.yaml").write_text((two / "task.yaml").read_text() + "slices: [half]\n")
    (two / "gate.yaml").write_text(json.dumps({"conditions": conditions}))
    run = ft(
        "eval",
        "new.jsonl",
        "--task",
        "task.yaml",
        "--out",
        "s",
        "--against",
        "base.jsonl",
        "--policy",
        "gate.yaml",
        "--json",
    )
    said = json.loads(run.out)
    whole = said["comparison"]["exact"]
    assert whole["margin"] == 0.02
    assert whole["non_inferior_p"] == said["conditions"][0]["p"] > 0.01


def test_decision_json_holds_all_that_the_gate_prints(two, ft):
    ours = json.loads((two / "new" / "gate" / "decision.json").read_text())
    assert ours["comparison"]["exact"]["fixed"] == 4
    printed = json.loads(ft("gate", "new", "--against", "base", "--out", "d", "--json").out)
    kept = json.loads((two / "d" / "decision.json").read_text())
    assert printed == {key: kept[key] for key in printed}
    assert len(kept["policy"]["conditions"]) == 1
    assert {len(kept[side]["digest"]) for side in ("candidate", "baseline")} == {64}


def test_lineage_finds_recorded_outputs(two):
    def states():
        return {row["role"]: row["state"] for row in inspect(two / "new").lineage}

    assert states() == {"task": "here", "data": "here", "system": "here", "baseline": "here"}
    write(two / "new.jsonl", right())
    assert states()["system"] == "content changed"
    (two / "new.jsonl").unlink()
    assert states()["system"] == "not checked"


def test_an_output_that_is_the_baseline_is_refused(two, ft):
    run = ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "base", "--against", "base", "--force")
    assert run.code == 2
    assert "error: base: would replace the input base" in run.err
    assert inspect(two / "base").problems == []


def test_a_refusal_needs_no_output(echo, ft):
    lines = right(58)
    write(echo / "o.jsonl", [*lines, {"id": "i58", "refusal": "no"}, {"id": "i59", "output": None, "refusal": "never"}])
    said = json.loads(ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--json").out)
    assert (said["outcomes"]["pass"], said["outcomes"]["refused"]) == (58, 2)


@pytest.mark.parametrize(
    ("validator", "expected", "output", "other"),
    [
        ("{name: e, kind: any_of, accept: [yes please, 'y']}", "x", "y", "x"),
        ("{name: e, kind: json_equal, accept: [{a: 1}, '{\"a\": 2}']}", '{"a": 0}', '{"a": 2}', '{"a": 0}'),
        ("{name: e, kind: number, accept: [41, '42']}", "7", "It is 42.", "7"),
        ("{name: e, kind: regex, pattern: '<(.*)>', accept: [a, b]}", "c", "<b>", "<c>"),
        ("{name: e, kind: set, accept: [[a, b], 'c, d']}", "x", "d,c", "x"),
        (
            "{name: e, kind: tool_call, accept: [{name: f, arguments: {x: 1}}]}",
            "{}",
            '{"name": "f", "arguments": {"x": 1}}',
            "{}",
        ),
    ],
)
def test_accept_may_stand_in_the_task(echo, ft, validator, expected, output, other):
    """The contract: "accept" may come from the row; so it may come from the task, as "schema" does."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": expected}]
    write(echo / "eval.jsonl", [{"id": i, "messages": turns, "accept": ["zzz 1"]} for i in "ab"])
    (echo / "task.yaml").write_text(f"name: t\ndata: eval.jsonl\nvalidators: [{validator}]\n")
    write(echo / "o.jsonl", [{"id": "a", "output": output}, {"id": "b", "output": other}])
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert json.loads(run.out)["metrics"]["e"]["value"] == 0.5, run.err
    (echo / "task.yaml").write_text(
        (echo / "task.yaml").read_text().replace("accept: [", "accept: [], name: e2, x: [", 1)
    )
    assert ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r2").code == 2


def test_accept_left_out_changes_no_digest(echo):
    """Reports made before the option was there stay comparable."""
    (echo / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: e, kind: any_of}]\n")
    plain = load_task(echo / "task.yaml")
    assert (
        repr_of(plain.validators[0])
        == '{"kind":"any_of","name":"e","normalize":"(\'strip\',)","values":"()","weight":"0.0"}'
    )
    (echo / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: e, kind: any_of, accept: [a]}]\n")
    assert load_task(echo / "task.yaml").digest != plain.digest
    assert "accept" in schemas()["task"]["$defs"]["JsonEqual"]["properties"]


def test_nothing_answered_leaves_no_file_behind(echo, ft):
    assert ft("eval", "http://127.0.0.1:9/v1", "--task", "task.yaml", "--out", "r").code == 4
    assert not list(echo.glob(".r*"))


def test_no_output_replaces_what_the_command_reads(two, ft):
    for out, holds in (("new", "new"), ("base", "base")):
        run = ft("gate", "new", "--against", "base", "--out", out, "--force")
        assert (run.code, f"would replace the input {holds}" in run.err) == (2, True), run.err
    (two / "data").mkdir()
    (two / "data" / "eval.jsonl").write_text((two / "eval.jsonl").read_text())
    manifest.write(two / "data", "dataset", inputs=[], config={})
    (two / "other.yaml").write_text((two / "task.yaml").read_text().replace("eval.jsonl", "data/eval.jsonl"))
    run = ft("eval", "base.jsonl", "--task", "other.yaml", "--out", "data", "--force")
    assert run.code == 2
    assert "data/eval.jsonl: what is read would be replaced" in run.err
    assert (two / "data" / "eval.jsonl").is_file()


def test_init_does_not_replace_its_data_and_makes_its_folder(echo, ft):
    rows = (echo / "eval.jsonl").read_text()
    run = ft("eval", "init", "eval.jsonl", "--out", "eval.jsonl", "--force")
    assert (run.code, (echo / "eval.jsonl").read_text()) == (2, rows)
    assert ft("eval", "init", "eval.jsonl", "--out", "new/sub/task.yaml").code == 0
    assert len(load_task(echo / "new" / "sub" / "task.yaml").rows) == 60


def test_a_condition_that_cannot_be_decided_is_named_with_its_file(two, ft):
    (two / "gate.yaml").write_text("conditions: [{metric: exct, rule: at_least, value: 0.5}]\n")
    words = (
        "error: gate.yaml conditions[0] metric: the report has no metric 'exct' for at_least (did you mean \"exact\"?)"
    )
    assert words in ft("gate", "new", "--policy", "gate.yaml").err
    assert words in ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "x", "--policy", "gate.yaml").err
    (two / "task.yaml").write_text(
        (two / "task.yaml").read_text() + "gate: {conditions: [{metric: nope, rule: superior}]}\n"
    )
    run = ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "x", "--against", "base")
    assert "error: task.yaml gate conditions[0] metric: the report has no metric 'nope' for superior" in run.err
