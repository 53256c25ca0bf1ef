"""`ft bakeoff`: arms finish or are named, a killed one goes on, nobody sees an evaluation row, the winner is argued.

Training, prompting and judging are real; the engine is a stand-in here (tests/e2e serves the arms for real).
"""

import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tunegate.advisor import evidence
from tunegate.core.artifacts import EvalReport
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.manifest import read, verify
from tunegate.evalkit.bakeoff import judge
from tunegate.evalkit.bakeoff.cli import app
from tunegate.evalkit.bakeoff.page import page, table_rows
from tunegate.evalkit.bakeoff.plan import contents_of, dataset_of, dataset_with, parse_arms
from tunegate.evalkit.task import load_task

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def kitchen(tmp_path, monkeypatch, standin, tiny_model, capsys, makers):
    """A dataset, a task and `bake(*options)` against the stand-in: the last user turn's sum, right for prompted arms."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNEGATE_HOME", str(tmp_path / "home"))
    makers.dataset(tmp_path / "data", makers.rows(24), makers.rows(12, 100))
    (tmp_path / "task.yaml").write_text(
        "name: sums\ndata: data/eval.jsonl\nvalidators:\n  - {name: exact, kind: json_equal}\nprimary: exact\n"
    )
    (tmp_path / "c.yaml").write_text("system_file: s.txt\nmax_steps: 2\nmax_length: 400\nk: 2\nselection: nearest\nrank: 2\n"
                                     "per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\n")  # fmt: skip
    (tmp_path / "s.txt").write_text("Sum.")
    served = []

    @contextmanager
    def serving(target, *, options=None, log=None, key=None):
        served.append((options.prompted, [a.name for a in options.adapters]))
        yield SimpleNamespace(base_url=standin.url, model="m", key=None, facts={"engine": "stand-in"})

    monkeypatch.setattr("tunegate.serve.vllm_process.serving", serving)
    monkeypatch.setattr("tunegate.serve.client.ChatClient.choose_model", _name)

    def answer(question, times):
        number = int(question.split()[2])
        return 200, json.dumps({"sum": 2 * number if standin.bodies[-1]["model"] in state.good else 0})

    standin.answer = answer

    def bake(*options):
        argv = [
            "--task",
            "task.yaml",
            "--train",
            "data",
            "--out",
            "bo",
            "--model",
            str(tiny_model),
            "--config",
            "c.yaml",
        ]
        code = run(app, prog="ft bakeoff", argv=[*argv, "--no-curve", *map(str, options)])
        found = capsys.readouterr()
        return code, found.out, found.err

    state = SimpleNamespace(bake=bake, served=served, good={"lora", "few_shot"}, asked=standin.asked, path=tmp_path)
    return state


async def _name(client):
    return client.model


def test_every_arm_is_made_judged_and_compared(kitchen, makers):
    code, out, err = kitchen.bake("--arms", "prompt,few_shot,rag,lora", "--json")
    assert code == 0, err
    document = json.loads(out)
    scores = {row["arm"]: row["metrics"]["exact"]["value"] for row in document["arms"]}
    assert scores == {"base": 0.0, "prompt": 0.0, "few_shot": 1.0, "rag": 0.0, "lora": 1.0}
    assert document["winner"]["best"] == "few_shot"  # the simplest of those that are equally good
    assert next(r for r in document["arms"] if r["arm"] == "base")["to_best"]["p_holm"] < 0.01
    assert sum(row["probability_best"] for row in document["arms"]) == pytest.approx(1.0, abs=1e-3)
    assert [len(names) for names, _ in kitchen.served] == [3, 0]  # one server for the arms without weights
    assert kitchen.served[1][1] == ["lora"]
    assert verify(kitchen.path / "bo") == []
    assert read(kitchen.path / "bo").kind == "bakeoff"
    assert EvalReport.open(kitchen.path / "bo/reports/lora").report()["metrics"]["exact"]["value"] == 1.0
    markdown = (kitchen.path / "bo/summary.md").read_text()
    assert "few_shot" in markdown


def test_a_failing_arm_is_named_and_the_others_finish_and_a_second_call_makes_only_that_one(kitchen, makers):
    docs = kitchen.path / "docs"
    docs.mkdir()
    code, out, err = kitchen.bake("--arms", "prompt,rag", "--docs", "docs")
    assert code == 0
    assert "rag failed" in err
    assert "rag is not in the table" in out
    asked = sum(kitchen.asked.values())
    made = (kitchen.path / "bo/runs/prompt/manifest.json").stat().st_mtime_ns
    (docs / "a.txt").write_text("Sums are twice the number.")
    code, out, err = kitchen.bake("--arms", "prompt,rag", "--docs", "docs", "--force", "--json")
    assert code == 0
    assert json.loads(out)["failed"] == {}
    assert (kitchen.path / "bo/runs/prompt/manifest.json").stat().st_mtime_ns == made
    assert sum(kitchen.asked.values()) == asked + 12  # only the new arm was asked
    (docs / "a.txt").write_text("Sums are three times the number.")  # which the arm that stands has not read
    code, out, err = kitchen.bake("--arms", "prompt,rag", "--docs", "docs", "--force")
    assert (code, "begun here: docs differ" in err) == (2, True), err


def test_an_arm_without_any_answer_is_named_and_asked_again(kitchen, standin):
    """A prompt too long for the context is refused each time: no report of an arm, and no crash of the table."""
    usual = standin.answer
    standin.answer = lambda question, times: (
        (400, "") if standin.bodies[-1]["model"] == "few_shot" else usual(question, times)
    )
    code, out, err = kitchen.bake("--arms", "few_shot", "--json")
    assert code == 0, err
    assert [row["arm"] for row in json.loads(out)["arms"]] == ["base"]
    assert "no item was answered" in json.loads(out)["failed"]["few_shot"]
    standin.answer = usual
    code, out, err = kitchen.bake("--arms", "few_shot", "--force", "--json")
    assert (code, [row["arm"] for row in json.loads(out)["arms"]]) == (0, ["base", "few_shot"]), err


def test_an_adapter_with_retrieval_is_an_arm_that_is_served_with_its_passages(kitchen):
    docs = kitchen.path / "docs"
    docs.mkdir()
    (docs / "sums.md").write_text("A sum of two equal numbers is twice the number.")
    code, out, err = kitchen.bake("--arms", "lora,rag_lora", "--docs", "docs", "--json")
    assert code == 0, err
    document = json.loads(out)
    assert [row["arm"] for row in document["arms"]] == ["base", "lora", "rag_lora"]
    assert kitchen.served[-1][1] == ["rag_lora"]
    assert (kitchen.path / "bo/runs/rag_lora/prompting.json").is_file()
    assert not (kitchen.path / "bo/runs/lora/prompting.json").exists()
    found = evidence.read([str(kitchen.path / "bo")])
    assert {"lora", "rag_lora"} <= set(found)
    assert list(evidence.read([str(kitchen.path / "bo/reports/rag_lora")])) == ["rag_lora"]
    (alone,) = evidence.read([str(kitchen.path / "bo/reports/rag_lora")]).values()
    assert {measured.items for measured in found.values()} == {alone.items}


def test_other_settings_or_a_foreign_folder_are_refused(kitchen, makers):
    assert kitchen.bake("--arms", "prompt")[0] == 0
    code, _, err = kitchen.bake("--arms", "prompt")
    assert code == 2
    assert "exists already" in err
    (kitchen.path / "c.yaml").write_text("max_steps: 3\nmax_length: 400\n")
    code, _, err = kitchen.bake("--arms", "prompt", "--force")
    assert code == 2
    assert "another bake-off was begun here: files, settings differ" in err
    (kitchen.path / "other").mkdir()
    (kitchen.path / "other/x").write_text("mine")
    code, _, err = kitchen.bake("--arms", "prompt", "--out", "other")
    assert code == 2
    assert (kitchen.path / "other/x").read_text() == "mine"


def test_an_arm_that_would_see_an_evaluation_row_is_refused(kitchen, makers):
    rows = makers.rows(24)
    rows[3]["messages"][0]["content"] = "WHAT is 103 plus 103??"
    makers.dataset(kitchen.path / "leaky", rows, makers.rows(12, 100))
    code, _, err = kitchen.bake("--arms", "prompt", "--train", "leaky")
    assert code == 2
    assert "1 evaluation rows are among the training rows; the first: r103 is r3" in err


def test_documents_with_an_answer_are_refused_each_time_until_they_are_mended(kitchen, monkeypatch):
    """The second call judged the arm, and mended documents were another bake-off's."""
    leak = kitchen.path / "docs" / "a.txt"
    leak.parent.mkdir()
    leak.write_text('By the way: what is 104 plus 104? It is {"sum": 208}.')
    options = ("--arms", "rag,rag_lora", "--docs", "docs", "--json", "--force")
    for _ in range(2):
        _, out, err = kitchen.bake(*options)
        found = json.loads(out)
        assert "a.txt answers the evaluation row r104 word by word" in found["failed"]["rag"], err
        assert (sorted(found["failed"]), [r["arm"] for r in found["arms"]]) == (["rag", "rag_lora"], ["base"])
        assert not (kitchen.path / "bo/runs").exists()
    with monkeypatch.context() as patch:  # as a version made it that looked for answers later
        patch.setattr("tunegate.evalkit.bakeoff.arms._refuse_leaks", lambda plan, arm: None)
        assert json.loads(kitchen.bake(*options)[1])["failed"] == {}
    found = json.loads(kitchen.bake(*options)[1])
    assert (sorted(found["failed"]), [r["arm"] for r in found["arms"]]) == (["rag", "rag_lora"], ["base"])
    leak.write_text("Sums are twice the number.")
    code, out, err = kitchen.bake(*options)
    assert (code, json.loads(out)["failed"], "rag_lora is made again: a.txt answered" in err) == (0, {}, True), err
    assert "twice" in (kitchen.path / "bo/runs/rag/passages.jsonl").read_text()


