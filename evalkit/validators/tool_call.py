"""`tool_call`: the right function with admissible arguments.

The answer is one JSON object `{"name", "arguments"}`, a list of them, or the endpoint's own tool calls. What is admissible is the row's
`accept`, each of it one call, in one of two forms: whole calls, or a set of admissible values for each argument with the
rules of the Berkeley Function Calling Leaderboard (Patil et al. 2025, `ast_checker`): texts are compared without case,
spaces and the marks , . / - _ * ^; a whole number does for a fraction; "" among the values means that the argument may be
left out. Without `accept` it is the expected turn's own calls, all of them: as many as are expected, in any order, each
expected one met by a given one of its own (the leaderboard's parallel rule).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from tunegate.core.errors import UserError
from tunegate.core.json_schema import canonical
from tunegate.core.rows import Row
from tunegate.evalkit.extract import tool_calls as calls_in_text
from tunegate.evalkit.outcomes import Answer, Verdict
from tunegate.evalkit.validators.base import Admitting, NotJsonError, place, shown, strict_json
from tunegate.evalkit.validators.json_equal import Difference, differences

_LOOSE = re.compile(r"[ ,./\-_*^]")
Call = dict[str, Any]  # name, arguments
Problem = tuple[str, str]  # reason, cause


@dataclass(frozen=True, kw_only=True)
class ToolCall(Admitting):
    """form: `whole` calls, admissible `sets` for each argument, or `auto`: sets where every argument holds a list and the
    expected answer is not itself among the row's calls. no_call: a row whose expected answer calls nothing passes when the
    answer calls nothing (its text is not judged); without it such rows are refused."""

    form: Literal["auto", "whole", "sets"] = "auto"
    no_call: bool = False
    kind: ClassVar[str] = "tool_call"

    def check_row(self, row: Row) -> None:
        """There must be calls to compare with, each with name and arguments."""
        try:
            admissible = self._calls(row)
        except NotJsonError as error:
            hint = "no_call: true takes rows whose expected answer calls nothing"
            raise UserError(f"the expected answer is not a tool call: {error}", where=place(row), hint=hint) from None
        if not admissible:
            raise UserError('"accept" is empty: nothing could be right', where=place(row))

    def judge(self, answer: Answer, row: Row) -> Verdict:
        """Pass when the calls are admissible; else the reason of the nearest admissible ones."""
        admissible = self._calls(row)
        if admissible == [[]]:
            return _calls_nothing(answer, row)
        try:
            got = calls_of(answer.tool_calls, answer.text)
        except NotJsonError as error:
            return Verdict.unparsable(str(error))
        try:
            sets = self._sets(admissible, row)
            problems = [self._all_problems(expected, got, sets) for expected in admissible]
        except RecursionError:
            return Verdict.no("nested too deeply to compare", "wrong_field")
        if not all(problems):
            return Verdict.yes()
        reason, cause = min(problems, key=_distance)[0]
        return Verdict.no(reason, cause)

    def _all_problems(self, expected: list[Call], got: list[Call], sets: bool) -> list[Problem]:
        """What keeps the given calls from being the expected ones; calls that do not match are compared with the nearest."""
        found = [[self._problems(one, two, sets) for two in got] for one in expected]
        met = matched([[i for i, problems in enumerate(line) if not problems] for line in found])
        lacking = [i for i in range(len(expected)) if i not in met]
        free = sorted(set(range(len(got))) - set(met.values()))
        problems: list[Problem] = []
        for _, one, two in sorted((_distance(found[one][two]), one, two) for one in lacking for two in free):
            if one in lacking and two in free:
                lacking.remove(one)
                free.remove(two)
                of = f"{expected[one]['name']}: " if len(expected) > 1 else ""
                problems += [(f"{of}{reason}", cause) for reason, cause in found[one][two]]
        counted = f"calls: {len(expected)} expected, got {len(got)}"
        if lacking:
            problems.insert(0, (f"{counted}; missing {_named([expected[i] for i in lacking])}", "missing_call"))
        if free:
            problems.insert(0, (f"{counted}; too many {_named([got[i] for i in free])}", "extra_call"))
        return problems

    def _problems(self, expected: Call, got: Call, sets: bool) -> list[Problem]:
        if expected["name"] != got["name"]:
            return [(f"expected the function {expected['name']!r}, got {shown(got['name'])}", "wrong_function")]
        arguments = expected["arguments"]
        if sets and (self.form == "sets" or _are_sets(arguments)):
            return list(argument_problems(arguments, got["arguments"]))
        return [(str(d), d.cause) for d in differences(arguments, got["arguments"], at=("arguments",))]

    def _sets(self, admissible: list[list[Call]], row: Row) -> bool:
        """Whether this row's calls hold admissible values: decided once for all of them."""
        if self.form != "auto" or not any(_are_sets(call["arguments"]) for calls in admissible for call in calls):
            return self.form == "sets"
        try:
            own = calls_of(row.messages[-1].get("tool_calls"), row.expected)
        except NotJsonError:
            return True
        told = {canonical(call) for call in own}
        return not any(canonical(call) in told for calls in admissible for call in calls)

    def _calls(self, row: Row) -> list[list[Call]]:
        """What may be called, each as all the calls that make up one right answer; with `no_call` that may be none."""
        if self.accept is not None or row.accept is not None:
            accept = self.admissible(row)
            return [[_accepted(strict_json(value) if isinstance(value, str) else value)] for value in accept]
        expected = row.messages[-1].get("tool_calls")
        if self.no_call and not expected and not _holds_calls(row.expected):
            return [[]]
        return [calls_of(expected, row.expected)]


