"""What is refused, found and hidden: outputs among inputs, weights that `ft train` refuses, answers `ft eval` cannot parse, the
tails of broken records, secrets in rejected rows, Arrow's newer types."""

import datetime
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from tunegate.core.commands import run
from tunegate.core.rows import Row, parse_row
from tunegate.train.data.check import check_row
from tunegate.train.data.cli import app
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, read
from tunegate.train.data.secrets import masked

KEY = "sk-proj-" + "aB3x" * 8


def chat(question: str, answer: str = "yes", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def asked(capsys: pytest.CaptureFixture[str], *argv: Any, code: int = 0) -> dict[str, Any]:
    assert run(app, prog="ft data", argv=[*map(str, argv), "--json"]) == code
    return dict(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize("name", ["a.jsonl", "new.jsonl"])
def test_convert_does_not_write_among_what_it_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    folder, out = tmp_path / "in", tmp_path / "in" / name
    source = written(folder / "a.jsonl", [chat("q")])
    (tmp_path / "link").symlink_to(folder)
    for given, to in ((folder, out), (tmp_path / "link", out), (folder, tmp_path / "link" / name)):
        error = asked(capsys, "convert", given, "--to", "trl", "--out", to, "--force", code=2)["error"]
        assert "would be read as input" in error["message"]
    assert [path.name for path in folder.iterdir()] == ["a.jsonl"]
    assert json.loads(Path(source).read_text()) == chat("q")
    (folder / "far.jsonl").symlink_to(written(tmp_path / "far.jsonl", [chat("r")]))
    asked(capsys, "convert", folder, "--to", "trl", "--out", tmp_path / "far.jsonl", "--force", code=2)
    asked(capsys, "convert", folder, "--to", "trl", "--out", folder / "made" / "b.jsonl")
    asked(capsys, "convert", source, "--to", "trl", "--out", folder / "b.jsonl")


def test_leakage_and_folders_do_not_write_among_what_they_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    written(folder / "a.jsonl", [chat(f"q {i} of {i * 3}") for i in range(9)])
    sides = ("--train", folder / "a.jsonl", "--eval", folder, "--near-model", "lexical")
    assert asked(capsys, "leakage", *sides, "--clean", folder / "c.jsonl", code=2)["error"]["hint"].endswith("--clean")
    asked(capsys, "clean", folder, "--out", tmp_path / "kept")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "rows.jsonl").symlink_to(tmp_path / "kept" / "rows.jsonl")
    for command in ("clean", "dedup", "prepare"):
        error = asked(capsys, command, tmp_path / "links", "--out", tmp_path / "kept", "--force", code=2)["error"]
        assert "would replace the input" in error["message"]
    asked(capsys, "clean", folder, "--out", folder / "kept")  # a folder in the folder is not read


@pytest.mark.parametrize(
    ("weights", "pointers"),
    [
        ([0, 0], ["/messages"]),
        ([None, 0.5], ["/messages/3/weight"]),
        ([0, None], []),
        ([1, 0], []),
        (["1", 0], ["/messages/1/weight"]),
    ],
)
def test_weights_that_train_refuses_are_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: list[Any], pointers: list[str]
) -> None:
    row = chat("q")
    row["messages"] = [dict(turn) for turn in row["messages"] * 2]
    for turn, weight in zip(row["messages"][1::2], weights, strict=True):
        turn |= {} if weight is None else {"weight": weight}
    found = [f for f in check_row(parse_row(row, "f", 1), claims_json=False) if f.code == "weight"]
    assert [f.pointer for f in found] == pointers
    source = written(tmp_path / "a.jsonl", [row, *(chat(f"q {i} {i * 7}") for i in range(30))])
    assert asked(capsys, "check", source)["findings"].get("weight", 0) == len(pointers)
    report = asked(capsys, "prepare", source, "--out", tmp_path / "d", "--near-model", "lexical")
    assert report["findings"].get("weight", 0) == len(pointers)


BAD = ["", '{"n": NaN}', '{"n": 1, "n": 2}', " ", '{"n": 1']


@pytest.mark.parametrize("answer", BAD)
@pytest.mark.parametrize("schema", [None, {"type": "object"}])
def test_answers_that_eval_cannot_parse_are_invalid(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: str, schema: Any
) -> None:
    more = {} if schema is None else {"schema": schema}
    good = [chat(f"give {i} of {i * 3}", f'{{"n": {i}}}', **more) for i in range(30)]
    source = written(tmp_path / "a.jsonl", [*good, chat("the bad one", answer, **more)])
    found = asked(capsys, "check", source)["findings"]
    assert found["invalid_json"] == 1
    assert found.get("schema", 0) == (schema is not None)
    done = asked(capsys, "clean", source, "--drop-invalid", "--out", tmp_path / "d")
    assert done["rejected"] == {"invalid_output": 1}


def test_calls_without_text_are_no_invalid_json() -> None:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    row = chat("q", "", schema={"type": "object"})
    row["messages"][1] |= {"content": None, "tool_calls": calls}
    assert not {"invalid_json", "schema"} & {f.code for f in check_row(parse_row(row, "f", 1), claims_json=True)}


def csv(tmp_path: Path, text: str) -> list[tuple[int, str | None]]:
    """(line, the answer, or None for a fault) of each record."""
    (tmp_path / "a.csv").write_text("prompt,completion\n" + text)
    found = read([str(tmp_path / "a.csv")], Reading())
    return [(item.line, item.expected if isinstance(item, Row) else None) for item in found]