def test_a_training_costs_what_it_was_however_its_settings_came(kitchen):
    """An arm's own settings, steps and rank were left out."""
    shared, cost = (kitchen.path / "c.yaml").read_text().replace("max_steps: 2\n", ""), {}
    for name, more in {"all": "num_train_epochs: 2\n", "own": "arms: {lora: {num_train_epochs: 2}}\n", "one": "num_train_epochs: 1\n",
                       "cut": "num_train_epochs: 2\nmax_steps: 12\n"}.items():  # fmt: skip
        (kitchen.path / "c.yaml").write_text(shared + more)
        code, out, err = kitchen.bake("--arms", "lora", "--json", "--out", name)
        assert code == 0, err
        cost[name] = next(r["train_usd"] for r in json.loads(out)["arms"] if r["arm"] == "lora")
    assert cost["own"] == cost["all"] == pytest.approx(2 * cost["one"], rel=0.01)
    assert cost["cut"] == pytest.approx(cost["one"], rel=0.01)


def test_a_longer_training_row_is_no_leak_of_the_index_alone(kitchen, makers):
    """What LoRA may learn from, RAG may look up: a row that asks more than the evaluation does is there for every arm."""
    rows = makers.rows(24)
    rows[3]["messages"] = [
        {"role": "user", "content": "Now what is 103 plus 103?"}, {"role": "assistant", "content": '{"sum": 206}'}
    ]  # fmt: skip
    makers.dataset(kitchen.path / "twin", rows, makers.rows(12, 100))
    code, out, _ = kitchen.bake("--arms", "rag", "--train", "twin", "--json")
    assert (code, json.loads(out)["failed"]) == (0, {})


