"""The same rows from every kind of file, and values that never change type."""

import gzip
import io
import json
import os
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.train.data.formats import Columns
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, read, sources, strictly

USER, ANSWER = {"role": "user", "content": "table\u2028for 2"}, {"role": "assistant", "content": "007"}
RECORDS = [
    {"messages": [USER, ANSWER], "when": "2024-01-01", "n": 12345678901234567890123},
    {"messages": [USER, {**ANSWER, "content": "12_13"}], "late": {"a": 3}},
    {"messages": [USER, {**ANSWER, "content": "x"}], "late": {"a": "3", "b": None}},
]


def rows(path: Path | str, reading: Reading | None = None) -> list[Row]:
    return list(strictly(read([str(path)], reading or Reading())))


def plain(found: list[Row]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.to_json().items() if k != "id"} for row in found]


def jsonl(records: list[Any]) -> bytes:
    return b"".join(json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)


def zst(data: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


VARIANTS = {
    "a.jsonl": jsonl(RECORDS),
    "bom.jsonl": b"\xef\xbb\xbf" + jsonl(RECORDS),
    "crlf.jsonl": jsonl(RECORDS).replace(b"\n", b"\r\n"),
    "cut.jsonl": jsonl(RECORDS).rstrip(b"\n"),
    "blank.ndjson": b"\n" + jsonl(RECORDS).replace(b"\n", b"\n\n"),
    "a.jsonl.gz": gzip.compress(jsonl(RECORDS)),
    "members.jsonl.gz": gzip.compress(jsonl(RECORDS[:1])) + gzip.compress(jsonl(RECORDS[1:])),
    "a.jsonl.zst": zst(jsonl(RECORDS)),
    "frames.jsonl.zst": zst(jsonl(RECORDS[:1])) + zst(jsonl(RECORDS[1:])),
    "hidden.jsonl": gzip.compress(jsonl(RECORDS)),
    "a.json": json.dumps(RECORDS).encode(),
    "indented.json": b"\xef\xbb\xbf" + json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    "lines.json": jsonl(RECORDS),
    "a.json.gz": gzip.compress(json.dumps(RECORDS).encode()),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_rows_from_every_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(VARIANTS[name])
    assert repr(plain(rows(path))) == repr(RECORDS)


def test_line_numbers_of_an_indented_array(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"messages": [{"role": "user", "content": "a\nb"}, ANSWER]}] * 2, indent=1))
    text = path.read_text().splitlines()
    starts = [n for n, line in enumerate(text, 1) if line == " {"]
    assert [row.line for row in rows(path)] == starts


def test_a_line_of_30_megabytes(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"messages": [{"role": "user", "content": "x" * 30_000_000}, ANSWER]}, RECORDS[0]]))
    found = rows(path)
    assert [len(row.messages[0]["content"]) for row in found] == [30_000_000, len(USER["content"])]


def test_ragged_tools_gain_no_nulls_and_lose_none(tmp_path: Path) -> None:
    """D1, D7: no key is added to another row's tool, and a null in the arguments stays."""
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"a": None}}}]
    records = [
        {"messages": [USER, ANSWER], "tools": [{"name": "f", "parameters": {"a": 1}}]},
        {
            "messages": [USER, {"role": "assistant", "content": "", "tool_calls": calls}],
            "tools": [{"name": "f", "b": 2}],
        },
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(records))
    assert plain(rows(path)) == records


def test_csv_cells_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,completion,n\r\n"a, ""b""\nc",007,1.0\r\n12_13,NaN,\r\n')
    assert plain(rows(path)) == [
        {"messages": [{"role": "user", "content": 'a, "b"\nc'}, {"role": "assistant", "content": "007"}], "n": "1.0"},
        {"messages": [{"role": "user", "content": "12_13"}, {"role": "assistant", "content": "NaN"}], "n": ""},
    ]
    assert [row.line for row in rows(path)] == [2, 4]


def test_tsv_and_messages_as_json_in_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text("messages\tintent\n" + json.dumps([USER, ANSWER]).replace('"', '""').join('""') + "\tx\n")
    assert plain(rows(path)) == [{"messages": [USER, ANSWER], "intent": "x"}]


def test_parquet_structs_and_json_text(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    tools = [{"name": "f", "parameters": {"x": 1}}, {"name": "g", "parameters": {"y": None}}]
    messages = [USER, {**ANSWER, "name": "bot"}]
    table = pyarrow.table({"messages": [messages], "tools": [json.dumps(tools)], "n": [2**40]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert plain(rows(tmp_path / "a.parquet")) == [{"messages": messages, "tools": tools, "n": 2**40}]


FORMATS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "sharegpt": (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "gpt", "value": "a"},
            ]
        },
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ),
    "sharegpt_system_field": (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
    ),
    "alpaca": (
        {"instruction": "do", "input": "this", "output": "done"},
        [{"role": "user", "content": "do\nthis"}, {"role": "assistant", "content": "done"}],
    ),
    "alpaca_history": (
        {"instruction": "do", "input": "", "output": "done", "system": "s", "history": [["a", "b"]]},
        [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "do"},
            {"role": "assistant", "content": "done"},
        ],
    ),
    "prompt_completion": (
        {"prompt": "q", "completion": " a "},
        [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a "}],
    ),
    "prompt_completion_messages": (
        {"prompt": [{"role": "system", "content": "s"}, USER], "completion": [ANSWER]},
        [{"role": "system", "content": "s"}, USER, ANSWER],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_found_out(name: str, tmp_path: Path) -> None:
    record, messages = FORMATS[name]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{**record, "intent": "x"}]))
    assert plain(rows(path)) == [{"messages": messages, "intent": "x"}]


