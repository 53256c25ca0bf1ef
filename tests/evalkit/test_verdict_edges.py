"""What changed a verdict, or lost an input, without a word: groups, strict alphas, repeats, a baseline beside the report."""

import json
import re

import pytest

from tunegate.core import manifest
from tunegate.core.power import pairs_for_difference
from tunegate.core.rows import Row
from tunegate.evalkit.extract import extract
from tunegate.evalkit.gate import decide
from tunegate.evalkit.interchange import lm_eval
from tunegate.evalkit.interchange.foreign import format_of
from tunegate.evalkit.leakage import leakage_of
from tunegate.evalkit.outcomes import Answer
from tunegate.evalkit.policy import make_policy
from tunegate.evalkit.scoring import result_row, score
from tunegate.evalkit.summary import measure, timings
from tunegate.evalkit.system import classify
from tunegate.evalkit.task import load_task
from tunegate.evalkit.validators.number import numbers
from tunegate.evalkit.validators.set_match import SetMatch

from .test_gate import reading
from .test_leakage import row as question_row
from .test_leakage import run_with_dataset


def outputs(path, right, **more):
    lines = [{"id": f"i{i}", "output": f"q{i}" if i < right else "no", **more} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_target_in_the_folder_that_the_baseline_will_take_is_refused_and_kept(echo, ft):
    outputs(echo / "good.jsonl", 60)
    outputs(echo / "bad.jsonl", 30)
    assert ft("eval", "good.jsonl", "--task", "task.yaml", "--out", "r", "--against", "bad.jsonl").code == 0
    before = (echo / "r-baseline/results.jsonl").read_text()
    for target, against in (("r-baseline/results.jsonl", "good.jsonl"), ("good.jsonl", "r-baseline/results.jsonl")):
        done = ft("eval", target, "--task", "task.yaml", "--out", "r", "--against", against, "--force")
        assert (done.code, "would replace the input" in done.err) == (2, True), done.err
    done = ft("gate", "r", "--against", "r-baseline/results.jsonl", "--force")
    assert (done.code, "would replace the input" in done.err) == (2, True), done.err
    assert (echo / "r-baseline/results.jsonl").read_text() == before


@pytest.mark.parametrize("alpha", [0.01, 0.001, 1e-5])
def test_equal_pairs_show_it_at_a_strict_alpha_and_as_many_as_are_asked_for_do(alpha):
    gate = {"conditions": [{"metric": "exact", "rule": "non_inferior", "margin": 0.02}], "alpha": alpha}
    need = pairs_for_difference(0.0, 0.02, alpha=alpha)
    for n, expected in ((need + 1, "PASS"), (need // 2, "INCONCLUSIVE")):
        same = reading([1.0] * n)
        assert decide(make_policy(gate, "gate.yaml"), same, same)["decision"] == expected


def test_a_tag_called_group_is_not_the_rows_own_group(echo):
    lines = [json.loads(line) for line in (echo / "eval.jsonl").read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {"group": f"c{i}", "tags": {"group": "test" if i % 2 else "control"}}
    (echo / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = load_task(echo / "task.yaml")
    assert [task.group_of(row) for row in task.rows[:2]] == ["c0", "c1"]
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "group: group\n")
    assert load_task(echo / "task.yaml").group_of(task.rows[0]) == "control"  # named, a tag comes first


def test_a_page_made_anew_shows_no_other_systems_answers_as_the_baselines(echo, ft):
    outputs(echo / "good.jsonl", 60)
    outputs(echo / "bad.jsonl", 30)
    ft("eval", "bad.jsonl", "--task", "task.yaml", "--out", "r", "--against", "good.jsonl")
    ft("report", "r", "--html", "with.html")
    outputs(echo / "third.jsonl", 10)
    assert ft("gate", "r", "--against", "third.jsonl", "--force").code == 0
    assert ft("report", "r", "--html", "without.html").code == 0
    texts = [(echo / name).read_text() for name in ("with.html", "without.html")]
    assert len(texts[1]) < len(texts[0])


def test_groups_cost_items_in_the_power_that_a_report_tells(echo, ft):
    lines = [
        json.loads(line) | {"group": f"c{i // 6}"}
        for i, line in enumerate((echo / "eval.jsonl").read_text().splitlines())
    ]
    (echo / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outputs(echo / "good.jsonl", 60)
    outputs(echo / "bad.jsonl", 30)  # whole groups are lost
    ft("eval", "bad.jsonl", "--task", "task.yaml", "--out", "r", "--against", "good.jsonl")
    found = ft("eval", "power", "--report", "r", "--json").json
    alone = ft("eval", "power", "--n", "60", "--discordance", found["discordance"], "--json").json
    assert found["design_effect"] > 5
    assert found["need_n"] == pytest.approx(alone["need_n"] * found["design_effect"], abs=1)
    assert found["detectable_margin"] > 2 * alone["detectable_margin"]
    assert alone["design_effect"] == 1.0


@pytest.mark.parametrize(
    "more", [{"doc_id": "7"}, {"tool_calls": [{"function": {"name": "f", "arguments": {"doc_id": 1}}}]}]
)
def test_recorded_outputs_with_a_key_of_lm_evals_are_recorded_outputs(echo, ft, more):
    outputs(echo / "o.jsonl", 60, **more)
    done = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert (done.code, done.json["metrics"]["exact"]["value"]) == (0, 1.0), done.err


def test_a_row_of_several_answers_is_of_the_one_that_names_its_outcome(echo):
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "repeats: 2\n")
    task = load_task(echo / "task.yaml")
    asked: Row = task.rows[0]
    lost = Answer(text="", error="timeout", latency_ms=30000.0)
    right, wrong = Answer(text="q0", latency_ms=100.0), Answer(text="maybe", latency_ms=110.0)
    found = [result_row(task, asked, score(task, asked, each)) for each in ([lost, right], [right, wrong])]
    assert [(r["outcome"], r["output"], r["error"]) for r in found] == [("pass", "q0", None), ("fail", "maybe", None)]
    assert timings(found, "latency_ms") == [100.0, 100.0, 110.0]


def test_training_rows_that_can_be_read_count_where_others_are_gone(echo, capsys):
    run = run_with_dataset(echo, ["q5"])
    (echo / "data/train.jsonl").write_text("")
    (echo / "train.jsonl").write_text(json.dumps(question_row("t", "q3")) + "\n")
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "train: train.jsonl\n")
    found = leakage_of(classify(str(run.path)), load_task(echo / "task.yaml"))
    assert (found["metrics"]["leakage"], found["partial"]) == (1, True)
    report = {"leakage": found, "task": {"primary": "exact", "slices": []}, "metrics": {"exact": {}}, "size_bytes": 1}
    made = reading([1.0] * 10)
    judged = type(made)(name="r", report=made.report | report, rows=made.rows)
    for bound, expected in ((0, "FAIL"), (5, "INCONCLUSIVE")):
        gate = {"conditions": [{"metric": "leakage", "rule": "at_most", "value": bound}]}
        assert decide(make_policy(gate, "gate.yaml"), judged, None)["decision"] == expected


def test_a_lineage_of_which_one_part_is_gone_is_read_for_the_rest(echo, monkeypatch):
    run = run_with_dataset(echo, ["q5"])
    known = manifest.lineage((classify(str(run.path)).as_input("system"),))
    gone = next(entry for entry in known if entry["kind"] == "dataset") | {"path": "/gone", "digest": "0" * 64}
    monkeypatch.setattr(manifest, "lineage", lambda _: [gone, *known])
    found = leakage_of(classify(str(run.path)), load_task(echo / "task.yaml"))
    assert (found["metrics"]["leakage"], found["partial"]) == (1, True)


def test_an_empty_set_is_met_by_an_empty_answer(echo):
    task = load_task(echo / "task.yaml")
    nothing = Row(id="a", messages=[{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}], line=1)
    judge = SetMatch(name="s")
    assert judge.judge(Answer(text="", finish_reason="stop"), nothing).passed
    assert judge.judge(Answer(text="[]"), nothing).passed
    assert not judge.judge(Answer(text=""), task.rows[0]).parsable


def test_items_that_a_percentile_needs_are_items_not_answers():
    rows = [
        {
            "id": str(i),
            "outcome": "pass",
            "outcomes": ["pass"] * 5,
            "latencies_ms": [100.0 + i] * 5,
            "tags": {},
            "scores": {"exact": 1.0},
            "group": None,
        }
        for i in range(10)
    ]
    made = reading([1.0] * 10)
    judged = type(made)(name="r", report=made.report, rows=rows)
    gate = {"conditions": [{"metric": "latency_p95_ms", "rule": "at_most", "value": 200.0}]}
    (condition,) = decide(make_policy(gate, "gate.yaml"), judged, None)["conditions"]
    assert (condition["decision"], condition["need_n"]) == ("INCONCLUSIVE", 82)  # ten items, asked five times
    assert measure(rows, made.report, "latency_p95_ms", level=0.9).interval.n == 50


@pytest.mark.parametrize(
    ("text", "found"),
    [("12.5kg", []), ("$1.5M", []), ("1,234kg", []), ("5kg", []), ("-$5", [-5]), ("$3-$5", [3, 5]), ("1,2345", []),
     ("1,234.5 kg", [1234.5]), ("12.50 USD", [12.5]), ("1e5", [100000])],
)  # fmt: skip
def test_a_number_is_read_whole_or_not_at_all(text, found):
    assert [float(number) for number in numbers(text)] == found


def test_init_judges_numbers_with_a_unit_at_once_by_their_text(echo, ft):
    lines = [question_row(f"i{i}", f"q{i}") for i in range(6)]
    for i, line in enumerate(lines):
        line["messages"][1]["content"] = f"{12 + i}.5kg"
    (echo / "n.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ft("eval", "init", "n.jsonl", "--out", "n.yaml").code == 0
    wrong = [{"id": f"i{i}", "output": f"{12 + i}.99kg"} for i in range(6)]
    (echo / "o.jsonl").write_text("".join(json.dumps(line) + "\n" for line in wrong))
    done = ft("eval", "o.jsonl", "--task", "n.yaml", "--out", "r", "--json")
    assert [metric["value"] for metric in done.json["metrics"].values()] == [0.0], done.err


@pytest.mark.parametrize(
    ("answer", "least"), [("十" * 296, 617), ("[" + ", ".join("1" * 60) + "]", 180), ("word " * 100, 130)]
)
def test_init_leaves_room_for_the_right_answer(echo, ft, answer, least):
    """Tokens of SmolLM2: each digit one, Chinese two a character and more."""
    line = question_row("a", "q")
    line["messages"][1]["content"] = answer
    (echo / "n.jsonl").write_text(json.dumps(line) + "\n")
    assert ft("eval", "init", "n.jsonl", "--out", "n.yaml").code == 0
    (words,) = re.findall(r"max_tokens: (\d+)", (echo / "n.yaml").read_text())
    assert least <= int(words) < 3 * least


@pytest.mark.parametrize(
    ("text", "found"),
    [('```json\n{"a":"use ``` here"}\n```', '{"a":"use ``` here"}'), ('x\n```json\n{"a":1}```\nok', '{"a":1}'),
     ("```\na\n```\n```\nb\n```", "```\na\n```\n```\nb\n```"), ("````\n```\nx\n```\n````", "```\nx\n```")],
)  # fmt: skip
def test_a_fence_ends_at_a_line_of_its_own(text, found):
    assert extract(text, ("code_fence",)) == found


@pytest.mark.parametrize(
    ("text", "names"),
    [('[TOOL_CALLS]f[ARGS]{"x":1}', ["f"]), ('[TOOL_CALLS] [{"name":"f","arguments":{"x":1}}]</s>', ["f"]),
     ('[TOOL_CALLS]f[ARGS]{"x":1}[TOOL_CALLS]g[ARGS]{"y":"a[ARGS]"}</s>', ["f", "g"])],
)  # fmt: skip
def test_mistrals_calls_in_their_later_form(text, names):
    assert [call["name"] for call in json.loads(extract(text, ("tool_calls",)))] == names
    cut = '[TOOL_CALLS]f[ARGS]{"x":'
    assert extract(cut, ("tool_calls",)) == cut


def test_lm_evals_results_are_lm_evals_though_they_have_versions(tmp_path):
    content = {"results": {"gsm8k": {}}, "group_subtasks": {}, "configs": {"gsm8k": {"metadata": {"version": 3.0}}}}
    (tmp_path / "results_1.json").write_text(json.dumps(content))
    assert format_of(tmp_path / "results_1.json").name == lm_eval.FORMAT.name
