"""What a review of the audits' mends found: examples that are not asked, logs that only look young, verdicts that are missing."""

import json
import os
import random

import pytest

from tunegate.core.errors import UserError
from tunegate.core.files import write_jsonl
from tunegate.evalkit.compare import Reading, pair
from tunegate.evalkit.gate import decide
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.policy import default_policy, make_policy
from tunegate.evalkit.recorded import _parse as parse
from tunegate.evalkit.result_log import ResultLog
from tunegate.evalkit.task import load_task
from tunegate.evalkit.verdict import say_other_verdict


def turns(user, answer, system=None):
    first = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*first, {"role": "user", "content": user}, {"role": "assistant", "content": answer}]}


@pytest.mark.parametrize(
    ("rows", "example", "asked"),
    [
        ([turns("Which label?", "a", f"Document {i}") for i in range(5)], turns("Which label?", "a", "Document 9"), False),
        ([turns("Which label?", "a", f"Document {i}") for i in range(5)], turns("which label", "a", "Document 3"), True),
        ([turns("12 * 3", "36"), turns("1", "1")], turns("12 / 3", "4"), False),
        ([turns("12 * 3", "36"), turns("1", "1")], turns("12 * 3 ", "36"), True),
    ],
)  # fmt: skip
def test_an_example_is_refused_where_it_is_asked(tmp_path, rows, example, asked):
    write_jsonl(tmp_path / "eval.jsonl", rows)
    write_jsonl(tmp_path / "shots.jsonl", [example])
    task = {"name": "t", "data": "eval.jsonl", "validators": [{"name": "exact", "kind": "exact_match"}], "primary": "exact",
            "few_shot": {"file": "shots.jsonl"}}  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    if not asked:
        assert len(load_task(tmp_path / "task.yaml").examples) == 1
        return
    with pytest.raises(UserError, match="also asked"):
        load_task(tmp_path / "task.yaml")


def test_a_log_that_is_only_read_does_not_look_younger(tmp_path):
    log = tmp_path / "answers.jsonl"
    with ResultLog(log) as kept:
        kept.add("a", Answer(text="x"))
    os.utime(log, (1_000_000, 1_000_000))
    with ResultLog(log) as kept:
        assert len(kept) == 1
    assert log.stat().st_mtime == 1_000_000


@pytest.mark.parametrize(("lost", "decision"), [(0, "PASS"), (30, "INCONCLUSIVE")])
def test_a_judge_that_says_nothing_of_half_the_items_decides_nothing(lost, decision):
    rows = [
        {"id": str(i), "outcome": "pass", "scores": {"exact": 1.0} | ({} if i < lost else {"j": 1.0}), "tags": {}, "cause": "",
         "reason": "", "group": None}
        for i in range(200)
    ]  # fmt: skip
    task = {"primary": "exact", "slices": [], "validators": [{"name": "exact"}, {"name": "j"}]}
    report = {"metrics": {"exact": {}, "j": {}}, "task": task, "data": {}, "target": {"spec": "m"}, "outcomes": {}}
    policy = make_policy({"conditions": [{"metric": "j", "rule": "at_least", "value": 0.85}]}, "gate.yaml")
    assert decide(policy, Reading(name="r", report=report, rows=rows), None)["decision"] == decision


@pytest.mark.parametrize(
    ("record", "error", "rejected"),
    [
        ({"output": "chosen", "rejected": "a worse text"}, None, None),
        ({"output": "", "rejected": "too long"}, None, "too long"),
        ({"output": "x", "outcome": "infra_error", "error": "the judge gave no verdict", "unjudged": True}, None, None),
        ({"output": "x", "outcome": "infra_error", "reason": "gone"}, "gone", None),
    ],
)
def test_what_a_recorded_line_says(record, error, rejected):
    _, answer = parse({"id": "a", **record}, "f:1")
    assert (answer.error, answer.rejected) == (error, rejected)


def copies(passed, times):
    """Rows of as many questions as `passed` has answers, each asked so often under ids of its own."""
    return [
        {"id": f"{i}-{k}", "outcome": "pass" if p else "fail", "scores": {"exact": float(p)}, "group": None,
         "prompt_digest": str(i), "expected": "yes"}
        for i, p in enumerate(passed) for k in range(times)
    ]  # fmt: skip


