"""promptfoo: the JSON that `promptfoo eval --output results.json` writes (versions 2 and 3)."""

import json
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError
from tunegate.core.files import read_json
from tunegate.evalkit.interchange.foreign import Format, Record, asked_in, mapping
from tunegate.evalkit.outcomes import Answer

ERROR = 2  # failureReason: the provider failed, rather than an assertion
IDS = ("id", "item_id", "itemId")


def read(path: Path) -> list[Record]:
    """The answers of every provider and prompt. Raises UserError where the file is not of that form."""
    document = read_json(path)
    inner = document.get("results") if isinstance(document, dict) else None
    rows = inner.get("results") if isinstance(inner, dict) else inner
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError("not a promptfoo result file: results.results is no list", where=str(path))
    prompts = {row.get("promptIdx") for row in rows}
    return [_record(row, f"results[{index}]", several=len(prompts) > 1) for index, row in enumerate(rows)]


def _record(row: dict[str, Any], place: str, *, several: bool) -> Record:
    case, response = mapping(row.get("testCase")), mapping(row.get("response"))
    variables = mapping(row.get("vars")) or mapping(case.get("vars"))
    metadata = mapping(case.get("metadata"))
    ids = [source[key] for source in (metadata, variables) for key in IDS if isinstance(source.get(key), str | int)]
    ids += [case["description"]] if isinstance(case.get("description"), str) else []
    provider = row.get("provider")
    name = str(provider.get("label") or provider.get("id")) if isinstance(provider, dict) else str(provider or "")
    questions = [value for value in variables.values() if isinstance(value, str)]
    return Record(
        place=place,
        ids=tuple(str(i) for i in ids),
        questions=tuple(questions),
        prompts=asked_in(mapping(row.get("prompt")).get("raw")),
        answer=_answer(row, response),
        system=f"{name}#{row.get('promptIdx')}" if several else name,
    )


def _answer(row: dict[str, Any], response: dict[str, Any]) -> Answer:
    output = response.get("output")
    error = response.get("error") or (row.get("error") if row.get("failureReason") == ERROR or output is None else None)
    if output is None and not error:
        error = "promptfoo recorded no output"
    usage = mapping(response.get("tokenUsage"))
    finish = response.get("finishReason")
    return Answer(
        text="" if output is None else output if isinstance(output, str) else json.dumps(output, ensure_ascii=False),
        finish_reason=finish if isinstance(finish, str) else None,
        error=None if not error else str(error),
        # an answer from promptfoo's cache says nothing about latency
        latency_ms=None if response.get("cached") else _number(row.get("latencyMs")),
        prompt_tokens=_count(usage.get("prompt")),
        completion_tokens=_count(usage.get("completion")),
        cost_usd=_number(response.get("cost", row.get("cost"))),
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _count(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)


FORMAT = Format(name="promptfoo", read=read, lacks="time to first token, expected answers")
