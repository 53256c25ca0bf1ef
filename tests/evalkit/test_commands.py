"""`ft eval` and `ft gate` on recorded outputs: exit codes, JSON keys, the lock, and bad input in one line each."""

import json

import pytest

from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.evalkit.cli import eval_app, gate_app
from tunegate.evalkit.render import junit

TASK = """name: t
data: eval.jsonl
validators:
  - {name: json_valid, kind: json}
  - {name: exact, kind: json_equal}
primary: exact
slices: [kind]
"""


def lines(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    rows = [
        {
            "id": f"i{i}",
            "messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": json.dumps({"a": i})}],
            "tags": {"kind": "ab"[i % 2]},
        }
        for i in range(200)
    ]
    lines(tmp_path / "eval.jsonl", rows)
    (tmp_path / "task.yaml").write_text(TASK)
    for name, right in (("good", 190), ("same", 190), ("bad", 120)):
        outputs = [{"id": f"i{i}", "output": json.dumps({"a": i}) if i < right else "no"} for i in range(200)]
        lines(tmp_path / f"{name}.jsonl", outputs)
    return tmp_path


def ft_eval(*arguments):
    return run(eval_app, prog="ft eval", argv=[str(a) for a in arguments])


def ft_gate(*arguments):
    return run(gate_app, prog="ft gate", argv=[str(a) for a in arguments])


def test_pass_fail_inconclusive(work, capsys):
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base", "--save-as", "base") == 0
    assert ft_eval("same.jsonl", "--task", "task.yaml", "--out", "same", "--against", "base") == 0
    assert capsys.readouterr().out.strip().splitlines()[-1] == "gate: PASS (exit 0)"
    assert ft_eval("bad.jsonl", "--task", "task.yaml", "--out", "bad", "--against", "base", "--json") == 1
    payload = json.loads(capsys.readouterr().out)
    assert payload["decision"] == "FAIL"
    assert payload["comparison"]["exact"]["broken"] == 70
    assert {"n", "metrics", "outcomes", "report"} <= set(payload)
    assert ft_eval("same.jsonl", "--task", "task.yaml", "--out", "few", "--limit", "20", "--save-as", "few") == 0
    capsys.readouterr()
    assert (
        ft_eval("same.jsonl", "--task", "task.yaml", "--out", "few2", "--limit", "20", "--against", "few", "--json")
        == 3
    )
    (condition,) = json.loads(capsys.readouterr().out)["conditions"]
    assert condition["decision"] == "INCONCLUSIVE"
    assert condition["need_n"] > 20


def test_gate_folder_is_its_own_artifact(work, capsys):
    ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base")
    assert ft_eval("bad.jsonl", "--task", "task.yaml", "--out", "bad", "--against", "base") == 1
    assert manifest.verify(work / "bad") == []
    assert ft_gate("bad") == 1  # by the baseline it was compared with
    capsys.readouterr()
    assert ft_gate("bad", "--against", "base", "--out", "d", "--json") == 1
    decision = json.loads(capsys.readouterr().out)
    keys = {"metric", "rule", "decision", "value", "low", "high", "need_n", "reason"}
    assert keys <= set(decision["conditions"][0])
    (work / "bad" / "gate" / "decision.json").write_text("{}")
    assert [p["path"] for p in manifest.verify(work / "bad")] == ["gate/decision.json"]


def test_lock_says_what_differs(work, capsys):
    ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base", "--save-as", "base")
    text = (work / "eval.jsonl").read_text()
    (work / "eval.jsonl").write_text(text.replace('{\\"a\\": 7}', '{\\"a\\": 8}'))
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "n1", "--against", "base") == 2
    assert "data: other items" in capsys.readouterr().err
    assert not (work / "n1").exists()
    (work / "eval.jsonl").write_text(text)
    (work / "task.yaml").write_text(TASK + "extract: [code_fence]\n")
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "n2", "--against", "base") == 2
    assert "scorer" in capsys.readouterr().err
    assert (
        ft_eval("good.jsonl", "--task", "task.yaml", "--out", "n2", "--against", "base", "--allow-different", "scorer")
        == 0
    )


