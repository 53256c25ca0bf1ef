"""`set`: the same members, in any order."""

from dataclasses import dataclass
from typing import ClassVar

from tunegate.core.json_schema import canonical
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import NotJsonError, Validator, admissible, shown, strict_json
from tunegate.evalkit.validators.exact_match import Normalisation, normalised


@dataclass(frozen=True, kw_only=True)
class SetMatch(Validator):
    """A JSON list, or texts between `separator`s. partial: the score is F1 of the members in place of 0 or 1."""

    separator: str = ","
    normalize: tuple[Normalisation, ...] = ("strip",)
    ordered: bool = False
    partial: bool = False
    kind: ClassVar[str] = "set"

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the members are the same; a member that stands twice counts once unless `ordered`."""
        if not answer.text.strip():
            return Verdict.unparsable("the answer is empty")
        got = self._members(answer.text)
        best: tuple[float, str] = (-1.0, "")
        for value in admissible(row):
            expected = [canonical(v) for v in value] if isinstance(value, list) else self._members(str(value))
            if got == expected if self.ordered else set(got) == set(expected):
                return Verdict.yes()
            shared = len(set(got) & set(expected))
            f1 = 2.0 * shared / max(1, len(set(got)) + len(set(expected)))
            lacking, extra = set(expected) - set(got), set(got) - set(expected)
            reason = f"missing {shown([m[1] for m in lacking])}, too many {shown([m[1] for m in extra])}"
            best = max(best, (f1, "in another order" if not lacking and not extra else reason))
        return Verdict.no(best[1], "wrong_value", score=best[0] if self.partial else 0.0)

    def _members(self, text: str) -> list[tuple[str, object]]:
        try:
            value = strict_json(text)
        except NotJsonError:
            value = None
        if isinstance(value, list):
            return [canonical(normalised(v, self.normalize) if isinstance(v, str) else v) for v in value]
        parts = (normalised(part, self.normalize) for part in text.split(self.separator))
        return [("text", part) for part in parts if part]
