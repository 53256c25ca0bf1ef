"""TRL's SFTTrainer with four things changed: the loss on the CPU, the validation loss, guards against NaN, batches.

Built by a function because TRL and torch are imported only when training begins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunegate.core.errors import ExitCode, TunegateError
from tunegate.train.examples import Example

IGNORE_INDEX = -100


class TrainingDivergedError(TunegateError):
    """The loss or the gradients of a batch are not finite; the weights were not touched by it."""

    kind = "bad_input"
    exit_code = ExitCode.BAD_INPUT


def collate(examples: Sequence[Example], *, pad: int, side_by_side: bool) -> dict[str, Any]:
    """A batch for the model.

    side_by_side: all rows in one sequence (1, S) with positions that start anew and row boundaries `cu_seq_lens_q`;
    else right-padded (B, S) with an attention mask. `rows` holds the rows' ids for error messages.
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


def answer_loss(model: Any, batch: dict[str, Any], autocast: Any) -> tuple[Any, Any]:
    """(sum of the cross entropies of the label tokens, their number), projecting only those positions to the vocabulary.

    With answers a tenth of the tokens and a vocabulary of 49,152 the projection is otherwise most of the work.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {k: v for k, v in batch.items() if k not in ("labels", "rows")}
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


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How rows become batches and losses. answers_only: our loss, which projects label positions only; else TRL's."""

    pad: int
    side_by_side: bool
    answers_only: bool


def make_trainer(
    *,
    model: Any,
    args: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    tokenizer: Any,
    batching: Batching,
    callbacks: list[Any],
) -> Any:
    """The trainer over these examples."""
    from datasets import Dataset

    def as_dataset(part: Sequence[Example]) -> Any:
        columns = {"input_ids": [e.input_ids for e in part], "labels": [e.labels for e in part]}
        return Dataset.from_dict({**columns, "row": list(range(len(part)))})

    trainer = _trainer_class(validation, batching)(
        model=model,
        args=args,
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(validation) if validation else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    trainer.data_collator = lambda items: collate(
        [train[i["row"]] for i in items], pad=batching.pad, side_by_side=batching.side_by_side
    )
    # TRL casts the adapters of a quantized model to bf16, where steps of the size of a learning rate vanish.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _trainer_class(validation: Sequence[Example], batching: Batching) -> Any:
    from trl import SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]
        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            rows = inputs.pop("rows", [])
            if batching.answers_only:
                total, count = answer_loss(self.model, inputs, self.accelerator.autocast())
                loss = total / (count if num_items_in_batch is None else num_items_in_batch)
                if self.args.average_tokens_across_devices and num_items_in_batch is not None:
                    loss = loss * self.accelerator.num_processes
            else:
                loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            if self.model.training and not math.isfinite(loss.item()):
                raise TrainingDivergedError(
                    f"the loss is {loss.item()} at step {self.state.global_step + 1}; rows {', '.join(rows[:8])}",
                    hint="look at these rows, or lower --learning-rate; the weights were left untouched",
                )
            return loss

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            size = self.args.per_device_train_batch_size
            pad, side = batching.pad, batching.side_by_side
            loss = validation_loss(
                self.model, validation, self.accelerator, pad=pad, side_by_side=side, batch_size=size
            )
            metrics = {"eval_loss": loss}
            self.log(metrics)
            self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            return metrics

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            # Past TRL's, which writes a model card into every checkpoint.
            super(SFTTrainer, self)._save_checkpoint(model, trial)

    return Trainer


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
