"""What a load test asks, and when: stages, prompts from the user's own data, arrival times. Pure, and repeatable by seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import canonical_json, sha256_text
from tunegate.core.rows import Message, json_kind, read_jsonl, read_rows

LEAST_REQUESTS = 80  # under 72 a p95 has no upper bound at 95 %
REQUESTS_PER_STREAM = 8  # so that the ends of a closed-loop stage, where streams stand idle, weigh little
OPEN_WARM_UP = 5


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: its messages and tools. key: digest of the content, so that repeats are seen."""

    key: str
    messages: tuple[Message, ...]
    tools: list[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One load. closed: `level` requests are always under way. open: arrivals come at random, `level` a second (Poisson).

    requests: how many are measured, None when duration_s (seconds) ends the stage. warm_up: the first so many requests
    are asked likewise but kept apart.
    """

    kind: Literal["closed", "open"]
    level: float
    requests: int | None
    duration_s: float | None
    warm_up: int

    @property
    def name(self) -> str:
        """`16 at once` or `4 req/s`."""
        return f"{self.level:g} at once" if self.kind == "closed" else f"{self.level:g} req/s"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How to ask. generation: request fields (max_tokens, temperature, ...). timeout_s: of one request, seconds.

    slo: limits in ms by figure (`ttft_ms`, `tpot_ms`, `e2e_ms`). seed: of the order of prompts and of arrivals.
    """

    stages: tuple[Stage, ...]
    generation: dict[str, Any]
    slo: dict[str, float] = field(default_factory=dict)
    timeout_s: float = 300.0
    seed: int = 0


def plan_stages(
    concurrency: list[int],
    rates: list[float],
    *,
    requests: int | None,
    duration_s: float | None,
    warm_up: int | None,
) -> tuple[Stage, ...]:
    """The closed-loop stages, then the open-loop ones, each from the lightest load up. Raises UsageError."""
    if requests is not None and duration_s is not None:
        raise UsageError("--requests and --duration are two ways to end a stage", hint="give one of them")
    stages = []
    for streams in sorted(set(concurrency)):
        count = requests or max(LEAST_REQUESTS, REQUESTS_PER_STREAM * streams)
        own = streams if warm_up is None else warm_up
        stages.append(
            Stage(kind="closed", level=float(streams), requests=None if duration_s else count,
                  duration_s=duration_s, warm_up=own)
        )  # fmt: skip
    for rate in sorted(set(rates)):
        own = OPEN_WARM_UP if warm_up is None else warm_up
        count = requests or LEAST_REQUESTS
        stages.append(
            Stage(kind="open", level=rate, requests=None if duration_s else count, duration_s=duration_s, warm_up=own)
        )
    return tuple(stages)


def numbers(text: str, option: str, kind: type[int] | type[float]) -> list[Any]:
    """`1,4,16` as positive numbers, none for an empty text. Raises UsageError."""
    if not text:
        return []
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or any(not 0 < value < 1e6 for value in found):
        what = "whole numbers" if kind is int else "numbers"
        raise UsageError(f"{text!r} is not a list of positive {what}", where=option, hint="such as 1,4,16")
    return found


def arrivals(stage: Stage, rng: random.Random) -> Iterator[float]:
    """Seconds from the stage's start at which open-loop requests are due: gaps are exponential, so counts are Poisson.

    The stage's duration counts from the end of the warm-up.
    """
    due, started = 0.0, 0.0
    number = 0
    while True:
        due += rng.expovariate(stage.level)
        if number == stage.warm_up:
            started = due
        if number >= stage.warm_up and not _within(stage, number - stage.warm_up, due - started):
            return
        yield due
        number += 1


def _within(stage: Stage, measured: int, passed_s: float) -> bool:
    if stage.duration_s is not None:
        return passed_s < stage.duration_s
    return measured < (stage.requests or 0)


class Prompts:
    """Hands out prompts in a shuffled order, each once before any comes again; counts how many came again."""

    def __init__(self, prompts: list[Prompt], seed: int) -> None:
        self._all = prompts
        self._rng = random.Random(seed)
        self._left: list[Prompt] = []
        self._seen: set[str] = set()

    def next(self) -> tuple[Prompt, bool]:
        """(prompt, whether the very same was asked before in this test)."""
        if not self._left:
            self._left = self._rng.sample(self._all, len(self._all))
        prompt = self._left.pop()
        again = prompt.key in self._seen
        self._seen.add(prompt.key)
        return prompt, again


def make_prompt(messages: tuple[Message, ...], tools: list[Any] | None = None) -> Prompt:
    """A prompt with its digest."""
    return Prompt(key=sha256_text(canonical_json([list(messages), tools]))[:16], messages=messages, tools=tools)


def read_data(path: Path) -> list[Prompt]:
    """The prompts of a dataset's rows: every turn but the expected answer. Raises UserError with file and line."""
    return [make_prompt(row.prompt, row.tools) for row in read_rows(path)]


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts alone: a text file with one a line, or JSONL of `{"prompt": "..."}` or `{"messages": [...]}`.

    Raises UserError with file and line.
    """
    if path.suffix not in (".jsonl", ".ndjson"):
        if not path.is_file():
            raise UserError("no such file", where=str(path))
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise UserError(f"not UTF-8 at byte {error.start}", where=str(path), hint="save it as UTF-8") from None
        found = [make_prompt(({"role": "user", "content": line},)) for line in lines if line.strip()]
    else:
        found = [_prompt_of(value, f"{path}:{number}") for number, value in read_jsonl(path)]
    if not found:
        raise UserError("there is no prompt in this file", where=str(path), hint="one prompt a line")
    return found


def _prompt_of(value: Any, where: str) -> Prompt:
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        return make_prompt(({"role": "user", "content": value["prompt"]},))
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise UserError(
            f'expected {{"prompt": "..."}} or {{"messages": [...]}}, found {json_kind(value)}',
            where=where,
            hint="rows with an expected answer go to --data",
        )
    return make_prompt(tuple(messages), value.get("tools"))
