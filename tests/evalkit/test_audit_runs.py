"""What an audit found in runs: answers of another model, results of another task, refused requests, repeats that were lost."""

import json

import pytest

from tunegate.core.errors import UserError
from tunegate.evalkit.evaluate import identity_of, planned
from tunegate.evalkit.interchange import inspect_write
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.render import html
from tunegate.evalkit.scoring import result_row, score
from tunegate.evalkit.summary import measure
from tunegate.evalkit.system import System
from tunegate.evalkit.task import load_task

EVAL = ("--task", "task.yaml", "--out", "r", "--json")


def put(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def outputs(folder):
    return [json.loads(line)["output"] for line in (folder / "results.jsonl").read_text().splitlines()]


def test_a_report_replaced_by_force_asks_everything_and_retry_errors_only_what_was_lost(echo, standin, ft):
    target = ("eval", standin.url)
    standin.answer = lambda q, _: (501 if q == "q7" else 200, "old")
    first = ft(*target, *EVAL)
    assert first.json["outcomes"]["infra_error"] == 1
    assert "--retry-errors" in first.err
    standin.answer = lambda q, _: (200, "new")
    log = echo / ".r.answers.jsonl"
    kept = log.read_bytes()
    standin.asked.clear()
    assert ft(*target, *EVAL, "--retry-errors").code == 0
    assert (dict(standin.asked), outputs(echo / "r").count("old")) == ({"q7": 1}, 59)
    assert not log.exists()
    missing = ft(*target, *EVAL, "--retry-errors")
    assert (missing.code, missing.json["error"]["message"]) == (2, "no answers are kept beside this report")
    log.write_bytes(kept)
    import os

    os.utime(log, ns=(1, 1))  # as a report with a lost item leaves it
    assert ft(*target, *EVAL, "--force").code == 0
    assert set(outputs(echo / "r")) == {"new"}
    log.write_bytes(kept)  # younger than the report: a run that replaces it was begun and cut short
    assert "resuming: 59 answers" in ft(*target, *EVAL, "--force").err


def test_the_share_shown_of_a_resumed_run_is_of_all_its_answers_and_what_does_not_fit_is_told(echo, standin, ft):
    standin.answer = lambda q, _: (501 if q == "q7" else 200, q if int(q[1:]) < 30 else "wrong")
    ft("eval", standin.url, *EVAL)
    kept = (echo / ".r.answers.jsonl").read_bytes()
    standin.answer = lambda q, _: (200, q)
    resumed = ft("eval", standin.url, *EVAL, "--retry-errors")
    assert resumed.json["metrics"]["exact"]["value"] == 0.5
    assert "asking: 60/60" in resumed.err
    assert "right 50.0%" in resumed.err
    (echo / ".r.answers.jsonl").write_bytes(kept)
    with (echo / "task.yaml").open("a") as file:
        file.write("generation: {seed: 5}\n")
    other = ft("eval", standin.url, *EVAL, "--force")
    assert "resuming: 0 answers found" in other.err
    assert "; 59 more are of other settings, questions or models" in other.err


@pytest.mark.parametrize("status", [400, 413, 422])
def test_requests_that_an_endpoint_rejects_are_the_systems_failures(echo, standin, ft, status):
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "base").code == 0
    standin.answer = lambda q, _: (status if int(q[1:]) % 2 else 200, q)
    run = ft("eval", standin.url, *EVAL, "--against", "base")
    assert (run.code, run.json["outcomes"]["fail"], run.json["outcomes"]["infra_error"]) == (1, 30, 0)
    assert run.json["metrics"]["exact"]["value"] == 0.5
    row = json.loads((echo / "r/results.jsonl").read_text().splitlines()[1])
    assert (row["cause"], row["reason"]) == (
        "rejected_request",
        f"the endpoint takes no such request: HTTP {status}: broken",
    )
    assert "the requests of 30 of 60 items" in run.err
    again = ft("eval", "r/results.jsonl", "--task", "task.yaml", "--out", "again", "--json")  # as recorded outputs
    assert again.json["outcomes"] == run.json["outcomes"]
    standin.answer = lambda q, _: (status, q)
    none = ft("eval", standin.url, "--task", "task.yaml", "--out", "none", "--json")
    assert (none.code, none.json["outcomes"]["infra_error"]) == (4, 60)  # takes no request at all: set up wrong


TASK = """name: t
data: eval.jsonl
validators: [{name: exact, kind: exact_match}]
few_shot: {file: shots.jsonl, n: 1}
"""


