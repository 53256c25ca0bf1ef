"""What a gate is given beside a report: a load test, a promoted alias, names; and how its reasons read."""

import json
from pathlib import Path

import pytest

from tunegate.core import manifest, registry
from tunegate.core.artifacts import EvalReport, GateDecision
from tunegate.core.errors import UserError
from tunegate.core.files import new_folder, sha256_text
from tunegate.core.manifest import Input
from tunegate.evalkit.gate import p_text
from tunegate.evalkit.system import classify
from tunegate.serve.load_plan import LoadOptions, Stage
from tunegate.serve.load_report import About, make_report, write_load_report
from tunegate.serve.load_test import Record, StageRun
from tunegate.train.release.promote import promote
from tunegate.train.release.promote_registry import open_registry


def outputs(path, right, n=60):
    path.write_text("".join(json.dumps({"id": f"i{i}", "output": f"q{i}" if i < right else "x"}) + "\n" for i in range(n)))  # fmt: skip
    return path


def load_test(folder, inputs=(), *, cpu_share=0.1):
    """A LoadReport of 100 answers whose first content came after 100..199 ms."""
    stage = Stage(kind="closed", level=4.0, requests=100, duration_s=None, warm_up=0)
    records = [
        Record(number=i, warm_up=False, prompt=str(i), repeated=False, due_s=float(i), started_s=float(i), ended_s=i + 1.0,
               ttft_ms=100.0 + i, e2e_ms=500.0 + i, tpot_ms=10.0, prompt_tokens=20, completion_tokens=33)
        for i in range(100)
    ]  # fmt: skip
    run = StageRun(stage=stage, records=records, cpu_share=cpu_share, lags_ms=[0.1])
    about = About(target="t", endpoint="http://x/v1", model="m", prompts={}, engine={}, inputs=list(inputs))
    document = make_report([run], LoadOptions(stages=(stage,), generation={}), about, max_error_rate=0.01)
    return write_load_report(folder, document, [run], about, force=True).path


def policy(path, value, metric="load_ttft_p95_ms"):
    path.write_text(json.dumps({"conditions": [{"metric": metric, "rule": "at_most", "value": value}]}))
    return path


@pytest.mark.parametrize(("value", "decision", "code"), [(250, "PASS", 0), (150, "FAIL", 1), (196, "INCONCLUSIVE", 3)])
def test_latency_under_load_is_a_condition(echo, ft, value, decision, code):
    """p95 of 100..199 is 194; its 90 % interval from order statistics holds 196."""
    outputs(echo / "o.jsonl", 60)
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    load, gate = load_test(echo / "load"), policy(echo / "gate.yaml", value)
    run = ft("gate", "r", "--policy", gate, "--load", load, "--json")
    assert run.code == code, run.err
    (condition,) = run.json["conditions"]
    assert (condition["decision"], condition["value"], condition["n"]) == (decision, 194.0, 100)
    written = GateDecision.open(echo / "r" / "gate")
    assert json.loads((written.path / "decision.json").read_text())["load"]["path"].endswith("load")
    assert {i.role for i in written.manifest.inputs} == {"candidate", "load"}
    whole = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r2", "--policy", gate, "--load", load, "--json")
    assert (whole.code, whole.json["decision"]) == (code, decision)


def test_a_load_test_that_is_missing_invalid_or_of_something_else(echo, ft):
    outputs(echo / "o.jsonl", 60)
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    gate = policy(echo / "gate.yaml", 250)
    run = ft("gate", "r", "--policy", gate)
    assert run.code == 2
    assert "load_ttft_p95_ms needs a load test (--load LOADREPORT" in run.err
    assert ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r2", "--policy", gate).code == 2
    assert ft("gate", "r", "--policy", gate, "--load", "r").code == 2
    run = ft("gate", "r", "--policy", gate, "--load", load_test(echo / "bad", cpu_share=0.99), "--json")
    assert run.code == 3
    assert run.json["conditions"][0]["reason"].endswith("was not measured: the load test is not valid")
    run = ft("gate", "r", "--policy", policy(echo / "g2.yaml", 1, "load_ttft_p59_ms"), "--load", echo / "bad")
    assert run.code == 2
    assert 'did you mean "load_ttft_p' in run.err


