"""`ft eval init` and `power`, `ft report`, python validators, repeats, cost, recorded outputs, reasons, summary.md."""

import json
import re

import pytest

from tunegate.core import manifest
from tunegate.core.power import pairs_for_difference
from tunegate.core.statistics import wilson
from tunegate.evalkit.render import markdown
from tunegate.evalkit.summary import figures
from tunegate.evalkit.task import load_task


def write(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def turns(answer, question="q"):
    return [{"role": "user", "content": question}, {"role": "assistant", **answer}]


CALL = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
INIT = {
    "label": ([{"content": "yn"[i % 2]} for i in range(40)], "exact_match"),
    "number": ([{"content": f"{i}.5"} for i in range(40)], "number"),
    "json": ([{"content": json.dumps({"a": i, "b": None})} for i in range(40)], "json_equal"),
    "tool_call": ([{"content": json.dumps({"name": "f", "arguments": {"x": i}})} for i in range(40)], "tool_call"),
    "native_call": ([{"content": None, "tool_calls": [CALL]} for _ in range(40)], "tool_call"),
    "text": ([{"content": f"a sentence of its own, number {'x' * i}"} for i in range(40)], "exact_match"),
}


def test_init_says_of_free_text_that_a_paraphrase_counts_as_wrong(tmp_path, ft):
    """And names what judges it better; of answers that are queries, the kind that runs them."""
    queries = [{"content": f"SELECT name FROM people\nWHERE age > {i} AND note = '{'x' * i}'"} for i in range(40)]
    told = {}
    for name, answers in {"text": INIT["text"][0], "sql": queries, "label": INIT["label"][0]}.items():
        rows = [{"id": f"i{i}", "messages": turns(answer, f"q{i}")} for i, answer in enumerate(answers)]
        write(tmp_path / f"{name}.jsonl", rows)
        done = ft("eval", "init", tmp_path / f"{name}.jsonl", "--out", tmp_path / f"{name}.yaml")
        assert done.code == 0
        told[name] = done.err
    for name in ("text", "sql"):
        assert "a paraphrase counts as wrong" in told[name]
        assert "accept in the rows" in told[name]
        assert "kind judge" in told[name]
    assert ["kind sql" in told[name] for name in ("text", "sql")] == [False, True]
    assert "paraphrase" not in told["label"]
    rows = [{"messages": turns(answer, f"q{i}"), "accept": [f"so {i}"]} for i, answer in enumerate(INIT["text"][0])]
    write(tmp_path / "a.jsonl", rows)
    assert "paraphrase" not in ft("eval", "init", tmp_path / "a.jsonl", "--out", tmp_path / "a.yaml").err
    del rows[0]["accept"]
    write(tmp_path / "b.jsonl", rows)
    some = ft("eval", "init", tmp_path / "b.jsonl", "--out", tmp_path / "b.yaml").err
    assert "paraphrase" in some
    assert "exact_match" not in some, "accept of other rows makes it any_of"


@pytest.mark.parametrize("kind", INIT)
def test_init_writes_a_task_that_its_own_answers_pass(tmp_path, ft, kind, monkeypatch):
    answers, validator = INIT[kind]
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": f"i{i}", "messages": turns(a, f"q{i}"), "tags": {"half": "ab"[i % 2]}} for i, a in enumerate(answers)
    ]
    write(tmp_path / "d.jsonl", rows)
    found = ft("eval", "init", "d.jsonl", "--json").json
    assert found["outputs"] == kind
    task = load_task(tmp_path / "task.yaml")
    assert task.file.slices == ("half",)
    assert {v.name: v.kind for v in task.validators}[task.primary] == validator
    gold = [
        {"id": r["id"], "output": r["messages"][1]["content"], "tool_calls": r["messages"][1].get("tool_calls")}
        for r in rows
    ]
    write(tmp_path / "gold.jsonl", gold)
    run = ft("eval", "gold.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert run.code == 0, run.err
    assert {name: figure["value"] for name, figure in run.json["metrics"].items()} == dict.fromkeys(
        run.json["metrics"], 1.0
    )
    assert "do not pass themselves" not in run.err
    assert ft("eval", "init", "d.jsonl").code == 2  # never over a file that is there
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "eval.jsonl", rows)
    manifest.write(tmp_path / "data", "dataset", inputs=[], config={})
    assert ft("eval", "init", "data", "--out", "t.yaml").code == 0
    assert [row.id for row in load_task(tmp_path / "t.yaml").rows] == [row.id for row in task.rows]
    assert (found["schema"] is not None) == (kind == "json")