def turns(question, answer="a", system=None):
    head = [{"role": "system", "content": system}] if system else []
    return {"messages": [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize("change", ["", "system: Be brief.\n", "generation: {max_tokens: 7}\n", "repeats: 2\n", "group: id\n", "prompt: 'Q {input}'\n", None])  # fmt: skip
def test_what_decides_a_report_is_part_of_its_identity(echo, change):
    def identity(text):
        (echo / "task.yaml").write_text(text)
        return identity_of(planned(System(spec="s", kind="model", digest="d"), load_task(echo / "task.yaml")).report)

    put(echo / "eval.jsonl", {**turns("one"), "group": "g", "tags": {"id": "1"}}, turns("two"))
    put(echo / "shots.jsonl", turns("three"))
    before = identity(TASK)
    if change is None:
        put(echo / "shots.jsonl", turns("four"))
    assert (identity(TASK + (change or "")) == before) is (change == "")


@pytest.mark.parametrize(
    "example", [turns("What is  it?"), turns("what is it", system="Be kind."), turns("What is it?", "other")]
)
def test_an_example_that_asks_an_item_again_is_refused(echo, example):
    put(echo / "eval.jsonl", turns("What is it?", system="Be brief."))
    put(echo / "shots.jsonl", example)
    (echo / "task.yaml").write_text(TASK)
    with pytest.raises(UserError, match="this example is also asked"):
        load_task(echo / "task.yaml")


def test_a_system_turn_in_the_midst_stays_there(echo):
    said = [
        ("system", "first"),
        ("user", "one"),
        ("assistant", "two"),
        ("system", "now in French"),
        ("user", "three"),
        ("assistant", "four"),
    ]
    put(echo / "eval.jsonl", {"messages": [{"role": role, "content": text} for role, text in said]})
    put(echo / "shots.jsonl", {"messages": [{"role": role, "content": f"{text} again"} for role, text in said]})
    (echo / "task.yaml").write_text(TASK + "system: mine\n")
    task = load_task(echo / "task.yaml")
    asked = [(m["role"], m["content"]) for m in task.messages(task.rows[0])]
    assert asked == [("system", "mine"), *((r, f"{t} again") for r, t in said[1:]), *said[1:-1]]


def call(name):
    return {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}


@pytest.fixture
def repeated(echo):
    """A report's row of one item asked three times: wrong, right, lost; each with calls of its own."""
    put(
        echo / "eval.jsonl",
        {
            "id": "i",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call("good")]}],
        },
    )
    (echo / "task.yaml").write_text(
        "name: t\ndata: eval.jsonl\nrepeats: 3\nvalidators: [{name: exact, kind: tool_call}]\n"
    )
    task = load_task(echo / "task.yaml")
    answers = [Answer(tool_calls=[call("good")], finish_reason="tool_calls", prompt_tokens=1, completion_tokens=2, latency_ms=5.0),
               Answer(text="Let me see.", tool_calls=[call("bad")], finish_reason="stop", prompt_tokens=3, completion_tokens=4, latency_ms=6.0),
               Answer(error="lost on the way")]  # fmt: skip
    return task, result_row(task, task.rows[0], score(task, task.rows[0], answers))


def test_each_repeat_keeps_its_calls(repeated):
    task, row = repeated
    assert [[c["id"] for c in calls] for calls in row["each_tool_calls"]] == [["good"], ["bad"], []]
    assert (row["finish_reasons"], row["each_completion_tokens"]) == (["tool_calls", "stop", None], [2, 4, None])
    shown = html._rarely(row)["repeats"]
    assert ['"good"' in text for _, text, _ in shown] == [True, False, False]
    assert shown[1][1].startswith("Let me see.\n")
    assert '"bad"' in shown[1][1]
    report = planned(System(spec="s", kind="model", digest="d", model="m"), task).report
    samples = inspect_write._samples(row, report)
    said = [s["output"]["choices"][0] if s["output"]["choices"] else None for s in samples]
    assert [c["function"] for s in said[:2] for c in s["message"]["tool_calls"]] == ["good", "bad"]
    assert [s["stop_reason"] for s in said[:2]] == ["tool_calls", "stop"]
    assert [s["output"].get("usage", {}).get("output_tokens") for s in samples] == [2, 4, None]
    assert samples[2]["error"]["message"] == "lost on the way"
    old = {key: value for key, value in row.items() if not key.startswith("each_")}  # a report of before
    kept = [s["messages"][-1].get("tool_calls") for s in inspect_write._samples(old, report)]
    assert [bool(calls) for calls in kept] == [False, True, False]


def test_shares_of_outcomes_count_each_repeat():
    def row(name, *outcomes):
        return {"id": name, "outcome": outcomes[0], "outcomes": list(outcomes), "scores": {}}

    rows = [
        row("a", "truncated", "pass", "pass", "pass"),
        row("b", "fail", "fail", "truncated", "infra_error"),
        row("c", "pass", "pass", "pass", "pass"),
    ]
    found = measure(rows, {}, "truncated_rate", level=0.95).interval
    assert found.value == pytest.approx((1 / 4 + 1 / 3 + 0) / 3)
