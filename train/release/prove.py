"""What a model says on given rows, and how far two models are apart: the proof of every step that rewrites weights."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tunegate.core.artifacts import Behind, Dataset, Release, Run, datasets_behind
from tunegate.core.chat_template import IGNORE_INDEX, MaskError, mask_answers
from tunegate.core.console import progress, say
from tunegate.core.errors import UserError
from tunegate.core.files import sha256_text
from tunegate.core.rows import Row, read_rows
from tunegate.train.examples import Example
from tunegate.train.packing import collate

POSITIONS = 16  # of each row whose logits are kept and compared
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Said:
    """What a model says along one row's answer. loss: sum of the cross entropies of its label tokens, in nats. greedy: the
    most likely token at each (T,). logits: at the first `POSITIONS` of them (t, V), fp32, each position's mean taken off: a
    shift of all of them changes no probability."""

    loss: float
    labels: list[int]
    greedy: list[int]
    logits: Any


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Two models on the same rows. Logit differences are absolute; shares are of label tokens and of rows whose answers are
    token for token what the model would say next. spread: standard deviation of the first model's logits."""

    rows: int
    max_logit_difference: float
    mean_logit_difference: float
    same_next_token_share: float
    same_answers: int
    spread: float


def find_dataset(made: Run | Release) -> Dataset:
    """The dataset a run or release was trained on, found through its lineage. Raises UserError when it is gone or changed."""
    nearest = next(iter(datasets_behind(made.manifest.inputs)), Behind(made.path, None, "is not where it was"))
    if nearest.dataset is None:
        since = " since the model was trained on it" if nearest.why == "has changed" else ""
        raise UserError(
            f"the dataset the model was trained on {nearest.why}{since}",
            where=str(nearest.path),
            hint="name one with --calibration DATASET",
        )
    return nearest.dataset


def held_out(dataset: Dataset | None, tokenizer: Any, stops: list[int], count: int) -> list[Example]:
    """`count` rows of the held-out part, chosen by the hash of their id, masked to their answers. Rows that the template
    cannot mask are left out and said."""
    if dataset is None or count < 1:
        return []
    rows: list[Row] = sorted(read_rows(dataset.eval_path), key=lambda row: sha256_text(f"proof:{row.id}"))
    found, refused = [], 0
    for row in rows[:count]:
        try:
            answers = mask_answers(tokenizer, row.messages, stops, tools=row.tools)
        except MaskError:
            refused += 1
            continue
        found += [Example(id=row.id, input_ids=masked.input_ids, labels=masked.labels) for masked in answers]
    if refused:
        say(f"{refused} held-out rows cannot be masked with this template and are left out of the proof")
    return [example for example in found if any(label != IGNORE_INDEX for label in example.labels[1:])]


def ends_of(prompts: Sequence[dict[str, Any]]) -> list[Example]:
    """Prompts of `probe.json` as rows whose last tokens count: their logits are compared, they are no answers."""
    return [
        Example(
            id=f"prompt {number}",
            input_ids=list(prompt["ids"]),
            labels=[
                t if i >= len(prompt["ids"]) - POSITIONS and i else IGNORE_INDEX for i, t in enumerate(prompt["ids"])
            ],
        )
        for number, prompt in enumerate(prompts)
    ]


def listen(model: Any, rows: Sequence[Example], what: str, *, pad: int) -> list[Said]:
    """What the model says along each row's labels, in the rows' order."""
    import torch

    found: dict[int, Said] = {}
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].input_ids))
    with torch.no_grad(), progress(f"reading held-out answers, {what}", len(rows)) as tick:
        while order:
            size = max(1, BATCH_TOKENS // len(rows[order[0]].input_ids))
            chosen, order = order[:size], order[size:]
            batch = collate([rows[i] for i in chosen], pad=pad, side_by_side=False)
            labels = batch["labels"][:, 1:]
            keep = labels != IGNORE_INDEX
            at = torch.nonzero(keep.any(0)).flatten()  # (P,) positions that some row needs
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
            logits = model(**inputs, use_cache=False, logits_to_keep=at).logits
            for row, index in enumerate(chosen):
                here = keep[row][at]
                found[index] = _said(logits[row][here].float(), labels[row][at][here])
            tick(len(chosen))
    return [found[i] for i in range(len(rows))]


def _said(logits: Any, labels: Any) -> Said:
    import torch

    loss = float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
    kept = logits[:POSITIONS]
    return Said(loss, labels.tolist(), logits.argmax(-1).tolist(), kept - kept.mean(-1, keepdim=True))


def loss_of(said: Sequence[Said]) -> float:
    """Mean cross entropy per label token, in nats: every token weighs the same (its exponential is the perplexity)."""
    tokens = sum(len(s.labels) for s in said)
    return sum(s.loss for s in said) / tokens if tokens else math.nan


def difference(first: Sequence[Said], second: Sequence[Said]) -> Difference:
    """How far the second model is from the first, on the same rows. NaN and infinity come through as infinity."""
    import torch

    gaps = [(a.logits - b.logits).abs().nan_to_num(nan=math.inf) for a, b in zip(first, second, strict=True)]
    same = [[x == y for x, y in zip(a.greedy, b.greedy, strict=True)] for a, b in zip(first, second, strict=True)]
    values = sum(g.numel() for g in gaps)
    return Difference(
        rows=len(gaps),
        max_logit_difference=max(float(g.max()) for g in gaps),
        mean_logit_difference=sum(float(g.sum()) for g in gaps) / values,
        same_next_token_share=sum(map(sum, same)) / sum(map(len, same)),
        same_answers=sum(all(row) for row in same),
        spread=float(torch.cat([a.logits.flatten() for a in first]).std()),
    )


def exact(said: Sequence[Said]) -> list[bool]:
    """Of each row whether a greedy decoder would give exactly its answer: then, and only then, each token of the answer is the
    most likely one after those before it."""
    return [s.greedy == s.labels for s in said]


def answers(first: Sequence[Said], second: Sequence[Said]) -> dict[str, int]:
    """Rows answered exactly by each of two models, and those that only one of them answers so."""
    pairs = list(zip(exact(first), exact(second), strict=True))
    return {
        "rows": len(pairs),
        "before": sum(a for a, _ in pairs),
        "after": sum(b for _, b in pairs),
        "fixed": sum(b and not a for a, b in pairs),
        "broken": sum(a and not b for a, b in pairs),
    }


def as_facts(found: Difference) -> dict[str, Any]:
    """As it stands in `release.yaml`."""
    return {k: (round(v, 7) if isinstance(v, float) else v) for k, v in asdict(found).items()}


def words(found: Difference) -> str:
    """In one line, for people."""
    return (
        f"logits differ by {found.mean_logit_difference:.4f} on average, {found.max_logit_difference:.3f} at most; same next "
        f"token at {found.same_next_token_share:.1%} of positions, the same all along in {found.same_answers} of {found.rows} rows"
    )
