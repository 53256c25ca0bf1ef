"""`json_schema`: JSON that a schema allows. No model is asked; the draft is the one that `$schema` names."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.core.json_schema import Checker, SchemaBoundsError, checker
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import NotJsonError, Validator, place, strict_json


@functools.lru_cache(maxsize=64)
def _schema_file(path: Path) -> Any:
    return read_json(path, strict=True)


@dataclass(frozen=True, kw_only=True)
class JsonSchema(Validator):
    """schema: a file (JSON), or the schema itself; without it the row's own `schema` is taken."""

    schema: dict[str, Any] | Path | None = None
    kind: ClassVar[str] = "json_schema"

    def __post_init__(self) -> None:
        if self.schema is not None:
            self._fixed()

    def check_row(self, row: Row) -> None:
        """There must be a schema, it must be one, and it must come to an end on the expected answer."""
        try:
            expected = strict_json(row.expected)
        except NotJsonError:
            expected = None
        self.checker(row).violations(expected)

    def checker(self, row: Row) -> Checker:
        """The schema that judges this row. Raises UserError."""
        if self.schema is not None:
            return self._fixed()
        if row.schema is None:
            raise UserError(
                'no "schema" in the row, and none in the task',
                where=place(row),
                hint=f"give {self.name} a schema: file.json",
            )
        return checker(row.schema, f"{place(row)} /schema" if row.file else "schema")

    def _fixed(self) -> Checker:
        if isinstance(self.schema, Path):
            return checker(_schema_file(self.schema), str(self.schema))
        assert self.schema is not None
        return checker(self.schema, f"{self.name} schema")

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the answer is JSON and the schema has no complaint."""
        try:
            value = strict_json(answer.text)
        except NotJsonError as error:
            return Verdict.unparsable(str(error))
        try:
            violations = self.checker(row).violations(value)
        except SchemaBoundsError as error:
            return Verdict.no(error.message, "schema_invalid")
        if not violations:
            return Verdict.yes()
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        return Verdict.no(f"{first.pointer or 'the whole'}: {first.message}{more}", "schema_invalid")
