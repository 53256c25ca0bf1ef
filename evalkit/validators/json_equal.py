"""`json_equal`: the same JSON value, field by field; says which field, what was expected and what came."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.json_schema import canonical, pointer
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import NotJsonError, Validator, admissible, place, shown, strict_json

MISSING = object()
Path = tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One place where two JSON values differ; `MISSING` stands for a key or item that is not there."""

    pointer: str
    expected: Any
    got: Any

    @property
    def cause(self) -> str:
        """The kind of difference, for grouping."""
        return "missing_field" if self.got is MISSING else "extra_field" if self.expected is MISSING else "wrong_field"

    def __str__(self) -> str:
        expected = "nothing" if self.expected is MISSING else shown(self.expected)
        got = "nothing" if self.got is MISSING else shown(self.got)
        return f"{self.pointer or 'the whole'}: expected {expected}, got {got}"


def differences(
    expected: Any, got: Any, *, ignore: frozenset[str] = frozenset(), at: Path = ()
) -> Iterator[Difference]:
    """Where `got` differs from `expected`. The order of keys plays no part; null is not a missing key; true is not 1;
    1 is 1.0; lists are compared by position."""
    here = pointer(at)
    if here in ignore:
        return
    if isinstance(expected, dict) and isinstance(got, dict):
        for key in [*expected, *(k for k in got if k not in expected)]:
            yield from differences(expected.get(key, MISSING), got.get(key, MISSING), ignore=ignore, at=(*at, key))
    elif isinstance(expected, list) and isinstance(got, list):
        for index in range(max(len(expected), len(got))):
            one = expected[index] if index < len(expected) else MISSING
            two = got[index] if index < len(got) else MISSING
            yield from differences(one, two, ignore=ignore, at=(*at, index))
    elif expected is MISSING or got is MISSING or canonical(expected) != canonical(got):
        yield Difference(pointer=here, expected=expected, got=got)


def leaves(value: Any) -> int:
    """Number of values that are not themselves objects or lists; an empty one counts as a value."""
    children = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return sum(leaves(child) for child in children) or 1


@dataclass(frozen=True, kw_only=True)
class JsonEqual(Validator):
    """Equal to one of the row's `accept`, else to the expected answer.

    ignore: JSON pointers left out. partial: the score is the share of expected fields that are right, in place of 0 or 1.
    """

    ignore: tuple[str, ...] = ()
    partial: bool = False
    kind: ClassVar[str] = "json_equal"

    def check_row(self, row: Row) -> None:
        """What is expected must be JSON."""
        try:
            self._expected(row)
        except NotJsonError as error:
            raise UserError(f"the expected answer is not JSON: {error}", where=place(row)) from None

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the values are equal; else the nearest admissible value's differences."""
        try:
            got = strict_json(answer.text)
        except NotJsonError as error:
            return Verdict.unparsable(str(error))
        try:
            expected = self._expected(row)
            found = [list(differences(value, got, ignore=frozenset(self.ignore))) for value in expected]
        except RecursionError:
            return Verdict.no("nested too deeply to compare", "wrong_field")
        best = min(range(len(found)), key=lambda index: len(found[index]), default=None)
        if best is None:
            return Verdict.no("the row accepts nothing", "wrong_field")
        if not found[best]:
            return Verdict.yes()
        total = max(leaves(expected[best]), len(found[best]))
        score = 1.0 - len(found[best]) / total if self.partial else 0.0
        more = f" (and {len(found[best]) - 2} more)" if len(found[best]) > 2 else ""
        return Verdict.no("; ".join(map(str, found[best][:2])) + more, found[best][0].cause, score=score)

    def _expected(self, row: Row) -> list[Any]:
        """The admissible values; a text among them is JSON, as the model writes it."""
        return [strict_json(value) if isinstance(value, str) else value for value in admissible(row)]
