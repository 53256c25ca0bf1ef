"""The metric `leakage`: from the lineage of a system, or from the task's own training rows."""

import json

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.evalkit.leakage import leakage_of
from tunegate.evalkit.system import classify
from tunegate.evalkit.task import load_task


def row(identity, question):
    return {"id": identity, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "x"}]}


def run_with_dataset(folder, questions):
    data = folder / "data"
    data.mkdir()
    lines = "".join(json.dumps(row(f"t{i}", q)) + "\n" for i, q in enumerate(questions))
    (data / "train.jsonl").write_text(lines)
    made = manifest.write(data, "dataset", inputs=[], config={}, seeds={}, facts={})
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text("x: 1\n")
    manifest.write(run, "run", inputs=[made.as_input("dataset", data)], config={}, facts={"method": "lora"})
    return Run.open(run)


def test_read_from_the_lineage(echo):
    run = run_with_dataset(echo, ["Q3!", "q5", "other"])
    found = leakage_of(classify(str(run.path)), load_task(echo / "task.yaml"))
    assert found["metrics"]["leakage_exact"] == 1
    assert found["metrics"]["leakage"] == 2
    assert {item["id"] for item in found["items"]} >= {"i3", "i5"}


def test_changed_or_missing_training_data_is_not_taken_for_clean(echo, capsys):
    run = run_with_dataset(echo, ["q5"])
    task = load_task(echo / "task.yaml")
    (echo / "data/train.jsonl").write_text("")
    assert leakage_of(classify(str(run.path)), task) is None
    assert "has changed, so leakage from it is not measured" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("train", "decision", "code"), [("q3", "FAIL", 1), ("zzz", "PASS", 0), (None, "INCONCLUSIVE", 3)]
)
def test_gate(echo, ft, train, decision, code):
    (echo / "out.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "output": f"q{i}"}) + "\n" for i in range(60)))
    (echo / "gate.yaml").write_text("conditions: [{metric: leakage, rule: at_most, value: 0}]\n")
    if train is not None:
        (echo / "train.jsonl").write_text(json.dumps(row("t", train)) + "\n")
        (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "train: train.jsonl\n")
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--policy", "gate.yaml", "--json")
    assert (done.code, done.json["decision"]) == (code, decision), done.err


def test_unknown_metric_names_the_nearest(echo, ft):
    (echo / "out.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "output": f"q{i}"}) + "\n" for i in range(60)))
    (echo / "gate.yaml").write_text("conditions: [{metric: leakge, rule: at_most, value: 0}]\n")
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--policy", "gate.yaml")
    assert done.code == 2
    assert "leakage" in done.err
    assert done.err.splitlines()[-1].startswith(("error:", "  "))


def test_nothing_answered_is_inconclusive_not_lost(echo, ft):
    (echo / "out.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "output": f"q{i}"}) + "\n" for i in range(60)))
    (echo / "none.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "error": "503"}) + "\n" for i in range(60)))
    done = ft("eval", "none.jsonl", "--task", "task.yaml", "--out", "r", "--against", "out.jsonl", "--json")
    assert (done.code, done.json["decision"]) == (3, "INCONCLUSIVE"), done.err