def test_power(echo, ft):
    found = ft("eval", "power", "--n", "500", "--discordance", "0.1", "--margin", "0.02", "--json").json
    assert found["need_n"] == pairs_for_difference(0.1, 0.02, alpha=0.05, power=0.8)
    assert 1500 < found["need_n"] < 1600  # (1.645 + 0.842)^2 * 0.1 / 0.02^2 = 1546
    assert found["power_at_n"] < 0.8
    assert found["detectable_margin"] > 0.02
    at = ft("eval", "power", "--n", "500", "--margin", str(found["detectable_margin"]), "--json").json
    assert at["need_n"] == pytest.approx(500, abs=2)
    write(echo / "a.jsonl", [{"id": f"i{i}", "output": f"q{i}" if i < 50 else "x"} for i in range(60)])
    write(echo / "b.jsonl", [{"id": f"i{i}", "output": f"q{i}" if i >= 5 else "x"} for i in range(60)])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "a")
    ft("eval", "b.jsonl", "--task", "task.yaml", "--out", "b", "--against", "a")
    found = ft("eval", "power", "--report", "b", "--json").json
    assert (found["n"], found["discordance"]) == (60, pytest.approx(16 / 62))
    assert ft("eval", "power", "--margin", "2").code == 2


def test_report_again_leaves_the_folder_as_it_is(echo, ft):
    write(echo / "a.jsonl", [{"id": f"i{i}", "output": f"q{i}"} for i in range(60)])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r")
    run = ft("report", "r", "--html", "p.html", "--junit", "j.xml", "--markdown", "s.md", "--json")
    assert run.code == 0
    assert (run.json["n"], run.json["metrics"]["exact"]["value"]) == (60, 1.0)
    assert (echo / "s.md").read_text() == (echo / "r" / "summary.md").read_text()
    assert (echo / "j.xml").read_text() == (echo / "r" / "junit.xml").read_text()
    assert "<html" in (echo / "p.html").read_text()
    run = ft("report", "r", "--html", "r/report.html")
    assert run.code == 2
    assert manifest.verify(echo / "r") == []


def test_report_of_a_newer_version(echo, ft):
    write(echo / "a.jsonl", [{"id": f"i{i}", "output": f"q{i}"} for i in range(60)])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r")
    document = json.loads((echo / "r" / "report.json").read_text())
    (echo / "r" / "report.json").write_text(json.dumps(document | {"schema_version": 99}))
    for arguments in (
        ("report", "r"),
        ("gate", "r"),
        ("eval", "a.jsonl", "--task", "task.yaml", "--out", "n", "--against", "r"),
    ):
        run = ft(*arguments)
        assert run.code == 2
        assert run.err.startswith("error:")
        assert run.err.strip().count("\n") == 0


def python_task(folder, body):
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "mine_parts.py").write_text(body)
    text = "name: t\ndata: ../eval.jsonl\nvalidators: [{name: mine, kind: python, function: 'mine_parts:right'}]\n"
    (folder / "sub" / "task.yaml").write_text(text)


