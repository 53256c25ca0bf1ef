"""From rows to token ids and labels, with a certificate of what the loss will and will not see."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX, Masked, MaskError, called, mask
from tunegate.core.console import progress
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.rows import Row


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training row: the row's id, its token ids and its labels (-100 outside the answers)."""

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

    too_long: rows left out because they exceed max_length; examples: ids of the first of them.
    """

    rows: int
    tokens: int
    label_tokens: int
    longest: int
    too_long: int
    examples: tuple[str, ...] = ()


def build(
    rows: Sequence[Row], tokenizer: Any, stop_ids: Sequence[int], *, max_length: int, max_left_out_share: float
) -> tuple[list[Example], MaskCertificate]:
    """Mask every row; rows too long for `max_length` are left out whole, so that no answer loses its end.

    Raises UserError when more than `max_left_out_share` of the rows would be left out, when a row cannot be masked,
    when answers do not end with a stop token (the model would never learn to stop), or when nothing is left.
    """
    kept: list[Example] = []
    too_long: list[str] = []
    unmaskable: list[str] = []
    no_stop: list[str] = []
    with progress("masking", len(rows)) as tick:
        for row in rows:
            tick()
            try:
                masked: Masked = mask(tokenizer, row.messages, stop_ids, tools=row.tools)
            except MaskError as error:
                unmaskable.append(f"{row.file}:{row.line} {error.message}")
                continue
            if len(masked.input_ids) > max_length:
                too_long.append(row.id)
                continue
            if not masked.stopped:
                no_stop.append(f"{row.file}:{row.line}")
            kept.append(Example(id=row.id, input_ids=masked.input_ids, labels=masked.labels))
    if unmaskable:
        calls = "choose a model whose template has tool calls, or write a call as JSON text in content"
        raise UserError(
            f"{len(unmaskable)} rows cannot be masked with this chat template; the first: {unmaskable[0]}",
            hint=calls if any(called(message) for row in rows for message in row.messages) else None,
        )
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
    certificate = MaskCertificate(
        rows=len(kept),
        tokens=sum(len(e.input_ids) for e in kept),
        label_tokens=sum(sum(label != IGNORE_INDEX for label in e.labels) for e in kept),
        longest=max(len(e.input_ids) for e in kept),
        too_long=len(too_long),
        examples=tuple(too_long[:5]),
    )
    return kept, certificate


def split_validation(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(train, validation): `share` of the examples, at most 64, chosen by the hash of their id, so it is stable.

    Raises UserError when none is left to train on.
    """
    wanted = min(64, round(share * len(examples)))
    if examples and wanted >= len(examples):
        raise UserError(
            f"all {len(examples)} rows would be set aside for the validation loss: none is left to train on",
            where="validation_share",
            hint="lower --validation-share",
        )
    order = sorted(range(len(examples)), key=lambda i: sha256_text(f"{seed}:{examples[i].id}"))
    chosen = set(order[:wanted])
    train = [e for i, e in enumerate(examples) if i not in chosen]
    return train, [e for i, e in enumerate(examples) if i in chosen]


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
