"""From rows to token ids and labels, with a certificate of what the loss will and will not see."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tunegate.core import template_input
from tunegate.core.chat_template import IGNORE_INDEX, Masked, MaskError, called, is_learnt, mask_answers, render
from tunegate.core.console import progress, say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.rows import Row

# Keys of an assistant's turn for its thoughts: OpenAI-compatible servers', vLLM's, gpt-oss's.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_CODE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
_QUOTING = re.compile(r"\\+[nrtbfv]?|[\s\"']")


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row, or one answer of it: the row's id, its token ids and its labels (-100 outside the answers).

    group: of the row, whose rows are not independent; None: it is alone. row: its number.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    group: str | None = None
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a rendered example. learnt: the loss falls on it."""

    text: str
    learnt: bool


@dataclass(frozen=True, kw_only=True)
class MaskCertificate:
    """What the loss sees. Token counts over the rows that are trained on, each of which the template masks and a stop token
    ends (`build` refuses all rows otherwise).

    by_answer: of them, rows of which each answer is an example of its own. too_long: rows left out because they exceed
    max_length; examples: ids of the first of them.
    """

    rows: int
    tokens: int
    label_tokens: int
    longest: int
    too_long: int
    by_answer: int = 0
    examples: tuple[str, ...] = ()


def build(
    rows: Sequence[Row],
    tokenizer: Any,
    stop_ids: Sequence[int],
    *,
    max_length: int,
    max_left_out_share: float,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[list[Example], MaskCertificate]:
    """Mask every row; rows too long for `max_length` are left out whole, so that no answer loses its end. more: given to the
    template.

    Raises UserError when more than `max_left_out_share` of the rows would be left out, when a row cannot be masked or the
    template leaves out a part of its answers, when answers do not end with a stop token (the model would never learn to stop), or when nothing is left.
    """
    kept: list[Example] = []
    too_long: list[str] = []
    unmaskable: list[str] = []
    no_stop: list[str] = []
    in_parts: list[str] = []
    with progress("masking", len(rows)) as tick:
        for number, row in enumerate(rows):
            tick()
            try:
                found = _masked(row, tokenizer, stop_ids, more)
            except MaskError as error:
                unmaskable.append(f"{row.file}:{row.line} {error.message}")
                continue
            if max(len(masked.input_ids) for masked in found) > max_length:
                too_long.append(row.id)
                continue
            if not all(masked.stopped for masked in found):
                no_stop.append(f"{row.file}:{row.line}")
            if len(found) > 1:
                in_parts.append(f"{row.file}:{row.line}")
            kept += [
                Example(id=row.id, input_ids=one.input_ids, labels=one.labels, group=row.group, row=number)
                for one in found
            ]
    _refuse(rows, unmaskable, no_stop, tokenizer)
    if len(too_long) > max_left_out_share * len(rows):
        raise UserError(
            f"{len(too_long)} of {len(rows)} rows are longer than max_length {max_length} tokens; at most {max_left_out_share:.0%} may be left out",
            hint="raise --max-length, shorten the rows, or raise --max-left-out-share",
        )
    if not kept:
        raise UserError("no row is left to train on")
    if in_parts:
        say(
            f"{len(in_parts)} of the rows are several examples, {len(kept)} in all, each ending with one of their answers: the template "
            f"renders turns otherwise once others follow; the first: {in_parts[0]}"
        )
    _warn_of_marks(rows, tokenizer)
    _warn_of_tools(rows, tokenizer, more)
    _warn_of_thoughts(rows, tokenizer, more)
    return kept, MaskCertificate(**seen(kept), too_long=len(too_long), examples=tuple(too_long[:5]))


def seen(trained: Sequence[Example]) -> dict[str, Any]:
    """What a certificate counts of the examples that are trained on."""
    rows = Counter(e.row for e in trained)
    return {
        "rows": len(rows),
        "tokens": sum(len(e.input_ids) for e in trained),
        "label_tokens": sum(sum(label != IGNORE_INDEX for label in e.labels) for e in trained),
        "longest": max(len(e.input_ids) for e in trained),
        "by_answer": sum(count > 1 for count in rows.values()),
    }


def _refuse(rows: Sequence[Row], found: Sequence[str], no_stop: Sequence[str], tokenizer: Any) -> None:
    """Raise UserError where rows cannot be masked (found), or their answers end without a stop token."""
    if not found and no_stop:
        raise UserError(
            f"the answers of {len(no_stop)} rows end without a stop token, so the model would not learn to stop; the first: {no_stop[0]}",
            hint="the template must close the assistant's turn with a token of generation_config.eos_token_id",
        )
    if not found:
        return
    hint = None
    if any(called(message) for row in rows for message in row.messages):
        hint = "choose a model whose template has tool calls, or write a call as JSON text in content"
    if "with and without the answer" in found[0] and "enable_thinking" in tokenizer.chat_template:
        hint = "answers without thoughts: --template-defaults enable_thinking=false"
    raise UserError(f"{len(found)} rows cannot be masked with this chat template; the first: {found[0]}", hint=hint)


def _masked(row: Row, tokenizer: Any, stop_ids: Sequence[int], more: Mapping[str, Any]) -> list[Masked]:
    """The row's answers masked. Raises MaskError for one that would not be learnt as it stands, or when none is learnt."""
    found = mask_answers(tokenizer, row.messages, stop_ids, tools=row.tools, **more)
    _check_shown(row, [(masked.text, *span) for masked in found for span in masked.spans])
    if not any(masked.label_tokens for masked in found):
        raise MaskError("no answer of it is learnt")
    return found


def _check_shown(row: Row, shown: Sequence[tuple[str, int, int]]) -> None:
    """Raise MaskError when what is learnt is not the row's answers: a call without a name, or a part of an answer that is not in
    its own stretch of the rendered conversation. shown: for each answer that text, and where in it the answer begins and ends.

    White space apart: a template may cut what stands before </think>. The prompt may hold the answer's beginning, as where it
    opens a thought. Of a call's arguments the words are looked for, however they are quoted.
    """
    answers = [(index, message) for index, message in enumerate(row.messages) if is_learnt(message)]
    for (index, message), (text, start, end) in zip(answers, shown, strict=True):
        if len(called(message)) < len(message.get("tool_calls") or []):
            raise MaskError(f"turn {index}: a tool call without a function name")
        wanted, before = _dense(message.get("content") or ""), len(_dense(text[:start]))
        at = _dense(text[:end]).rfind(wanted)
        if wanted and (at < 0 or at + len(wanted) <= before):
            raise MaskError(f"turn {index}: the template leaves out a part of the answer")
        calls = [call["function"].get("arguments") for call in message.get("tool_calls") or []]
        bare = _bare(text[start:end]) if calls else ""
        for word in (word for arguments in calls for word in _words(template_input.arguments_of(arguments))):
            if _bare(word) not in bare:
                raise MaskError(f"turn {index}: the template leaves out {word[:40]!r} of a call's arguments")


def _words(value: Any) -> Iterator[str]:
    """The texts in a call's arguments, and the names of those that have a value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            if item is not None:
                yield str(key)
                yield from _words(item)


def _dense(text: str) -> str:
    return "".join(text.split())


def _bare(text: str) -> str:
    """Without white space, quotation marks and escapes: the same however JSON, Python or XML writes a text."""
    text = _CODE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of one character
    return _QUOTING.sub("", text)


def _warn_of_marks(rows: Sequence[Row], tokenizer: Any) -> None:
    """Say how many rows hold the text of a special token: inside an answer a stop token teaches to stop there."""
    marks = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    if not marks:
        return
    mark = re.compile("|".join(map(re.escape, marks)))
    holding = [
        (row, found[0])
        for row in rows
        if (found := mark.search("\n".join(turn.get("content") or "" for turn in row.messages)))
    ]
    if holding:
        row, text = holding[0]
        warn(
            f"{len(holding)} rows hold the text of a special token, which the model reads as that token; the first: "
            f"{row.file}:{row.line} {text}"
        )


def _warn_of_tools(rows: Sequence[Row], tokenizer: Any, more: Mapping[str, Any]) -> None:
    """Say how many rows have tools that the template does not show: a template shows those of every row or of none."""
    having = [row for row in rows if row.tools]
    if not having:
        return
    row = having[0]
    if render(tokenizer, row.messages, tools=row.tools, **more) == render(tokenizer, row.messages, **more):
        warn(f"the chat template leaves out the tools of {len(having)} rows; the first: {row.file}:{row.line}")


def _warn_of_thoughts(rows: Sequence[Row], tokenizer: Any, more: Mapping[str, Any]) -> None:
    """Say of how many rows the last answer's thoughts, which stand beside its content, are not learnt: the template does not
    read them, or not under that name. Those of earlier answers are left out by design."""
    lost = []
    for row in rows:
        *before, last = row.messages
        thoughts = (
            [_dense(text) for key in THOUGHTS if isinstance(text := last.get(key), str)] if is_learnt(last) else []
        )
        if any(thoughts):
            prompt = render(tokenizer, before, tools=row.tools, generate=True, **more)
            text = _dense(render(tokenizer, row.messages, tools=row.tools, **more).removeprefix(prompt))
            lost += [] if all(thought in text for thought in thoughts) else [f"{row.file}:{row.line}"]
    if lost:
        warn(
            f"the chat template leaves out the thoughts ({', '.join(THOUGHTS)}) of the last answer of {len(lost)} rows: they are "
            f"not learnt; the first: {lost[0]}"
        )


MOST_VALIDATION_ROWS = 64


def split_validation(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation): the examples of `share` of the rows, at most 64, chosen by the hash of their id, so it is stable.
    Rows of one group stay together: whole groups are chosen that fit, or the smallest one of at most 64 rows where none does.

    Raises UserError when none is left to train on.
    """
    rows = {e.id: e.group for e in examples}
    sizes = Counter(_unit(e_id, group) for e_id, group in rows.items())
    wanted = min(MOST_VALIDATION_ROWS, round(share * len(rows)))
    if examples and wanted >= len(rows):
        raise UserError(
            f"all {len(rows)} rows would be set aside for the validation loss: none is left to train on",
            where="validation_share",
            hint="lower --validation-share",
        )
    chosen: set[tuple[str, str]] = set()
    left = wanted
    for unit in sorted(sizes, key=lambda unit: sha256_text(f"{seed}:{unit[1]}")):
        if sizes[unit] <= left:
            chosen.add(unit)
            left -= sizes[unit]
    if wanted and not chosen and len(sizes) > 1:
        least = min(sizes, key=lambda unit: (sizes[unit], sha256_text(f"{seed}:{unit[1]}")))
        chosen |= {least} if sizes[least] <= MOST_VALIDATION_ROWS else set()
        if not chosen:
            warn(f"no rows are set aside for the validation loss: each group has more than {MOST_VALIDATION_ROWS}")
    apart = [_unit(e.id, e.group) in chosen for e in examples]
    pairs = list(zip(examples, apart, strict=True))
    return [e for e, aside in pairs if not aside], [e for e, aside in pairs if aside]


def _unit(row: str, group: str | None) -> tuple[str, str]:
    """What goes to one side of the validation split as a whole."""
    return ("row", row) if group is None else ("group", group)


def preview(parts: Sequence[Part]) -> str:
    """One example as rich markup: what the loss ignores is dim, what it learns is not."""
    escaped = [(part.learnt, part.text.replace("[", "\\[")) for part in parts]
    return "".join(text if learnt else f"[dim]{text}[/dim]" for learnt, text in escaped)


def parts_of(example: Example, tokenizer: Any) -> list[Part]:
    """One example as text, in stretches that the loss sees or does not."""
    return [Part(text=tokenizer.decode(ids), learnt=learnt) for learnt, ids in _runs(example)]


def _runs(example: Example) -> list[tuple[bool, list[int]]]:
    runs: list[tuple[bool, list[int]]] = []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        learnt = label != IGNORE_INDEX
        if not runs or runs[-1][0] != learnt:
            runs.append((learnt, []))
        runs[-1][1].append(token)
    return runs
