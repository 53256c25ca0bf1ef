"""Cross entropy of the answers: only label positions reach the output matrix, and every token weighs the same."""

import threading
from collections.abc import Sequence
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX
from tunegate.train import ranks
from tunegate.train.examples import Example
from tunegate.train.packing import NOT_FOR_THE_MODEL, collate


def answer_loss(model: Any, batch: dict[str, Any], autocast: Any) -> tuple[Any, Any]:
    """(sum of the cross entropies of the label tokens, their number), projecting only those positions to the vocabulary.

    With answers a tenth of the tokens and a vocabulary of 49,152 the projection is otherwise most of the work. The rows
    are picked at the door of the output matrix, inside the model's own forward pass: what a family does to its logits
    afterwards (Gemma 2 caps them, Granite scales them) and what wraps the model (DDP, FSDP) is as it always is. Two threads
    may call the same model at once (`halves`): each picks from its own.
    """
    import torch

    here = threading.get_ident()
    inputs = {k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL}
    labels = batch["labels"][:, 1:]
    keep = labels != IGNORE_INDEX
    picks = _output(model).register_forward_pre_hook(
        lambda _, given: (given[0][:, :-1][keep],) if threading.get_ident() == here else None
    )
    try:
        with autocast:
            logits = model(**inputs, use_cache=False).logits
    finally:
        picks.remove()
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[keep], reduction="sum")
    return loss, keep.sum()


def projects_answers_only(model: Any, device: str) -> bool:
    """Whether training takes `answer_loss`: on the CPU, where the model says which of its parts is the output matrix;
    else TRL's loss, which is chunked on a GPU."""
    return device == "cpu" and _output(model) is not None


def _output(model: Any) -> Any:
    """The output matrix of a model, whatever wraps it."""
    inner = model.module if hasattr(model, "module") else model
    base = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return base.get_output_embeddings()


def validation_loss(
    model: Any, examples: Sequence[Example], accelerator: Any, *, pad: int, side_by_side: bool, batch_size: int
) -> float:
    """Mean cross entropy per label token over all `examples`: the same whatever the batch size and the number of
    processes, which share the batches. One that is left without rows computes the first again, for nothing: a sharded
    model needs every process in every pass."""
    import torch

    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    here, processes = ranks.rank(), ranks.count()
    with torch.no_grad():
        for first in range(0, len(examples), batch_size * processes):
            start = first + here * batch_size
            part = examples[start : start + batch_size]
            batch = collate(part or examples[:1], pad=pad, side_by_side=side_by_side)
            batch = {k: v.to(accelerator.device) if hasattr(v, "to") else v for k, v in batch.items()}
            loss, n = answer_loss(model, batch, accelerator.autocast())
            if part:
                total, count = total + float(loss), count + int(n)
    model.train(was_training)
    all_total, all_count = ranks.summed([total, count])
    return all_total / max(all_count, 1.0)
