"""Row by row: what is too long, too short, a secret or an answer that is not what the set claims. Off unless asked for."""

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.train.data.check import MIN_OUTPUT_TOKENS, check_row, claims_json, short_outputs_matter
from tunegate.train.data.rejected import Reason, Rejected
from tunegate.train.data.secrets import masked
from tunegate.train.data.tokens import Counter, lengths

# What the chat template adds, in tokens a turn (ChatML: <|im_start|>role newline ... <|im_end|> newline).
TEMPLATE_TOKENS_PER_TURN = 5


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
        if self.secrets not in ("flag", "mask", "remove"):
            raise UserError("must be flag, mask or remove", where="--secrets")
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
    train: Sequence[Row], held_out: Sequence[Row], config: CleanConfig, counter: Counter
) -> tuple[list[Row], Cleaned]:
    """Train rows that stay (masked where asked for) and what was found. Eval rows are counted and never removed."""
    rejected: list[Rejected] = []
    findings: Tally[str] = Tally()
    notes: list[str] = []
    rows = _by_content(train, config, rejected)
    if config.secrets == "mask":
        rows, count = _mask_all(rows)
        notes += [f"{count} stretches masked in train"] if count else []
    rows = _by_length(rows, config, counter, rejected, findings)
    if config.max_length is not None:
        over = sum(
            sum(pair) + _marks(row) > config.max_length
            for row, pair in zip(held_out, lengths(held_out, counter), strict=True)
        )
        findings["too_long"] += over
        how = "" if counter.exact else f" ({counter.source})"
        notes.append(f"{findings['too_long']} rows over {config.max_length} tokens stay, {over} of them in eval{how}")
    return rows, Cleaned(rejected=rejected, findings={k: v for k, v in sorted(findings.items()) if v}, notes=notes)


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


def _by_length(
    rows: list[Row], config: CleanConfig, counter: Counter, rejected: list[Rejected], findings: Tally[str]
) -> list[Row]:
    if config.max_length is None and config.min_output_tokens is None and not short_outputs_matter(rows)[0]:
        return rows
    kept = []
    matter = short_outputs_matter(rows)[0]
    for row, (given, answer) in zip(rows, lengths(rows, counter), strict=True):
        total = given + answer + _marks(row)
        long = config.max_length is not None and total > config.max_length
        if long and config.drop_long:
            rule = f"over {config.max_length} tokens by {counter.source}"
            rejected.append(Rejected.of(row, Reason.TOO_LONG, rule=rule, score=float(total)))
        elif config.min_output_tokens is not None and answer < config.min_output_tokens:
            rule = f"answer under {config.min_output_tokens} tokens by {counter.source}"
            rejected.append(Rejected.of(row, Reason.TOO_SHORT, rule=rule, score=float(answer)))
        else:
            findings["too_long"] += long
            findings["short_output"] += matter and answer < MIN_OUTPUT_TOKENS
            kept.append(row)
    return kept


def _marks(row: Row) -> int:
    return TEMPLATE_TOKENS_PER_TURN * len(row.messages)


def _mask_all(rows: Sequence[Row]) -> tuple[list[Row], int]:
    total = 0
    done = []
    for row in rows:
        messages = []
        for turn in row.messages:
            text, count = masked(turn["content"]) if isinstance(turn.get("content"), str) else (None, 0)
            messages.append({**turn, "content": text} if count else turn)
            total += count
        done.append(replace(row, messages=tuple(messages)))
    return done, total
