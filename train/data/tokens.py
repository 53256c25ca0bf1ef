"""Counting tokens: exactly with a model's own tokenizer and chat template, or an estimate that says so."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from tunegate.core import token_estimate
from tunegate.core.console import warn
from tunegate.core.errors import UserError
from tunegate.core.files import home_path
from tunegate.core.model_source import file_at_hand
from tunegate.core.profile import row_texts
from tunegate.core.rows import Row
from tunegate.core.token_estimate import CHARACTERS_PER_TOKEN, MARKS_PER_TURN
from tunegate.train.data.template import ChatTemplate, chat_template
from tunegate.train.paths import given_name

TOKENIZER = "tokenizer.json"
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Counter:
    """count: texts -> token counts. exact: by a tokenizer rather than by dividing characters. source: which.
    template: renders a row as the model sees it; None: `MARKS_PER_TURN` tokens a turn stand for its marks."""

    count: Callable[[list[str]], list[int]]
    exact: bool
    source: str
    template: ChatTemplate | None = None

    @property
    def whole_source(self) -> str:
        """Where the counts of whole rows come from."""
        marks = "its chat template" if self.template else f"{MARKS_PER_TURN} a turn for the chat template"
        return f"{self.source} with {marks}"


@dataclass(frozen=True, kw_only=True)
class Size:
    """Tokens of a row. prompt: all that comes before the answer; total: the whole conversation, both with the chat
    template's marks; answer: its text alone. refused: the template cannot render the row, the marks are estimated.
    calls_left_out: the template drops the row's tool calls."""

    prompt: int
    total: int
    answer: int
    refused: bool = False
    calls_left_out: bool = False


@dataclass(kw_only=True)
class Sizer:
    """Sizes of rows, each row counted once."""

    counter: Counter
    known: dict[int, tuple[Row, Size]] = field(default_factory=dict)

    def of(self, rows: Iterable[Row]) -> list[Size]:
        """The size of each row, in order."""
        wanted = list(rows)
        new = [row for row in wanted if id(row) not in self.known]
        self.known.update((id(row), (row, size)) for row, size in zip(new, sizes(new, self.counter), strict=True))
        return [self.known[id(row)][1] for row in wanted]


def estimate() -> Counter:
    """The estimate from characters."""
    return Counter(count=token_estimate.estimated, exact=False, source=token_estimate.SOURCE)


def counter(model: str | None) -> Counter:
    """The tokenizer and chat template of `model` (a folder, a hub id in the local cache, or a builtin that was unpacked
    before), else the estimate.

    Raises UserError when `model` names a folder without tokenizer.json or with a template that is not valid; for a hub id
    that is not on this machine, and for a builtin not unpacked yet, gives the estimate, whose source says so.
    """
    if model is None:
        return estimate()
    place = home_path(given_name("--model", model))
    named = place.is_file() and place.name == TOKENIZER  # the file itself is named, and so its folder
    find = partial(file_at_hand, str(place.parent) if named else model)
    file = find(TOKENIZER)
    if file is None:
        if place.exists():
            raise UserError("no tokenizer.json there", where=model, hint="give a model folder, or leave --model out")
        plain = estimate()
        return Counter(count=plain.count, exact=False, source=f"{plain.source} (no tokenizer of {model} here)")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def count(texts: list[str]) -> list[int]:
        return [len(found) for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return Counter(count=count, exact=True, source=f"tokenizer of {model}", template=chat_template(find))


def warn_if_estimated(model: str | None, *, exact: bool) -> None:
    """Say on standard error that tokens of a model that was named are only estimated: its name may be misspelt."""
    if model is not None and not exact:
        warn(
            f"no tokenizer of {model} lies on this machine: tokens are estimated, {CHARACTERS_PER_TOKEN:g} characters each"
        )


def sizes(rows: Iterable[Row], counter: Counter) -> Iterator[Size]:
    """The size of each row, streaming, a thousand rows at a time."""
    stream = iter(rows)
    while batch := list(islice(stream, BATCH)):
        yield from _sizes(batch, counter)


def _sizes(rows: list[Row], counter: Counter) -> Iterator[Size]:
    rendered = [_rendered(row, counter.template) for row in rows]
    texts: list[str] = []
    for row, found in zip(rows, rendered, strict=True):
        given, answer = row_texts(row)
        texts += [*(found or (given, answer)), answer]
    counts = counter.count(texts)
    for at, (row, found) in enumerate(zip(rows, rendered, strict=True)):
        first, second, answer_tokens = counts[3 * at : 3 * at + 3]
        if found is not None:
            left_out = counter.template is not None and counter.template.leaves_calls_out(row)
            yield Size(prompt=first, total=second, answer=answer_tokens, calls_left_out=left_out)
            continue
        prompt = first + MARKS_PER_TURN * len(row.prompt)
        total = prompt + answer_tokens + MARKS_PER_TURN
        yield Size(prompt=prompt, total=total, answer=answer_tokens, refused=counter.template is not None)


def _rendered(row: Row, template: ChatTemplate | None) -> tuple[str, str] | None:
    """(the prompt, the whole conversation) as the template renders them; None without one, or when it refuses."""
    if template is None:
        return None
    try:
        return template.render(row, answer=False), template.render(row, answer=True)
    except UserError:
        return None