def _holds_calls(text: str) -> bool:
    """Whether a text is there to be read as calls: a JSON object, or a list that is not empty. Prose is not."""
    try:
        value = strict_json(text)
    except NotJsonError:
        return False
    return isinstance(value, dict) or (isinstance(value, list) and bool(value))


def _calls_nothing(answer: Answer, row: Row) -> Verdict:
    """Pass for a whole answer without calls, those that stand in its text included. One that is empty where something is to be
    said, that was cut or refused calls nothing either, and shows nothing."""
    if not answer.tool_calls and answer.unfinished:
        return Verdict.unparsable(f"no call expected, but the answer is no whole one: {answer.unfinished}")
    if not answer.tool_calls and not answer.text.strip() and (row.expected.strip() or answer.end is None):
        return Verdict.unparsable("no call expected, but the answer is empty")
    try:
        got = calls_of(answer.tool_calls, calls_in_text(answer.text))
    except NotJsonError:
        return (
            Verdict.no("no call expected, got one that cannot be read", "extra_call")
            if answer.tool_calls
            else Verdict.yes()
        )
    return Verdict.no(f"no call expected, got {_named(got)}", "extra_call")


def _are_sets(arguments: dict[str, Any]) -> bool:
    return bool(arguments) and all(isinstance(values, list) for values in arguments.values())


def calls_of(tool_calls: list[Any] | None, text: str) -> list[Call]:
    """The calls that a turn makes: its tool calls, else those in its text. Raises NotJsonError when it makes none."""
    if tool_calls:
        return [call_of(call) for call in tool_calls]
    value = strict_json(text)
    if value == []:
        raise NotJsonError("an empty list of calls")
    return [call_of(call) for call in value] if isinstance(value, list) else [call_of(value)]


def matched(fits: list[list[int]]) -> dict[int, int]:
    """The most pairs of an expected call and a given one of its own, by the expected one. fits: the given calls that meet
    each expected one. Where admissible sets overlap, the first that fits may be another's only one, so pairs are redone."""
    owner: dict[int, int] = {}  # expected by given

    def settle(one: int, tried: set[int]) -> bool:
        for two in sorted(fits[one], key=owner.__contains__):  # free ones first
            if two in tried:
                continue
            tried.add(two)
            if two not in owner or settle(owner[two], tried):
                owner[two] = one
                return True
        return False

    for one in range(len(fits)):
        settle(one, set())
    return {one: two for two, one in owner.items()}


def call_of(value: Any) -> Call:
    """`{"name", "arguments"}` from that object or from an OpenAI tool call; arguments of "" are none, as some servers write
    it. Raises NotJsonError when it is neither."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or "arguments" not in value:
        raise NotJsonError(f'not an object with "name" and "arguments": {shown(value, 80)}')
    if extra := [key for key in value if key not in ("name", "arguments", "id", "type")]:
        raise NotJsonError(f"keys beside name and arguments: {shown(extra, 80)}")
    arguments = value["arguments"]
    if isinstance(arguments, str):
        arguments = strict_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, dict):
        raise NotJsonError(f"arguments is not an object: {shown(arguments, 80)}")
    return {"name": value["name"], "arguments": arguments}


def _distance(found: list[Problem]) -> tuple[bool, int]:
    return found[0][1] == "wrong_function", len(found)


def _named(calls: list[Call]) -> str:
    more = f" (and {len(calls) - 2} more)" if len(calls) > 2 else ""
    return ", ".join(f"{call['name']}({shown(call['arguments'], 80)})" for call in calls[:2]) + more


def _accepted(value: Any) -> Call:
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
