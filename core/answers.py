"""What a row answers, by value: so that equal answers compare equal."""

import json
from typing import Any

from tunegate.core.rows import Row
from tunegate.core.template_input import arguments_of


def answer_of(row: Row) -> tuple[Any, list[Any]]:
    """(text, tool calls) of a row's answer: its text by value where that is a JSON object or list (key order and spaces do not
    matter), with white space collapsed where it is not; its calls by value without their ids."""
    text = row.expected
    value: Any = " ".join(text.split())
    if text.lstrip()[:1] in ("{", "["):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            pass
    return value, [call_of(call) for call in row.messages[-1].get("tool_calls") or ()]


def call_of(call: Any) -> Any:
    """A tool call by value, without its id."""
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    if not isinstance(function, dict):
        return {key: value for key, value in call.items() if key != "id"}
    return {"name": function.get("name"), "arguments": arguments_of(function.get("arguments"))}
