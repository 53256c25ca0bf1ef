"""Our settings in TRL's names."""

import math
from pathlib import Path
from typing import Any

from tunegate.train import ranks
from tunegate.train.config import TrainConfig


def steps_per_epoch(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Optimizer steps of one pass over `rows`, whose batches the processes share."""
    batches = math.ceil(math.ceil(rows / config.per_device_train_batch_size) / processes)
    return max(1, math.ceil(batches / config.gradient_accumulation_steps))


def total_steps(config: TrainConfig, rows: int, processes: int = 1) -> int:
    """Optimizer steps of the run."""
    by_epochs = max(1, math.ceil(steps_per_epoch(config, rows, processes) * config.num_train_epochs))
    return config.max_steps if config.max_steps > 0 else by_epochs


def recomputes(config: TrainConfig, device: str) -> bool:
    """Whether activations are computed again in the backward pass."""
    if config.gradient_checkpointing is not None:
        return config.gradient_checkpointing
    return device == "cuda" or (config.method == "qlora" and not config.fast_cpu)


def _warmup(config: TrainConfig, steps: int) -> int:
    """Steps over which the rate rises from nothing. A share below 1 leaves at least one step after them, else a run of one
    step would learn nothing; so does the polynomial schedule, which divides by the steps that are left."""
    rest = int(config.warmup_ratio < 1 or config.lr_scheduler_type == "polynomial")
    return min(math.ceil(config.warmup_ratio * steps), steps - rest)


def keeps_best(config: TrainConfig) -> bool:
    """Whether the run ends with the weights of the best validation loss: by default where evaluations were asked for."""
    if config.keep_best is not None:
        return config.keep_best
    return config.eval_steps > 0 or config.early_stopping_patience > 0


def sft_arguments(config: TrainConfig, work: Path, device: str, *, rows: int, validation: int) -> Any:
    """The SFTConfig. rows, validation: examples to train on and to evaluate on.

    Evaluations are always counted in steps, so that one at the end of an epoch comes before that step's checkpoint.
    """
    from trl import SFTConfig

    recompute = recomputes(config, device)
    paged = device == "cuda" and config.method == "qlora"
    return SFTConfig(
        output_dir=str(work),
        max_steps=config.max_steps,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        lr_scheduler_kwargs={"lr_end": 0.0} if config.lr_scheduler_type == "polynomial" else None,
        warmup_steps=_warmup(config, total_steps(config, rows, ranks.count())),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="paged_adamw_8bit" if paged else "adamw_torch_fused",
        bf16=config.dtype != "float32",
        use_cpu=device == "cpu",
        gradient_checkpointing=recompute,
        gradient_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        ddp_find_unused_parameters=False,
        eval_strategy="steps" if validation else "no",
        eval_steps=config.eval_steps or steps_per_epoch(config, rows, ranks.count()),
        save_strategy="steps" if config.save_steps > 0 else "no",
        save_steps=config.save_steps or 500,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        report_to=list(config.report_to),
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
    )
