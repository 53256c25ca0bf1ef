"""What a second audit found: costs of nothing, machines at hand, parts of a collection, formats that the data show."""

import csv
import json
import random

import pytest

from tunegate.advisor import backtest as testing
from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.data_profile import profile
from tunegate.advisor.recommend import recommend
from tunegate.advisor.rules import METHODS, TUNED, Situation, scores
from tunegate.core.commands import run

FREE = ("--setup-hours", 0, "--upkeep-hours", 0, "--gpu-usd-h", 0)


@pytest.mark.parametrize("prog", ["ft", "ftadvise"])
def test_the_root_says_its_version_and_asks_for_a_command(prog, capsys):
    from importlib.metadata import version

    from tunegate.advisor.cli import app as advise
    from tunegate.core.ft import app as ft

    app = ft if prog == "ft" else advise
    assert run(app, prog=prog, argv=["--version"]) == 0
    assert capsys.readouterr().out == f"{version('tunegate')}\n"
    assert run(app, prog=prog, argv=[]) == 2
    assert f"error: a command is missing (see {prog} --help)" in capsys.readouterr().err


def test_a_service_that_costs_nothing_pays_from_the_first_call(advise):
    """The chart took the logarithm of 0: exit 70."""
    code, _, captured = advise("breakeven", *FREE, "--against", "openai/gpt-5")
    assert code == 0
    assert "break-even at 0 calls a day" in captured.out


def test_a_picture_of_nothing_is_drawn(advise, tmp_path):
    prices = tmp_path / "free.csv"
    prices.write_text("provider,model,input_usd_mtok,output_usd_mtok\nme,free,0,0\n")
    code, _, captured = advise("breakeven", *FREE, "--prices", prices, "--against", "me/free")
    assert code == 0
    assert "neither costs anything" in captured.out
    assert advise("breakeven", *FREE, "--prices", prices, "--against", "me/free", "--plot", tmp_path / "b.svg")[0] == 0


def test_the_machine_at_hand_is_one(advise, tmp_path):
    """27 CPUs took no rent: a load that one does not carry was cheaper on one's own."""
    question = ("breakeven", "--gpu", "cpu", "--against", "openai/gpt-5")
    code, d, _ = advise(*question, "--json")
    assert code == 0
    assert d["capacity_calls_per_day_per_replica"] < d["calls_per_day"]
    assert (d["offers"][0]["own_monthly_usd"], d["offers"][0]["break_even_calls_per_day"]) == (None, "never")
    assert any("at hand" in note for note in d["notes"])
    code, _, captured = advise(
        *question, "--input-tokens", 20_000, "--output-tokens", 5000, "--plot", tmp_path / "b.svg"
    )
    assert code == 0
    assert "not carried" in captured.out
    _, rented, _ = advise(*question, "--gpu-usd-h", 0.1, "--json")
    assert rented["offers"][0]["own_monthly_usd"] > 0


@pytest.mark.parametrize("question", [{"ops": "low"}, {"facts": "changing", "examples": 3000, "needs": "cost"}, {}])
def test_a_cpu_of_ones_own_makes_no_api_dearer(question):
    """The band of qualities for bases on a CPU was laid over API offers: gpt-5 for seven times the price."""
    without = recommend(from_mapping(question)).chosen
    beside = recommend(from_mapping({**question, "hardware": "cpu"})).chosen
    assert without.vendor
    assert beside.monthly_usd <= without.monthly_usd


def test_a_format_that_the_data_show_is_a_reason_to_tune(tmp_path):
    """It counted in every rule but the first, so that 1,500 rows of JSON were prompted for want of a reason."""
    rows = [
        [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f'\n {{"i": {i}}}'}]
        for i in range(1500)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    found = profile(path)
    assert found.strict_format
    said = recommend(from_mapping({"needs": "format", "examples": 1500})).chosen
    shown = recommend(from_mapping({}), found)
    assert shown.chosen.method == said.method == "qlora"
    assert "article-four-reasons" not in {rule.id for rule in shown.fired}


