"""Defects met with data sets of all kinds through the command line, each with what is right."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.commands import run
from tunegate.train.data.cli import app
from tunegate.train.data.secrets import find_secrets, masked


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def written(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert run(app, prog="ft data", argv=[*argv, "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_empty_csv_cells_are_no_ids_and_no_groups(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Forty rows with an empty `group` cell are forty groups, not one; an empty `id` is no id."""
    cells = "".join(f",,question {i} about {i * 7},answer,,\n" for i in range(40))
    (tmp_path / "a.csv").write_text("id,group,prompt,completion,tools,tags\n" + cells)
    report = asked(capsys, "prepare", str(tmp_path / "a.csv"), "--out", str(tmp_path / "out"))
    assert report["rows_in"] == 40
    assert 0 < report["eval"] < 20
    assert not any("group" in row for row in lines(tmp_path / "out" / "train.jsonl"))


def test_csv_cells_with_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cell = json.dumps(chat("q")["messages"]).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'messages,tags,accept\n"{cell}","{{""lang"": ""en""}}","[""a"", 1]"\n')
    asked(capsys, "convert", str(tmp_path / "a.csv"), "--to", "trl", "--out", str(tmp_path / "b.jsonl"))
    (row,) = lines(tmp_path / "b.jsonl")
    assert row["tags"] == {"lang": "en"}
    assert row["accept"] == ["a", 1]


def test_semicolons_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt;completion\na;b\n")
    error = asked(capsys, "check", str(tmp_path / "a.csv"), code=2)["error"]
    assert error["where"].endswith("a.csv:1")
    assert "';'" in error["hint"]


def test_nan_in_parquet_is_a_fault_of_its_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"prompt": ["a", "b"], "completion": ["x", "y"], "score": [math.nan, 1.0]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = asked(capsys, "check", str(tmp_path / "a.parquet"), code=2)
    assert (found["rows"], found["errors"]) == (1, 1)
    assert "a.parquet:1 /score" in found["items"][0]["message"]