def test_turns_that_do_not_alternate_are_kept(tmp_path: Path) -> None:
    """D4: LLaMA-Factory empties such a row."""
    turns = [{"from": speaker, "value": str(n)} for n, speaker in enumerate(("human", "human", "gpt", "gpt"))]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"conversations": turns}]))
    assert [m["content"] for m in rows(path)[0].messages] == ["0", "1", "2", "3"]


def test_columns_by_name_and_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer,hint,topic\nq,a,s,t\n")
    reading = Reading(columns=Columns(prompt="question", completion="answer", system="hint"), tag_keys=("topic",))
    messages = [{"role": r, "content": c} for r, c in (("system", "s"), ("user", "q"), ("assistant", "a"))]
    assert plain(rows(path, reading)) == [{"messages": messages, "tags": {"topic": "t"}}]
    with pytest.raises(UserError, match="no key 'reply'") as caught:
        rows(path, Reading(columns=Columns(prompt="question", completion="reply")))
    assert caught.value.where == f"{path}:2"


def test_the_asked_for_format_decides_an_ambiguous_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"messages": [USER, ANSWER], "prompt": "p", "completion": "c"}]))
    assert rows(path, Reading(format="messages"))[0].messages == (USER, ANSWER)
    with pytest.raises(UserError, match='"messages" beside another format'):
        rows(path, Reading(format="prompt_completion"))
    path.write_bytes(jsonl([{"instruction": "i", "output": "o", "prompt": "p", "completion": "c"}]))
    assert rows(path, Reading(format="prompt_completion"))[0].expected == "c"
    assert rows(path, Reading(format="alpaca"))[0].expected == "o"


def test_folders_and_mistakes_in_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        (tmp_path / name).write_bytes(jsonl(RECORDS[:1]))
    assert [p.name for p in sources([str(tmp_path)])] == ["a.jsonl", "b.jsonl"]
    (tmp_path / "none").mkdir()
    for names, says in (
        ([str(tmp_path / "x.jsonl")], "no such file"),
        ([str(tmp_path / "none")], "no data file"),
        ([str(tmp_path / "a.jsonl")] * 2, "given twice"),
        (["builtin:bfc"], "no builtin data 'builtin:bfc'"),
    ):
        with pytest.raises(UserError, match=says):
            sources(names)
    os.mkfifo(pipe := tmp_path / "pipe.jsonl")
    with pytest.raises(UserError, match="is no file but a pipe"):
        sources([str(pipe)])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_give_rows_faults_or_one_line(data: st.DataObject, tmp_path: Path) -> None:
    """Random damage to a good file: never another exception, and every line is a row or a fault."""
    raw = bytearray(jsonl(RECORDS))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    name = data.draw(st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.jsonl.zst"]))
    packed = bytes(raw)
    if name.endswith("gz") and data.draw(st.booleans()):
        packed = gzip.compress(packed)[: data.draw(st.integers(5, 400))]
    path = tmp_path / name
    path.write_bytes(packed)
    try:
        found = list(read([str(path)], Reading()))
    except UserError as caught:
        line = caught.line()
    else:
        line = ""
    assert "\n" not in line
    if line:
        return
    assert all(isinstance(item, Row | Fault) for item in found)
    if name == "a.jsonl":
        lines = [n for n, line in enumerate(io.BytesIO(packed), 1) if line.removeprefix(b"\xef\xbb\xbf").strip()]
        assert [item.line for item in found] == lines


def test_a_cut_gzip_is_no_shorter_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(jsonl(RECORDS * 50))
    assert zlib.decompress(packed, 31)
    for size in range(len(packed) - 40, len(packed), 7):
        path.write_bytes(packed[:size])
        with pytest.raises(UserError, match="damaged or cut"):
            rows(path)


@pytest.mark.parametrize(
    ("first", "second"),
    [("messages", "alpaca"), ("alpaca", "messages"), ("prompt_completion", "alpaca"), ("sharegpt", "messages")],
)
def test_a_row_of_another_format_is_called_that(tmp_path: Path, first: str, second: str) -> None:
    """The hint named the very command that was run."""
    records: dict[str, Any] = {
        "messages": {"messages": [USER, ANSWER]},
        "alpaca": {"instruction": "x", "output": "y"},
        "prompt_completion": {"prompt": "x", "completion": "y"},
        "sharegpt": {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
    }
    place = tmp_path / "two.jsonl"
    place.write_bytes(jsonl([records[first], records[second], {"neither": 1}]))
    found = [item for item in read([str(place)], Reading()) if isinstance(item, Fault)]
    assert [f.line for f in found] == [2, 3]
    assert found[0].error.message == f"a row of the format {second} in a file read as {first}"
    assert "--on-error reject" in str(found[0].error.hint)
    assert f"--format {second}" in str(found[0].error.hint)
    assert "format" not in found[1].error.message