def test_the_tail_of_a_refused_record_is_no_row(tmp_path: Path) -> None:
    assert csv(tmp_path, '"a\nb",c\n"say "hi",please","first\nsecond, third"\nlast,row\n') == [
        (2, "c"),
        (4, None),
        (6, "row"),
    ]
    (fault,) = (item for item in read([str(tmp_path / "a.csv")], Reading()) if isinstance(item, Fault))
    assert fault.text == '"say "hi",please","first\nsecond, third"\n'
    assert fault.error.message.endswith("it ends on line 5")
    assert csv(tmp_path, '"x "y z",a\n\nand more\nover",b\nc,d\n') == [(2, None), (6, "d")]


def test_a_mark_too_many_does_not_take_the_next_rows(tmp_path: Path) -> None:
    rows = '"a 5" pipe",x\nb,c\n"d\ne",f\n'
    assert csv(tmp_path, rows) == [(2, None), (3, "c"), (4, "f")]
    assert csv(tmp_path, rows * 2) == [(2, None), (3, "c"), (4, "f"), (6, None), (7, "c"), (8, "f")]
    assert csv(tmp_path, '"a "b"c",x\nb,c\n') == [(2, None), (3, "c")]
    assert csv(tmp_path, '"a "b,x\n') == [(2, None)]


def test_masked_secrets_are_masked_in_every_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = [chat(f"my key {i} is {KEY}{i:03} fix it", f"ok {KEY}{i:03}", group=f"g{i}") for i in range(40)]
    copies = [{**record, "group": "h", "messages": [*record["messages"]]} for record in records[:20]]
    secret = {**chat("and a tag"), "tags": {"note": KEY + "999"}}
    refusal = chat(f"my key is {KEY}777 fix", "I'm sorry, but I cannot help.")
    source = written(tmp_path / "a.jsonl", [*records, *copies, refusal, secret, {**secret, "x": KEY + "888"}])
    with Path(source).open("a") as stream:
        stream.write(f'{{"messages": "{KEY}555"}}\n{{"messages": [{KEY}556\n')
    options = ("--secrets", "mask", "--drop-refusals", "--on-error", "reject", "--near-model", "lexical")
    done = asked(capsys, "prepare", source, "--out", tmp_path / "d", *options, "--keep-leaks", "--yes", "--min-eval", 0)
    assert done["rejected"]["malformed"] == 2
    assert done["rejected"]["refusal"] == 1
    for name in ("train", "rejected", "pairs", "findings"):
        assert KEY not in (tmp_path / "d" / f"{name}.jsonl").read_text(), name
    reasons = [json.loads(line) for line in (tmp_path / "d" / "rejected.jsonl").read_text().splitlines()]
    assert any(masked(KEY)[0] in json.dumps(item) for item in reasons)
    asked(capsys, "clean", source, "--out", tmp_path / "e", *options[:5], "--yes")
    assert KEY not in (tmp_path / "e" / "rejected.jsonl").read_text()
    asked(capsys, "clean", source, "--out", tmp_path / "f", "--on-error", "reject")
    assert KEY in (tmp_path / "f" / "rejected.jsonl").read_text()


def test_json_that_only_a_lenient_reader_takes_is_masked_string_by_string() -> None:
    assert masked('{"n": NaN, "mail": "bob@corp.com"}')[0] == '{"n": NaN, "mail": "[REDACTED:e-mail]"}'
    assert masked('{"password": "hunter22x", "password": "hunter23x"}')[1] == 2


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_views_and_dictionaries_of_text_are_read(tmp_path: Path, suffix: str) -> None:
    schema = pyarrow.schema(
        [
            ("prompt", pyarrow.string_view()),
            ("completion", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
            ("tags", pyarrow.string_view()),
            ("accept", pyarrow.dictionary(pyarrow.int32(), pyarrow.string())),
        ]
    )
    columns = [["q", "r"], ["a", "a"], ['{"k": null}', "{}"], ["[null]", "[1]"]]
    arrays = [
        pyarrow.array(c, field.type if i % 2 == 0 else "string")
        for i, (c, field) in enumerate(zip(columns, schema, strict=True))
    ]
    table = pyarrow.Table.from_arrays(
        [a if i % 2 == 0 else a.dictionary_encode() for i, a in enumerate(arrays)], schema=schema
    )
    path = tmp_path / f"a.{suffix}"
    if suffix == "arrow":
        with pyarrow.ipc.new_file(path, schema) as writer:
            writer.write_table(table)
    else:
        pyarrow.parquet.write_table(table, path)
    found = list(read([str(path)], Reading()))
    assert [(r.prompt[0]["content"], r.expected, r.tags, r.accept) for r in found if isinstance(r, Row)] == [
        ("q", "a", {"k": None}, [None]),
        ("r", "a", {}, [1]),
    ]


def test_a_dictionary_of_dates_is_refused_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dates = pyarrow.array([datetime.date(2024, 1, 1)]).dictionary_encode()
    table = pyarrow.table({"prompt": ["q"], "completion": ["a"], "day": dates})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    error = asked(capsys, "check", tmp_path / "a.arrow", code=2)["error"]
    assert error["message"].startswith("column 'day' has type")
