"""Malformed files, made here: each one gets its one line, naming file and line, and nothing is written."""

import gzip
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.train.data.cli import app
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, read, strictly

GOOD = b'{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"hello"}]}\n'


def row(**changes: object) -> bytes:
    """A good row with keys replaced."""
    return json.dumps({**json.loads(GOOD), **changes}).encode() + b"\n"


def turns(*messages: object) -> bytes:
    return row(messages=list(messages))


USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def zstd(data: bytes) -> bytes:
    import pyarrow

    sink = io.BytesIO()
    with pyarrow.output_stream(sink, compression="zstd") as stream:
        stream.write(data)
        stream.flush()
        inner = sink
        stream.close()
        return inner.getvalue() if not inner.closed else b""


def parquet(**columns: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(columns), path)

    return write


def parquet_of_bytes(**columns: list[bytes]) -> Callable[[Path], None]:
    """Columns that are called text and hold bytes: what a careless writer leaves."""

    def write(path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        as_text = {
            name: pyarrow.Array.from_buffers(pyarrow.string(), len(cells), pyarrow.array(cells).buffers())
            for name, cells in columns.items()
        }
        pyarrow.parquet.write_table(pyarrow.table(as_text), path)

    return write


# name: (file name, content, what the line must say). `:2` and the like is the line of the fault.
CASES: dict[str, tuple[str, bytes | Callable[[Path], None], str]] = {
    "empty": ("a.jsonl", b"", "holds no rows"),
    "only_blank": ("a.jsonl", b"\n\n  \n", "holds no rows"),
    "only_bom": ("a.jsonl", b"\xef\xbb\xbf", "holds no rows"),
    "bad_json": ("a.jsonl", GOOD + b"{oops}\n", r"a\.jsonl:2: not valid JSON"),
    "cut_line": ("a.jsonl", GOOD + GOOD[:40], r":2: not valid JSON"),
    "two_on_a_line": ("a.jsonl", GOOD + GOOD.strip() + GOOD, r":2: not valid JSON: Extra data"),
    "trailing_comma": ("a.jsonl", b'{"messages":[],}\n', r":1: not valid JSON"),
    "single_quotes": ("a.jsonl", b"{'messages': []}\n", r":1: not valid JSON"),
    "comment": ("a.jsonl", b"// rows\n" + GOOD, r":1: not valid JSON"),
    "nan": ("a.jsonl", GOOD + GOOD[:-2] + b',"score":NaN}\n', r":2: NaN is not JSON"),
    "infinity": ("a.jsonl", GOOD[:-2] + b',"score":-Infinity}\n', r":1: -Infinity is not JSON"),
    "huge_number": ("a.jsonl", GOOD[:-2] + b',"score":1e999}\n', r":1: 1e999 is beyond"),
    "duplicate_key": ("a.jsonl", GOOD[:-2] + b',"id":"a","id":"b"}\n', r":1: key 'id' stands twice"),
    "duplicate_messages": ("a.jsonl", GOOD[:-2] + b',"messages":[]}\n', r":1: key 'messages' stands twice"),
    "duplicate_escaped": ("a.jsonl", GOOD[:-2] + b',"id":"a","\\u0069d":"b"}\n', r":1: key 'id' stands twice"),
    "duplicate_nested": ("a.jsonl", GOOD[:-2] + b',"tags":{"a":{"b":1,"b":1}}}\n', r":1: key 'b' stands twice"),
    "lone_surrogate": ("a.jsonl", GOOD.replace(b"hello", b"\\ud800"), r":1 /messages/1/content: a lone surrogate"),
    "surrogate_key": ("a.jsonl", GOOD[:-2] + b',"\\udfff":1}\n', r":1 /: a lone surrogate"),
    "cesu8": ("a.jsonl", GOOD.replace(b"hello", b"\xed\xa0\xbd\xed\xb8\x80"), r":1: not UTF-8"),
    "latin1": ("a.jsonl", GOOD + GOOD.replace(b"hello", b"caf\xe9"), r":2: not UTF-8"),
    "utf16": ("a.jsonl", GOOD.decode().encode("utf-16"), "UTF-16"),
    "utf16_be": ("a.jsonl", b"\xfe\xff" + GOOD.decode().encode("utf-16-be"), "UTF-16"),
    "nul_bytes": ("a.jsonl", GOOD + b"\x00\x00\x00\n", r":2: not valid JSON"),
    "raw_control": ("a.jsonl", GOOD.replace(b"hello", b"he\x01llo"), r":1: not valid JSON: Invalid control"),
    "raw_newline_in_string": ("a.jsonl", GOOD.replace(b"hello", b"he\nllo"), r":1: not valid JSON"),
    "too_deep": ("a.jsonl", b"[" * 100_000 + b"]" * 100_000 + b"\n", r":1: JSON nested too deeply"),
    "number_line": ("a.jsonl", GOOD + b"42\n", r":2: expected an object, found a number"),
    "string_line": ("a.jsonl", b'"text"\n', r":1: expected an object"),
    "null_line": ("a.jsonl", GOOD + b"null\n", r":2: expected an object, found null"),
    "list_line": ("a.jsonl", b"[]\n", r":1: expected an object"),
    "no_known_format": ("a.jsonl", b'{"text":"x"}\n', r":1: no known format \(found 'text'\)"),
    "misspelt": ("a.jsonl", GOOD.replace(b"messages", b"mesages"), r"did you mean .messages."),
    "ambiguous": ("a.jsonl", row(prompt="a", completion="b"), r":1: ambiguous: .*messages or as prompt_completion"),
    "format_changes": (
        "a.jsonl",
        GOOD + b'{"prompt":"a","completion":"b"}\n',
        r":2: a row of the format prompt_completion",
    ),
    "messages_null": ("a.jsonl", row(messages=None), r':1: "messages" must be a non-empty list, found null'),
    "messages_empty": ("a.jsonl", row(messages=[]), r':1: "messages" must be a non-empty list'),
    "messages_text": ("a.jsonl", row(messages="hi"), r':1: "messages" must be a non-empty list, found text'),
    "message_text": ("a.jsonl", turns("hi"), r":1 /messages/0: a message needs"),
    "no_role": ("a.jsonl", turns({"content": "q"}, ANSWER), r":1 /messages/0: a message needs"),
    "unknown_role": (
        "a.jsonl",
        turns({"role": "usr", "content": "q"}, ANSWER),
        r"/messages/0: unknown role 'usr'.*user",
    ),
    "function_role": (
        "a.jsonl",
        turns(USER, {"role": "function", "content": "q"}, ANSWER),
        r"/messages/1: unknown role",
    ),
    "content_null": ("a.jsonl", turns({"role": "user", "content": None}, ANSWER), r"/messages/0: a message without"),
    "content_number": (
        "a.jsonl",
        turns({"role": "user", "content": 7}, ANSWER),
        r"/messages/0: content must be text, fou",
    ),
    "content_parts": (
        "a.jsonl",
        turns({"role": "user", "content": [{"type": "text"}]}, ANSWER),
        r"/0: content must be",
    ),
    "no_assistant": ("a.jsonl", GOOD + turns(USER), r":2: no assistant turn"),
    "last_not_assistant": ("a.jsonl", turns(USER, ANSWER, USER), r":1: the last turn is 'user'"),
    "assistant_empty": ("a.jsonl", turns(USER, {"role": "assistant"}), r"/messages/1: a message without content"),
    "id_object": ("a.jsonl", row(id={}), r":1 /id: "),
    "id_boolean": ("a.jsonl", row(id=True), r":1 /id: "),
    "tags_list": ("a.jsonl", row(tags=[1]), r":1 /tags: "),
    "schema_text": ("a.jsonl", row(schema="{}"), r":1 /schema: "),
    "accept_text": ("a.jsonl", row(accept="a"), r":1 /accept: "),
    "tools_object": ("a.jsonl", row(tools={"name": "f"}), r":1 /tools: "),
    "tool_calls_text": ("a.jsonl", turns(USER, {**ANSWER, "tool_calls": "f()"}), r"/messages/1/tool_calls: "),
    "sharegpt_speaker": (
        "a.jsonl",
        b'{"conversations":[{"from":"robot","value":"x"}]}\n',
        r":1 /conversations/0/from: unknown speaker",
    ),
    "sharegpt_no_value": ("a.jsonl", b'{"conversations":[{"from":"human"}]}\n', r"/conversations/0: a turn needs"),
    "sharegpt_empty": ("a.jsonl", b'{"conversations":[]}\n', r":1 /conversations: "),
    "sharegpt_bad_call": (
        "a.jsonl",
        b'{"conversations":[{"from":"human","value":"x"},{"from":"function_call","value":"f("}]}\n',
        r"/conversations/1/value: a function_call must be JSON",
    ),
    "sharegpt_bad_tools": (
        "a.jsonl",
        b'{"conversations":[{"from":"human","value":"x"},{"from":"gpt","value":"y"}],"tools":"[{"}\n',
        r":1 /tools: not valid JSON",
    ),
    "alpaca_number": ("a.jsonl", b'{"instruction":"x","output":7}\n', r":1 /output: output must be text"),
    "alpaca_history": ("a.jsonl", b'{"instruction":"x","output":"y","history":[["a"]]}\n', r"/history/0: history must"),
    "prompt_list_text": ("a.jsonl", b'{"prompt":[{"role":"user","content":"x"}],"completion":"y"}\n', r"both"),
    "json_object": ("a.json", b'{\n "data": [1]\n}', r"one JSON object, not a list.*'data'"),
    "json_scalar": ("a.json", b"42", r":1: expected an object"),
    "json_cut": ("a.json", b"[\n" + GOOD.strip() + b",\n", r"a\.json:3: not valid JSON"),
    "json_no_comma": ("a.json", b"[" + GOOD + GOOD + b"]", r'a\.json:2: not valid JSON: expected ","'),
    "json_trailing_comma": ("a.json", b"[" + GOOD + b",]", r"a\.json:2: not valid JSON"),
    "json_after": ("a.json", b"[" + GOOD + b"] x", r"text after the array"),
    "json_bad_element": ("a.json", b"[" + GOOD + b",\n3]", r"a\.json:3: expected an object"),
    "json_duplicate_key": ("a.json", b"[" + GOOD[:-2] + b',"id":1,"id":2}]', r"a\.json:1: key 'id' stands twice"),
    "json_latin1": ("a.json", b"[" + GOOD + b"," + GOOD.replace(b"hi", b"\xe9") + b"]", r"a\.json:2: not UTF-8"),
    "json_empty_list": ("a.json", b"[]", "holds no rows"),
    "csv_ragged": ("a.csv", b"prompt,completion\na,b\nc\n", r"a\.csv:3: 1 cells under 2 column names"),
    "csv_repeated_column": ("a.csv", b"prompt,prompt\na,b\n", r"a\.csv:1: the header"),
    "csv_open_quote": ("a.csv", b'prompt,completion\na,"b\nc,d\n', r"a\.csv:2: not valid CSV"),
    "csv_latin1": ("a.csv", b"prompt,completion\ncaf\xe9,b\n", r"a\.csv:\d+: not UTF-8"),
    "csv_header_only": ("a.csv", b"prompt,completion\n", "holds no rows"),
    "csv_unknown_columns": ("a.csv", b"q,a\nx,y\n", r"a\.csv:2: no known format.*--prompt-key"),
    "csv_bad_json_cell": ("a.csv", b'messages\n"[{"\n', r"a\.csv:2 /messages: not valid JSON"),
    "gzip_cut": ("a.jsonl.gz", gzip.compress(GOOD * 50)[:-12], "damaged or cut"),
    "gzip_garbage": ("a.jsonl.gz", b"\x1f\x8b\x08garbage" * 5, "damaged or cut"),
    "gzip_in_name_only": ("a.jsonl.gz", GOOD, r"is no \.gz file"),
    "zst_in_name_only": ("a.jsonl.zst", GOOD, r"is no \.zst file"),
    "zst_garbage": ("a.jsonl.zst", b"\x28\xb5\x2f\xfdgarbage", "damaged or cut"),
    "gzip_bad_line": ("a.jsonl.gz", gzip.compress(GOOD + b"{\n"), r"a\.jsonl\.gz:2: not valid JSON"),
    "parquet_garbage": ("a.parquet", b"PAR1garbage", "not a readable Parquet"),
    "parquet_empty_file": ("a.parquet", b"", "not a readable Parquet"),
    "parquet_bytes": ("a.parquet", parquet(prompt=[b"x"], completion=["y"]), "column 'prompt' has type binary"),
    "parquet_not_utf8": (
        "a.parquet",
        parquet_of_bytes(prompt=[b"x", b"\xff"], completion=[b"y", b"z"]),
        r"a\.parquet:2: not UTF-8",
    ),
    "array_huge_integer": (
        "a.json",
        b"[" + GOOD[:-2] + b', "score": ' + b"9" * 5000 + b"}]",
        r"a\.json:1: not valid JSON",
    ),
    "deep_document": ("a.json", b'{"messages": ' + b"[" * 100_000, r"a\.json.*nested too deeply"),
    "parquet_null": ("a.parquet", parquet(prompt=["x", None], completion=["y", "z"]), r"a\.parquet:2"),
    "unknown_suffix": ("a.xlsx", b"PK", "unknown kind of file '.xlsx'"),
    "no_suffix": ("rows", GOOD, "unknown kind of file"),
}


def put(folder: Path, name: str) -> tuple[Path, str]:
    file, content, says = CASES[name]
    path = folder / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    return path, says


def test_there_are_enough() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_one_line_with_its_place(name: str, tmp_path: Path) -> None:
    path, says = put(tmp_path, name)
    with pytest.raises(UserError) as caught:
        list(strictly(read([str(path)], Reading())))
    line = caught.value.line()
    assert re.search(says, line), line
    assert "\n" not in line
    assert str(path) in line
    assert len(line) < 700


@pytest.mark.parametrize("name", CASES)
def test_prepare_exits_2_and_writes_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = put(tmp_path, name)
    assert run(app, prog="ft data", argv=["prepare", str(path), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name]


def test_a_bad_line_does_not_end_the_file(tmp_path: Path) -> None:
    """D8: of three good lines around a bad byte, all three are read."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + GOOD.replace(b"hello", b"\xff") + GOOD + b"{\n" + GOOD)
    found = list(read([str(path)], Reading()))
    assert [isinstance(item, Fault) for item in found] == [False, True, False, True, False]
    assert [item.line for item in found] == [1, 2, 3, 4, 5]
