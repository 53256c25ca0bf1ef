"""Supervised fine-tuning: `train(Dataset, TrainConfig) -> Run`. Puts the parts together and does nothing else."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Run
from tunegate.core.chat_template import probe_digest, render_ids, template_digest
from tunegate.core.console import progress, say
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.files import new_folder, read_json, write_json, write_text
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import Row, read_rows
from tunegate.train import cpu_attention, examples, model_loading
from tunegate.train.callbacks import StopRequest, make_callback, peak_memory_gb
from tunegate.train.config import TrainConfig, to_yaml
from tunegate.train.trainer import Batching, make_trainer

PROBE_ROWS = 4


class Interrupted(KeyboardInterrupt):
    """Training stopped on a signal, after a checkpoint."""


def working_folder(out: Path) -> Path:
    """Where a run's checkpoints and metrics are until it is finished: hidden, beside the run."""
    return out.parent / f".{out.name}.training"


def prepare(
    dataset: Dataset, source: ModelSource, config: TrainConfig
) -> tuple[Any, list[Row], list[examples.Example], examples.MaskCertificate]:
    """Tokenizer, rows, masked examples and certificate: everything before the model is loaded."""
    tokenizer = model_loading.load_tokenizer(source)
    stops = model_loading.stop_ids(source, tokenizer)
    rows = list(read_rows(dataset.train_path))
    kept, certificate = examples.build(
        rows, tokenizer, stops, max_length=config.max_length, max_left_out_share=config.max_left_out_share
    )
    say(
        f"rows: {certificate.rows} of {len(rows)} ({certificate.too_long} longer than {config.max_length} tokens left out), "
        f"{certificate.tokens:,} tokens, loss on {certificate.label_tokens:,} answer tokens, longest {certificate.longest}"
    )
    return tokenizer, rows, kept, certificate


def train(dataset: Dataset, source: ModelSource, config: TrainConfig, out: Path, *, resume: bool, force: bool) -> Run:
    """Train and write the Run folder.

    Raises UserError for data that cannot be trained on, TrainingDivergedError for a loss that is not finite, KeyboardInterrupt
    after a signal (with a checkpoint when `save_steps` is set).
    """
    work = _open_working_folder(out, config, dataset, resume=resume)
    tokenizer, rows, kept, certificate = prepare(dataset, source, config)
    training, validation = examples.split_validation(kept, config.validation_share, config.seed)
    device = model_loading.pick_device(config)
    side_by_side, attention = _attention(source, config, device)
    from transformers.trainer_utils import set_seed

    set_seed(config.seed)
    model = model_loading.load_base(source, config, device, attention)
    total = model.num_parameters()
    if config.method != "full":
        model = model_loading.with_adapter(model, config)
    arguments = _arguments(config, work, device, has_validation=bool(validation))
    steps = _total_steps(config, len(training))
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    tokens_per_step = per_step * sum(len(e.input_ids) for e in training) / len(training)
    with StopRequest() as stop, progress("training", steps) as tick:
        callback = make_callback(work / "metrics.jsonl", tick, stop, tokens_per_step, checkpoints=config.save_steps > 0)
        batching = Batching(
            pad=tokenizer.pad_token_id, side_by_side=side_by_side, answers_only=_answers_only(model, device)
        )
        trainer = make_trainer(
            model=model, args=arguments, train=training, validation=validation, tokenizer=tokenizer,
            batching=batching, callbacks=[callback],
        )  # fmt: skip
        _quiet(trainer)
        checkpoint = last_checkpoint(work) if resume else None
        if checkpoint:
            say(f"resuming from {checkpoint.name}")
        _forget_metrics_after(work, checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.asked is not None:
        saved = "go on with the same command and --resume" if config.save_steps else "nothing was kept, save_steps is 0"
        raise Interrupted(f"stopped at step {trainer.state.global_step}; {saved}")
    if validation and callback.evaluated_at != trainer.state.global_step:
        trainer.evaluate()
    facts = {
        **_facts(config, source, tokenizer, certificate, trainer),
        "validation_rows": len(validation),
        "validation_loss": callback.eval_loss,
        "total_params": total,
        "attention": attention,
    }
    with new_folder(out, force=force) as folder:
        _save(folder, work, trainer, tokenizer, source, config, rows)
        inputs = [dataset.as_input("dataset"), source.as_input()]
        manifests.write(folder, "run", inputs=inputs, config=asdict(config), seeds={"seed": config.seed}, facts=facts)
    shutil.rmtree(work)
    return Run.open(out)


def _facts(
    config: TrainConfig, source: ModelSource, tokenizer: Any, certificate: examples.MaskCertificate, trainer: Any
) -> dict[str, Any]:
    """What the manifest says of a run."""
    return {
        "method": config.method,
        "base": source.spec,
        "base_name": source.name,
        "license": source.license,
        "template_digest": template_digest(tokenizer),
        "probe_digest": probe_digest(tokenizer),
        "mask": examples.as_facts(certificate),
        "steps": trainer.state.global_step,
        "trainable_params": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "peak_memory_gb": round(peak_memory_gb(), 3),
    }


def _forget_metrics_after(work: Path, checkpoint: Path | None) -> None:
    """Drop metrics of steps after the checkpoint: they are run again."""
    path = work / "metrics.jsonl"
    if path.is_file():
        last = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if json.loads(line)["step"] <= last]
        write_text(path, "".join(line + "\n" for line in lines))


