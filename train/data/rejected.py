"""Why a row is in `rejected.jsonl`: the reasons are an enumeration, and each row says where it came from."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tunegate.core.rows import Row
from tunegate.train.data.lines import Fault


class Reason(StrEnum):
    """The reasons; the values are what `rejected.jsonl` and `--json` say."""

    MALFORMED = "malformed"
    DUPLICATE_ID = "duplicate_id"
    DUPLICATE_EXACT = "duplicate_exact"
    DUPLICATE_NORMALIZED = "duplicate_normalized"
    DUPLICATE_NEAR = "duplicate_near"
    LEAKS_EVAL = "leaks_eval"
    TOO_LONG = "too_long"
    TOO_SHORT = "too_short"
    INVALID_OUTPUT = "invalid_output"
    SECRET = "secret"  # noqa: S105
    REFUSAL = "refusal"


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One row that is neither in train nor in eval.

    kept: id of the row that is kept in its place or that it leaks. rule: the rule that decided, score: its value.
    """

    reason: Reason
    file: str
    line: int
    row: dict[str, Any] | None = None
    text: str | None = None
    message: str | None = None
    kept: str | None = None
    rule: str | None = None
    score: float | None = None

    @staticmethod
    def of(row: Row, reason: Reason, **details: Any) -> "Rejected":
        """A row with its place."""
        return Rejected(reason=reason, file=row.file, line=row.line, row=row.to_json(), **details)

    @staticmethod
    def fault(fault: Fault) -> "Rejected":
        """A line that is no row: its text instead."""
        return Rejected(
            reason=Reason.MALFORMED, file=fault.file, line=fault.line, text=fault.text, message=fault.error.line()
        )

    def to_json(self) -> dict[str, Any]:
        """The line of `rejected.jsonl`; what is absent is left out."""
        details = {"message": self.message, "kept": self.kept, "rule": self.rule, "score": self.score}
        content = {"row": self.row} if self.row is not None else {"text": self.text}
        place = {"reason": str(self.reason), "file": self.file, "line": self.line}
        return {**place, **{key: value for key, value in details.items() if value is not None}, **content}


def tally(rejected: Iterable[Rejected]) -> dict[str, int]:
    """How many rows went for each reason, in the order of the enumeration; reasons without rows are left out."""
    counts = Counter(item.reason for item in rejected)
    return {str(reason): counts[reason] for reason in Reason if counts[reason]}
