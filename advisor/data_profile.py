"""What a file of examples says: lengths, answers' format, labels, duplicates. One streaming pass."""

import json
import statistics
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path

from tunegate.core.answers import answer_of
from tunegate.core.errors import UserError
from tunegate.core.model_source import file_at_hand
from tunegate.core.profile import is_json, row_texts
from tunegate.core.rows import Row, read_rows
from tunegate.core.token_estimate import CHARACTERS_PER_TOKEN, MARKS_PER_TURN, cjk_characters, weight

SAMPLE = 2000  # rows tokenized to learn characters per token
MAX_LABELS = 200


@dataclass(frozen=True, kw_only=True)
class DataProfile:
    """Facts about a file of rows.

    Token counts are means unless named; loss_tokens is the sum over answers, tool calls included. json_share: answers
    that parse as JSON objects or lists, or call tools. labels: distinct answers, None when there are more than MAX_LABELS.
    duplicates: rows whose prompt and answer stood before. conflicts: prompts seen with another answer. counted_with:
    the tokenizer, or `estimate`. cjk_share: of all characters, the Chinese, Japanese and Korean ones. lengths, sums: tokens of
    each row in rising order, and their running sum.
    """

    rows: int
    input_tokens: float
    output_tokens: float
    longest_tokens: float
    p95_tokens: float
    p95_output_tokens: float
    loss_tokens: float
    json_share: float
    labels: int | None
    duplicates: int
    conflicts: int
    counted_with: str
    cjk_share: float = 0.0
    lengths: Sequence[float] = field(default=(), compare=False, repr=False)
    sums: Sequence[float] = field(default=(), compare=False, repr=False)

    def kept(self, most: float) -> tuple[float, float]:
        """(share of the rows that have at most so many tokens, their mean length over that of all)."""
        count, every = bisect_right(self.lengths, most), len(self.lengths)
        if count in (0, every):
            return float(count == every), 1.0
        return count / every, self.sums[count - 1] / count / (self.sums[-1] / every)

    @property
    def mean_tokens(self) -> float:
        """Tokens of a whole row."""
        return self.input_tokens + self.output_tokens

    @property
    def strict_format(self) -> bool:
        """True when nearly every answer is JSON."""
        return self.json_share >= 0.9

    @property
    def narrow(self) -> bool:
        """True when answers come from a small set of labels or are all JSON: a narrow, checkable task."""
        return self.strict_format or (self.labels is not None and self.rows >= 5 * self.labels)


def profile(path: Path, model: str | None = None) -> DataProfile:
    """Read a JSONL file of rows, or a Dataset folder's train rows, once. Raises UserError with file and line for a bad row,
    and for an empty file."""
    counter, counted_with = tokenizer_for(model)
    return summarise(read_rows(_rows_of(path)), counter, counted_with)


def _rows_of(path: Path) -> Path:
    """The file of rows. Raises UserError for what `ft data prepare` reads and this does not: CSV, Parquet, packed, arrays."""
    if path.is_dir():
        from tunegate.core.artifacts import Dataset

        return Dataset.open(path).train_path
    if path.is_file() and (path.suffix not in (".jsonl", ".ndjson", ".json") or _is_array(path)):
        raise UserError(
            "rows as JSON Lines are read here, other files by ft data prepare",
            where=str(path),
            hint=f"ft data prepare {path} --out data/   and then   ftadvise recommend data/",
        )
    return path


def _is_array(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def summarise(rows: Iterable[Row], counter: Callable[[list[str]], int] | None, counted_with: str) -> DataProfile:
    """Profile any rows; `counter` counts the tokens of texts, None to estimate from characters."""
    tally = _Tally()
    stream = iter(rows)
    texts = [tally.add(row) for row in islice(stream, SAMPLE)]
    per_token = CHARACTERS_PER_TOKEN
    if counter is not None and (characters := sum(map(weight, texts))):
        per_token = max(0.5, characters / max(1, counter(texts)))
    del texts
    for row in stream:
        tally.add(row)
    return tally.result(per_token, counted_with)


def tokenizer_for(model: str | None) -> tuple[Callable[[list[str]], int] | None, str]:
    """A counter of tokens from a tokenizer.json at hand (model folder, unpacked builtin, the hub's cache), and its name."""
    path = file_at_hand(model, "tokenizer.json") if model else None
    if path is None:
        return None, "estimate"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    return (lambda texts: sum(len(e.ids) for e in tokenizer.encode_batch(texts, add_special_tokens=False))), str(model)


class _Tally:
    def __init__(self) -> None:
        self.inputs: list[float] = []
        self.outputs: list[float] = []
        self.turns: list[int] = []
        self.characters = self.cjk = 0
        self.json = self.duplicates = self.conflicts = 0
        self.labels: set[str] | None = set()
        self.answers: dict[int, int] = {}

    def add(self, row: Row) -> str:
        """Count one row and return its text."""
        prompt, answer = row_texts(row)
        asked, answered = cjk_characters(prompt), cjk_characters(answer)
        self.inputs.append(weight(prompt, asked))
        self.outputs.append(weight(answer, answered))
        self.turns.append(len(row.messages))
        self.characters += len(prompt) + len(answer)
        self.cjk += asked + answered
        value, calls = answer_of(row)
        label = json.dumps([value, calls], sort_keys=True)
        self._repeated(hash(prompt), hash(label))
        if self.labels is not None:
            self.labels.add(label)
            if len(self.labels) > MAX_LABELS:
                self.labels = None
        self.json += bool(calls) or (isinstance(value, dict | list) and is_json(row.expected))
        return prompt + answer

    def _repeated(self, prompt: int, answer: int) -> None:
        if prompt not in self.answers:
            self.answers[prompt] = answer
        elif self.answers[prompt] == answer:
            self.duplicates += 1
        else:
            self.conflicts += 1

    def result(self, per_token: float, counted_with: str) -> DataProfile:
        n = len(self.inputs)
        whole = sorted(
            (i + o) / per_token + MARKS_PER_TURN * t
            for i, o, t in zip(self.inputs, self.outputs, self.turns, strict=True)
        )
        outputs = sorted(o / per_token for o in self.outputs)
        return DataProfile(
            rows=n,
            input_tokens=statistics.fmean(self.inputs) / per_token + MARKS_PER_TURN * statistics.fmean(self.turns),
            output_tokens=max(1.0, statistics.fmean(outputs)),
            longest_tokens=whole[-1],
            p95_tokens=whole[int(0.95 * (n - 1))],
            p95_output_tokens=outputs[int(0.95 * (n - 1))],
            loss_tokens=sum(outputs),
            json_share=self.json / n,
            labels=len(self.labels) if self.labels is not None else None,
            duplicates=self.duplicates,
            conflicts=self.conflicts,
            counted_with=counted_with,
            cjk_share=self.cjk / max(1, self.characters),
            lengths=array("d", whole),
            sums=array("d", accumulate(whole)),
        )
