"""`number`: a number within a tolerance, in decimal arithmetic."""

import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, Literal

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Validator, admissible, place, shown

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,3})?(?![\w])|(?<![\w.])[-+]?\.\d+(?![\w])"
)


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in order; commas between groups of three digits are read as thousands."""
    return [Decimal(match.replace(",", "")) for match in _NUMBER.findall(text[:100_000])]


@dataclass(frozen=True, kw_only=True)
class Number(Validator):
    """Within `abs_tolerance`, or `rel_tolerance` times the expected value's size.

    which: `only` takes an answer with exactly one number, `first` and `last` choose one of several.
    """

    abs_tolerance: float = field(default=0.0, metadata={"minimum": 0})
    rel_tolerance: float = field(default=0.0, metadata={"minimum": 0})
    which: Literal["only", "first", "last"] = "last"
    kind: ClassVar[str] = "number"

    def check_row(self, row: Row) -> None:
        """The expected answer must hold a number."""
        if not any(numbers(str(value)) for value in admissible(row)):
            raise UserError(f"the expected answer holds no number: {shown(row.expected)}", where=place(row))

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the number is near enough to an admissible one."""
        found = numbers(answer.text)
        if not found or (self.which == "only" and len(found) != 1):
            return Verdict.unparsable(f"{len(found)} numbers in {shown(answer.text)}")
        got = found[0 if self.which == "first" else -1]
        for value in admissible(row):
            expected = numbers(str(value))[-1:]
            if expected and abs(got - expected[0]) <= max(
                Decimal(str(self.abs_tolerance)), Decimal(str(self.rel_tolerance)) * abs(expected[0])
            ):
                return Verdict.yes()
        return Verdict.no(f"expected {shown(row.expected)}, got {got}", "wrong_value")