def test_a_bad_cell_of_parquet_does_not_end_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = {"messages": ["{bad", json.dumps(chat("q")["messages"])]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = asked(capsys, "check", str(tmp_path / "a.parquet"), code=2)
    assert (found["rows"], found["errors"]) == (1, 1)


def test_two_parquet_columns_of_one_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    arrays = [pyarrow.array([text]) for text in "abc"]
    table = pyarrow.Table.from_arrays(arrays, names=["prompt", "completion", "prompt"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    error = asked(capsys, "check", str(tmp_path / "a.parquet"), code=2)["error"]
    assert error["message"] == "two columns are named 'prompt'"


def test_nulls_that_arrow_fills_in_go_from_every_kind_of_turn(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import pyarrow
    import pyarrow.parquet

    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b", "weight": 1}]
    table = pyarrow.Table.from_pylist([{"conversations": [{"weight": None, **turn} for turn in turns]}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    asked(capsys, "convert", str(tmp_path / "a.parquet"), "--to", "trl", "--out", str(tmp_path / "b.jsonl"))
    (row,) = lines(tmp_path / "b.jsonl")
    assert row["prompt"] == [{"role": "user", "content": "a"}]
    assert row["completion"][0]["weight"] == 1


def test_a_group_key_that_no_row_has(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat(f"question {i}", conversation=i % 9) for i in range(40)])
    error = asked(capsys, "prepare", source, "--out", str(tmp_path / "out"), "--group", "conversaton", code=2)["error"]
    assert error["where"] == "--group"
    assert '"conversation"' in error["hint"]
    assert not (tmp_path / "out").exists()


def test_ids_and_groups_that_are_numbers_stay_numbers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat(f"question {i}", id=i, group=10**20 + i) for i in range(30)])
    asked(capsys, "convert", source, "--to", "trl", "--out", str(tmp_path / "b.jsonl"))
    assert [(row["id"], row["group"]) for row in lines(tmp_path / "b.jsonl")] == [(i, 10**20 + i) for i in range(30)]
    asked(capsys, "prepare", source, "--out", str(tmp_path / "out"), "--group", "group")
    both = [*lines(tmp_path / "out" / "train.jsonl"), *lines(tmp_path / "out" / "eval.jsonl")]
    assert sorted(row["id"] for row in both) == list(range(30))


def test_marks_alone_are_not_all_the_same_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`???` is not `!!!`, a thumb up is no thumb down, and rows without a user turn leak nothing."""
    lone = {"messages": [{"role": "system", "content": "s"}, {"role": "assistant", "content": "hi"}]}
    train = written(tmp_path / "t.jsonl", [chat("???"), chat("\U0001f44d"), lone])
    held_out = written(tmp_path / "e.jsonl", [chat("!!!"), chat("\U0001f44e"), lone])
    found = asked(capsys, "leakage", "--train", train, "--eval", held_out)
    assert [found[rule] for rule in ("exact", "normalized", "alphanumeric", "near")] == [0, 0, 0, 0]
    rows = written(tmp_path / "d.jsonl", [chat("???"), chat("!!!"), chat("\U0001f44d"), chat("\U0001f44e")])
    assert asked(capsys, "dedup", rows)["kept"] == 4


@pytest.mark.parametrize("tool", ["f", 3, {"function": "f"}, {"function": {"name": ["f"]}}, {}])
def test_odd_tools_are_found(capsys: pytest.CaptureFixture[str], tool: Any, tmp_path: Path) -> None:
    found = asked(capsys, "check", written(tmp_path / "a.jsonl", [chat("q", tools=[tool])]))
    assert found["items"][0]["where"].endswith("a.jsonl:1 /tools/0")


def test_a_dataset_folder_is_its_train_and_eval_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [chat(f"question {i}") for i in range(30)])
    asked(capsys, "prepare", source, "--out", str(tmp_path / "out"))
    assert asked(capsys, "inspect", str(tmp_path / "out"))["rows"] == 30


def test_openai_records_keep_their_nulls(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source = written(tmp_path / "a.jsonl", [{**chat("q"), "tools": None, "parallel_tool_calls": None}])
    asked(capsys, "convert", source, "--to", "openai", "--out", str(tmp_path / "b.jsonl"))
    assert (tmp_path / "b.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_an_estimate_of_a_short_answer_is_not_zero(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = asked(capsys, "inspect", written(tmp_path / "a.jsonl", [chat("q", "x")]))
    assert found["output_tokens"]["total"] == 1


@pytest.mark.parametrize(
    ("document", "indent", "hint"),
    [(chat("q"), 1, "this is one record"), ({"data": [chat("q")]}, None, "under 'data'")],
)
def test_a_json_document_that_is_no_list(
    capsys: pytest.CaptureFixture[str], document: Any, indent: int | None, hint: str, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(document, indent=indent))
    error = asked(capsys, "check", str(tmp_path / "a.json"), code=2)["error"]
    assert hint in error["hint"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("sk_live_" + "a1B2" * 6, "stripe_access_key"),
        ("glpat-" + "x1Y2z3W4v5" * 2, "gitlab_token"),
        ("https://me:passw0rd@db.host.org/x", "basic_auth_credentials"),
        ("123456789:" + "A1b2C" * 7, "telegram_bot_token"),
        ("SG." + "a1" * 11 + "." + "b2" * 21 + "c", "sendgrid_api_key"),
        ("pypi-AgEIcHlwaS5vcmc" + "a1" * 40, "pypi_token"),
        ("AC" + "0a" * 16, "twilio_api_key"),
    ],
)
def test_tokens_of_providers(text: str, kind: str) -> None:
    """The patterns of detect-secrets; its entropy rules, which flag plain sentences, are not used."""
    before, after = "use this: ", " and tell no one"
    (found,) = find_secrets(before + text + after)
    assert (found.kind, found.personal) == (kind, False)
    assert "passw0rd" not in masked(before + text + after)[0]


@pytest.mark.parametrize(
    "text", ["APPLICATION of ACME, order AC12345", "sha256:" + "ab12" * 16, "x" * 40, "at 12:30:45"]
)
def test_plain_text_is_no_token(text: str) -> None:
    assert list(find_secrets(text)) == []