@pytest.mark.parametrize(
    ("metric", "rule", "value", "words"),
    [
        ("exact", "at_least", 95, "exact is a share from 0 to 1, found 95 (95 % is 0.95)"),
        ("exact", "at_least", 1.5, "exact is a share from 0 to 1, found 1.5 (1.5 % is 0.015)"),
        ("exact", "at_least", -1, "exact is a share from 0 to 1, found -1"),
        ("infra_error_rate", "at_most", 5, "infra_error_rate is a share from 0 to 1, found 5 (5 % is 0.05)"),
        ("truncated_rate", "at_most", 101, "truncated_rate is a share from 0 to 1, found 101"),
        ("latency_p95_ms", "at_most", -5, "latency_p95_ms is never below 0, found -5"),
        ("leakage", "at_most", -1, "leakage is never below 0, found -1"),
    ],
)
def test_a_bound_that_the_metric_cannot_reach_is_bad_input(echo, ft, metric, rule, value, words):
    """`infra_error_rate at_most 5` would also let any loss through, `exact at_least 95` never pass."""
    outputs(echo / "o.jsonl", 60)
    written = {"conditions": [{"metric": metric, "rule": rule, "value": value}]}
    (echo / "gate.yaml").write_text(json.dumps(written))
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--policy", "gate.yaml", "--json")
    assert (run.code, run.json["error"]["where"]) == (2, "gate.yaml conditions[0] value")
    assert not (echo / "r").exists()
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    run = ft("gate", "r", "--policy", "gate.yaml")
    assert (run.code, run.err.strip().splitlines()[-1]) == (2, f"error: gate.yaml conditions[0] value: {words}")


@pytest.mark.parametrize(
    ("metric", "rule", "value"),
    [
        ("latency_p95_ms", "at_most", 800),
        ("size_bytes", "at_most", 1e9),
        ("leakage", "at_most", 3),
        ("exact", "at_most", 1),
    ],
)
def test_a_bound_in_the_metrics_unit_is_taken(echo, ft, metric, rule, value):
    outputs(echo / "o.jsonl", 60)
    (echo / "gate.yaml").write_text(json.dumps({"conditions": [{"metric": metric, "rule": rule, "value": value}]}))
    assert ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--policy", "gate.yaml").code in (0, 3)


@pytest.mark.parametrize(("option", "where"), [("--against", "--against"), (None, "TARGET")])
def test_an_empty_name_is_told_as_one(echo, ft, option, where):
    outputs(echo / "o.jsonl", 60)
    names = ("o.jsonl", option, "") if option else ("",)
    run = ft("eval", *names, "--task", "task.yaml", "--out", "r", "--json")
    assert (run.code, run.json["error"]["where"]) == (2, where)
    assert "an empty name" in run.json["error"]["message"]


def test_a_folder_called_like_recorded_outputs_is_told_as_one(echo, ft):
    (echo / "o.jsonl").mkdir()
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    assert (run.code, run.err.strip()) == (2, "error: o.jsonl: is a folder, a file is needed here")


def test_a_slice_stands_once(echo, ft):
    """Twice it would be corrected for twice as many slices."""
    outputs(echo / "o.jsonl", 60)
    rows = [json.loads(line) | {"tags": {"t": "x"}} for line in (echo / "eval.jsonl").read_text().splitlines()]
    (echo / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with (echo / "task.yaml").open("a") as task:
        task.write("slices: [t, t]\n")
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    assert (run.code, run.err.strip()) == (2, "error: task.yaml slices[1]: 't' stands twice (leave one out)")


def test_a_load_test_of_another_release_is_refused(echo, ft):
    from tunegate.core.artifacts import LoadReport
    from tunegate.evalkit.compare import Reading
    from tunegate.evalkit.verdict import _same_system

    reading = Reading(name="r", report={"target": {"spec": "rel/", "kind": "release", "digest": "a" * 64}}, rows=())
    given = lambda digest: [Input(role="target", kind="release", path="rel", digest=digest)]  # noqa: E731
    _same_system(LoadReport.open(load_test(echo / "one", given("a" * 64))), reading)
    with pytest.raises(UserError, match="the load test is of another system"):
        _same_system(LoadReport.open(load_test(echo / "two", given("b" * 64))), reading)


@pytest.fixture
def promoted(echo, ft):
    """`champion`: a release that was judged and let through; its folder is then gone."""
    from tunegate.core.artifacts import Release

    with new_folder(echo / "rel") as folder:
        (folder / "config.json").write_text("{}")
        manifest.write(folder, Release.kind, inputs=[], config={}, facts={})
    release = Release.open(echo / "rel")
    outputs(echo / "o.jsonl", 60)
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r")
    base = EvalReport.open(echo / "r")
    document = base.report()
    document["target"] = {"spec": "rel", "kind": "release", "digest": release.digest, "model": "rel"}
    with new_folder(echo / "judged") as folder:
        for name in ("results.jsonl", "report.html", "junit.xml", "summary.md"):
            (folder / name).write_bytes((base.path / name).read_bytes())
        (folder / "report.json").write_text(json.dumps(document))
        manifest.write(folder, EvalReport.kind, inputs=[release.as_input("system")], config={}, facts={})
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: at_least, value: 0.9}]\n")
    assert ft("gate", "judged", "--policy", "gate.yaml").code == 0
    promote(release, echo / "judged" / "gate", "champion", open_registry(None), by="me", reason=None)
    (echo / "rel").rename(echo / "gone")
    return release


