"""The row reader keeps what stands in the file, and refuses what cannot be kept."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.core.errors import UserError
from tunegate.core.rows import Row, content_id, parse_json, parse_row, read_rows, read_unique_rows

MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_the_former_form_of_a_tool_call_is_no_empty_answer():
    """`function_call` beside "content": "" was read as an answer of nothing: learnt as such, and a duplicate of any other."""
    last = {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": "{}"}}
    with pytest.raises(UserError, match="the former form of a tool call") as caught:
        parse_row({"messages": [MESSAGES[0], last]}, "x.jsonl", 3)
    assert caught.value.where == "x.jsonl:3 /messages/1/function_call"
    parse_row({"messages": [MESSAGES[0], {**MESSAGES[1], "function_call": None}]}, "x.jsonl", 3)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a":12345678901234567890123}', {"a": 12345678901234567890123}),  # D3: orjson makes a float of it
        (b'{"a":"2024-01-01"}', {"a": "2024-01-01"}),  # D1: a datetime with Arrow's inference
        (b'{"a":"007","b":"12_13"}', {"a": "007", "b": "12_13"}),  # D2: 7 and 1213 with pandas
        (b'{"a":[1,null,2]}', {"a": [1, None, 2]}),  # D2: a null floats the column
        (b'{"a":1.0,"b":1,"c":-0.0}', {"a": 1.0, "b": 1, "c": -0.0}),
        (b'{"a":"\\u0022\\\\"}', {"a": '"\\'}),
        (b'{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        (b'{"a":"x\xe2\x80\xa8y"}', {"a": "x\u2028y"}),
        (b'{"a\\\\":1,"b\\"":2}', {"a\\": 1, 'b"': 2}),
        (b" [1] \r\n", [1]),
    ],
)
def test_values_keep_value_and_type(raw: bytes, value: object) -> None:
    assert repr(parse_json(raw, "f:1")) == repr(value)


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":2}', b'{"a":1,"\\u0061":2}', b'{"x":{"a\\\\":1,"a\\\\":1}}', b'{"\\u0022":"\\u0022","b":1,"b":1}'],
)
def test_a_key_that_stands_twice_is_refused(raw: bytes) -> None:
    with pytest.raises(UserError, match="stands twice"):
        parse_json(raw, "f:1")


def pairs(children: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    key = st.text(alphabet='ab"\\\u0022é', max_size=2).map(json.dumps)
    return st.lists(st.tuples(key, children), max_size=3).map(
        lambda ps: "{" + ",".join(f"{k}:{v}" for k, v in ps) + "}"
    )


@settings(max_examples=150, deadline=None)
@given(st.recursive(st.text(alphabet='"\\a\u2028', max_size=3).map(json.dumps), pairs, max_leaves=5))
def test_the_fast_path_agrees_with_the_exact_one(text: str) -> None:
    """Duplicate keys anywhere, with any escapes, are found; everything else is the same value as json's."""

    def no_twins(found: list[tuple[str, object]]) -> dict[str, object]:
        if len(dict(found)) != len(found):
            raise ValueError
        return dict(found)

    try:
        value = json.loads(text, object_pairs_hook=no_twins)
    except ValueError:
        with pytest.raises(UserError):
            parse_json(text.encode(), "f:1")
    else:
        assert parse_json(text.encode(), "f:1") == value


def test_reading_survives_bom_crlf_and_a_missing_newline(tmp_path: Path) -> None:
    line = json.dumps({"messages": MESSAGES}).encode()
    plain, odd = tmp_path / "plain.jsonl", tmp_path / "odd.jsonl"
    plain.write_bytes(line + b"\n" + line + b"\n")
    odd.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    assert [r.to_json() for r in read_rows(plain)] == [r.to_json() for r in read_rows(odd)]
    assert [r.line for r in read_rows(odd)] == [1, 3]


def test_unknown_keys_stay_and_absent_ones_do_not_appear() -> None:
    row = parse_row({"messages": MESSAGES, "x": None, "y": {"b": 1, "a": [None]}}, "f", 1)
    assert row.to_json() == {"id": row.id, "messages": MESSAGES, "x": None, "y": {"b": 1, "a": [None]}}


def test_the_id_depends_on_the_content_and_not_on_the_order_of_keys() -> None:
    """D7: hashing the repr of a row sees key order."""
    turned = [dict(reversed(list(message.items()))) for message in MESSAGES]
    assert content_id(MESSAGES, None) == content_id(turned, None)
    assert content_id(MESSAGES, None) != content_id(MESSAGES, [{"name": "f"}])


def test_ids_must_be_unique(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"id": 7, "messages": MESSAGES}) + "\n" for _ in range(2)))
    with pytest.raises(UserError, match="also on line 1") as caught:
        read_unique_rows(path)
    assert caught.value.where == f"{path}:2"


def test_a_missing_file_a_folder_and_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").touch()
    for name, says in (("none.jsonl", "no such file"), (".", "is a folder"), ("empty.jsonl", "is empty")):
        with pytest.raises(UserError, match=says):
            list(read_rows(tmp_path / name))


def test_a_row_that_only_calls_tools_has_an_answer() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [call]}
    row = parse_row({"messages": [MESSAGES[0], answer]}, "f", 1)
    assert isinstance(row, Row)
    assert row.expected == ""
    assert row.to_json()["messages"][1] == answer
