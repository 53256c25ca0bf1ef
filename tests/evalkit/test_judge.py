"""The LLM judge: its key, its log, its measured agreement."""

import json

import pytest

from tunegate.evalkit.validators import judge


@pytest.fixture
def judged(echo, standin):
    """A task with a judge at the stand-in, which says right to everything but what ends in 9; 60 labelled answers, 24 of them wrong."""

    def answer(question, _):
        data = json.loads(question.split("<data>")[1].split("</data>")[0])
        return 200, json.dumps({"right": not data["answer"].endswith("9"), "reason": "because"})

    standin.answer = answer
    said = [*(f"a{i}" for i in range(40)), *(f"b{i}9" for i in range(20))]
    labels = [{"question": "q", "expected": "e", "answer": text, "right": not text.endswith("9")} for text in said]
    (echo / "labelled.jsonl").write_text("".join(json.dumps(x) + "\n" for x in labels))
    spec = f"{{name: j, kind: judge, endpoint: {json.dumps(standin.url)}, model: m, labelled: labelled.jsonl}}"
    (echo / "task.yaml").write_text(f"name: t\ndata: eval.jsonl\nvalidators: [{spec}]\n")
    (echo / "out.jsonl").write_text("".join(json.dumps({"id": f"i{i}", "output": f"q{i}"}) + "\n" for i in range(60)))
    judge._kept.cache_clear()
    judge._agreement.cache_clear()
    return echo


def test_logged_and_asked_once(judged, standin, ft):
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert done.json["outcomes"]["pass"] == 54, done.err
    rows = [json.loads(line) for line in (judged / "r/results.jsonl").read_text().splitlines()]
    assert {row["judged"]["j"] for row in rows} == {"because"}
    assert sum(standin.asked.values()) == 120
    judge._kept.cache_clear()  # as after a kill: what was said is read from the log
    judge._agreement.cache_clear()
    again = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r2")
    assert sum(standin.asked.values()) == 120
    kept = judge._kept(standin.url)[0]
    assert f"120 verdicts of the judge at {standin.url} are kept in {kept}: remove the file" in again.err


def test_may_not_gate_below_its_agreement(judged, ft):
    labels = [json.loads(line) for line in (judged / "labelled.jsonl").read_text().splitlines()]
    wrong = [{**x, "right": not x["right"]} if i % 2 else x for i, x in enumerate(labels)]
    (judged / "labelled.jsonl").write_text("".join(json.dumps(x) + "\n" for x in wrong))
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r")
    assert done.code == 2
    assert "agrees with people" in done.err


def test_key_goes_to_its_own_host_only(monkeypatch):
    monkeypatch.setattr(judge, "_key_hosts", set())
    monkeypatch.setenv("TUNEGATE_API_KEY", "target")
    assert judge.judge_key("http://judge:1/v1") is None
    judge.share_key_with("http://judge:1/v1")
    assert judge.judge_key("http://judge:1/v1") == "target"
    assert judge.judge_key("http://judge:2/v1") is None
    monkeypatch.setenv("TUNEGATE_JUDGE_API_KEY", "own")
    assert judge.judge_key("http://judge:2/v1") == "own"
