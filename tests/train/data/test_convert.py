"""Other formats: a row comes back as it was, or is refused with the field's name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.core.errors import UserError
from tunegate.core.rows import Row, parse_row
from tunegate.train.data.export import READ_AS, TARGETS, export, first_difference
from tunegate.train.data.formats import to_row
from tunegate.train.data.read import Reading, read, strictly
from tunegate.train.data.steps import convert

SYSTEM = {"role": "system", "content": "s"}
USER, ANSWER = {"role": "user", "content": "q\u2028\n "}, {"role": "assistant", "content": "007"}


def call(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "arguments": '{"a": 1.0, "b": null}'}, **more}


def row(*messages: dict[str, Any], **more: Any) -> Row:
    return parse_row({"messages": list(messages), **more}, "in.jsonl", 3)


AGENT = row(
    SYSTEM,
    USER,
    {"role": "assistant", "content": "let me look", "tool_calls": [call(id="c1"), call(id="c2")]},
    {"role": "tool", "tool_call_id": "c1", "content": "1"},
    {"role": "tool", "tool_call_id": "c2", "content": "2"},
    ANSWER,
    tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
)


def one(value: Row, target: str, *drop: str) -> dict[str, Any]:
    (line,) = export([value], target, drop)
    return dict(json.loads(line))


def test_openai_keeps_parallel_calls_ids_and_content() -> None:
    """D4, D5: ids, text beside calls, tool answers apart from each other."""
    assert one(AGENT, "openai") == {"messages": list(AGENT.messages), "tools": AGENT.tools}


def test_trl_keeps_them_too() -> None:
    assert one(AGENT, "trl") == {
        "prompt": list(AGENT.messages[:-1]),
        "completion": [ANSWER],
        "tools": AGENT.tools,
    }


@pytest.mark.parametrize(
    ("value", "target", "where"),
    [
        (AGENT, "sharegpt", "in.jsonl:3 /messages/2/content"),
        (AGENT, "alpaca", "in.jsonl:3 /messages/2/tool_calls"),
        (
            row(USER, {"role": "assistant", "content": None, "tool_calls": [call(id="x")]}),
            "sharegpt",
            "tool_calls/0/id",
        ),
        (row(USER, ANSWER, id="mine"), "openai", "in.jsonl:3 /id"),
        (row(USER, ANSWER, tags={"a": 1}), "openai", "in.jsonl:3 /tags"),
        (row(USER, ANSWER, note="x"), "openai", "in.jsonl:3 /note"),
        (row(USER, ANSWER, prompt="x"), "trl", "in.jsonl:3 /prompt"),
        (row(USER, ANSWER, system="x"), "sharegpt", "in.jsonl:3 /system"),
        (row(USER, ANSWER, output="x"), "alpaca", "in.jsonl:3 /output"),
        (row(USER, USER, ANSWER), "alpaca", "in.jsonl:3 /messages/1/role"),
        (row(USER, {**ANSWER, "weight": 0}), "alpaca", "in.jsonl:3 /messages/1/weight"),
        (row({"role": "developer", "content": "d"}, USER, ANSWER), "sharegpt", "in.jsonl:3 /messages/0/role"),
        (row(SYSTEM, ANSWER), "alpaca", "in.jsonl:3 /messages/1/role"),
        (row({**SYSTEM, "content": ""}, USER, ANSWER), "alpaca", "in.jsonl:3 /messages/0"),
        (
            row(
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{**call(), "function": {"name": "f", "arguments": {}}}],
                },
            ),
            "openai",
            "/messages/1/tool_calls/0/function/arguments",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_field(value: Row, target: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        list(export([value], target))
    assert where in (caught.value.where or "")


def test_dropping_is_explicit() -> None:
    assert one(row(USER, ANSWER, id="mine", tags={"a": 1}), "openai", "id", "tags") == {"messages": [USER, ANSWER]}


def test_alpaca_and_sharegpt_have_their_shapes() -> None:
    value = row(SYSTEM, USER, ANSWER, {**USER, "content": "more"}, {**ANSWER, "content": "end"}, id="r1")
    assert one(value, "alpaca") == {
        "instruction": "more",
        "input": "",
        "output": "end",
        "system": "s",
        "history": [[USER["content"], "007"]],
        "id": "r1",
    }
    turns = [(t["from"], t["value"]) for t in one(value, "sharegpt")["conversations"]]
    assert turns[:3] == [("system", "s"), ("human", USER["content"]), ("gpt", "007")]


CANONICAL = {
    "openai": {"messages": list(AGENT.messages), "tools": AGENT.tools},
    "trl": {"prompt": [SYSTEM, USER], "completion": [ANSWER], "note": 12345678901234567890123},
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"b": 1, "a": null}}'},
            {"from": "observation", "value": "2024-01-01"},
            {"from": "gpt", "value": "12_13"},
        ],
        "tools": [{"name": "f"}],
    },
    "alpaca": {"instruction": "do\nthis", "input": "", "output": "x", "system": "s", "history": [["a", "b"]]},
}
# What a row cannot hold apart: a second text of the input, the spaces of a call, a list of one call, tools as text.
LOOSE = {
    "alpaca": [
        {"instruction": "translate", "input": "cat", "output": "chat"},
        {"instruction": "", "input": "cat", "output": "chat", "system": ""},
        {"output": "x", "instruction": "a", "input": None, "history": []},
    ],
    "sharegpt": [
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '[{"arguments":{},"name":"f"}]'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "a"},
            ],
            "system": "s",
            "tools": '[{"name":"f"}]',
        }
    ],
}


@pytest.mark.parametrize("target", LOOSE)
def test_a_record_in_the_target_format_already_stays_as_it_is(target: str, tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in LOOSE[target]))
    assert convert([str(source)], out, target, Reading(), (), force=False) == len(LOOSE[target])
    assert out.read_bytes() == source.read_bytes()
    convert([str(source)], out, target, Reading(), ("system", "tools"), force=True)
    assert not {"system", "tools"} & set(json.loads(out.read_text().splitlines()[0]))


def test_calls_with_a_key_twice_are_refused(tmp_path: Path) -> None:
    calls = '{"name": "f", "arguments": {"a": 1, "a": 2}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": calls}]
    (tmp_path / "in.jsonl").write_text(json.dumps({"conversations": turns}) + "\n")
    with pytest.raises(UserError, match="stands twice") as caught:
        convert([str(tmp_path / "in.jsonl")], tmp_path / "out", "trl", Reading(), (), force=False)
    assert (caught.value.where or "").endswith("in.jsonl:1 /conversations/1/value")


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_in_its_own_format_comes_back_byte_for_byte(target: str, tmp_path: Path) -> None:
    line = json.dumps(CANONICAL[target], ensure_ascii=False) + "\n"
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text(line * 2)
    assert convert([str(source)], out, target, Reading(), (), force=False) == 2
    assert out.read_bytes() == source.read_bytes()


def test_nothing_is_written_when_a_row_is_refused(tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(v.to_json()) + "\n" for v in (row(USER, ANSWER), AGENT)))
    with pytest.raises(UserError, match="sharegpt"):
        convert([str(source)], out, "sharegpt", Reading(), (), force=False)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        convert([str(source)], out, "trl", Reading(), (), force=False)
    assert out.read_text() == "mine"


def test_an_unknown_format() -> None:
    with pytest.raises(UserError, match="unknown format 'sharegp'") as caught:
        list(export([AGENT], "sharegp"))
    assert "sharegpt" in (caught.value.hint or "")


text = st.text(max_size=6)
message = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": text}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": text, "tool_call_id": text}),
    st.fixed_dictionaries(
        {
            "role": st.just("assistant"),
            "content": st.one_of(st.none(), text),
            "tool_calls": st.lists(
                st.fixed_dictionaries(
                    {"type": st.just("function"), "function": st.fixed_dictionaries({"name": text, "arguments": text})},
                    optional={"id": text},
                ),
                min_size=1,
                max_size=2,
            ),
        }
    ),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(message, min_size=1, max_size=4), st.sampled_from(TARGETS))
def test_identity_or_refusal(messages: list[dict[str, Any]], target: str) -> None:
    value = row(*messages, ANSWER)
    try:
        (line,) = export([value], target)
    except UserError as caught:
        where = caught.where or ""
    else:
        where = None
    if where is not None:
        assert where.startswith("in.jsonl:3")
        return
    back = parse_row(to_row(json.loads(line), READ_AS[target], "x"), "x", 1)
    assert back.messages == value.messages
    assert back.id == value.id


def test_first_difference_sees_types() -> None:
    assert first_difference({"a": [1, 1.0]}, {"a": [1, 1]}) == "/a/1"
    assert first_difference({"a": True}, {"a": 1}) == "/a"
    assert first_difference({"a": 1}, {"a": 1, "b": None}) == "/b"
    assert first_difference([1], [1, 2]) == "/1"
    assert first_difference({"a": {"b": [None]}}, {"a": {"b": [None]}}) is None


def test_builtin_converts_to_trl(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert convert(["builtin:bfcl"], out, "trl", Reading(), (), force=False) == 858
    back = list(strictly(read([str(out)], Reading())))
    assert back[0].id == "simple_python_0"
    assert back[0].accept is not None
