"""`any_of`: one of the admissible texts."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, only_calls, place, shown
from tunegate.evalkit.validators.exact_match import Normalisation, normalised


@dataclass(frozen=True, kw_only=True)
class AnyOf(Admitting):
    """Equal to one of `values` (or `accept`), else of the row's `accept`, else to the expected answer."""

    values: tuple[str, ...] = ()
    normalize: tuple[Normalisation, ...] = ("strip",)
    kind: ClassVar[str] = "any_of"

    def check_row(self, row: Row) -> None:
        """Every admissible value must be text."""
        if not self.values:
            self.refuse_calls(row)
        if any(not isinstance(value, str) for value in self._values(row)):
            raise UserError(f'any_of needs texts in "accept", found {shown(self._values(row))}', where=place(row))

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the text is among the admissible ones."""
        if (calls := only_calls(answer)) is not None:
            return calls
        got = normalised(answer.text, self.normalize)
        if any(got == normalised(value, self.normalize) for value in self._values(row)):
            return Verdict.yes()
        if not answer.text.strip():
            return Verdict.unparsable("the answer is empty")
        return Verdict.no(f"expected one of {shown(self._values(row))}, got {shown(answer.text)}", "wrong_value")

    def _values(self, row: Row) -> list[Any]:
        return list(self.values) or self.admissible(row)
