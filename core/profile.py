"""What a set of rows looks like: lengths, labels, answers, languages. `ft data prepare` keeps it, `ft data inspect` prints it."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.core import token_estimate
from tunegate.core.errors import UserError
from tunegate.core.rows import Row, parse_json

SCHEMA_VERSION = 1
TOP_LABELS = 200
# Edges of the histograms: powers of the fourth root of two from 1, rounded, so that long tails keep their shape.
EDGES = tuple(sorted({round(2 ** (step / 4)) for step in range(0, 81)}))
# First letters looked at for the script of a row's text.
SCRIPT_CHARACTERS = 200


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """A distribution of lengths (unit: the field's name that holds it). histogram: [lower edge, rows] of each bin
    from the first to the last that is not empty; a bin ends before the next edge of EDGES. Percentiles are exact."""

    n: int
    total: int
    mean: float
    p50: int
    p90: int
    p95: int
    p99: int
    longest: int
    histogram: list[list[int]]

    @staticmethod
    def of(values: list[int]) -> "Lengths":
        """Summarise non-negative lengths; all zero for an empty list."""
        ordered = sorted(values)
        n = len(ordered)
        if not n:
            return Lengths(n=0, total=0, mean=0.0, p50=0, p90=0, p95=0, p99=0, longest=0, histogram=[])
        p50, p90, p95, p99 = (ordered[min(n - 1, int(share * n))] for share in (0.5, 0.9, 0.95, 0.99))
        return Lengths(
            n=n,
            total=sum(ordered),
            mean=round(sum(ordered) / n, 2),
            p50=p50,
            p90=p90,
            p95=p95,
            p99=p99,
            longest=ordered[-1],
            histogram=_histogram(ordered),
        )


@dataclass(frozen=True, kw_only=True)
class DatasetProfile:
    """The profile of a set of rows.

    rows; input_characters, output_characters; input_tokens, output_tokens: by `token_source` (exact where
    `tokens_exact`), without the chat template's marks. turns: messages a row. labels: {label: rows}, the most frequent
    200 of `label_count`, taken from `label_source` (None: no labels). json_outputs, valid share of rows whose answer is
    one JSON object or list, 0 to 1. schema_rows: rows that carry a JSON Schema of their answer. scripts: {script of the
    letters: rows}. languages: {language of the user turns: rows}, by `language_of`. distinct_inputs, distinct_outputs: different texts.
    """

    rows: int
    input_characters: Lengths
    output_characters: Lengths
    input_tokens: Lengths
    output_tokens: Lengths
    tokens_exact: bool
    token_source: str
    turns: dict[str, int]
    labels: dict[str, int]
    label_count: int
    label_source: str | None
    json_outputs: float
    schema_rows: int
    tool_rows: int
    system_prompts: int
    distinct_inputs: int
    distinct_outputs: int
    scripts: dict[str, int]
    tags: dict[str, dict[str, int]]
    languages: dict[str, int]
    schema_version: int = SCHEMA_VERSION

    @staticmethod
    def from_rows(
        rows: Iterable[Row],
        *,
        count_tokens: Callable[[list[str]], list[int]] | None = None,
        token_source: str | None = None,
        label_of: Callable[[Row], str | None] | None = None,
        label_source: str | None = None,
        language_of: Callable[[Row], str] | None = None,
    ) -> "DatasetProfile":
        """Profile rows as they stream by, in memory that grows with a few numbers a row.

        count_tokens: texts -> token counts, by the tokenizer that `token_source` names; without it estimated.
        """
        gatherer = _Gatherer(count_tokens, label_of, language_of)
        for row in rows:
            gatherer.add(row)
        gatherer.flush()
        return gatherer.profile(
            exact=count_tokens is not None and token_source is not None,
            token_source=token_source or token_estimate.SOURCE,
            label_source=label_source,
        )

    def to_json(self) -> dict[str, Any]:
        """The content of `profile.json`."""
        return asdict(self)


class _Gatherer:
    """Collects the numbers of a profile, a row at a time; tokens are counted a thousand rows at a time."""

    BATCH = 1000

    def __init__(
        self,
        count_tokens: Callable[[list[str]], list[int]] | None,
        label_of: Callable[[Row], str | None] | None,
        language_of: Callable[[Row], str] | None,
    ) -> None:
        self._count = count_tokens or token_estimate.estimated
        self._label_of = label_of or (lambda row: None)
        self._language_of = language_of
        self._texts: list[str] = []
        self.characters: tuple[list[int], list[int]] = ([], [])
        self.tokens: tuple[list[int], list[int]] = ([], [])
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in ("turns", "labels", "scripts", "languages")}
        self.totals: Counter[str] = Counter()
        self.distinct: dict[str, set[int]] = {name: set() for name in ("inputs", "outputs", "systems")}
        self.tags: dict[str, Counter[str]] = {}

    def add(self, row: Row) -> None:
        given, answer = row_texts(row)
        for side, text in zip(self.characters, (given, answer), strict=True):
            side.append(len(text))
        self._texts += [given, answer]
        if len(self._texts) >= 2 * self.BATCH:
            self.flush()
        self.counts["turns"][str(len(row.messages))] += 1
        if (label := self._label_of(row)) is not None:
            self.counts["labels"][label] += 1
        self.counts["scripts"][script(given)] += 1
        if self._language_of is not None:
            self.counts["languages"][self._language_of(row)] += 1
        self.totals["json"] += is_json(row.expected)
        self.totals["schema"] += row.schema is not None
        self.totals["tools"] += bool(row.tools)
        self.distinct["inputs"].add(hash(given))
        self.distinct["outputs"].add(hash(answer))
        self.distinct["systems"].update(hash(t.get("content")) for t in row.messages if t["role"] == "system")
        for key, value in row.tags.items():
            if isinstance(value, str | int | bool):
                self.tags.setdefault(key, Counter())[str(value)] += 1

    def flush(self) -> None:
        counts = self._count(self._texts)
        self.tokens[0].extend(counts[::2])
        self.tokens[1].extend(counts[1::2])
        self._texts = []

    def profile(self, *, exact: bool, token_source: str, label_source: str | None) -> DatasetProfile:
        rows = len(self.characters[0])
        return DatasetProfile(
            rows=rows,
            input_characters=Lengths.of(self.characters[0]),
            output_characters=Lengths.of(self.characters[1]),
            input_tokens=Lengths.of(self.tokens[0]),
            output_tokens=Lengths.of(self.tokens[1]),
            tokens_exact=exact,
            token_source=token_source,
            turns=_ranked(self.counts["turns"]),
            labels=_ranked(self.counts["labels"]),
            label_count=len(self.counts["labels"]),
            label_source=label_source if self.counts["labels"] else None,
            json_outputs=round(self.totals["json"] / rows, 6) if rows else 0.0,
            schema_rows=self.totals["schema"],
            tool_rows=self.totals["tools"],
            system_prompts=len(self.distinct["systems"]),
            distinct_inputs=len(self.distinct["inputs"]),
            distinct_outputs=len(self.distinct["outputs"]),
            scripts=_ranked(self.counts["scripts"]),
            languages=_ranked(self.counts["languages"]),
            tags={key: _ranked(self.tags[key]) for key in sorted(self.tags)},
        )


def row_texts(row: Row) -> tuple[str, str]:
    """The text of a row's input (with the tools offered) and of its output (with its tool calls)."""
    given = [_turn_text(turn) for turn in row.prompt]
    if row.tools:
        given.append(json.dumps(row.tools, ensure_ascii=False))
    return "\n".join(given), answer_text(row)


def answer_text(row: Row) -> str:
    """The text of a row's output, its tool calls as JSON."""
    return _turn_text(row.messages[-1])


def is_json(text: str) -> bool:
    """Whether a text is one JSON object or list, as `ft eval` reads it: no NaN, no key twice."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        strict_json(text)
    except UserError:
        return False
    return True


def strict_json(text: str) -> Any:
    """The JSON value that a text is, with nothing but JSON's own blanks around it. Raises UserError with the reason."""
    stripped = text.strip(" \t\r\n")
    if not stripped:
        raise UserError("the answer is empty")
    return parse_json(stripped.encode("utf-8", "surrogatepass"), "")


def script(text: str) -> str:
    """The script most of the first 200 letters belong to: LATIN, CYRILLIC, CJK, ... by Unicode's character names."""
    names: Counter[str] = Counter()
    letters = 0
    for char in text:
        if char.isalpha():
            names["LATIN" if char.isascii() else unicodedata.name(char, "UNKNOWN").split()[0]] += 1
            letters += 1
            if letters >= SCRIPT_CHARACTERS:
                break
    return min(names, key=lambda name: (-names[name], name)) if names else "NONE"


def _turn_text(turn: dict[str, Any]) -> str:
    text = str(turn.get("content") or "")
    calls = turn.get("tool_calls")
    return text + json.dumps(calls, ensure_ascii=False) if calls else text


def _histogram(ordered: list[int]) -> list[list[int]]:
    counts: Counter[int] = Counter()
    edge = 0
    for value in ordered:
        while edge + 1 < len(EDGES) and EDGES[edge + 1] <= value:
            edge += 1
        counts[EDGES[edge] if value >= EDGES[0] else 0] += 1
    edges = (0, *EDGES)
    return [[lower, counts[lower]] for lower in edges[edges.index(min(counts)) : edges.index(max(counts)) + 1]]


def _ranked(counts: Counter[str]) -> dict[str, int]:
    """The most frequent first, ties by name: the same for the same rows in any order."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:TOP_LABELS])