def write(path, rows):
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(testing.rows_of(None)[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_part_of_the_collection_is_no_regression(advise, tmp_path):
    """Nine rows whose mean error lies above the bound of all fifty-one by chance ended with exit 1."""
    part = write(tmp_path / "part.csv", testing.rows_of(None)[:300:7])
    code, d, _ = advise("backtest", part, "--json")
    assert d["classes"]["train_time"]["mape"] > 0.089
    assert (code, d["worse"]) == (0, [])


def test_rows_that_are_worse_than_chance_fail(advise, tmp_path):
    rows = [dict(row) for row in testing.rows_of(None) if row["kind"] == "train_mem"][:40]
    for row in rows:
        row["value"] = str(1.5 * float(row["value"])) if row["value"].replace(".", "").isdigit() else row["value"]
    random.Random(0).shuffle(rows)
    code, d, _ = advise("backtest", write(tmp_path / "off.csv", rows), "--json")
    assert code == 1
    assert "train_mem" in d["worse"][0]


def test_no_rows_are_no_pass(advise, tmp_path):
    code, d, _ = advise("backtest", write(tmp_path / "none.csv", []), "--json")
    assert code == 2
    assert d["error"]["where"].endswith("none.csv")


@pytest.mark.parametrize(
    ("command", "where"),
    [
        (("recommend", "--hardware", "Abacus"), "--hardware"),
        (("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "Abacus"), "--gpu"),
        (("breakeven", "--gpu", "Abacus"), "--gpu"),
    ],
)
def test_an_unknown_gpu_is_named_by_its_option(advise, command, where):
    code, d, _ = advise(*command, "--json")
    assert (code, d["error"]["where"]) == (2, where)


@pytest.mark.parametrize("folder", ["taken", "."])
def test_init_speaks_of_no_option_that_it_lacks(folder, tmp_path, monkeypatch, capsys):
    from tunegate.core.ft import app

    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert run(app, prog="ft", argv=["init", folder]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "--out" not in error


@pytest.mark.slow
def test_the_model_of_a_project_is_read_by_make_and_found_from_inside(tmp_path, monkeypatch, capsys):
    """Its text went into the Makefile as it was, and a relative path led nowhere from the project's folder."""
    from tunegate.core.ft import app
    from tunegate.core.strict_yaml import read_yaml

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my base").mkdir()
    assert run(app, prog="ft", argv=["init", "p", "--model", "my base"]) == 2
    assert not (tmp_path / "p").exists()
    for model, written, in_make in (
        ("base.gguf", "../base.gguf", "../base.gguf"),
        ("a$(x) b.gguf", "../a$(x) b.gguf", "'../a$$(x) b.gguf'"),
    ):
        (tmp_path / model).write_text("x")
        assert run(app, prog="ft", argv=["init", "p", "--model", model, "--force"]) == 0
        assert read_yaml(tmp_path / "p/train.yaml")["model"] == written
        assert f"$(FT) eval {in_make} --task" in (tmp_path / "p/Makefile").read_text()


def test_rows_from_a_pipe_are_no_folder(tmp_path, capsys):
    import os

    from tunegate.core.ft import app

    os.mkfifo(tmp_path / "rows.jsonl")
    assert run(app, prog="ft", argv=["init", str(tmp_path / "p"), "--data", str(tmp_path / "rows.jsonl")]) == 2
    assert "is no file that can be copied" in capsys.readouterr().err


COUNTS = (0, 3, 50, 99, 100, 299, 300, 999, 1000, 4999, 5000, 20_001, 100_000, 100_001, 1_000_000)


@pytest.mark.parametrize("needs", ["", "format", "style", "latency", "cost", "quality"])
@pytest.mark.parametrize("quality", ["normal", "high", "max"])
@pytest.mark.parametrize("domain", ["near", "far"])
@pytest.mark.parametrize("facts", ["static", "changing"])
def test_more_rows_never_lead_back_from_training_to_a_prompt(needs, quality, domain, facts):
    """With quality: max and a small budget, row 100,001 turned QLoRA into few-shot."""
    question = {"needs": needs, "quality": quality, "domain": domain, "facts": facts}
    for base, fits in ((None, None), (None, True), (0.1, None), (8.0, False)):
        tuned = False
        for count in COUNTS:
            c = from_mapping({**question, "examples": count})
            totals = scores(Situation(constraints=c, base_b=base, fits_16bit=fits))
            best = max(METHODS, key=totals.__getitem__)
            assert best in TUNED or not tuned, (count, base, fits)
            tuned = best in TUNED


def test_what_is_read_is_not_written_over(advise, tmp_path):
    """`recommend my.jsonl --out my.jsonl` took the rows away; a constraints file and a task of the user's likewise."""
    rows, asked, prices = tmp_path / "my.jsonl", tmp_path / "asked.yaml", tmp_path / "prices.csv"
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    rows.write_text(json.dumps(row) + "\n")
    asked.write_text("examples: 2000\nneeds: format\n")
    prices.write_text("provider,model,input_usd_mtok,output_usd_mtok\nme,mine,1,1\n")
    (tmp_path / "link.yaml").symlink_to(asked)
    read = (rows, "--constraints", asked, "--prices", prices)
    before = [path.read_text() for path in (rows, asked, prices)]
    for out in (rows, asked, prices, tmp_path / "link.yaml"):
        code, d, _ = advise("recommend", *read, "--out", out, "--json")
        assert code == 2
        assert "--out" in d["error"]["hint"]
    (tmp_path / "sky.yaml").write_text("name: mine\n")
    task = ("recommend", "--constraints", asked, "--out", tmp_path / "r.yaml", "--launch", "sky")
    assert advise(*task)[0] == 2
    assert not (tmp_path / "r.yaml").exists()
    assert [path.read_text() for path in (rows, asked, prices)] == before
    (tmp_path / "sky.yaml").unlink()
    assert (advise(*task)[0], advise(*task)[0]) == (0, 0)


def test_a_recommendation_is_not_put_into_the_dataset(advise, tmp_path):
    from tunegate.core import manifest

    folder = tmp_path / "data"
    folder.mkdir()
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    for name in ("train.jsonl", "eval.jsonl"):
        (folder / name).write_text(json.dumps(row) + "\n")
    manifest.write(folder, "dataset", inputs=[], config={}, facts={"train": 1, "eval": 1})
    for name in ("train.jsonl", "recommendation.yaml"):
        assert advise("recommend", folder, "--out", folder / name)[0] == 2
    assert advise("recommend", folder, "--out", tmp_path / "recommendation.yaml")[0] == 0
    assert manifest.verify(folder) == []


def test_no_model_is_not_the_folder_one_stands_in(advise):
    code, d, _ = advise("estimate", "train", "--model", "", "--gpu", "L4", "--json")
    assert (code, d["error"]["message"]) == (2, "no model is named")