def test_plain_rows_lose_what_the_evaluation_asks(kitchen, makers):
    makers.jsonl(kitchen.path / "all.jsonl", [*makers.rows(20), *makers.rows(3, 100)])
    code, _, err = kitchen.bake("--arms", "few_shot", "--train", "all.jsonl", "--json")
    assert code == 0, err
    assert "3 of 23 rows ask what the evaluation asks and are left out" in err
    assert read(kitchen.path / "bo/data/train").facts["train"] == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--arms", "lorra"), "unknown arm 'lorra'"),
        (("--arms", ","), "no arm was named"),
        (("--gpu", "H1000"), "H100"),
        (("--docs", "x", "--arms", "lora"), "--docs is for the arms rag"),
        (("--arms", "rag_lora"), "rag_lora needs documents"),
        (("--train", "absent.jsonl"), "no such file"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(kitchen, options, words):
    code, _, err = kitchen.bake(*options)
    assert code == 2
    assert words in err.splitlines()[-1]
    assert not (kitchen.path / "bo").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rnk: 3\n", "unknown setting 'rnk'"),
        ("arms: {lorra: {rank: 2}}\n", "unknown arm 'lorra'"),
        ("arms: {lora: {rnk: 2}}\n", "unknown setting 'rnk'"),
        ("arms: {lora: {method: full}}\n", "method is the bake-off's to set"),
        ("arms: 3\n", "must be a mapping"),
    ],
)
def test_settings_are_checked_before_anything_is_made(kitchen, text, words):
    (kitchen.path / "c.yaml").write_text(text)
    code, _, err = kitchen.bake("--arms", "lora")
    assert code == 2
    assert words in err
    assert not (kitchen.path / "bo").exists()


