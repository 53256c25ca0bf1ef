"""Row by row: what is too long, too short, a secret or an answer that is not what the set claims. Off unless asked for."""

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from tunegate.core.errors import UserError, one_of
from tunegate.core.rows import Row
from tunegate.train.data.check import MIN_OUTPUT_TOKENS, check_row, claims_json, secret_places, short_outputs_matter
from tunegate.train.data.rejected import Reason, Rejected
from tunegate.train.data.secrets import mask_in, masked, secrets_in
from tunegate.train.data.tokens import Size, Sizer

# Keys of a row that are looked at by nobody: other rows name a group or a tool by the same text.
NOT_MASKED = ("id", "group", "schema", "tools")


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """What is removed or masked beyond duplicates; everything is only reported by default."""

    max_length: int | None = None
    """tokens a row may have with the chat template's marks; longer ones are reported"""
    drop_long: bool = False
    """remove rows over max_length"""
    min_output_tokens: int | None = None
    """remove train rows whose answer is shorter, in tokens"""
    drop_invalid: bool = False
    """remove train rows whose answer is not JSON in a set of JSON answers, or breaks its schema"""
    drop_refusals: bool = False
    """remove train rows whose answer refuses or speaks of itself as an AI"""
    secrets: str = "flag"
    """what happens to probable secrets and personal data in train rows: flag, mask or remove"""

    def __post_init__(self) -> None:
        if self.drop_long and self.max_length is None:
            raise UserError("needs --max-length", where="--drop-long")
        one_of("--secrets", self.secrets, ("flag", "mask", "remove"))
        for name in ("max_length", "min_output_tokens"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError("must be positive", where=f"--{name.replace('_', '-')}")


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """rejected: rows removed. findings: counts by code, of rows kept. notes: one line each."""

    rejected: list[Rejected]
    findings: dict[str, int]
    notes: list[str]


def clean(
    train: Sequence[Row], held_out: Sequence[Row], config: CleanConfig, sizer: Sizer
) -> tuple[list[Row], Cleaned]:
    """Train rows that stay (masked where asked for) and what was found. Eval rows are counted and never removed."""
    rows, removed = drop(train, config, sizer)
    measured = measure(rows, held_out, config, sizer)
    return rows, replace(measured, rejected=removed.rejected, notes=[*removed.notes, *measured.notes])


def drop(train: Sequence[Row], config: CleanConfig, sizer: Sizer) -> tuple[list[Row], Cleaned]:
    """Train rows without those the settings remove, secrets masked where asked for; no findings yet."""
    rejected: list[Rejected] = []
    notes: list[str] = []
    rows = _by_content(train, config, rejected)
    if config.secrets == "mask":
        rows, notes = _mask_all(rows)
    rows = _by_length(rows, config, sizer, rejected)
    if config.secrets != "flag":
        notes += _left(rows, config.secrets)
    return rows, Cleaned(rejected=rejected, findings={}, notes=notes)


def measure(train: Sequence[Row], held_out: Sequence[Row], config: CleanConfig, sizer: Sizer) -> Cleaned:
    """What the lengths of the rows that stay give to report."""
    findings: Tally[str] = Tally()
    notes: list[str] = []
    if short_outputs_matter(train)[0]:
        findings["short_output"] = sum(size.answer < MIN_OUTPUT_TOKENS for size in sizer.of(train))
    most = config.max_length
    sides = [sizer.of(train), sizer.of(held_out)] if most is not None or sizer.counter.template else []
    findings["template"] = sum(size.refused or size.calls_left_out for side in sides for size in side)
    if most is not None:
        over = [sum(size.total > most for size in side) for side in sides]
        findings["too_long"] = sum(over)
        findings["untrainable"] = sum(untrainable(size, most) for size in sides[0])
        notes.append(
            f"{sum(over)} rows over --max-length {most} stay in the files, {over[0]} in train and {over[1]} in eval "
            f"(tokens by {sizer.counter.whole_source})."
        )
    return Cleaned(rejected=[], findings={k: v for k, v in sorted(findings.items()) if v}, notes=notes)


def untrainable(size: Size, max_length: int) -> bool:
    """Whether a row cut at `max_length` tokens would have nothing of its answer left to learn."""
    return size.prompt >= min(max_length, size.total)


def _by_content(rows: Sequence[Row], config: CleanConfig, rejected: list[Rejected]) -> list[Row]:
    """Without the rows whose findings are to be removed."""
    reasons: dict[str, Reason] = {}
    if config.drop_invalid:
        reasons |= dict.fromkeys(("invalid_json", "schema"), Reason.INVALID_OUTPUT)
    if config.drop_refusals:
        reasons |= dict.fromkeys(("refusal", "boilerplate"), Reason.REFUSAL)
    if config.secrets == "remove":
        reasons |= dict.fromkeys(("secret", "personal_data"), Reason.SECRET)
    if not reasons:
        return list(rows)
    kept = []
    claims = claims_json(rows)
    for row in rows:
        found = next((f for f in check_row(row, claims_json=claims) if f.code in reasons), None)
        if found is None:
            kept.append(row)
        else:
            message = f"{found.pointer}: {found.message}"
            rejected.append(Rejected.of(row, reasons[found.code], rule=found.code, message=message))
    return kept


def _by_length(rows: list[Row], config: CleanConfig, sizer: Sizer, rejected: list[Rejected]) -> list[Row]:
    """Without rows that are over the length asked for, or whose answer is under it."""
    if not config.drop_long and config.min_output_tokens is None:
        return rows
    kept = []
    for row, size in zip(rows, sizer.of(rows), strict=True):
        if config.drop_long and config.max_length is not None and size.total > config.max_length:
            rule = f"over {config.max_length} tokens by {sizer.counter.whole_source}"
            rejected.append(Rejected.of(row, Reason.TOO_LONG, rule=rule, score=float(size.total)))
        elif config.min_output_tokens is not None and size.answer < config.min_output_tokens:
            rule = f"answer under {config.min_output_tokens} tokens by {sizer.counter.source}"
            rejected.append(Rejected.of(row, Reason.TOO_SHORT, rule=rule, score=float(size.answer)))
        else:
            kept.append(row)
    return kept


def _mask_all(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows with every stretch masked in messages, admissible outputs, tags and unknown keys; what to say of it."""
    total = broken = 0
    done = []
    for row in rows:
        places = secret_places(row)
        if not any(secrets_in(places)):
            done.append(row)
            continue
        hidden, count, no_json = mask_in(places)
        total += count
        turns = [int(where.split("/")[2]) for where in no_json if where.startswith("/messages/")]
        broken += any(row.messages[turn]["role"] == "assistant" for turn in turns)
        known = {key: hidden.pop(key) for key in ("accept", "tags")}
        messages = tuple(hidden.pop("messages"))
        done.append(msgspec.structs.replace(row, messages=messages, extra=hidden, **known))
    notes = [f"{total} stretches masked in train (messages, accept, tags, other keys)."] if total else []
    if broken:
        notes.append(f"{broken} answers are no JSON any more: a number in them was masked.")
    return done, notes


def hidden(item: Rejected) -> Rejected:
    """A rejected row, or the text of a line that is none, with secrets masked where `_mask_all` masks them."""
    text, message = (None if value is None else masked(value)[0] for value in (item.text, item.message))
    row = item.row
    if row is not None:
        row = {**row, **mask_in({key: value for key, value in row.items() if key not in NOT_MASKED})[0]}
    return replace(item, row=row, text=text, message=message)


def hidden_pair(pair: dict[str, Any]) -> dict[str, Any]:
    """A line of `pairs.jsonl` with secrets masked in the texts of both rows."""
    return {
        key: {**value, **{name: masked(value[name])[0] for name in ("input", "answer")}} if key in ("a", "b") else value
        for key, value in pair.items()
    }


def _left(rows: Sequence[Row], secrets: str) -> list[str]:
    """What to say of the stretches where none is masked and none is a reason to remove a row: other rows name a group or a
    tool by the same text."""
    places = ({key: getattr(row, key) for key in NOT_MASKED} for row in rows)
    left = sum(any(secrets_in(place)) for place in places)
    done = "masked" if secrets == "mask" else "looked at"
    text = f"{left} train rows still hold such a stretch in id, group, schema or tools, which are not {done}."
    return [text] if left else []