def last_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint that is complete (its `trainer_state.json` is written last)."""
    found = [p for p in work.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit()]
    for path in sorted(found, key=lambda p: -int(p.name.rpartition("-")[2])):
        needed = ("trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state*.pth")
        if all(any(file.stat().st_size for file in path.glob(name)) for name in needed):
            return path
        say(f"{path.name} is incomplete and is passed over")
    return None


def _open_working_folder(out: Path, config: TrainConfig, dataset: Dataset, *, resume: bool) -> Path:
    """Make or reopen the working folder. Raises UserError when a resumed run would continue with another config or data."""
    work = working_folder(out)
    identity = {"config": json.loads(json.dumps(asdict(config))), "dataset": dataset.digest}
    marker = work / "training.json"
    if resume:
        if not marker.is_file():
            raise UserError("there is nothing to resume", where=str(work), hint="run without --resume")
        before = json.loads(marker.read_text(encoding="utf-8"))
        if before["dataset"] != identity["dataset"]:
            raise UserError("the dataset is not the one this run began with", where=str(dataset.path))
        changed = [k for k, v in identity["config"].items() if before["config"].get(k) != v]
        if changed:
            raise UserError(
                f"the settings differ from those this run began with: {', '.join(changed)}", where=str(work)
            )
        return work
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_json(marker, identity)
    return work


def _attention(source: ModelSource, config: TrainConfig, device: str) -> tuple[bool, str]:
    """(rows side by side?, attention implementation): our CPU attention where it computes the same, else SDPA."""
    from transformers import AutoConfig

    if device == "cpu" and config.fast_cpu:
        try:
            architecture = AutoConfig.from_pretrained(source.location, revision=source.revision)
        except (OSError, ValueError) as error:
            raise UserError(f"the model's config cannot be read: {error}", where=source.spec) from None
        if cpu_attention.supported(architecture):
            cpu_attention.register()
            return True, cpu_attention.NAME
        say("fast CPU attention does not cover this architecture: padded batches with torch's attention instead")
    return False, "sdpa"


def _answers_only(model: Any, device: str) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return device == "cpu" and hasattr(base, "model") and hasattr(base, "lm_head")


def _total_steps(config: TrainConfig, rows: int) -> int:
    batches = -(-rows // config.per_device_train_batch_size)
    per_epoch = max(1, -(-batches // config.gradient_accumulation_steps))
    by_epochs = max(1, round(per_epoch * config.num_train_epochs))
    return config.max_steps if config.max_steps > 0 else by_epochs


def _arguments(config: TrainConfig, work: Path, device: str, *, has_validation: bool) -> Any:
    """Our config in TRL's names."""
    from trl import SFTConfig

    checkpointing = config.gradient_checkpointing
    if checkpointing is None:
        checkpointing = device == "cuda" or config.method == "qlora"
    evaluate = "no" if not has_validation else "steps" if config.eval_steps > 0 else "epoch"
    optimizer = "paged_adamw_8bit" if device == "cuda" and config.method == "qlora" else "adamw_torch_fused"
    return SFTConfig(
        output_dir=str(work),
        max_steps=config.max_steps,
        num_train_epochs=config.num_train_epochs,
        per_device_train_batch_size=config.per_device_train_batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=optimizer,
        bf16=True,
        use_cpu=device == "cpu",
        gradient_checkpointing=checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        eval_strategy=evaluate,
        eval_steps=config.eval_steps or None,
        save_strategy="steps" if config.save_steps > 0 else "no",
        save_steps=config.save_steps or 500,
        save_total_limit=2,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
        data_seed=config.seed,
    )


def _quiet(trainer: Any) -> None:
    """Drop the callback that prints every log line as a dict; our progress line says it."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def _save(
    folder: Path, work: Path, trainer: Any, tokenizer: Any, source: ModelSource, config: TrainConfig, rows: list[Row]
) -> None:
    """Weights or adapter, tokenizer, template, resolved config, metrics, and a few rendered prompts as a probe."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.method == "full":
        model.to(torch.bfloat16)
        model.config.use_cache = True
    try:
        model.save_pretrained(folder, safe_serialization=True)
    except (OSError, RuntimeError) as error:
        raise InfrastructureError(f"the weights could not be written: {error}", where=str(folder)) from error
    if config.method != "full":
        adapter = read_json(folder / "adapter_config.json")
        write_json(
            folder / "adapter_config.json",
            {**adapter, "base_model_name_or_path": source.name if source.kind == "builtin" else source.location},
        )
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    shutil.copy(work / "metrics.jsonl", folder / "metrics.jsonl")
    write_text(folder / "config.yaml", to_yaml(config))
    probes = [
        {
            "messages": list(row.prompt),
            "tools": row.tools,
            "ids": render_ids(tokenizer, row.prompt, tools=row.tools, generate=True),
        }
        for row in rows[:PROBE_ROWS]
    ]
    write_json(folder / "probe.json", {"prompts": probes})
