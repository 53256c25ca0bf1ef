"""Turns and tools as a server hands them to the chat template."""

import json

import pytest

from tunegate.core.template_input import rendered

CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"city": "Köln", "n": [1, 2.5]}'}}
TOOL = {"function": {"parameters": {"type": "object"}, "name": "find", "x": 1}, "type": "function", "note": "mine"}


def given(messages, tools=None):
    return rendered(lambda turns, shown: (turns, shown), messages, tools)


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ("", {}),
        (None, {}),
        ("{}", {}),
        ('"text"', '"text"'),  # no object: as it is, `ft data check` reports it
        ("{cut", "{cut"),
    ],
)
def test_arguments_are_objects(arguments, seen):
    turn = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    (found,), _ = given([turn])
    assert found == {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": seen}}]}
    assert turn["tool_calls"][0]["function"]["arguments"] == arguments  # the row keeps its own


def test_no_calls_are_no_key_and_plain_turns_are_not_copied():
    plain = {"role": "user", "content": "q"}
    found, tools = given([plain, {"role": "assistant", "content": "a", "tool_calls": []}], [])
    assert found[0] is plain
    assert found[1] == {"role": "assistant", "content": "a"}
    assert tools == []
    assert given([plain])[1] is None


def test_tools_have_one_order_and_only_the_keys_of_the_form():
    _, (found, other) = given([], [TOOL, "as it is"])
    assert json.dumps(found) == (
        '{"type": "function", "function": {"name": "find", "description": null, "parameters": {"type": "object"}}}'
    )
    assert other == "as it is"


def test_a_template_that_adds_arguments_to_a_text_gets_text():
    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL]}]

    def adds(turns, _):
        return "call " + turns[0]["tool_calls"][0]["function"]["arguments"]

    assert rendered(adds, messages, None) == 'call {"city": "Köln", "n": [1, 2.5]}'


@pytest.mark.parametrize("calls", [[], [CALL]])
def test_the_first_refusal_is_told(calls):
    def refuses(turns, _):
        found = [c["function"]["arguments"] for c in turns[0].get("tool_calls") or []]
        raise ValueError(f"no {[type(a).__name__ for a in found]}")

    with pytest.raises(ValueError, match=r"no \['dict'\]" if calls else r"no \[\]"):
        rendered(refuses, [{"role": "assistant", "content": "a", "tool_calls": calls}], None)
