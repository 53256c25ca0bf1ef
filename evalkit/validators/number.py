"""`number`: a number within a tolerance, in decimal arithmetic."""

import re
from dataclasses import dataclass, field
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, localcontext
from typing import ClassVar, Literal

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, place, shown

# Whole or not at all (atomic): of `12.5kg` and `$1.5M` no 12 and no 1; of `12,50`, `1.234,56`, `1.2.3`, `1'000` and `1/2`, digits
# joined as no number here is, nothing.
_JOINT = "[,'\u2019/\u2044]"
# Thai, kana, Han and Hangul are written without blanks: a number may stand at once beside them, but for what multiplies it (`3万`).
_LETTER = "[^\\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
# One that is none is taken whole too, without the empty group at the end: so that a long row of groups is read once, not from each.
_NUMBER = re.compile(
    rf"(?<!{_LETTER})(?<!\.)((?:[-+][$€£¥₹]?|[$€£¥₹]|(?<!\d{_JOINT}))"
    r"(?>(?:\d{1,3}(?:[,\u00a0\u2009\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?>(?:[eE][-+]?\d{1,3})?))"
    rf"(?:(?!{_LETTER}|[十百千万亿億兆십백천만억조]|\.\d|{_JOINT}\d)()|)"
)
# As typesetters and many models write it.
_MINUS = str.maketrans(dict.fromkeys("\N{MINUS SIGN}\N{EN DASH}\N{FULLWIDTH HYPHEN-MINUS}", "-"))
_NO_PART = re.compile("[$€£¥₹,\u00a0\u2009\u202f]")


def numbers(text: str) -> list[Decimal]:
    """The numbers in a text, in order; commas, no-break and thin spaces between groups of three digits are read as
    thousands. A plain space is not: it stands between two numbers too. A sign may stand before a currency's; what letters
    follow at once (`5kg`) is none, nor are digits joined otherwise (`12,50`, `1.000.000`, `1/2`)."""
    found = _NUMBER.finditer(text.translate(_MINUS))
    return [Decimal(_NO_PART.sub("", match[1])) for match in found if match[2] is not None]


@dataclass(frozen=True, kw_only=True)
class Number(Admitting):
    """Within `abs_tolerance`, or `rel_tolerance` times the expected value's size.

    which: `only` takes an answer with exactly one number, `first` and `last` choose one of several.
    """

    abs_tolerance: float = field(default=0.0, metadata={"minimum": 0})
    rel_tolerance: float = field(default=0.0, metadata={"minimum": 0})
    which: Literal["only", "first", "last"] = "last"
    kind: ClassVar[str] = "number"

    def check_row(self, row: Row) -> None:
        """The expected answer must hold a number, and only one where the rule is `only`."""
        values = self.admissible(row)
        if any(self._read(str(value)) is not None for value in values):
            return
        if any(numbers(str(value)) for value in values):
            raise UserError(
                f"the expected answer holds several numbers: {shown(row.expected)}",
                where=place(row),
                hint=f"give {self.name} which: first or which: last",
            )
        raise UserError(
            f"the expected answer holds no number: {shown(row.expected)}",
            where=place(row),
            hint="write 1234.5 or 1,234.5, with a space before a unit",
        )

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the number is near enough to an admissible one; both texts are read by the same rule."""
        got = self._read(answer.text)
        if got is None:
            return Verdict.unparsable(f"{len(numbers(answer.text))} numbers in {shown(answer.text)}")
        for value in self.admissible(row):
            expected = self._read(str(value))
            if expected is not None and self._near(got, expected):
                return Verdict.yes()
        text = str(got)
        text = text if len(text) <= 120 else f"{text[:20]}… of {len(text)} characters"
        return Verdict.no(f"expected {shown(row.expected)}, got {text}", "wrong_value")

    def _near(self, got: Decimal, expected: Decimal) -> bool:
        """Whether two numbers, of as many digits as may be, lie within a tolerance."""
        with localcontext(Context(Emax=MAX_EMAX, Emin=MIN_EMIN)):
            relative = Decimal(str(self.rel_tolerance)) * abs(expected)
            return abs(got - expected) <= max(Decimal(str(self.abs_tolerance)), relative)

    def _read(self, text: str) -> Decimal | None:
        """The number that `which` takes from a text; None where there is none to take."""
        found = numbers(text)
        if not found or (self.which == "only" and len(found) != 1):
            return None
        return found[0 if self.which == "first" else -1]
