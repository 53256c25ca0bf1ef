"""Counting tokens: exactly with a model's own tokenizer, or an estimate that says so."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tunegate.core.errors import UserError
from tunegate.core.model_source import BUILTIN_PREFIX, BUILTINS, cache_folder
from tunegate.core.profile import row_texts
from tunegate.core.rows import Row

# Characters a token, measured on the 858 BFCL rows with SmolLM2-135M-Instruct's tokenizer (English and JSON).
CHARACTERS_PER_TOKEN = 4.0
BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class Counter:
    """count: texts -> token counts. exact: by a tokenizer rather than by dividing characters. source: which."""

    count: Callable[[list[str]], list[int]]
    exact: bool
    source: str


def estimate() -> Counter:
    """Characters divided by four: within a third for English text and JSON, far off for other scripts."""
    return Counter(
        count=lambda texts: [round(len(text) / CHARACTERS_PER_TOKEN) for text in texts],
        exact=False,
        source=f"estimate: characters / {CHARACTERS_PER_TOKEN:g}",
    )


def counter(model: str | None) -> Counter:
    """The tokenizer of `model` (a folder, or a builtin that was unpacked before), else the estimate.

    Raises UserError when `model` names a folder without tokenizer.json; for a hub id that is not on this machine, and for
    a builtin not unpacked yet, gives the estimate, whose source says so.
    """
    if model is None:
        return estimate()
    file = _tokenizer_file(model)
    if file is None:
        if Path(model).expanduser().exists():
            raise UserError("no tokenizer.json there", where=model, hint="give a model folder, or leave --model out")
        plain = estimate()
        return Counter(count=plain.count, exact=False, source=f"{plain.source} (no tokenizer of {model} here)")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()

    def count(texts: list[str]) -> list[int]:
        return [len(found) for found in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    return Counter(count=count, exact=True, source=f"tokenizer of {model}")


def lengths(rows: Iterable[Row], counter: Counter) -> Iterator[tuple[int, int]]:
    """(input, output) tokens of each row: the text of the turns, tools and calls, without the chat template's marks."""
    stream = iter(rows)
    while batch := list(islice(stream, BATCH)):
        texts = [text for row in batch for text in row_texts(row)]
        counts = counter.count(texts)
        yield from zip(counts[::2], counts[1::2], strict=True)


def _tokenizer_file(model: str) -> Path | None:
    if model.startswith(BUILTIN_PREFIX):
        entry = BUILTINS.get(model.removeprefix(BUILTIN_PREFIX))
        stem = Path(entry["file"]).stem if entry else ""
        folder = cache_folder() / "models" / f"{stem}-{entry['sha256'][:12]}" if entry else Path("/nonexistent")
    else:
        folder = Path(model).expanduser()
    if folder.is_file() and folder.name == "tokenizer.json":
        return folder
    if (folder / "tokenizer.json").is_file():
        return folder / "tokenizer.json"
    return _hub_file(model)


def _hub_file(model: str) -> Path | None:
    """The tokenizer of a hub id, from the local cache only."""
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "tokenizer.json")
    return Path(found) if isinstance(found, str) else None
