"""`tool_call`: the right function with admissible arguments.

The answer is one JSON object `{"name", "arguments"}`, or the endpoint's own tool calls. What is admissible is the row's
`accept`, in one of two forms: whole calls, or a set of admissible values for each argument with the rules of the
Berkeley Function Calling Leaderboard (Patil et al. 2025, `ast_checker`): texts are compared without case, spaces and the
marks , . / - _ * ^; a whole number does for a fraction; "" among the values means that the argument may be left out.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tunegate.core.errors import UserError
from tunegate.core.json_schema import canonical
from tunegate.core.rows import Row
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import NotJsonError, Validator, place, shown, strict_json
from tunegate.evalkit.validators.json_equal import Difference, differences

_LOOSE = re.compile(r"[ ,./\-_*^]")
Problem = tuple[str, str]  # reason, cause


@dataclass(frozen=True, kw_only=True)
class ToolCall(Validator):
    """form: `whole` calls, admissible `sets` for each argument, or `auto`: sets where every argument holds a list and the
    expected answer is not itself among the calls."""

    form: Literal["auto", "whole", "sets"] = "auto"
    kind: ClassVar[str] = "tool_call"

    def check_row(self, row: Row) -> None:
        """There must be calls to compare with, each with name and arguments."""
        try:
            calls = self._admissible(row)
        except NotJsonError as error:
            raise UserError(f"the expected answer is not a tool call: {error}", where=place(row)) from None
        if not calls:
            raise UserError('"accept" is empty: nothing could be right', where=place(row))

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the call is admissible; else the reason of the nearest admissible call."""
        try:
            got = called(answer)
        except NotJsonError as error:
            return Verdict.unparsable(str(error))
        problems: list[list[Problem]] = []
        for expected in self._admissible(row):
            found = self._problems(expected, got, row)
            if not found:
                return Verdict.yes()
            problems.append(found)
        reason, cause = min(problems, key=lambda found: (found[0][1] == "wrong_function", len(found)))[0]
        return Verdict.no(reason, cause)

    def _problems(self, expected: dict[str, Any], got: dict[str, Any], row: Row) -> list[Problem]:
        if expected["name"] != got["name"]:
            return [(f"expected the function {expected['name']!r}, got {shown(got['name'])}", "wrong_function")]
        if self._as_sets(expected["arguments"], row):
            return list(argument_problems(expected["arguments"], got["arguments"]))
        return [(str(d), d.cause) for d in differences(expected["arguments"], got["arguments"], at=("arguments",))]

    def _as_sets(self, arguments: dict[str, Any], row: Row) -> bool:
        if self.form != "auto":
            return self.form == "sets"
        if not arguments or not all(isinstance(values, list) for values in arguments.values()):
            return False
        try:
            own = call_of(strict_json(row.expected))
        except NotJsonError:
            return True
        return bool(canonical(own["arguments"]) != canonical(arguments))

    def _admissible(self, row: Row) -> list[dict[str, Any]]:
        if row.accept is not None:
            return [_accepted(strict_json(value) if isinstance(value, str) else value) for value in row.accept]
        own = row.messages[-1].get("tool_calls")
        return [call_of(own[0])] if own else [call_of(strict_json(row.expected))]


def called(answer: Answer) -> dict[str, Any]:
    """The one call an answer makes. Raises NotJsonError with the reason when it makes none, or several."""
    if answer.tool_calls:
        if len(answer.tool_calls) != 1:
            raise NotJsonError(f"{len(answer.tool_calls)} tool calls, one is expected")
        return call_of(answer.tool_calls[0])
    return call_of(strict_json(answer.text))


def call_of(value: Any) -> dict[str, Any]:
    """`{"name", "arguments"}` from that object or from an OpenAI tool call. Raises NotJsonError when it is neither."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "arguments" not in value:
        raise NotJsonError(f'not an object with "name" and "arguments": {shown(value, 80)}')
    if extra := [key for key in value if key not in ("name", "arguments")]:
        raise NotJsonError(f"keys beside name and arguments: {shown(extra, 80)}")
    arguments = value["arguments"]
    if isinstance(arguments, str):
        arguments = strict_json(arguments)
    if not isinstance(arguments, dict):
        raise NotJsonError(f"arguments is not an object: {shown(arguments, 80)}")
    return {"name": value["name"], "arguments": arguments}


def _accepted(value: Any) -> dict[str, Any]:
    """An admissible call; BFCL's own `{function: {argument: [...]}}` is read too."""
    if (
        isinstance(value, dict)
        and len(value) == 1
        and "function" not in value
        and isinstance(arguments := next(iter(value.values())), dict)
    ):
        value = {"name": next(iter(value)), "arguments": arguments}
    return call_of(value)


def argument_problems(sets: dict[str, Any], got: dict[str, Any]) -> Iterator[Problem]:
    """Arguments that are none of their admissible values, lacking, or too many."""
    for key in [*sets, *(k for k in got if k not in sets)]:
        at = f"/arguments/{key}"
        if key not in sets:
            yield f"{at}: unknown argument, got {shown(got[key])}", "extra_field"
        elif key not in got:
            if "" not in _listed(sets[key]):
                yield f"{at}: missing, expected one of {shown(sets[key])}", "missing_field"
        elif not any(_equal(value, got[key]) for value in _listed(sets[key])):
            difference = Difference(pointer=at, expected=sets[key], got=got[key])
            yield f"{at}: expected one of {shown(sets[key])}, got {shown(got[key])}", difference.cause


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _equal(admissible: Any, got: Any) -> bool:
    """BFCL's comparison of one value; inside an object each key again holds a list of admissible values."""
    if isinstance(admissible, str) and isinstance(got, str):
        return _loose(admissible) == _loose(got)
    if isinstance(admissible, bool) or isinstance(got, bool):
        return admissible is got
    if isinstance(admissible, int | float) and isinstance(got, int | float):
        # a whole number for a fraction, not the other way round: 5.5 is never admissible where 5 is, and 5.0 equals 5
        return admissible == got
    if isinstance(admissible, list) and isinstance(got, list):
        return len(admissible) == len(got) and all(map(_equal, admissible, got))
    if isinstance(admissible, dict) and isinstance(got, dict):
        return not any(True for _ in argument_problems(admissible, got))
    return admissible is None and got is None


def _loose(text: str) -> str:
    return _LOOSE.sub("", text).lower().replace("'", '"')
