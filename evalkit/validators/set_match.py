"""`set`: the same members, in any order."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.json_schema import canonical
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, NotJsonError, only_calls, shown, strict_json
from tunegate.evalkit.validators.exact_match import Normalisation, normalised

Member = tuple[str, object]


@dataclass(frozen=True, kw_only=True)
class SetMatch(Admitting):
    """A JSON list, or texts between `separator`s. partial: the score is F1 of the members in place of 0 or 1."""

    separator: str = ","
    normalize: tuple[Normalisation, ...] = ("strip",)
    ordered: bool = False
    partial: bool = False
    kind: ClassVar[str] = "set"

    def __post_init__(self) -> None:
        if not self.separator:
            raise UserError(
                "an empty text cannot stand between members",
                where=f"{self.name} separator",
                hint='leave the key out for ",", or name the text between them',
            )

    def check_row(self, row: Row) -> None:
        """The expected members must stand in a text."""
        self.refuse_calls(row)

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the members are the same; a member that stands twice counts once unless `ordered`.

        With `ordered`, F1 counts what both have in the same order: the right members in a wrong order are no full score.
        """
        if (calls := only_calls(answer)) is not None:
            return calls
        try:
            got = self._counted(self._of_text(answer.text))
        except RecursionError:
            return Verdict.no("nested too deeply to compare", "wrong_value")
        best: tuple[float, str] = (-1.0, "the row accepts nothing")
        for value in self.admissible(row):
            expected = self._counted(self._of_list(value) if isinstance(value, list) else self._of_text(str(value)))
            lacking, extra = Counter(expected) - Counter(got), Counter(got) - Counter(expected)
            if not lacking and not extra and (got == expected or not self.ordered):
                return Verdict.yes() if expected else _empty(answer)
            reason = f"missing {_shown(lacking)}, too many {_shown(extra)}" if lacking or extra else "in another order"
            best = max(best, (self._f1(expected, got), reason))
        if not answer.text.strip():
            return Verdict.unparsable("the answer is empty")
        return Verdict.no(best[1], "wrong_value", score=max(0.0, best[0]) if self.partial else 0.0)

    def _f1(self, expected: list[Member], got: list[Member]) -> float:
        shared = common_in_order(expected, got) if self.ordered else len(set(expected) & set(got))
        return 2.0 * shared / max(1, len(expected) + len(got))

    def _counted(self, members: list[Member]) -> list[Member]:
        return members if self.ordered else list(dict.fromkeys(members))

    def _of_text(self, text: str) -> list[Member]:
        try:
            value = strict_json(text)
        except NotJsonError:
            value = None
        if isinstance(value, list):
            return self._of_list(value)
        parts = (normalised(part, self.normalize) for part in text.split(self.separator))
        return [("text", part) for part in parts if part]

    def _of_list(self, values: list[Any]) -> list[Member]:
        return [canonical(normalised(v, self.normalize) if isinstance(v, str) else v) for v in values]


def _empty(answer: Answer) -> Verdict:
    """Pass for an answer that says that there is nothing: whole, and where nothing tells how it ended not a mere lack of text."""
    if answer.unfinished:
        return Verdict.unparsable(f"no members, but the answer is no whole one: {answer.unfinished}")
    if answer.end is None and not answer.text.strip():
        return Verdict.unparsable(
            "the answer is empty, and nothing says that it ended by itself: [] would be no members"
        )
    return Verdict.yes()


def common_in_order(expected: list[Member], got: list[Member]) -> int:
    """Length of the longest common subsequence; a bit for each expected member, so that a long answer costs little
    (Hyyro 2004: a zero in `row` is a member that the subsequence gains)."""
    places: dict[Member, int] = {}
    for index, member in enumerate(expected):
        places[member] = places.get(member, 0) | 1 << index
    row = full = (1 << len(expected)) - 1
    for member in got:
        met = row & places.get(member, 0)
        row = ((row + met) | (row - met)) & full
    return len(expected) - row.bit_count()


def _shown(members: Counter[Member]) -> str:
    return shown([member[1] for member in members.elements()])
