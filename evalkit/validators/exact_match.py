"""`exact_match`: the text, letter for letter, after the normalisations that the task names."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Validator, only_calls, refuse_calls, shown

Normalisation = Literal["strip", "case", "whitespace", "punctuation", "articles", "nfkc"]
_PUNCTUATION = r"[\p{P}$+<=>^`|~]"  # Unicode's, and what ASCII has beside it
_ARTICLES = r"(?i)\b(a|an|the)\b"


def _whitespace(text: str) -> str:
    return " ".join(text.split())


def _without(pattern: str, text: str) -> str:
    """`text` without what the pattern finds, no blank left behind: "cat." is "cat", "The cat" is "cat". A text of nothing else
    keeps it: the label "A" is not an empty answer, nor "+" the same as "-"."""
    import regex

    return _whitespace(regex.sub(pattern, " ", text)) or _whitespace(text)


STEPS: dict[str, Callable[[str], str]] = {
    "strip": str.strip,
    "case": str.casefold,
    "whitespace": _whitespace,
    "punctuation": lambda text: _without(_PUNCTUATION, text),
    "articles": lambda text: _without(_ARTICLES, text),
    "nfkc": lambda text: unicodedata.normalize("NFKC", text),
}


def normalised(text: str, steps: tuple[str, ...]) -> str:
    """`text` after the named steps, in the order given."""
    for step in steps:
        text = STEPS[step](text)
    return text


@dataclass(frozen=True, kw_only=True)
class ExactMatch(Validator):
    """Equal to the expected answer. normalize: steps applied to both sides, in order; by default only `strip`."""

    normalize: tuple[Normalisation, ...] = ("strip",)
    kind: ClassVar[str] = "exact_match"

    def check_row(self, row: Row) -> None:
        """The expected answer must be a text."""
        refuse_calls(row)

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when both texts are equal."""
        if (calls := only_calls(answer)) is not None:
            return calls
        if normalised(answer.text, self.normalize) == normalised(row.expected, self.normalize):
            return Verdict.yes()
        if not answer.text.strip():
            return Verdict.unparsable("the answer is empty")
        return Verdict.no(f"expected {shown(row.expected)}, got {shown(answer.text)}", "wrong_value")