def test_python_validator_only_when_allowed(echo, ft, monkeypatch):
    import sys

    write(echo / "a.jsonl", [{"id": f"i{i}", "output": "x" * i} for i in range(60)])
    python_task(
        echo,
        "import pathlib; pathlib.Path('ran').touch()\ndef right(text, row): return {'score': min(1, len(text) / 40), 'reason': row['id']}\n",
    )
    monkeypatch.delitem(sys.modules, "mine_parts", raising=False)
    run = ft("eval", "a.jsonl", "--task", "sub/task.yaml", "--out", "r")
    assert run.code == 2
    assert "--allow-python" in run.err
    assert not (echo / "ran").exists()  # not even imported
    run = ft("eval", "a.jsonl", "--task", "sub/task.yaml", "--out", "r", "--allow-python", "--json")
    assert run.code == 0, run.err
    assert run.json["outcomes"]["pass"] == 20
    assert json.loads((echo / "r" / "results.jsonl").read_text().splitlines()[3])["reasons"] == {"mine": "i3"}
    python_task(echo, "def right(text, row): return len(text) > 39\n")
    monkeypatch.delitem(sys.modules, "mine_parts")
    run = ft("eval", "a.jsonl", "--task", "sub/task.yaml", "--out", "n", "--allow-python", "--against", "r")
    assert "scorer" in run.err  # another function is another scorer
    for body, words in (
        ("def wrong(): 0\n", "cannot import"),
        ("def right(t, r): return 7\n", "returned 7"),
        ("def right(t, r): 1/0\n", "raised ZeroDivisionError"),
    ):
        python_task(echo, body)
        monkeypatch.delitem(sys.modules, "mine_parts")
        run = ft("eval", "a.jsonl", "--task", "sub/task.yaml", "--out", "x", "--allow-python")
        assert run.code == 2
        assert words in run.err


def test_repeats_pass_at_k_and_cost(echo, ft):
    (echo / "task.yaml").write_text(
        "name: t\ndata: eval.jsonl\nrepeats: 2\nvalidators: [{name: exact, kind: exact_match}]\n"
    )
    # 30 items right both times, 20 once, 10 never; each answer costs 1 cent
    right = lambda i, k: i < 30 or (i < 50 and k == 1)  # noqa: E731
    records = [
        {"id": f"i{i}", "output": f"q{i}" if right(i, k) else "no", "cost_usd": 0.01} for k in (0, 1) for i in range(60)
    ]
    write(echo / "a.jsonl", records)
    report = ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "a", "--json").json
    values = {name: figure["value"] for name, figure in report["metrics"].items()}
    assert values == {"exact": pytest.approx(80 / 120), "pass_at_k": pytest.approx(50 / 60), "pass_hat_k": 0.5}
    assert report["operations"]["cost_per_correct_usd"]["value"] == pytest.approx(1.20 / 80)
    write(echo / "b.jsonl", [{**r, "output": "no"} for r in records])
    (echo / "gate.yaml").write_text("conditions: [{metric: pass_hat_k, rule: non_inferior, margin: 0.1}]\n")
    run = ft(
        "eval", "b.jsonl", "--task", "task.yaml", "--out", "b", "--against", "a", "--policy", "gate.yaml", "--json"
    )
    assert run.code == 1
    assert run.json["conditions"][0]["value"] == pytest.approx(-0.5)
    write(echo / "c.jsonl", records[:119])
    run = ft("eval", "c.jsonl", "--task", "task.yaml", "--out", "c")
    assert run.code == 2
    assert "fewer than the task's 2 repeats: 'i59' has 1" in run.err


def test_a_report_tells_the_items_of_each_slice_and_the_level_of_each_figure(echo, ft):
    rows = [json.loads(line) for line in (echo / "eval.jsonl").read_text().splitlines()]
    tags = [{"lang": "en"}] * 20 + [{"lang": "de"}] * 30 + [{}] * 10
    write(echo / "eval.jsonl", [row | {"tags": tag} for row, tag in zip(rows, tags, strict=True)])
    with (echo / "task.yaml").open("a") as task:
        task.write("slices: [lang]\n")
    write(echo / "o.jsonl", [{"id": f"i{i}", "output": f"q{i}" if i < 10 else "no"} for i in range(60)])
    assert ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r").code == 0
    found = json.loads((echo / "r" / "report.json").read_text())["slices"]["lang"]
    assert [(value, part["n"]) for value, part in found.items()] == [("de", 30), ("en", 20)], "ten have no tag"
    half = wilson(10, 20, level=0.95)
    assert found["en"]["metrics"]["exact"] == {"value": 0.5, "low": half.low, "high": half.high, "n": 20, "level": 0.95}
    assert found["de"]["metrics"]["exact"]["value"] == 0.0