def test_an_arms_own_settings_are_its_own(kitchen):
    text = (kitchen.path / "c.yaml").read_text()
    (kitchen.path / "c.yaml").write_text(text + "arms: {few_shot: {k: 1}}\n")
    assert kitchen.bake("--arms", "few_shot,rag")[0] == 0
    assert read(kitchen.path / "bo/runs/few_shot").facts["k"] == 1
    assert read(kitchen.path / "bo/runs/rag").facts["k"] == 2


def test_the_base_is_always_measured():
    assert parse_arms("lora,prompt") == ("base", "prompt", "lora")


def arm(name, value, usd, **more):
    return {"arm": name, "metrics": {"m": {"value": value, "low": value - 0.1, "high": value + 0.1}}, "usd_per_1k_calls": usd,
            "usd_per_1k_calls_at_capacity": usd, "predicted_p95_ms": 100.0, "probability_best": 0.5, "train_usd": None,
            **more}  # fmt: skip


def test_the_pareto_set_holds_what_nothing_beats_in_both():
    rows = [arm("base", 0.1, 1.0), arm("prompt", 0.5, 2.0), arm("few_shot", 0.4, 3.0), arm("lora", 0.9, 4.0)]
    assert judge.pareto(rows, "m") == ["base", "prompt", "lora"]


def test_training_pays_after_so_many_calls_or_never():
    other = arm("prompt", 0.5, 3.0)
    assert judge._break_even(arm("lora", 0.9, 1.0, train_usd=10.0), other) == 5000
    assert judge._break_even(arm("lora", 0.9, 3.0, train_usd=10.0), other) == "never"


def readings(**passed):
    """Readings of 100 items; an arm passes its first so many."""
    rows = {
        name: [
            {"id": f"i{k}", "outcome": "pass" if k < n else "fail", "scores": {"m": float(k < n)}} for k in range(100)
        ]
        for name, n in passed.items()
    }
    return {name: SimpleNamespace(rows=found) for name, found in rows.items()}


def test_a_cheaper_arm_wins_when_it_is_shown_to_be_as_good():
    rows = [arm("few_shot", 0.8, 1.0), arm("lora", 0.8, 2.0)]
    won = judge.winner(rows, readings(few_shot=80, lora=80), "m", p95_ms=None)
    assert won["arm"] == "few_shot"