def test_an_alias_is_the_release_as_a_target_and_its_report_as_a_baseline(promoted, echo, ft):
    found = classify("champion")
    assert (found.kind, found.digest, found.model) == ("release", promoted.digest, "champion")
    assert Path(found.source.path).is_relative_to(echo / "home")
    assert classify("champion", baseline=True).kind == "report"
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "n", "--against", "champion", "--json")
    assert run.json["decision"] == "INCONCLUSIVE"
    assert run.json["comparison"]["exact"]["difference"] == 0
    there = found.source.path / "manifest.json"
    there.write_text(there.read_text().replace(promoted.digest, sha256_text("other bytes")))
    with pytest.raises(UserError, match="the release behind 'champion' was changed"):
        classify("champion")


def test_a_report_without_an_answer_is_no_baseline(echo, ft):
    (echo / "o.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "error": "HTTP 500"}) + "\n" for i in range(60)))
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--save-as", "base")
    assert run.code == 4
    assert "not saved as 'base': no item was answered" in run.err
    assert not registry.has_report("base")
    run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r2", "--save-as", "a/b")
    assert run.code == 2
    assert not (echo / "r2").exists(), "a name that cannot be used is said before anything is judged"


def test_the_baseline_is_found_from_any_folder(echo, ft, monkeypatch):
    outputs(echo / "o.jsonl", 55)
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "base")
    ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--against", "base")
    (echo / "sub").mkdir()
    monkeypatch.chdir(echo / "sub")
    assert ft("gate", "../r").code == 3
    path = json.loads((echo / "r" / "report.json").read_text())["comparison"]["baseline"]["path"]
    assert path == str(echo / "base")


def test_a_tiny_p_is_not_nothing(echo, ft):
    assert [p_text(p) for p in (0.5, 0.0001, 0.00009999, 0.0)] == ["0.5000", "0.0001", "< 0.0001", "< 0.0001"]
    outputs(echo / "all.jsonl", 60)
    outputs(echo / "few.jsonl", 10)
    ft("eval", "few.jsonl", "--task", "task.yaml", "--out", "few")
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: superior}]\n")
    run = ft("eval", "all.jsonl", "--task", "task.yaml", "--out", "r", "--against", "few", "--policy", "gate.yaml", "--json")  # fmt: skip
    assert run.json["conditions"][0]["reason"].endswith("p < 0.0001")


def test_a_gates_baseline_may_be_any_target(echo, ft):
    """It is judged by the report's own task, once, where `ft eval` would put it."""
    outputs(echo / "new.jsonl", 60)
    outputs(echo / "old.jsonl", 20)
    assert ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "r").code == 0
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: superior}]\n")
    run = ft("gate", "r", "--against", "old.jsonl", "--policy", "gate.yaml", "--json")
    assert (run.code, run.json["decision"], run.json["comparison"]["exact"]["fixed"]) == (0, "PASS", 40), run.err
    judged = EvalReport.open(echo / "r-baseline").digest
    assert ft("gate", "r", "--against", "old.jsonl", "--policy", "gate.yaml").code == 0
    assert EvalReport.open(echo / "r-baseline").digest == judged
    outputs(echo / "older.jsonl", 10)
    run = ft("gate", "r", "--against", "older.jsonl", "--policy", "gate.yaml")
    assert run.code == 2
    assert "r-baseline: the output exists already" in run.err
    assert ft("gate", "r", "--against", "older.jsonl", "--policy", "gate.yaml", "--force").code == 0
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "# changed\n")
    run = ft("gate", "r", "--against", "old.jsonl", "--policy", "gate.yaml")
    assert run.code == 2
    assert "error: task.yaml: the task that r was judged by was changed (judge the baseline by it first" in run.err


@pytest.mark.parametrize("side", ["base", "cand"])
def test_nothing_is_decided_by_answers_that_were_changed_since(echo, ft, side):
    """The change keeps the file's size: only its hash tells."""
    ft("eval", outputs(echo / "b.jsonl", 40), "--task", "task.yaml", "--out", "base")
    ft("eval", outputs(echo / "c.jsonl", 20), "--task", "task.yaml", "--out", "cand", "--against", "base")
    rows = echo / side / "results.jsonl"
    rows.write_text(rows.read_text().replace('"pass"', '"fail"'))
    run = ft("gate", "cand", "--against", "base")
    assert run.code == 2
    assert f"{side}/results.jsonl: content changed since the report was written" in run.err
    assert ft("gate", "cand").code == 2


def test_other_schemas_in_the_rows_are_other_items(echo, ft):
    rows = [json.loads(line) for line in (echo / "eval.jsonl").read_text().splitlines()]
    (echo / "task.yaml").write_text("name: t\ndata: eval.jsonl\nvalidators: [{name: exact, kind: json_schema}]\n")
    outputs(echo / "o.jsonl", 60)
    for name, schema in (("base", {"type": "object"}), ("cand", {})):
        (echo / "eval.jsonl").write_text("".join(json.dumps({**row, "schema": schema}) + "\n" for row in rows))
        against = ["--against", "base"] if name == "cand" else []
        run = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", name, *against)
    assert run.code == 2
    assert "not comparable with the baseline 'base': data" in run.err
