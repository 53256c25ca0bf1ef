"""Rows to a batch: side by side in one sequence, or padded on the right."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX
from tunegate.train.examples import Example

NOT_FOR_THE_MODEL = ("labels", "rows", "tokens")
# What the tiles of a CPU's matrix unit take whole; measured with lora on 2 cores with AMX, docs/training.md.
ROW_MULTIPLE, SEQUENCE_MULTIPLE = 8, 32


def collate(examples: Sequence[Example], *, pad: int, side_by_side: bool) -> dict[str, Any]:
    """A batch for the model.

    side_by_side: all rows in one sequence (1, S) with positions that start anew and row boundaries `cu_seq_lens_q`, and
    no attention mask: an all-ones mask would let rows see their neighbours. Each row is filled with `pad` to a multiple
    of ROW_MULTIPLE, and S by a row of `pad` alone to one of SEQUENCE_MULTIPLE: these tokens are never learnt from, and
    no other sees them. Else right-padded (B, S) with a mask.
    `rows` holds the rows' ids for error messages, `tokens` the number of tokens that are not padding.
    """
    import torch

    told = {"rows": [e.id for e in examples], "tokens": sum(len(e.input_ids) for e in examples)}
    if side_by_side:
        return {**_side_by_side(examples, pad), **told}
    ids = [torch.tensor(e.input_ids) for e in examples]
    labels = [torch.tensor(e.labels) for e in examples]
    pad_to = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad_to(ids, batch_first=True, padding_value=pad),
        "labels": pad_to(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_to([torch.ones_like(i) for i in ids], batch_first=True),
        **told,
    }


def _side_by_side(examples: Sequence[Example], pad: int) -> dict[str, Any]:
    import torch

    ids: list[int] = []
    labels: list[int] = []
    bounds = [0]
    for example in examples:
        filling = -len(example.input_ids) % ROW_MULTIPLE
        ids += [*example.input_ids, *[pad] * filling]
        labels += [IGNORE_INDEX, *example.labels[1:], *[IGNORE_INDEX] * filling]
        bounds.append(len(ids))
    if filling := -len(ids) % SEQUENCE_MULTIPLE:
        ids += [pad] * filling
        labels += [IGNORE_INDEX] * filling
        bounds.append(len(ids))
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.cat([torch.arange(b - a) for a, b in pairwise(bounds)])[None],
        "cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32),
    }


def token_counts(batch: dict[str, Any]) -> tuple[int, int]:
    """(tokens, label tokens) of a batch, padding not counted."""
    return batch["tokens"], label_count(batch)


def label_count(batch: dict[str, Any]) -> int:
    """Label tokens of a batch."""
    return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
