"""`regex`: what a pattern finds in the answer, compared with the expected answer, or the pattern alone."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, only_calls, shown
from tunegate.evalkit.validators.exact_match import Normalisation, normalised

SECONDS = 1.0  # of one pattern on one answer


@dataclass(frozen=True, kw_only=True)
class Regex(Admitting):
    """pattern: Python syntax. compare: what its first group that takes part (without groups the whole match) finds must
    equal the expected answer; when false it is enough that the pattern is found. which: the first or the last match."""

    pattern: str
    compare: bool = True
    which: Literal["first", "last"] = "first"
    normalize: tuple[Normalisation, ...] = ("strip",)
    kind: ClassVar[str] = "regex"

    def __post_init__(self) -> None:
        self.compiled()

    def compiled(self) -> Any:
        """The compiled pattern. Raises UserError when it is not one."""
        import regex

        try:
            return regex.compile(self.pattern)
        except (regex.error, OverflowError, RecursionError) as error:
            raise UserError(f"not a regular expression: {error}", where=f"{self.name} pattern") from None

    def check_row(self, row: Row) -> None:
        """What is compared with must be a text."""
        if self.compare:
            self.refuse_calls(row)

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the pattern is found and, with `compare`, what it finds is right."""
        if (calls := only_calls(answer)) is not None:
            return calls
        try:
            found = list(self.compiled().finditer(answer.text, timeout=SECONDS))
        except TimeoutError:
            return Verdict.unparsable(f"the pattern took longer than {SECONDS:g} s on this answer")
        if not found:
            return Verdict.unparsable(f"the pattern is not found in {shown(answer.text)}")
        if not self.compare:
            return Verdict.yes()
        match = found[0 if self.which == "first" else -1]
        parts = match.groups() if match.re.groups else (match.group(0),)
        got = next((part for part in parts if part is not None), "")
        if any(normalised(got, self.normalize) == normalised(str(v), self.normalize) for v in self.admissible(row)):
            return Verdict.yes()
        return Verdict.no(f"expected {shown(row.expected)}, found {shown(got)}", "wrong_value")
