"""What a chat template is given: the OpenAI form of turns and tools as a server hands it over, not as it stands in a row.

OpenAI's form holds a call's arguments as JSON text; a template that writes them with `tojson` would write that text as a
quoted string, and a model would learn to call with one. Servers parse them first, write every tool with the keys of OpenAI's
function in one order, and give "" for no content (vLLM 0.32 `renderers/chat_utils.py` `_postprocess_messages`,
`_parse_chat_message_content`; `entrypoints/generate/base/protocol.py` `FunctionDefinition`); so do training and checks here.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from tunegate.core.rows import Message

Tools = list[Any] | None
T = TypeVar("T")


def rendered(render: Callable[[list[Message], Tools], T], messages: Sequence[Message], tools: Tools) -> T:
    """What `render` makes of turns and tools as a server hands them over. A template that cannot write arguments as objects
    (DeepSeek's adds them to a text) gets them as JSON text. Raises what `render` raised first."""
    turns, shown = [_turn(message) for message in messages], tools and [_tool(tool) for tool in tools]
    try:
        return render(turns, shown)
    except Exception:  # whatever a template raises
        texts = [_turn(message, as_text=True) for message in messages]
        if texts != turns:
            with suppress(Exception):
                return render(texts, shown)
        raise


def arguments_of(found: Any) -> Any:
    """A call's arguments as an object, whether they stand as one or as JSON text; "" and null are none. What is no JSON
    object is given back as it is."""
    if found in (None, ""):
        return {}
    if not isinstance(found, str):
        return found
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return found
    return value if isinstance(value, dict) else found


def _turn(message: Message, *, as_text: bool = False) -> Message:
    if message.get("content") is not None and "tool_calls" not in message:
        return message
    calls = [_call(call, as_text=as_text) for call in message.get("tool_calls") or []]
    turn = {key: value for key, value in message.items() if key != "tool_calls"}
    turn["content"] = turn.get("content") or ""
    return {**turn, "tool_calls": calls} if calls else turn


def _call(call: Any, *, as_text: bool) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        return call
    arguments = arguments_of(call["function"].get("arguments"))
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**call["function"], "arguments": arguments}}


def _tool(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict):
        return tool
    shown = {key: function.get(key) for key in ("name", "description", "parameters")}
    shown |= {key: function[key] for key in ("strict", "defer_loading") if function.get(key) is not None}
    return {"type": tool.get("type") or "function", "function": shown}
