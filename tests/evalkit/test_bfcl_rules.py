"""`tool_call` against the leaderboard's own checker, and `json_schema` against jsonschema-rs, over its questions' answers
and what is one change away from them."""

import copy
import json
import sys
import types
from types import SimpleNamespace

import pytest

from tunegate.core.json_schema import checker
from tunegate.evalkit.validators.tool_call import argument_problems
from tunegate.train.data.bfcl import CATEGORIES, files, load

pytest.importorskip("bfcl_eval", reason="bfcl-eval, which holds the questions and the checker, is not installed")

# Where the two differ we are right, or the data is at odds with itself:
DIFFERENT = {
    "as float",  # 5.0 where 5 is admissible: one number in JSON (RFC 8259 leaves no two kinds); theirs compares Python types
    "drop simple_python_17",  # "" says that the argument may be left out, the definition that it is required
    "drop simple_python_200",
    "empty list simple_python_178",  # theirs reads the admissible "" as the list of its characters, which is empty
}


def own_checker(monkeypatch):
    models = types.ModuleType("bfcl_eval.constants.model_config")  # the real one imports every vendor's client
    models.MODEL_CONFIG_MAPPING = {"m": SimpleNamespace(underscore_to_dot=False)}
    monkeypatch.setitem(sys.modules, models.__name__, models)
    from bfcl_eval.constants.enums import Language
    from bfcl_eval.eval_checker.ast_eval.ast_checker import ast_checker

    return lambda functions, call, truth, category: ast_checker(
        functions, [call], [truth], Language.PYTHON, category, "m"
    )["valid"]


def plain(value):
    """One admissible value; inside an object each key again holds a list of them."""
    if isinstance(value, dict):
        return {k: plain(next(a for a in v if a != "")) for k, v in value.items() if any(a != "" for a in v)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def changed_values(value):
    yield "null", None
    if isinstance(value, str):
        yield from (("upper", value.upper()), ("spaces", f" {value.replace(' ', '  ')}"), ("marks", f"{value}."))
        yield from (("wrong", f"{value}x"), ("empty", ""))
    elif isinstance(value, bool):
        yield from (("not", not value), ("bool as int", int(value)), ("as text", str(value)))
    elif isinstance(value, int | float):
        yield from (("plus", value + 1), ("as text", str(value)))
        if value == int(value):
            yield from (("as float" if isinstance(value, int) else "same", float(value)), ("as int", int(value)))
    elif isinstance(value, list):
        upper = [item.upper() if isinstance(item, str) else item for item in value]
        yield from (("empty list", []), ("reversed", value[::-1]), ("longer", value + value[:1]), ("upper", upper))
    elif isinstance(value, dict):
        yield from (("empty object", {}), ("extra key", {**value, "zz": 1}))
        yield from (("drop key", {k: v for k, v in value.items() if k != left}) for left in value)


def changes(arguments):
    yield "same", arguments
    yield "extra", {**arguments, "zzz": 1}
    for key, value in arguments.items():
        yield "drop", {k: v for k, v in arguments.items() if k != key}
        yield from ((kind, {**arguments, key: new}) for kind, new in changed_values(value))


def test_admissible_sets_as_the_leaderboard_judges_them(monkeypatch):
    theirs, compared, different = own_checker(monkeypatch), 0, set()
    for category, questions, answers in zip(CATEGORIES, files()[::2], files()[1::2], strict=True):
        pairs = zip(questions.read_text().splitlines(), answers.read_text().splitlines(), strict=True)
        for question, answer in ((json.loads(q), json.loads(a)) for q, a in pairs):
            truth = answer["ground_truth"][0]
            name, sets = next(iter(truth.items()))
            right = {k: plain(next(a for a in v if a != "")) for k, v in sets.items() if any(a != "" for a in v)}
            for kind, given in changes(right):
                compared += 1
                ours = not list(argument_problems(sets, given))
                call = {name: copy.deepcopy(given)}
                if ours is not theirs(question["function"], call, copy.deepcopy(truth), category):
                    different.add(kind if kind in DIFFERENT else f"{kind} {question['id']}")
    assert compared > 16_000
    assert different == DIFFERENT


def test_schemas_of_the_questions_with_a_second_opinion():
    other = pytest.importorskip("jsonschema_rs")
    compared, different = 0, []
    for row in load().rows[::4]:
        schema = row.schema
        second = other.validator_for(schema)
        expected = json.loads(row.expected)
        for kind, arguments in changes(expected["arguments"]):
            instance = {**expected, "arguments": arguments}
            compared += 1
            if (not checker(schema).violations(instance)) is not second.is_valid(instance):
                different.append((row.id, kind))
    assert compared > 2_000
    assert different == []
