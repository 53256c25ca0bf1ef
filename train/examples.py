"""From rows to token ids and labels, with a certificate of what the loss will and will not see."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX, Masked, MaskError, called, is_learnt, mask_answers, render
from tunegate.core.console import progress, say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.rows import Row


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row, or one answer of it: the row's id, its token ids and its labels (-100 outside the answers)."""

    id: str
    input_ids: list[int]
    labels: list[int]


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
    rows: Sequence[Row], tokenizer: Any, stop_ids: Sequence[int], *, max_length: int, max_left_out_share: float
) -> tuple[list[Example], MaskCertificate]:
    """Mask every row; rows too long for `max_length` are left out whole, so that no answer loses its end.

    Raises UserError when more than `max_left_out_share` of the rows would be left out, when a row cannot be masked or the
    template leaves out a part of its answers, when answers do not end with a stop token (the model would never learn to stop), or when nothing is left.
    """
    kept: list[Example] = []
    too_long: list[str] = []
    unmaskable: list[str] = []
    no_stop: list[str] = []
    in_parts: list[str] = []
    with progress("masking", len(rows)) as tick:
        for row in rows:
            tick()
            try:
                found = _masked(row, tokenizer, stop_ids)
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
            kept += [Example(id=row.id, input_ids=masked.input_ids, labels=masked.labels) for masked in found]
    if unmaskable:
        raise _unmaskable(rows, unmaskable, tokenizer)
    if no_stop:
        raise UserError(
            f"the answers of {len(no_stop)} rows end without a stop token, so the model would not learn to stop; the first: {no_stop[0]}",
            hint="the template must close the assistant's turn with a token of generation_config.eos_token_id",
        )
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
    _warn_of_tools(rows, tokenizer)
    certificate = MaskCertificate(
        rows=len(rows) - len(too_long),
        tokens=sum(len(e.input_ids) for e in kept),
        label_tokens=sum(sum(label != IGNORE_INDEX for label in e.labels) for e in kept),
        longest=max(len(e.input_ids) for e in kept),
        too_long=len(too_long),
        by_answer=len(in_parts),
        examples=tuple(too_long[:5]),
    )
    return kept, certificate


def _unmaskable(rows: Sequence[Row], found: Sequence[str], tokenizer: Any) -> UserError:
    hint = None
    if any(called(message) for row in rows for message in row.messages):
        hint = "choose a model whose template has tool calls, or write a call as JSON text in content"
    if "with and without the answer" in found[0] and "enable_thinking" in tokenizer.chat_template:
        hint = "answers without thoughts: --template-defaults enable_thinking=false"
    return UserError(f"{len(found)} rows cannot be masked with this chat template; the first: {found[0]}", hint=hint)


def _masked(row: Row, tokenizer: Any, stop_ids: Sequence[int]) -> list[Masked]:
    """The row's answers masked. Raises MaskError for one that would not be learnt as it stands, or when none is learnt."""
    found = mask_answers(tokenizer, row.messages, stop_ids, tools=row.tools)
    _check_shown(row, [masked.text for masked in found])
    if not any(masked.label_tokens for masked in found):
        raise MaskError("no answer of it is learnt")
    return found


def _check_shown(row: Row, texts: Sequence[str]) -> None:
    """Raise MaskError when what is learnt is not the row's answers: a call without a name, or a text that is not in the
    conversation as rendered, white space apart (a template may cut what stands before </think>). texts: one with all
    answers, or one for each answer, which ends it."""
    answers = [(index, message) for index, message in enumerate(row.messages) if is_learnt(message)]
    dense, at = [_dense(text) for text in texts], 0
    for number, (index, message) in enumerate(answers):
        if len(called(message)) < len(message.get("tool_calls") or []):
            raise MaskError(f"turn {index}: a tool call without a function name")
        wanted = _dense(message.get("content") or "")
        found = dense[0].find(wanted, at) if len(dense) == 1 else dense[number].rfind(wanted)
        if found < 0:
            raise MaskError(f"turn {index}: the template leaves out a part of the answer")
        at = found + len(wanted)


def _dense(text: str) -> str:
    return "".join(text.split())


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


def _warn_of_tools(rows: Sequence[Row], tokenizer: Any) -> None:
    """Say how many rows have tools that the template does not show: a template shows those of every row or of none."""
    having = [row for row in rows if row.tools]
    if not having:
        return
    row = having[0]
    if render(tokenizer, row.messages, tools=row.tools) == render(tokenizer, row.messages):
        warn(f"the chat template leaves out the tools of {len(having)} rows; the first: {row.file}:{row.line}")


def split_validation(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation): the examples of `share` of the rows, at most 64, chosen by the hash of their id, so it is stable.

    Raises UserError when none is left to train on.
    """
    order = sorted({e.id for e in examples}, key=lambda name: sha256_text(f"{seed}:{name}"))
    wanted = min(64, round(share * len(order)))
    if examples and wanted >= len(order):
        raise UserError(
            f"all {len(order)} rows would be set aside for the validation loss: none is left to train on",
            where="validation_share",
            hint="lower --validation-share",
        )
    chosen = set(order[:wanted])
    return [e for e in examples if e.id not in chosen], [e for e in examples if e.id in chosen]


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