def test_a_metric_that_nothing_was_measured_of_is_told_as_of_no_items():
    assert figures([], ["exact"]) == {"exact": {"value": None, "low": None, "high": None, "n": 0, "level": 0.95}}


def test_a_record_twice_is_not_a_repeat(echo, ft):
    write(echo / "a.jsonl", [{"id": f"i{i % 60}", "output": f"q{i % 60}"} for i in range(61)])
    run = ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r")
    assert run.code == 2
    assert "a.jsonl:61: id 'i0' is also on line 1" in run.err


def test_other_questions_under_a_saved_baseline(echo, ft):
    write(echo / "a.jsonl", [{"id": f"i{i}", "output": f"q{i}"} for i in range(60)])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r", "--save-as", "base")
    text = (echo / "eval.jsonl").read_text()
    (echo / "eval.jsonl").write_text(text.replace('"user", "content": "q7"', '"user", "content": "another"'))
    run = ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "n", "--against", "base")
    assert run.code == 2
    assert "data: the same ids and expected answers, other questions" in run.err


def test_reasons_name_every_validator_that_failed(echo, ft):
    (echo / "task.yaml").write_text(
        "name: t\ndata: eval.jsonl\nprimary: exact\n"
        "validators: [{name: valid, kind: json}, {name: exact, kind: exact_match}]\n"
    )
    write(echo / "a.jsonl", [{"id": f"i{i}", "output": "1" if i else "q0"} for i in range(60)])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r")
    first, second = [json.loads(line) for line in (echo / "r" / "results.jsonl").read_text().splitlines()[:2]]
    assert (first["scores"], set(first["reasons"])) == ({"valid": 0.0, "exact": 1.0}, {"valid"})
    assert (second["scores"], set(second["reasons"])) == ({"valid": 1.0, "exact": 0.0}, {"exact"})
    assert all(second["reasons"].values())


def test_summary_is_small_and_shows_text_as_text(echo, ft):
    evil = "![x](https://a.b/p.png) **b** @all <img src=x> | `c` www.a.b #1 \u202e </details>"
    rows = [
        {"id": f"{evil} {i}", "messages": turns({"content": "a"}, f"q{i}"), "tags": {"s": f"{evil}{i}"}}
        for i in range(200)
    ]
    write(echo / "eval.jsonl", rows)
    (echo / "task.yaml").write_text(
        "name: t\ndata: eval.jsonl\nslices: [s]\nvalidators: [{name: exact, kind: exact_match}]\n"
    )
    write(echo / "a.jsonl", [{"id": r["id"], "output": "a"} for r in rows])
    write(echo / "b.jsonl", [{"id": r["id"], "output": evil * 50} for r in rows])
    ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "a")
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: at_least, value: 0.5, slice: s}]\n")
    ft("eval", "b.jsonl", "--task", "task.yaml", "--out", "b", "--against", "a", "--policy", "gate.yaml")
    text = (echo / "b" / "summary.md").read_text()
    assert len(text.encode()) < 1_048_576
    assert len(text) < 65_536
    assert text.count("<details>") == text.count("</details>")
    for mark in ("![", "**", "@all", "<img", "www.", "https:", "\u202e"):
        assert mark not in text
    assert set(re.findall(r"</?[a-z]+>", text)) <= {
        "<code>",
        "</code>",
        "<details>",
        "</details>",
        "<summary>",
        "</summary>",
    }
    assert "&#33;&#91;x&#93;(https&#58;//a.b/p.png)" in markdown.shown(evil)
    assert markdown.shown("ok\U000e0041\u00ad\ufeff") == "<code>ok\ufffd\ufffd\ufffd</code>"
