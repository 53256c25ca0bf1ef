"""The chat template: rendered one way everywhere, masked by prefix, named by a digest.

A tokenizer here is any transformers fast tokenizer; nothing of transformers is imported.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from os.path import commonprefix
from typing import Any

from tunegate.core import template_input
from tunegate.core.errors import UserError
from tunegate.core.files import canonical_json, sha256_text
from tunegate.core.rows import Message

IGNORE_INDEX = -100
DAY = datetime(2026, 1, 1)
PROBE: tuple[Message, ...] = (
    {"role": "system", "content": "Answer in JSON. Zahlen: 0123456789."},
    {"role": "user", "content": 'naïve café 東京 🙂 \t two  spaces\nline {"a": [1, 2.5]} <|im_end|>'},
    {"role": "assistant", "content": '{"ok": true}'},
)


@dataclass(frozen=True)
class Masked:
    """One rendered conversation: token ids, and labels that are -100 outside the assistant's turns.

    stopped: every assistant turn ends with a stop token that is learnt. text: as rendered. spans: where in it each answer
    that is learnt begins and ends.
    """

    input_ids: list[int]
    labels: list[int]
    stopped: bool
    text: str
    spans: list[tuple[int, int]]

    @property
    def label_tokens(self) -> int:
        """Tokens that the loss is computed on."""
        return sum(label != IGNORE_INDEX for label in self.labels)


class MaskError(UserError):
    """This conversation cannot be masked with this template."""


class RewrittenError(MaskError):
    """The template renders a turn otherwise once others follow, so one rendering cannot hold every answer as it is asked for."""


def default_template(value: Any, *, tools: bool = False) -> str | None:
    """The template among what a tokenizer has as its `chat_template`: one text, or several by name, as transformers' dict or as
    tokenizer_config.json's list of {name, template}. Of several it is `default`, or with tools `tool_use` where there is one, as
    transformers and vLLM choose. None where there is none."""
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if isinstance(value, dict):
        value = (tools and value.get("tool_use")) or value.get("default")
    return value if isinstance(value, str) and value else None


def template_digest(tokenizer: Any) -> str:
    """SHA-256 of the template's text: equal digests render equal prompts."""
    return sha256_text(template_text(tokenizer))


def with_defaults(template: str, values: Mapping[str, Any]) -> str:
    """The template with values for variables that a request does not set, such as Qwen3's `enable_thinking`: every server renders
    with them. Raises UserError for a variable that the template does not read."""
    lines = []
    for name, value in values.items():
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise UserError(f"the chat template does not read {name!r}", where="template_defaults")
        lines.append(f"{{%- if {name} is not defined %}}{{%- set {name} = {json.dumps(value)} %}}{{%- endif %}}")
    return "".join(lines) + template


def is_dated(template: str) -> bool:
    """Whether a template writes today's date into prompts, as Llama 3.2's and gpt-oss's do: they differ from day to day."""
    return "strftime_now" in template


def clock(template: str, begun: str) -> dict[str, Any]:
    """What `render` takes to write a fixed day (`begun`, a moment in ISO format) where a template asks for today's."""
    return {"strftime_now": datetime.fromisoformat(begun).strftime} if is_dated(template) else {}


def writes_date(tokenizer: Any) -> bool:
    """Whether a prompt differs from day to day; not, where the template's variable for the date has a default (`with_defaults`)."""
    days = (DAY, datetime(2027, 2, 2))
    first, second = (render(tokenizer, probe_of(tokenizer), strftime_now=day.strftime) for day in days)
    return first != second


def probe_of(tokenizer: Any) -> tuple[Message, ...]:
    """A fixed conversation (digits, spaces, scripts, emoji, special-token text) as the template takes it: Gemma 2's and
    others refuse the system turn."""
    try:
        render(tokenizer, PROBE)
    except MaskError:
        return PROBE[1:]
    return PROBE


def probe_digest(tokenizer: Any) -> str:
    """SHA-256 over the token ids of that conversation, on a fixed day.

    Two tokenizers with one digest turn the same messages into the same ids, on this probe.
    """
    return sha256_text(canonical_json(render_ids(tokenizer, probe_of(tokenizer), strftime_now=DAY.strftime)))


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    generate: bool = False,
    **more: Any,
) -> str:
    """The conversation as text; with `generate` it ends where the assistant's answer begins. more: given to the template.

    Raises UserError when the template refuses these messages.
    """
    template_text(tokenizer)

    def render_once(turns: list[Message], shown: list[Any] | None) -> str:
        text: str = tokenizer.apply_chat_template(
            turns, tools=shown, add_generation_prompt=generate, tokenize=False, **more
        )
        return text

    try:
        return template_input.rendered(render_once, messages, tools)
    except Exception as error:  # jinja2's errors, and whatever a template calls
        raise MaskError(f"the chat template refuses these messages: {error}") from None


def render_ids(
    tokenizer: Any,
    messages: Sequence[Message],
    *,
    tools: list[Any] | None = None,
    generate: bool = False,
    **more: Any,
) -> list[int]:
    """The conversation as token ids, as the server makes them: the rendered text, no special tokens added. Like `render`."""
    text = render(tokenizer, messages, tools=tools, generate=generate, **more)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def mask_answers(
    tokenizer: Any,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    *,
    tools: list[Any] | None = None,
    **more: Any,
) -> list[Masked]:
    """Every answer of a conversation after the prompt that a server would make for it: the conversation with all of them, or,
    where the template renders turns otherwise once others follow (Qwen3, GLM-4.5 and gpt-oss take thoughts out of earlier answers), one
    conversation for each answer, which ends with it. more: given to the template. Raises MaskError.
    """
    try:
        return [mask(tokenizer, messages, stop_ids, tools=tools, **more)]
    except RewrittenError:
        ends = [index + 1 for index, message in enumerate(messages) if is_learnt(message)]
        return [mask(tokenizer, messages[:end], stop_ids, tools=tools, last=True, **more) for end in ends]


