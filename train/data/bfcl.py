"""`builtin:bfcl`: the function-calling questions of the Berkeley Function Calling Leaderboard v4, as rows.

The data ships inside the PyPI package `bfcl-eval` (Apache-2.0, github.com/ShishirPatil/gorilla); its files are read where
they lie and the package itself is never imported. Three categories have one right call per question: simple_python (400),
multiple (200) and live_simple (258).
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import packaged
from tunegate.core.rows import Row, parse_row, read_jsonl
from tunegate.train.data.normalize import normalized

NAME = "builtin:bfcl"
PACKAGE = "bfcl_eval"
INSTALL = "pip install --no-deps bfcl-eval==2026.3.23"
CATEGORIES = ("simple_python", "multiple", "live_simple")
INSTRUCTION = (
    "You call functions. Answer the user's request with exactly one JSON object "
    '{"name": "...", "arguments": {...}} that calls one of the functions below, and with nothing else.\nFunctions:'
)
# BFCL writes Python's names of types; JSON Schema has others. `any` is no restriction, so it has no type at all.
JSON_TYPES: dict[str, str | None] = {"dict": "object", "float": "number", "tuple": "array", "any": None}
# Keywords that restrict an answer. The rest (description, default, optional) only explains.
RESTRICTING = ("type", "properties", "required", "items", "enum", "format", "maximum", "minimum")


@dataclass(frozen=True, kw_only=True)
class Task:
    """The rows of the task and how often the data had to be mended.

    repairs: `widened_parameters` (parameters whose schema was widened because an admissible value does not satisfy its own
    function definition), `empty_lists` (parameters whose list of admissible values is empty: the empty list is meant).
    """

    rows: tuple[Row, ...]
    repairs: dict[str, int]


def load() -> Task:
    """Read all 858 questions. Raises UserError when the package is not installed or its files are not the known ones."""
    repairs: Counter[str] = Counter({"widened_parameters": 0, "empty_lists": 0})
    rows: list[Row] = []
    for category, questions, answers in zip(CATEGORIES, files()[::2], files()[1::2], strict=True):
        rows += _category(category, questions, answers, repairs)
    return Task(rows=tuple(rows), repairs=dict(repairs))


def files() -> list[Path]:
    """Questions and admissible answers of each category in turn. Raises UserError when the package is not installed."""
    folder = data_folder()
    return [folder / part / f"BFCL_v4_{category}.json" for category in CATEGORIES for part in ("", "possible_answer")]


def data_folder() -> Path:
    """The `data` folder inside the installed package. Raises UserError with the command that installs it."""
    folder = packaged(PACKAGE, "data")
    if folder is None or not folder.is_dir():
        raise UserError(f"the package that holds {NAME} is not installed", hint=INSTALL)
    return folder


def shown_path(file: Path) -> str:
    """A file as it is named in rows and manifests: the builtin's own by name, not by where the package happens to lie."""
    return f"{NAME}/{file.name}" if PACKAGE in file.parts else str(file)


def json_schema(definition: dict[str, Any], *, explain: bool) -> dict[str, Any]:
    """A BFCL parameter definition as JSON Schema; `explain` keeps descriptions and defaults, for the prompt.

    An `enum` of single values on an array restricts its items (that is how BFCL means it: live_simple_71-35-0).
    """
    schema: dict[str, Any] = {}
    for key, value in definition.items():
        if key not in RESTRICTING and not (explain and key in ("description", "default")):
            continue
        if key == "type":
            name = JSON_TYPES.get(value, value)
            schema |= {"type": name} if name else {}
        elif key == "properties":
            schema[key] = {name: json_schema(part, explain=explain) for name, part in value.items()}
        elif key == "items":
            schema[key] = json_schema(value, explain=explain)
        else:
            schema[key] = value
    if schema.get("type") == "array" and schema.get("enum") and not isinstance(schema["enum"][0], list):
        schema["items"] = {**schema.get("items", {}), "enum": schema.pop("enum")}
    return schema