def test_the_best_wins_when_the_cheaper_is_worse_or_not_shown_to_be_as_good():
    rows = [arm("few_shot", 0.76, 1.0), arm("lora", 0.8, 2.0)]
    won = judge.winner(rows, readings(few_shot=78, lora=80), "m", p95_ms=None)
    assert won["arm"] == "lora"
    assert won["undecided"][0]["arm"] == "few_shot"
    assert won["undecided"][0]["need_n"] > 100


def test_an_arm_that_is_too_slow_cannot_win():
    rows = [arm("few_shot", 0.9, 1.0, predicted_p95_ms=900.0), arm("lora", 0.8, 2.0)]
    assert judge.winner(rows, readings(few_shot=90, lora=80), "m", p95_ms=500)["arm"] == "lora"
    assert judge.winner(rows, readings(few_shot=90, lora=80), "m", p95_ms=50)["arm"] is None


def test_the_page_needs_no_script_and_escapes(kitchen, makers):
    _, out, _ = kitchen.bake("--arms", "prompt", "--json")
    document = {**json.loads(out), "task": "<script>alert(1)</script>"}
    text = page(document)
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "default-src 'none'" in text
    assert len(table_rows(document)) == 2


def test_the_rows_to_train_on_are_those_beside_the_items(tmp_path, makers, capsys):
    """The contract's `ft bakeoff --task T` asked for --train."""
    makers.dataset(tmp_path / "data", makers.rows(24), makers.rows(12, 100))
    task = "name: sums\ndata: data/eval.jsonl\nvalidators:\n  - {name: exact, kind: json_equal}\nprimary: exact\n"
    (tmp_path / "task.yaml").write_text(task)
    assert dataset_with(load_task(tmp_path / "task.yaml")) == tmp_path / "data"
    (tmp_path / "rows.jsonl").write_bytes((tmp_path / "data/eval.jsonl").read_bytes())
    (tmp_path / "task.yaml").write_text(task.replace("data/eval", "rows"))
    argv = ["--task", str(tmp_path / "task.yaml"), "--out", str(tmp_path / "bo"), "--arms", "prompt"]
    assert run(app, prog="ft bakeoff", argv=argv) == 2
    assert capsys.readouterr().err.startswith("error: --train: no training rows are named")


def test_a_task_that_asks_otherwise_is_another_bake_off(kitchen):
    assert kitchen.bake("--arms", "prompt")[0] == 0
    task, text = kitchen.path / "task.yaml", (kitchen.path / "task.yaml").read_text()
    for more, words in (
        ("generation: {max_tokens: 9}\n", "generation differ"),
        ("system: Add up.\n", "prompts differ"),
        ("repeats: 2\n", "repeats differ"),
        ("price: {prompt_usd_per_1m: 1, completion_usd_per_1m: 1}\n", "price differ"),
    ):
        task.write_text(text + more)
        code, _, err = kitchen.bake("--arms", "prompt", "--force")
        assert (code, f"another bake-off was begun here: {words}" in err) == (2, True), err
    task.write_text(text)
    code, _, err = kitchen.bake("--arms", "prompt", "--force", "--limit", "5")
    assert (code, "begun here: data, prompts differ" in err) == (2, True), err
    (kitchen.path / "s.txt").write_text("Other instructions.")
    code, _, err = kitchen.bake("--arms", "prompt", "--force")
    assert (code, "begun here: files differ" in err) == (2, True), err


def test_documents_and_training_rows_are_known_by_their_content(kitchen, makers):
    docs = kitchen.path / "docs"
    docs.mkdir()
    (docs / "a.txt").write_text("One.")
    before = contents_of(str(docs))
    (docs / "a.txt").write_text("Two.")
    assert contents_of(str(docs)) != before
    assert contents_of(str(docs / "a.txt")) != contents_of("no such file")
    task = load_task(kitchen.path / "task.yaml")
    rows = kitchen.path / "rows.jsonl"
    rows.write_text((kitchen.path / "data/train.jsonl").read_text())
    made = dataset_of(rows, task, kitchen.path / "other")
    assert dataset_of(rows, task, kitchen.path / "other").digest == made.digest
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match="its training rows are not those of"):
        dataset_of(rows, task, kitchen.path / "other")