def mask(
    tokenizer: Any,
    messages: Sequence[Message],
    stop_ids: Sequence[int],
    *,
    tools: list[Any] | None = None,
    last: bool = False,
    **more: Any,
) -> Masked:
    """Token ids and labels of one conversation; the loss falls on the assistant's turns (`is_learnt`) and on the stop token after each.
    last: on the last turn only. more: given to the template.

    The rendered text is tokenized once, as it is at inference. Each turn's span comes from rendering the messages up to
    it and with it: what stands between is the answer, the template's text after the stop token left out. Where the token that
    opens the next turn is what stops (GLM), that one is learnt, and put behind the last answer.
    Raises MaskError when a call is not in its turn's text (a template without tool calls drops them silently), when the prompt is
    not the beginning of the same with its answer, RewrittenError when that is not the beginning of the whole, or MaskError
    when a token straddles the start of an answer (the model would never see that split at inference).
    """
    text = render(tokenizer, messages, tools=tools, **more)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    labels = [IGNORE_INDEX] * len(ids)
    stopped = True
    spans = []
    for index, message in enumerate(messages):
        if not is_learnt(message) or (last and index + 1 < len(messages)):
            continue
        start, end = _span(tokenizer, messages, index, tools, text, more)
        _check_calls(message, index, text[start:end])
        spans.append((start, end))
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        if any(offsets[i][0] < start for i in inside):
            raise MaskError(f"turn {index}: a token straddles the start of the answer")
        stop = next((n for n in range(len(inside) - 1, -1, -1) if ids[inside[n]] in stop_ids), None)
        for i in inside if stop is None else inside[: stop + 1]:
            labels[i] = ids[i]
        if stop is None:  # GLM's turns are ended by the token that opens the next one
            place = next((i for i, (a, _) in enumerate(offsets) if a >= end), len(ids))
            opening = ids[place : place + 1] or _opening_of_next(tokenizer, messages, tools, text, more)
            if opening and opening[0] in stop_ids:
                ids[place : place + 1] = labels[place : place + 1] = opening
            else:
                stopped = False
    return Masked(ids, labels, stopped, text, spans)


def _check_calls(message: Message, index: int, text: str) -> None:
    """Raise MaskError unless each call of a turn has its own place in the turn's text."""
    at = 0
    for name in called(message):
        found = text.find(name, at)
        if found < 0:
            raise MaskError(f"turn {index}: the template leaves out the call of {name!r}")
        at = found + len(name)


def _opening_of_next(
    tokenizer: Any, messages: Sequence[Message], tools: list[Any] | None, text: str, more: dict[str, Any]
) -> list[int]:
    """The token that would open the turn after the last one: the tool's after calls, else the user's. Empty where the template
    writes that turn otherwise."""
    calls = messages[-1].get("tool_calls")
    following = {"role": "tool" if calls else "user", "content": "x"}
    try:
        longer = render(tokenizer, [*messages, following], tools=tools, **more)
    except MaskError:
        return []
    ids: list[int] = (
        tokenizer(longer[len(text) :], add_special_tokens=False)["input_ids"] if longer.startswith(text) else []
    )
    return ids[:1]


def is_learnt(message: Message) -> bool:
    """Whether the loss falls on a turn: the assistant's, but for those with OpenAI's `"weight": 0`. Raises MaskError for another
    weight than 0 and 1."""
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise MaskError(f'"weight" is {weight!r}: 0 (the turn is not learnt) or 1')
    return message["role"] == "assistant" and weight != 0


def called(message: Message) -> list[str]:
    """Names of the functions that a turn calls; a call without one, which `ft data check` reports, is left out."""
    functions = [call.get("function") for call in message.get("tool_calls") or [] if isinstance(call, dict)]
    return [str(function["name"]) for function in functions if isinstance(function, dict) and function.get("name")]


def _span(
    tokenizer: Any,
    messages: Sequence[Message],
    index: int,
    tools: list[Any] | None,
    text: str,
    more: dict[str, Any],
) -> tuple[int, int]:
    if index == 0:
        raise MaskError(
            'turn 0: nothing comes before this answer, so no request asks for it; give the turn "weight": 0'
        )
    before = render(tokenizer, messages[:index], tools=tools, generate=True, **more)
    after = render(tokenizer, messages[: index + 1], tools=tools, **more)
    if not text.startswith(after):  # Phi-3's template ends every rendering, not every turn, with the end of text
        after = after.removesuffix(getattr(tokenizer, "eos_token", None) or "")
    if not text.startswith(after):
        raise RewrittenError(f"turn {index}: the template renders the turn differently once others follow")
    if not after.startswith(before):
        same = len(commonprefix([before, after]))  # noqa: RUF071  (texts, no paths)
        raise MaskError(
            f"turn {index}: the template renders the prompt differently with and without the answer: "
            f"{before[same : same + 20]!r}, {after[same : same + 20]!r}"
        )
    return len(before), len(after)


def template_text(tokenizer: Any) -> str:
    """A tokenizer's chat template. Raises UserError where it has none."""
    template = default_template(getattr(tokenizer, "chat_template", None))
    if template is None:
        raise UserError(
            "the model has no chat template", hint="use an instruct model, or add chat_template.jinja to its folder"
        )
    return template
