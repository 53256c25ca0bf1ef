"""Supervised fine-tuning: `train(Dataset, TrainConfig) -> Run`. Puts the parts together and does nothing else."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Run
from tunegate.core.console import progress as progress_view
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.files import new_folder
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import Row, read_rows
from tunegate.train import (
    adapters,
    cpu_attention,
    examples,
    fast_decoder,
    model_loading,
    preflight,
    saving,
    trackers,
    work,
)
from tunegate.train import checkpoints as points
from tunegate.train.arguments import keeps_best, sft_arguments, total_steps
from tunegate.train.callbacks import make_callback
from tunegate.train.config import TrainConfig
from tunegate.train.loss import projects_answers_only
from tunegate.train.progress import Progress
from tunegate.train.stop import Interrupted, StopRequest
from tunegate.train.trainer import Batching, Watching, load_weights, make_trainer, restore_finished


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything before the model is loaded: tokenizer, the rows read, the masked examples kept, their certificate."""

    tokenizer: Any
    rows: list[Row]
    kept: list[examples.Example]
    certificate: examples.MaskCertificate


def prepare(dataset: Dataset, source: ModelSource, config: TrainConfig) -> Prepared:
    """Read and mask the training rows. Raises UserError for rows or templates that cannot be trained on."""
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
    return Prepared(tokenizer=tokenizer, rows=rows, kept=kept, certificate=certificate)


def forecast_of(ready: Prepared, source: ModelSource, config: TrainConfig) -> preflight.Forecast | None:
    """Warn about the data, and predict memory and time of the run on this machine's device; None where that is unknown."""
    training, validation = examples.split_validation(ready.kept, config.validation_share, config.seed)
    for text in preflight.check_data(config, len(training), len(validation)):
        warn(text)
    found = ready.certificate
    load = preflight.Load(
        rows=len(training),
        longest=found.longest,
        mean=found.tokens / found.rows,
        label_share=found.label_tokens / found.tokens,
    )
    return preflight.forecast(source, config, load, model_loading.pick_device(config))


def train(
    dataset: Dataset,
    source: ModelSource,
    config: TrainConfig,
    out: Path,
    *,
    resume: bool,
    force: bool,
    prepared: Prepared | None = None,
    forecast: preflight.Forecast | None = None,
) -> Run:
    """Train and write the Run folder. prepared: of `prepare`, where it was called. forecast: told when it is measured.

    Raises UserError for data that cannot be trained on and for a resumed run that would not be the same;
    TrainingDivergedError before an update that would spoil the weights; Interrupted after a signal, with a checkpoint
    when `save_steps` is set.
    """
    trackers.prepare(config, out)
    base = source.as_input()
    inputs = [dataset.as_input("dataset"), base]
    inputs += [adapters.as_input(Path(config.adapter), base)] if config.adapter else []
    with work.opened(out, work.identity(config, dataset, base), resume=resume, force=force) as folder:
        ready = prepared or prepare(dataset, source, config)
        session = _session(ready, source, config, folder, resume=resume, forecast=forecast)
        facts = {
            **saving.facts_of(config, source, ready.tokenizer, ready.certificate, session.trainer, session.progress),
            **session.facts,
        }
        with new_folder(out, force=force) as final:
            saving.save(
                final, folder, session.trainer, ready.tokenizer, source, config, ready.rows, facts, name=out.name
            )
            seeds = {"seed": config.seed}
            manifests.write(final, "run", inputs=inputs, config=asdict(config), seeds=seeds, facts=facts)
        shutil.rmtree(folder)
    return Run.open(out)


@dataclass(frozen=True, kw_only=True)
class _Session:
    trainer: Any
    progress: Progress
    facts: dict[str, Any]


def _session(
    ready: Prepared,
    source: ModelSource,
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool,
    forecast: preflight.Forecast | None,
) -> _Session:
    """Load, train from the beginning or from a checkpoint to the end, evaluate, and take the best weights if asked to."""
    training, validation = examples.split_validation(ready.kept, config.validation_share, config.seed)
    device = model_loading.pick_device(config)
    side_by_side, attention = _attention(source, config, device)
    model, total = _model(source, config, device, attention)
    checkpoint = work.begin_from(folder) if resume else None
    progress = Progress.read(checkpoint) if checkpoint else Progress()
    work.cut_metrics(folder, progress.metrics_bytes)
    steps = total_steps(config, len(training))
    watching = Watching(
        spike_factor=config.spike_factor, vocabulary=len(ready.tokenizer), patience=config.early_stopping_patience
    )
    with StopRequest() as stop, progress_view("training", steps) as tick:
        callback = make_callback(
            folder / work.METRICS,
            tick,
            stop,
            progress,
            checkpoints=config.save_steps > 0,
            keep_best=keeps_best(config),
            measured=forecast.measured if forecast else lambda rate, peak: None,
        )
        trainer = make_trainer(
            model=model,
            args=sft_arguments(config, folder, device, rows=len(training), validation=len(validation)),
            train=training,
            validation=validation,
            tokenizer=ready.tokenizer,
            batching=Batching(
                pad=ready.tokenizer.pad_token_id,
                side_by_side=side_by_side,
                answers_only=projects_answers_only(model, device),
            ),
            watching=watching,
            progress=progress,
            callbacks=[callback],
        )
        if checkpoint and (progress.stopped_early or points.step_of(checkpoint) >= steps):
            restore_finished(trainer, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _stop_if_asked(stop, config, trainer.state.global_step)
    facts = {
        **_last_look(trainer, progress, config, folder, validation),
        "total_params": total,
        "attention": attention,
        "forecast": asdict(forecast) if forecast else None,
    }
    return _Session(trainer=trainer, progress=progress, facts=facts)


def _last_look(
    trainer: Any, progress: Progress, config: TrainConfig, folder: Path, validation: list[examples.Example]
) -> dict[str, Any]:
    """Evaluate after the last step, and put the best weights in place where they are to be kept."""
    last = trainer.state.global_step
    if validation and progress.eval_step != last:
        trainer.evaluate()
    best = folder / f"checkpoint-{progress.best_step}"
    kept = keeps_best(config) and best.is_dir() and progress.best_step != last
    if kept:
        say(
            f"the best validation loss was at step {progress.best_step}: {progress.best_loss:.4f}; its weights are kept"
        )
        load_weights(trainer, best)
    return {
        "validation_rows": len(validation),
        "validation_loss": progress.best_loss if kept else progress.eval_loss,
        "weights_of_step": progress.best_step if kept else last,
    }


def _stop_if_asked(stop: StopRequest, config: TrainConfig, step: int) -> None:
    if stop.asked is not None:
        how = "go on with the same command and --resume" if config.save_steps else "nothing was kept, save_steps is 0"
        raise Interrupted(f"stopped at step {step}; {how}")


def _model(source: ModelSource, config: TrainConfig, device: str, attention: str) -> tuple[Any, int]:
    """(model, with its adapter where there is one; number of the base's parameters), seeded."""
    from transformers.trainer_utils import set_seed

    set_seed(config.seed)
    model = model_loading.load_base(source, config, device, attention)
    total = model.num_parameters()
    if config.method == "full":
        return model, total
    model = model_loading.with_adapter(model, config)
    if config.method != "lora" or attention != cpu_attention.NAME:
        return model, total
    # Modules trained whole are fp32 (a tied embedding: all that enters the layers); the faster layers multiply in bf16.
    if config.modules_to_save or not fast_decoder.speed_up(model):
        say("decoder layers: the library's (the faster ones cover LoRA on plain Llama, Mistral and Qwen2 layers)")
    return model, total


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
