"""`json`: one JSON value and nothing else."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import NotJsonError, Validator, strict_json

_TYPES: dict[str, type] = {"object": dict, "array": list}


@dataclass(frozen=True, kw_only=True)
class JsonValid(Validator):
    """Strict JSON (RFC 8259): no NaN, no key twice, no text around it. type: what the value must be."""

    type: Literal["any", "object", "array"] = "any"
    kind: ClassVar[str] = "json"

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the whole answer is one JSON value."""
        try:
            value = strict_json(answer.text)
        except NotJsonError as error:
            return Verdict.unparsable(str(error))
        if self.type != "any" and not isinstance(value, _TYPES[self.type]):
            return Verdict.no(f"the JSON is not an {self.type}", "schema_invalid")
        return Verdict.yes()