def resolve(value: Any) -> Any:
    """One concrete value from an admissible one: inside it, each key of an object holds a list of admissible values.

    The first is taken; a key that may be left out ("" is admissible) is left out.
    """
    if isinstance(value, dict):
        return {key: resolve(_first(options)) for key, options in value.items() if "" not in options}
    if isinstance(value, list):
        return [resolve(item) for item in value]
    return value


def _category(category: str, questions: Path, answers: Path, repairs: Counter[str]) -> Iterator[Row]:
    truth = {answer["id"]: answer["ground_truth"] for _, answer in read_jsonl(answers)}
    for line, question in read_jsonl(questions):
        try:
            ((name, admissible),) = truth[question["id"]][0].items()
            value = _row(category, question, name, admissible, repairs)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"not the BFCL data that is known: {error!r}", where=f"{questions}:{line}", hint=INSTALL
            ) from None
        yield parse_row(value, shown_path(questions), line)


def _row(
    category: str, question: dict[str, Any], name: str, admissible: dict[str, list[Any]], repairs: Counter[str]
) -> dict[str, Any]:
    functions = question["function"]
    turns = question["question"][0]
    repairs["empty_lists"] += sum(not options for options in admissible.values())
    admissible = {key: options or [[]] for key, options in admissible.items()}
    called = next(f for f in functions if f["name"] == name)
    required = called["parameters"].get("required", [])
    arguments = {
        key: resolve(_first(options)) for key, options in admissible.items() if key in required or "" not in options
    }
    system = "\n".join(
        [INSTRUCTION, *map(_prompt_line, functions), *(t["content"] for t in turns if t["role"] == "system")]
    )
    user = "\n".join(turn["content"] for turn in turns if turn["role"] == "user")
    return {
        "id": question["id"],
        "messages": [
            {"role": "system", "content": system},
            *(turn for turn in turns if turn["role"] != "system"),
            {"role": "assistant", "content": _text({"name": name, "arguments": arguments})},
        ],
        "group": normalized(user),
        "tags": {"category": category, "functions": "one" if len(functions) == 1 else "many"},
        "schema": _answer_schema(functions, name, admissible, repairs),
        "accept": [{"name": name, "arguments": admissible}],
    }


def _prompt_line(function: dict[str, Any]) -> str:
    shown = {**function, "parameters": json_schema(function["parameters"], explain=True)}
    return _text(shown)


def _answer_schema(
    functions: list[dict[str, Any]], name: str, admissible: dict[str, list[Any]], repairs: Counter[str]
) -> dict[str, Any]:
    """JSON Schema of the answer: any of the functions offered, with that function's parameters and no others.

    The parameters of the function that is right are widened where an admissible value breaks their definition.
    """
    branches = []
    for function in functions:
        arguments = {**json_schema(function["parameters"], explain=False), "additionalProperties": False}
        if function["name"] == name:
            arguments["properties"] = {
                key: _widened(part, admissible.get(key, []), repairs) for key, part in arguments["properties"].items()
            }
        branches.append(
            {
                "type": "object",
                "properties": {"name": {"enum": [function["name"]]}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    return branches[0] if len(branches) == 1 else {"anyOf": branches}


def _widened(schema: dict[str, Any], options: list[Any], repairs: Counter[str]) -> dict[str, Any]:
    from jsonschema import Draft202012Validator

    valid = Draft202012Validator(schema).is_valid
    beyond = [value for value in map(resolve, options) if value != "" and not valid(value)]
    if not beyond:
        return schema
    repairs["widened_parameters"] += 1
    return {"anyOf": [schema, {"enum": beyond}]}


def _text(value: Any) -> str:
    """JSON with a space after commas and colons, as models mostly saw it when they were pretrained."""
    return json.dumps(value, ensure_ascii=False)


def _first(options: list[Any]) -> Any:
    return next((value for value in options if value != ""), "")
