"""`json_equal`: the same JSON value, field by field; says which field, what was expected and what came."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.json_schema import canonical, pointer
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, NotJsonError, place, shown, strict_json

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


def leaves(value: Any, *, ignore: frozenset[str] = frozenset(), at: str = "") -> int:
    """Number of values below the pointer `at` that are not themselves objects or lists and not ignored; an object or list
    in which nothing is left counts as one value."""
    if at in ignore:
        return 0
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return sum(leaves(child, ignore=ignore, at=at + pointer((key,))) for key, child in children) or 1


def share_right(expected: Any, found: list[Difference], ignore: frozenset[str]) -> float:
    """The expected fields that are right, less one for each that is too many, over the expected fields; at least 0."""
    lost = sum(1 if d.expected is MISSING else leaves(d.expected, ignore=ignore, at=d.pointer) for d in found)
    return max(0.0, 1.0 - lost / max(1, leaves(expected, ignore=ignore)))


@dataclass(frozen=True, kw_only=True)
class JsonEqual(Admitting):
    """Equal to one of `accept`, else to the expected answer.

    ignore: JSON pointers left out. partial: the score is the share of expected fields that are right, in place of 0 or 1.
    """

    ignore: tuple[str, ...] = field(default=(), metadata={"items": {"type": "string", "pattern": "^/"}})
    partial: bool = False
    kind: ClassVar[str] = "json_equal"

    def __post_init__(self) -> None:
        for index, at in enumerate(self.ignore):
            if not at.startswith("/"):
                raise UserError(
                    f"{at!r} is no JSON pointer to a field, so nothing would be left out",
                    where=f"{self.name} ignore[{index}]",
                    hint=f"write /{at}" if at else "write /field",
                )

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
        ignore = frozenset(self.ignore)
        try:
            compared = [(value, list(differences(value, got, ignore=ignore))) for value in self._expected(row)]
            found = min((found for _, found in compared), key=len, default=None)
            score = max((share_right(*pair, ignore) for pair in compared), default=0.0) if self.partial else 0.0
        except RecursionError:
            return Verdict.no("nested too deeply to compare", "wrong_field")
        if found is None:
            return Verdict.no("the row accepts nothing", "wrong_field")
        if not found:
            return Verdict.yes()
        more = f" (and {len(found) - 2} more)" if len(found) > 2 else ""
        return Verdict.no("; ".join(map(str, found[:2])) + more, found[0].cause, score=score)

    def _expected(self, row: Row) -> list[Any]:
        """The admissible values; a text among them is JSON, as the model writes it."""
        return [strict_json(value) if isinstance(value, str) else value for value in self.admissible(row)]
