"""TRL's SFTTrainer with its loss on the CPU, the validation loss, the checkpoints and the look before each update changed.

Built by a function because TRL and torch are imported only when training begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.train import checkpoints, halves, ranks, watch
from tunegate.train.examples import Example
from tunegate.train.loss import answer_loss, validation_loss
from tunegate.train.packing import collate, label_count, token_counts
from tunegate.train.progress import Progress
from tunegate.train.work import METRICS


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How rows become batches and losses. answers_only: our loss, which projects label positions only; else TRL's.
    in_halves: each batch on two threads (`halves`)."""

    pad: int
    side_by_side: bool
    answers_only: bool
    in_halves: bool = False


@dataclass(frozen=True, kw_only=True)
class Watching:
    """What is watched. spike_factor: see `watch.check_step`. vocabulary: entries. patience: evaluations without gain
    before an early stop, 0 for none."""

    spike_factor: float
    vocabulary: int
    patience: int = 0


def make_trainer(
    *,
    model: Any,
    args: Any,
    train: Sequence[Example],
    validation: Sequence[Example],
    tokenizer: Any,
    batching: Batching,
    watching: Watching,
    progress: Progress,
    callbacks: list[Any],
) -> Any:
    """The trainer over these examples."""
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    def as_dataset(part: Sequence[Example]) -> Any:
        columns = {"input_ids": [e.input_ids for e in part], "labels": [e.labels for e in part]}
        return Dataset.from_dict({**columns, "row": list(range(len(part)))})

    trainer = _trainer_class(validation, batching, watching, progress)(
        model=model,
        args=args,
        train_dataset=as_dataset(train),
        eval_dataset=as_dataset(validation) if validation else None,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    for printing in (PrinterCallback, ProgressCallback):  # our progress line says it
        trainer.remove_callback(printing)
    trainer.data_collator = lambda items: collate(
        [train[i["row"]] for i in items], pad=batching.pad, side_by_side=batching.side_by_side
    )
    # TRL casts the adapters of a quantized model to bf16, where steps of the size of a learning rate vanish.
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _trainer_class(validation: Sequence[Example], batching: Batching, watching: Watching, progress: Progress) -> Any:
    from trl import SFTTrainer

    class Trainer(SFTTrainer):  # type: ignore[misc]
        step_rows: list[str]
        step_loss = 0.0
        step_tokens = step_labels = 0

        def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Any:
            """One micro-batch; the first of an optimizer step begins its account anew."""
            if getattr(self, "_step_seen", -1) != self.state.global_step:
                self._step_seen, self.step_rows, self.step_loss = self.state.global_step, [], 0.0
                self.step_tokens = self.step_labels = 0
            self.step_rows += inputs["rows"]
            tokens, labels = token_counts(inputs)
            self.step_tokens, self.step_labels = self.step_tokens + tokens, self.step_labels + labels
            return super().training_step(model, inputs, num_items_in_batch)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            rows = inputs.pop("rows", [])
            inputs.pop("tokens", None)
            if batching.answers_only:
                loss = _answer_loss(self, model, inputs, num_items_in_batch, batching)
            else:
                loss = super().compute_loss(model, inputs, False, num_items_in_batch)
            if self.model.training:
                value = float(loss.detach())
                watch.check_loss(value, self.state.global_step + 1, rows)
                parts = self.current_gradient_accumulation_steps if num_items_in_batch is None else 1
                self.step_loss += value / parts
            return loss

        def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
            # Called after the backward passes, before the optimizer: the last moment at which the weights are untouched.
            norm = _number(super()._get_grad_norm(model, grad_norm=grad_norm))
            loss, tokens, labels = ranks.summed([self.step_loss, self.step_tokens, self.step_labels])
            loss = loss / ranks.count()  # each is scaled by their number, because gradients are averaged
            step, factor, vocabulary = self.state.global_step + 1, watching.spike_factor, watching.vocabulary
            watch.check_step(
                progress, loss, norm, step, self.step_rows, factor=factor, vocabulary=vocabulary,
                clip=self.args.max_grad_norm or 0.0,
            )  # fmt: skip
            progress.step(loss, norm)
            progress.tokens, progress.label_tokens = progress.tokens + int(tokens), progress.label_tokens + int(labels)
            return norm

        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            return _evaluate(self, validation, batching, watching, progress)

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            _write_checkpoint(self, progress)

    return Trainer


def _answer_loss(trainer: Any, model: Any, inputs: dict[str, Any], items: Any, batching: Batching) -> Any:
    """The loss of a micro-batch by label tokens alone. items: label tokens of the whole step; None: this batch's own, and the
    trainer still scales what it gets."""
    # One process calls the model itself; wrapped, it must be called through its wrapper.
    processes = trainer.accelerator.num_processes
    called = model if processes > 1 else trainer.model
    count = label_count(inputs) if items is None else items

    def loss_of(batch: dict[str, Any]) -> Any:
        return answer_loss(called, batch, trainer.accelerator.autocast())[0] / count

    if batching.in_halves and items is not None:
        loss = halves.loss(inputs, [p for p in called.parameters() if p.requires_grad], loss_of)
    else:
        loss = loss_of(inputs)
    return loss * processes if trainer.args.average_tokens_across_devices and items is not None else loss


def _number(norm: Any) -> float:
    """A gradient norm as a number; sharded parameters give it as a sharded tensor."""
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)


def _evaluate(
    trainer: Any, validation: Sequence[Example], batching: Batching, watching: Watching, progress: Progress
) -> dict[str, float]:
    """The token-weighted validation loss, counted and told to the callbacks."""
    loss = validation_loss(
        trainer.model,
        validation,
        trainer.accelerator,
        pad=batching.pad,
        side_by_side=batching.side_by_side,
        batch_size=trainer.args.per_device_train_batch_size,
    )
    watch.check_validation(loss, trainer.state.global_step)
    progress.evaluated(trainer.state.global_step, loss, watching.patience)
    metrics = {"eval_loss": loss}
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics


def _write_checkpoint(trainer: Any, progress: Progress) -> None:
    """Everything that a resumed run needs to go on bitwise, whole or not at all. The first process makes the folder and
    seals it; the others write their part (random states, shards) into it."""
    trainer.store_flos()
    work = Path(trainer.args.output_dir)
    with checkpoints.writing(work, trainer.state.global_step, best_step=progress.best_step) as folder:
        trainer.save_model(str(folder), _internal_call=True)
        trainer._save_optimizer_and_scheduler(str(folder))
        trainer._save_rng_state(str(folder))
        if ranks.rank() == 0:
            trainer.state.save_to_json(str(folder / "trainer_state.json"))
            progress.write(folder, work / METRICS)
        ranks.barrier()
    ranks.barrier()


def restore_finished(trainer: Any, checkpoint: Path) -> None:
    """Weights and state of a checkpoint after which no step is left (the last one, or an early stop's)."""
    from transformers.trainer_callback import TrainerState

    load_weights(trainer, checkpoint)
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def load_weights(trainer: Any, checkpoint: Path) -> None:
    """Put the weights or the adapter of a checkpoint into the trainer's model."""
    trainer.state.best_model_checkpoint = str(checkpoint)
    trainer._load_best_model()