def test_infra_errors_are_never_wrong_answers(work, capsys):
    outputs = [
        {"id": f"i{i}", "error": "HTTP 500"} if i % 3 == 0 else {"id": f"i{i}", "output": json.dumps({"a": i})}
        for i in range(200)
    ]
    lines(work / "third.jsonl", outputs)
    ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base", "--save-as", "base")
    capsys.readouterr()
    assert ft_eval("third.jsonl", "--task", "task.yaml", "--out", "r", "--against", "base", "--json") == 3
    captured = capsys.readouterr()
    payload = json.loads(captured.out)
    assert payload["metrics"]["exact"]["value"] == 1.0
    assert payload["outcomes"]["infra_error"] == 67
    assert "67 of 200 items got no answer" in captured.err


BAD = [
    ("task.yaml", TASK.replace("primary", "primry"), "unknown key 'primry' (did you mean \"primary\"?)"),
    ("task.yaml", TASK.replace("json_equal", "json_equl"), "no validator kind 'json_equl'"),
    ("task.yaml", TASK + "name: twice\n", "task.yaml:8: not valid YAML: the key 'name' stands twice"),
    ("task.yaml", "{", "not valid YAML"),
    ("task.yaml", TASK.replace("kind: json}", "kind: json_schema, schema: {type: strin}}"), "not a JSON Schema"),
    ("good.jsonl", '{"id": "i0", "output": "x"}\n', "199 of 200 items have no output"),
    ("good.jsonl", '{"id": "zz", "output": "x"}\n', "good.jsonl:1: no item has the id 'zz'"),
    ("good.jsonl", '{"id": "i0"}\n', 'a record needs an "output"'),
    ("eval.jsonl", '{"id": "i", "messages": [{"role": "assistant", "content": "1"}]}\n' * 2, "is also on line 1"),
]


@pytest.mark.parametrize(("file", "content", "words"), BAD)
def test_bad_input_is_one_line_and_exit_2(work, capsys, file, content, words):
    (work / file).write_text(content)
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "r") == 2
    err = capsys.readouterr().err.strip()
    assert words in err
    assert err.startswith("error:")
    assert "\n" not in err
    assert not (work / "r").exists()


def test_unknown_metric_and_newer_report(work, capsys):
    ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base")
    (work / "gate.yaml").write_text("conditions: [{metric: exat, rule: at_least, value: 0.5}]\n")
    assert ft_gate("base", "--policy", "gate.yaml") == 2
    assert 'did you mean "exact"' in capsys.readouterr().err
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "x", "--against", "nothing") == 2


def test_junit_names_are_ids_and_text_is_escaped():
    import xml.etree.ElementTree as ElementTree

    base = {"task": {"name": "t"}, "created": "2026-01-01T00:00:00Z", "decision": None}
    item = {
        "outcome": "fail",
        "reason": "a\x00<b>",
        "cause": "c",
        "expected": "]]>",
        "output": "\x1b[31m<script>",
        "latency_ms": 5,
    }
    root = ElementTree.fromstring(
        junit.render(base, [{**item, "id": 'x"<1>'}, {**item, "id": "e", "outcome": "infra_error"}])
    )
    assert [case.get("name") for case in root.iter("testcase")] == ['x"<1>', "e"]
    assert [len(list(root.iter(kind))) for kind in ("failure", "error")] == [1, 1]


def test_a_registry_that_cannot_be_written_is_said_before_anything_is_asked(work, monkeypatch, capsys):
    monkeypatch.setenv("TUNEGATE_HOME", str(work / "eval.jsonl" / "home"))
    assert ft_eval("good.jsonl", "--task", "task.yaml", "--out", "base", "--save-as", "base") == 2
    assert capsys.readouterr().err.startswith(f"error: {work / 'eval.jsonl' / 'home'}: not a directory")
    assert not (work / "base").exists()
