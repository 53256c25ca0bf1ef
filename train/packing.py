"""Rows to a batch: side by side in one sequence without padding, or padded on the right."""

from collections.abc import Sequence
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX
from tunegate.train.examples import Example

NOT_FOR_THE_MODEL = ("labels", "rows")


def collate(examples: Sequence[Example], *, pad: int, side_by_side: bool) -> dict[str, Any]:
    """A batch for the model.

    side_by_side: all rows in one sequence (1, S) with positions that start anew and row boundaries `cu_seq_lens_q`, and
    no attention mask: an all-ones mask would let rows see their neighbours. Else right-padded (B, S) with a mask.
    `rows` holds the rows' ids for error messages.
    """
    import torch

    ids = [torch.tensor(e.input_ids) for e in examples]
    labels = [torch.tensor(e.labels) for e in examples]
    rows = [e.id for e in examples]
    if side_by_side:
        for label in labels:
            label[0] = IGNORE_INDEX
        lengths = torch.tensor([0, *(len(i) for i in ids)])
        positions = torch.cat([torch.arange(len(i)) for i in ids])
        return {
            "input_ids": torch.cat(ids)[None],
            "labels": torch.cat(labels)[None],
            "position_ids": positions[None],
            "cu_seq_lens_q": lengths.cumsum(0).to(torch.int32),
            "rows": rows,
        }
    pad_to = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad_to(ids, batch_first=True, padding_value=pad),
        "labels": pad_to(labels, batch_first=True, padding_value=IGNORE_INDEX),
        "attention_mask": pad_to([torch.ones_like(i) for i in ids], batch_first=True),
        "rows": rows,
    }


def token_counts(batch: dict[str, Any]) -> tuple[int, int]:
    """(tokens, label tokens) of a batch, padding not counted."""
    mask = batch.get("attention_mask")
    tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
    return tokens, int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
