"""Cross entropy of the answers: only label positions reach the output matrix, and every token weighs the same."""

from collections.abc import Sequence
from typing import Any

from tunegate.core.chat_template import IGNORE_INDEX
from tunegate.train.examples import Example
from tunegate.train.packing import NOT_FOR_THE_MODEL, collate


def answer_loss(model: Any, batch: dict[str, Any], autocast: Any) -> tuple[Any, Any]:
    """(sum of the cross entropies of the label tokens, their number), projecting only those positions to the vocabulary.

    With answers a tenth of the tokens and a vocabulary of 49,152 the projection is otherwise most of the work.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL}
    labels = batch["labels"][:, 1:]
    keep = labels != IGNORE_INDEX
    with autocast:
        if hasattr(base, "model") and hasattr(base, "lm_head"):
            hidden = base.model(**inputs, use_cache=False).last_hidden_state
            logits = base.lm_head(hidden[:, :-1][keep])
        else:
            logits = base(**inputs, use_cache=False).logits[:, :-1][keep]
    loss = torch.nn.functional.cross_entropy(logits.float(), labels[keep], reduction="sum")
    return loss, keep.sum()


def projects_answers_only(model: Any, device: str) -> bool:
    """Whether training takes `answer_loss`: on the CPU, where the model has a body and an output matrix by their usual
    names; else TRL's loss, which is chunked on a GPU."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return device == "cpu" and hasattr(base, "model") and hasattr(base, "lm_head")


def validation_loss(
    model: Any, examples: Sequence[Example], accelerator: Any, *, pad: int, side_by_side: bool, batch_size: int
) -> float:
    """Mean cross entropy per label token over all `examples`: the same whatever the batch size."""
    import torch

    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(examples), batch_size):
            batch = collate(examples[start : start + batch_size], pad=pad, side_by_side=side_by_side)
            batch = {k: v.to(accelerator.device) if hasattr(v, "to") else v for k, v in batch.items()}
            loss, n = answer_loss(model, batch, accelerator.autocast())
            total, count = total + float(loss), count + int(n)
    model.train(was_training)
    return total / max(count, 1)
