"""What every validator is: a name, a weight, its options as fields, and `judge`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from tunegate.core import profile
from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict


@dataclass(frozen=True, kw_only=True)
class Validator:
    """One way to judge an answer. name: its metric's name. weight: its share in the metric `weighted` (0: none)."""

    name: str
    weight: float = field(default=0.0, metadata={"minimum": 0})
    kind: ClassVar[str] = ""

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass or fail, a score from 0 to 1, and the reason."""
        raise NotImplementedError

    def code(self) -> tuple[Path, ...]:
        """Files whose content decides its verdicts, beyond its options."""
        return ()

    def facts(self) -> dict[str, Any]:
        """What was measured of the validator itself, for the report."""
        return {}

    def check_row(self, row: Row) -> None:
        """Raise UserError, with file and line, when this row cannot be judged this way; called before anything is asked."""


class NotJsonError(ValueError):
    """The text is not strict JSON."""


def strict_json(text: str) -> Any:
    """One JSON value and nothing else: no NaN, no key twice, only JSON's own blanks around it (RFC 8259, section 2: a no-break
    space is none). Raises NotJsonError with the reason."""
    try:
        return profile.strict_json(text)
    except UserError as error:
        raise NotJsonError(error.message if text.strip() else "the answer is empty") from None


def place(row: Row) -> str:
    """Where a row stands, for an error: `file:line`."""
    return f"{row.file}:{row.line}"


def refuse_calls(row: Row) -> None:
    """Raise UserError for a row whose expected answer is tool calls without a text: there is none to compare with."""
    if row.messages[-1].get("tool_calls") and not row.expected.strip():
        raise UserError(
            "the expected answer is tool calls, not a text",
            where=place(row),
            hint="kind: tool_call judges calls; with no_call: true also rows whose expected answer has none",
        )


def only_calls(answer: Answer) -> Verdict | None:
    """What a validator of texts says of an answer that calls tools and says nothing; None for any other."""
    if answer.tool_calls and not answer.text.strip():
        return Verdict.unparsable("the answer calls tools, a text is expected")
    return None


def shown(value: Any, limit: int = 120) -> str:
    """A value as JSON, cut to `limit` characters, for a reason."""
    import json

    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True, kw_only=True)
class Admitting(Validator):
    """A validator that compares with admissible outputs. accept: those of every row; without it the row's own `accept`, else
    its expected answer."""

    accept: tuple[Any, ...] | None = field(default=None, metadata={"minItems": 1})

    def admissible(self, row: Row) -> list[Any]:
        """The outputs that are right for this row."""
        given = self.accept if self.accept is not None else row.accept
        return [row.expected] if given is None else list(given)

    def refuse_calls(self, row: Row) -> None:
        """`refuse_calls` where the expected answer is what an answer is compared with."""
        if self.accept is None and row.accept is None:
            refuse_calls(row)
