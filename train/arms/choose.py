"""How many examples, and which: measured on a development part of the training rows by the loss of their answers."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tunegate.core.chat_template import Masked, MaskError, mask, render
from tunegate.core.console import progress, say, warn
from tunegate.core.files import sha256_text
from tunegate.core.rows import Message, Row
from tunegate.serve.prompting.prompting import Prompting

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNTS = (0, 1, 3, 5, 8)
DEFAULT_K = 3  # where there are no rows to choose on
NONE_SHOWN = "the chat template refuses prompts with these examples: none are shown"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One setting and what it gave. loss: mean negative log-likelihood of the answer tokens (natural log, a token)."""

    k: int
    selection: str
    loss: float
    examples_used: float
    tokens_per_s: float


def development_part(rows: Sequence[Row], wanted: int) -> tuple[list[Row], list[Row]]:
    """(examples, development rows): up to `wanted` rows, at most a fifth, by the hash of their id; rows of one group stay
    together."""
    wanted = min(wanted, len(rows) // 5)
    units: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        units.setdefault(f"development {row.id}" if row.group is None else f"group {row.group}", []).append(i)
    chosen: set[int] = set()
    for unit in sorted(units, key=sha256_text):
        if len(chosen) + len(units[unit]) <= wanted:
            chosen |= set(units[unit])
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]


def spread_out(vectors: "NDArray[np.float32]", labels: Sequence[str], k: int) -> list[int]:
    """Positions of k examples that cover the data: those nearest to the centre first, then always the one farthest from
    what is chosen (k-center greedy, Gonzalez 1985); where answers are labels, labels not yet shown go first."""
    import numpy as np

    centre = vectors.mean(axis=0)
    chosen = [int(np.argmax(vectors @ centre))]
    nearest = vectors @ vectors[chosen[0]]
    while len(chosen) < min(k, len(vectors)):
        seen = {labels[i] for i in chosen}
        fresh = np.array([label not in seen for label in labels])
        score = np.where(fresh, nearest - 2, nearest) if fresh.any() else nearest.copy()
        score[chosen] = np.inf
        chosen.append(int(np.argmin(score)))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen


def answer_loss(
    prompting: Prompting, rows: Sequence[Row], model: Any, tokenizer: Any, stop_ids: Sequence[int], *, room: int
) -> tuple[float, float, int]:
    """(mean loss of an answer token, examples a prompt got on average, tokens read) over rows, as the server would
    prompt them. The loss is infinite where the chat template refuses one of the prompts: such a setting cannot be served."""
    import torch

    total, label_tokens, used, tokens = 0.0, 0, 0, 0
    for row in rows:
        applied = prompting.apply(row.prompt, room=room)
        used += len(applied.used)
        masked = _masked(applied.messages, row, tokenizer, stop_ids)
        if masked is None:
            return math.inf, used / len(rows), tokens
        start, end = _last_answer(masked.labels)
        answer, length = end - start, len(masked.input_ids)
        ids = torch.tensor([masked.input_ids], device=model.device)
        with torch.inference_mode():  # logits at position p predict token p + 1
            logits = model(input_ids=ids, logits_to_keep=length - start + 1).logits[0, :answer].float()
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, start:end], reduction="sum"))
        label_tokens += answer
        tokens += length
    return total / max(1, label_tokens), used / max(1, len(rows)), tokens


def measurable(
    prompting: Prompting, rows: Sequence[Row], tokenizer: Any, stop_ids: Sequence[int], *, room: int
) -> list[Row]:
    """The rows whose answers have a loss when no example is shown."""
    bare = without_examples(prompting)
    return [row for row in rows if _masked(bare.apply(row.prompt, room=room).messages, row, tokenizer, stop_ids)]


def unserved(prompting: Prompting, rows: Sequence[Row], tokenizer: Any, *, room: int) -> str | None:
    """Why the chat template refuses the prompt of a row that it takes without the examples; None where it does not."""
    bare, prompts = without_examples(prompting), [row.prompt for row in rows]
    for row, shown in zip(rows, prompting.apply_all(prompts, room=room), strict=True):
        try:
            render(tokenizer, shown.messages, tools=row.tools, generate=True)
        except MaskError as error:
            try:
                render(tokenizer, bare.apply(row.prompt, room=room).messages, tools=row.tools, generate=True)
            except MaskError:
                continue
            return error.message
    return None


def without_examples(prompting: Prompting) -> Prompting:
    """The same prompting, showing nothing."""
    return replace(prompting, settings=replace(prompting.settings, k=0))


def _masked(messages: Sequence[Message], row: Row, tokenizer: Any, stop_ids: Sequence[int]) -> Masked | None:
    """A row's answer behind these messages, masked; None where the chat template refuses it, or has nothing to learn."""
    try:
        found = mask(tokenizer, [*messages, row.messages[-1]], stop_ids, tools=row.tools, last=True)
    except MaskError:
        return None
    return found if found.label_tokens else None


def choose(
    make: Callable[[int, str], Prompting],
    rows: Sequence[Row],
    selections: Sequence[str],
    loss_of: Callable[[Prompting], tuple[float, float, int]],
) -> tuple[int, str, list[Tried]]:
    """(k, selection, curve): the setting with the lowest answer loss on `rows`; the smaller k where two are equal.

    Each k is tried with the first selection, every other selection with the best of these.
    """
    tried: list[Tried] = []
    first, *others = selections
    with progress("choosing examples", len(COUNTS) + len(others)) as tick:

        def measure(k: int, selection: str) -> None:
            start = time.perf_counter()
            loss, used, tokens = loss_of(make(k, selection))
            rate = tokens / (time.perf_counter() - start)
            tried.append(Tried(k=k, selection=selection, loss=loss, examples_used=used, tokens_per_s=rate))
            tick()

        for k in COUNTS:
            measure(k, first)
        for selection in others:
            measure(_best(tried).k or COUNTS[1], selection)
    best = _best(tried)
    if all(math.isinf(t.loss) for t in tried if t.k):
        warn(NONE_SHOWN)
    say(
        f"examples: {best.k} {best.selection}, answer loss {best.loss:.3f} on {len(rows)} development rows "
        f"(tried: {', '.join(f'{t.k} {t.selection} {_loss(t.loss)}' for t in tried)})"
    )
    return best.k, best.selection, tried


def _loss(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "refused by the template"


def _best(tried: Sequence[Tried]) -> Tried:
    return min(tried, key=lambda t: (round(t.loss, 4), t.k))


def _last_answer(labels: Sequence[int]) -> tuple[int, int]:
    """[start, end) of the last answer's tokens; those of examples and earlier turns come before."""
    end = max(i for i, label in enumerate(labels) if label != -100) + 1
    start = end - 1
    while start > 0 and labels[start - 1] != -100:
        start -= 1
    return start, end
