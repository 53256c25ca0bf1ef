"""What `report.json` and `results.jsonl` must hold to be shown and decided on: checked once, when a report is opened.

Manifest and sizes are right in a folder that somebody else made, too; what is in it may still be anything.
"""

from typing import Any, Literal, get_args

import msgspec

from tunegate.core.errors import UserError

Verdict = Literal["PASS", "FAIL", "INCONCLUSIVE"]
Names = Literal["pass", "fail", "truncated", "refused", "unparsable", "infra_error"]


class _Figure(msgspec.Struct):
    value: float | None
    low: float | None
    high: float | None


class _Message(msgspec.Struct):
    role: str


class _Target(msgspec.Struct):
    spec: str
    kind: str
    digest: str


class _Task(msgspec.Struct):
    name: str
    primary: str
    slices: list[str]


class _Data(msgspec.Struct):
    n: int


class _Change(msgspec.Struct):
    difference: float
    low: float | None
    high: float | None
    n: int
    fixed: int
    broken: int


class _Flip(msgspec.Struct):
    id: str
    direction: Literal["fixed", "broken"]
    cause: str
    reason: str


class _Slice(msgspec.Struct):
    key: str
    value: str
    n: int
    difference: float
    low: float | None
    high: float | None
    p_holm: float


class _Side(msgspec.Struct):
    spec: str
    name: str
    path: str | None
    digest: str | None
    metrics: dict[str, _Figure]
    operations: dict[str, _Figure] = {}


class _Comparison(msgspec.Struct):
    baseline: _Side
    metrics: dict[str, _Change]
    flips: list[_Flip]
    flip_causes: dict[str, dict[str, int]]
    slices: list[_Slice]
    allowed_differences: list[str]
    unknown: list[str]


class _Condition(msgspec.Struct):
    metric: str
    rule: str
    decision: Verdict
    reason: str
    need_n: int | None
    slice: str | None


class _Decision(msgspec.Struct):
    decision: Verdict
    conditions: list[_Condition]


class _Leakage(msgspec.Struct):
    metrics: dict[str, int]


class _Report(msgspec.Struct):
    name: str
    created: str
    target: _Target
    task: _Task
    data: _Data
    n: int
    outcomes: dict[Names, int]
    metrics: dict[str, _Figure]
    comparison: _Comparison | None
    decision: _Decision | None
    operations: dict[str, _Figure] = {}
    generation: dict[str, Any] | None = None
    leakage: _Leakage | None = None
    size_bytes: int | None = None


class _Result(msgspec.Struct):
    id: str
    output: str
    outcome: Names
    scores: dict[str, float]
    reason: str
    cause: str
    expected: str
    tags: dict[str, Any]
    messages: list[_Message]
    tool_calls: list[Any]
    reasons: dict[str, str] = {}
    group: str | None = None
    error: str | None = None
    finish_reason: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    timed_out_ms: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    outcomes: list[Names] | None = None
    outputs: list[str] | None = None
    latencies_ms: list[float | None] | None = None
    ttfts_ms: list[float | None] | None = None
    each_timed_out_ms: list[float | None] | None = None
    each_tool_calls: list[list[Any]] | None = None
    finish_reasons: list[str | None] | None = None
    each_prompt_tokens: list[int | None] | None = None
    each_completion_tokens: list[int | None] | None = None
    errors: list[str | None] | None = None
    rejected: str | None = None
    unjudged: bool | None = None


def check_report(document: Any, where: str) -> None:
    """Raise UserError, with the JSON path, for a report.json without what is read of it."""
    _check(document, _Report, where)
    if missing := [name for name in get_args(Names) if name not in document["outcomes"]]:
        raise UserError(f"damaged report: no count of {missing[0]!r}", where=f"{where} $.outcomes")


def checked_result(row: Any, where: str) -> dict[str, Any]:
    """A row of results.jsonl. Raises UserError, with the JSON path, for one without what is read of it."""
    _check(row, _Result, where)
    result: dict[str, Any] = row
    return result


def _check(value: Any, kind: type[Any], where: str) -> None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at ")
        raise UserError(f"damaged report: {text}", where=f"{where} {place.strip('`')}".strip()) from None