def test_copies_of_a_question_are_no_evidence_of_their_own():
    """At a true drop of the margin 60 questions, five times each, passed in .28 of the cases where .05 is promised."""
    generator, passed = random.Random(7), 0
    for _ in range(200):
        after = [generator.random() >= 0.02 for _ in range(60)]
        passed += pair(copies([True] * 60, 5), copies(after, 5), "exact").not_worse(0.02, alpha=0.05).holds
    assert passed / 200 <= 0.09


def test_one_question_asked_often_is_a_sample_of_its_answers():
    rows = copies([True], 300)
    assert pair(rows, rows, "exact").groups == tuple(f"\0{row['id']}" for row in rows)


def test_rows_whose_prompts_do_not_tell_the_question_are_no_copies(echo, ft):
    """Outputs recorded elsewhere, of pictures say: one prompt for all, and a few labels."""
    rows = [{"role": "user", "content": "What is in the picture?"}]
    labels = ["cat" if i % 2 else "dog" for i in range(300)]
    write_jsonl(
        echo / "eval.jsonl",
        [
            {"id": f"i{i}", "messages": [*rows, {"role": "assistant", "content": label}]}
            for i, label in enumerate(labels)
        ],
    )
    write_jsonl(echo / "out.jsonl", [{"id": f"i{i}", "output": label} for i, label in enumerate(labels)])
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--against", "out.jsonl")
    assert (done.code, "different questions" in done.err) == (0, False)


def test_copies_that_have_groups_of_their_own_are_not_said_to_count_together(echo, ft):
    rows = [json.loads(line) for line in (echo / "eval.jsonl").read_text().splitlines()]
    write_jsonl(
        echo / "eval.jsonl", [{**row, "id": f"{row['id']}{b}", "group": row["id"] + b} for row in rows for b in "ab"]
    )
    write_jsonl(echo / "out.jsonl", [{"id": f"i{i}{b}", "output": f"q{i}"} for i in range(60) for b in "ab"])
    assert "different questions" not in ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r").err


def test_eval_says_how_many_questions_there_are(echo, ft):
    rows = [json.loads(line) for line in (echo / "eval.jsonl").read_text().splitlines()]
    write_jsonl(echo / "eval.jsonl", [*rows, *({**row, "id": f"{row['id']}b"} for row in rows[:20])])
    write_jsonl(
        echo / "out.jsonl", [{"id": f"i{i}{b}", "output": f"q{i}"} for b, n in (("", 60), ("b", 20)) for i in range(n)]
    )
    done = ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "r")
    assert "80 items are 60 different questions" in " ".join(done.err.split())


def test_a_report_is_gated_from_another_folder(echo, ft, monkeypatch):
    write_jsonl(echo / "out.jsonl", [{"id": f"i{i}", "output": f"q{i}"} for i in range(60)])
    assert ft("eval", "out.jsonl", "--task", "task.yaml", "--out", "sub/r").code == 0
    (echo / "elsewhere").mkdir()
    (echo / "elsewhere/task.yaml").write_text("name: another\n")
    monkeypatch.chdir(echo / "elsewhere")
    done = ft("gate", "../sub/r", "--against", "../out.jsonl")
    assert (done.code, "was changed" in done.err) == (3, False), done.err


def test_what_a_gate_does_not_show_is_said(echo, ft):
    write_jsonl(echo / "out.jsonl", [{"id": f"i{i}", "output": "no idea"} for i in range(60)])
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: at_least, value: 0.5}]")
    done = ft(
        "eval", "out.jsonl", "--task", "task.yaml", "--out", "r", "--against", "out.jsonl", "--policy", "gate.yaml"
    )
    assert (done.code, "no answer of either side has any exact" in " ".join(done.err.split())) == (1, True)
    done = ft("gate", "r")
    assert "the report itself says FAIL by another policy" in " ".join(done.err.split())
    assert "another policy" not in ft("gate", "r", "--policy", "gate.yaml").err


def test_a_decision_that_names_no_policy_is_of_none_that_is_known(capsys, tmp_path):
    before, now = (
        {"decision": "FAIL", "conditions": []},
        {"decision": "FAIL", "policy": default_policy("exact").to_json()},
    )
    say_other_verdict({"decision": before}, now, own=True, folder=tmp_path)
    assert capsys.readouterr().err == ""
