"""Supervised fine-tuning: `train(Dataset, TrainConfig) -> Run`. Puts the parts together and does nothing else."""

import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core import same_model
from tunegate.core.artifacts import Dataset, Run
from tunegate.core.chat_template import clock, template_text, with_defaults, writes_date
from tunegate.core.console import progress as progress_view
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError, first_line
from tunegate.core.files import home_path, new_folder
from tunegate.core.model_source import ModelSource, hint_of
from tunegate.core.rows import Row, read_rows
from tunegate.serve.prompting.prompting import Prompting
from tunegate.train import (
    adapters,
    allocator,
    cpu_attention,
    examples,
    fast_decoder,
    halves,
    inputs,
    model_loading,
    preflight,
    ranks,
    saving,
    trackers,
    work,
)
from tunegate.train import checkpoints as points
from tunegate.train import launch as launching
from tunegate.train.arguments import keeps_best, sft_arguments, total_steps
from tunegate.train.arms import build
from tunegate.train.callbacks import make_callback
from tunegate.train.config import TrainConfig, template_values
from tunegate.train.job import Job
from tunegate.train.launch_options import Launch
from tunegate.train.loss import projects_answers_only
from tunegate.train.progress import Progress
from tunegate.train.stop import GO_ON, Interrupted, StopFile, StopRequest
from tunegate.train.trainer import Batching, Watching, load_weights, make_trainer, restore_finished


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything before the model is loaded: tokenizer, the rows read, the masked examples kept, to train on and for the
    validation loss, and the certificate of the former.

    began: the moment whose date the rows were rendered with, where the template writes it (ISO format). prompting: what puts
    passages into requests, and did so in the rows; facts: about it, and of that date, for the manifest.
    """

    tokenizer: Any
    rows: list[Row]
    training: list[examples.Example]
    validation: list[examples.Example]
    certificate: examples.MaskCertificate
    began: str
    prompting: Prompting | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def kept(self) -> list[examples.Example]:
        """Examples of both kinds."""
        return [*self.training, *self.validation]


def prepare(dataset: Dataset, source: ModelSource, config: TrainConfig, began: str | None = None) -> Prepared:
    """Read and mask the training rows. began: see `work.began`; None: now. Raises UserError for rows or templates that cannot be
    trained on."""
    tokenizer = model_loading.load_tokenizer(source)
    if values := template_values(config):
        tokenizer.chat_template = with_defaults(template_text(tokenizer), values)
    stops = model_loading.stop_ids(source, tokenizer)
    rows = list(read_rows(dataset.train_path))
    prompting, facts = None, dict[str, Any]()
    if config.docs:
        prompting, about = build.retrieval(rows, config, tokenizer)
        rows, facts = build.with_passages(rows, prompting, config), {"retrieval": about}
    began = began or work.now()
    more = clock(template_text(tokenizer), began)
    if more and writes_date(tokenizer):
        facts["rendered_on"] = began[:10]
        warn(
            f"the chat template writes today's date into prompts: all rows are trained with that of {began[:10]}, a server's "
            "requests have theirs (--template-defaults sets a fixed one where the template has a variable for it)"
        )
    kept, certificate = examples.build(
        rows, tokenizer, stops, max_length=config.max_length, max_left_out_share=config.max_left_out_share, more=more
    )
    training, validation = examples.split_validation(kept, config.validation_share, config.seed)
    certificate = replace(certificate, **examples.seen(training))  # rows set aside are not learnt from
    say(
        f"rows: {certificate.rows} of {len(rows)} to train on, {len({e.row for e in validation})} for the validation loss, "
        f"{certificate.too_long} longer than {config.max_length} tokens left out; "
        f"{certificate.tokens:,} tokens, loss on {certificate.label_tokens:,} answer tokens, longest {certificate.longest}"
    )
    return Prepared(
        tokenizer=tokenizer,
        rows=rows,
        training=training,
        validation=validation,
        certificate=certificate,
        began=began,
        prompting=prompting,
        facts=facts,
    )


def forecast_of(
    ready: Prepared, source: ModelSource, config: TrainConfig, launch: Launch | None
) -> preflight.Forecast | None:
    """Warn about the data, and predict memory and time of the run on this machine's device; None where that is unknown."""
    training = ready.training
    for text in preflight.check_data(config, ready.certificate.rows, len(ready.validation)):
        warn(text)
    found = ready.certificate
    load = preflight.Load(
        rows=len(training),
        longest=found.longest,
        mean=found.tokens / len(training),
        label_share=found.label_tokens / found.tokens,
    )
    return preflight.forecast(source, config, load, model_loading.pick_device(config), launch)


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
    launch: Launch | None = None,
) -> Run:
    """Train and write the Run folder. prepared: of `prepare`, where it was called. forecast: told when it is measured.
    launch: how to spread it over processes; None: this one trains.

    Raises UserError for data that cannot be trained on and for a resumed run that would not be the same;
    TrainingDivergedError before an update that would spoil the weights; Interrupted after a signal, with a checkpoint
    when `save_steps` is set.
    """
    trackers.prepare(config, out)
    config = _settled(config)
    base = source.as_input()
    others = inputs.others(config)
    if config.adapter:
        adapters.check_base(home_path(config.adapter), source, base)
    began = prepared.began if prepared else work.began(work.working_folder(out)) if resume else work.now()
    processes = launch.told if launch else "1"
    begun = work.identity(config, dataset, base, others, began=began, processes=processes)
    same_base = partial(same_model.same_digest, source, base)
    with work.opened(out, begun, resume=resume, force=force, same_base=same_base) as folder:
        job = Job(
            dataset=dataset,
            source=source,
            config=config,
            folder=folder,
            name=out.name,
            resume=resume,
            forecast=forecast,
        )
        if launch is None:
            session = session_of(job, prepared or prepare(dataset, source, config, began), StopRequest())
        with new_folder(out, force=force) as final:
            facts = launching.run(launch, job, final) if launch else finish(job, session, final)
            seeds = {"seed": config.seed}
            made_from = [dataset.as_input("dataset"), base, *others]
            manifests.write(final, "run", inputs=made_from, config=asdict(config), seeds=seeds, facts=facts)
        shutil.rmtree(folder)
    return Run.open(out)


def join(
    dataset: Dataset, source: ModelSource, config: TrainConfig, out: Path, *, resume: bool, launch: Launch
) -> None:
    """Train on a machine other than the first, which `train`s and writes the run under the same path."""
    folder, config = work.working_folder(out), _settled(config)
    launching.join(
        launch, Job(dataset=dataset, source=source, config=config, folder=folder, name=out.name, resume=resume)
    )


def _settled(config: TrainConfig) -> TrainConfig:
    found = model_loading.settled(config)
    if found != config and found.dtype == "float32":
        say("arithmetic in float32: this processor has no bfloat16")
    return found


@dataclass(frozen=True, kw_only=True)
class Session:
    """Training that has ended well."""

    ready: Prepared
    trainer: Any
    progress: Progress
    facts: dict[str, Any]


def finish(job: Job, session: Session, final: Path) -> dict[str, Any]:
    """Write everything of a run but its manifest, whose facts are returned. Of several processes all call it (the weights
    are gathered), the first writes."""
    ready, config = session.ready, job.config
    facts = {
        **saving.facts_of(config, job.source, ready.tokenizer, ready.certificate, session.trainer, session.progress),
        **session.facts,
        **ready.facts,
    }
    weights = saving.gathered(session.trainer)
    if ranks.rank() == 0:
        saving.save(final, job, session.trainer, ready.tokenizer, ready.rows, facts, weights)
        if ready.prompting is not None:
            ready.prompting.save(final)
    ranks.barrier()
    return facts


def session_of(job: Job, ready: Prepared, stop: StopRequest | StopFile) -> Session:
    """Load, train from the beginning or from a checkpoint to the end, evaluate, and take the best weights if asked to."""
    source, config, folder = job.source, job.config, job.folder
    training, validation = ready.training, ready.validation
    device = model_loading.pick_device(config)
    if device == "cpu":
        allocator.keep_freed_memory()
    side_by_side, attention = _attention(source, config, device)
    model, total, fast = _model(source, config, device, attention)
    _within_vocabulary(model, ready, source)
    checkpoint = work.begin_from(folder) if job.resume else None
    progress = Progress.read(checkpoint) if checkpoint else Progress()
    steps = total_steps(config, len(training), ranks.count())
    watching = Watching(
        spike_factor=config.spike_factor, vocabulary=len(ready.tokenizer), patience=config.early_stopping_patience
    )
    with stop, progress_view("training", steps) as tick:
        callback = make_callback(
            folder / work.METRICS,
            tick,
            stop,
            progress,
            checkpoints=config.save_steps > 0,
            keep_best=keeps_best(config),
            measured=job.forecast.measured if job.forecast else lambda rate, peak: None,
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
                in_halves=fast and ranks.count() == 1 and halves.pay(config),
            ),
            watching=watching,
            progress=progress,
            callbacks=[callback],
        )
        if ranks.rank() == 0:
            progress.metrics_lost_bytes += work.cut_metrics(folder, progress.metrics_bytes, checkpoint)
        if checkpoint and (progress.stopped_early or points.step_of(checkpoint) >= steps):
            restore_finished(trainer, checkpoint)
        else:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _stop_if_asked(stop, config, trainer.state.global_step)
    facts = {
        **_last_look(trainer, progress, config, folder, validation),
        "total_params": total,
        "attention": attention or str(model.config._attn_implementation),
        "forecast": asdict(job.forecast) if job.forecast else None,
        "processes": ranks.count(),
    }
    return Session(ready=ready, trainer=trainer, progress=progress, facts=facts)


def _last_look(
    trainer: Any, progress: Progress, config: TrainConfig, folder: Path, validation: list[examples.Example]
) -> dict[str, Any]:
    """Evaluate after the last step, and put the best weights in place where they are to be kept."""
    last = trainer.state.global_step
    if validation and progress.eval_step != last:
        trainer.evaluate()
    kept = False
    if keeps_best(config) and progress.best_step not in (-1, last):
        best = folder / f"checkpoint-{progress.best_step}"
        found = f"the best validation loss was at step {progress.best_step}: {progress.best_loss:.4f}"
        if not best.is_dir():
            warn(f"{found}; no checkpoint has its weights, those of the last step are kept (--save-steps above 0)")
        elif fault := points.problem(best):
            warn(f"{found}; its checkpoint is damaged ({fault}), the weights of the last step are kept")
        else:
            kept = True
            say(f"{found}; its weights are kept")
            load_weights(trainer, best)
    return {
        "validation_rows": len({example.id for example in validation}),
        "validation_loss": progress.best_loss if kept else progress.eval_loss,
        "weights_of_step": progress.best_step if kept else last,
    }


def _stop_if_asked(stop: StopRequest | StopFile, config: TrainConfig, step: int) -> None:
    if stop.wanted():
        if not config.save_steps:
            raise Interrupted(f"stopped at step {step}; nothing was kept, save_steps is 0")
        raise Interrupted(f"stopped at step {step}", hint=GO_ON)


def _model(source: ModelSource, config: TrainConfig, device: str, attention: str | None) -> tuple[Any, int, bool]:
    """(model, with its adapter where there is one; number of the base's parameters; whether its layers are the faster
    ones), seeded."""
    from transformers.trainer_utils import set_seed

    set_seed(config.seed)
    model = model_loading.load_base(source, config, device, attention)
    total = model.num_parameters()
    if config.method != "full":
        model = model_loading.with_adapter(model, config)
    fast = False
    if attention == cpu_attention.NAME:
        if os.environ.get("ACCELERATE_USE_FSDP") == "true":
            say("decoder layers: the library's (the faster ones hold whole weights, FSDP shards them)")
        elif not (fast := fast_decoder.speed_up(model, model_loading.arithmetic(config))):
            say("decoder layers: the library's (the faster ones cover plain Llama, Mistral and Qwen2 layers)")
    return model, total, fast


def _within_vocabulary(model: Any, ready: Prepared, source: ModelSource) -> None:
    """Raise UserError where the tokenizer makes ids that the model has no embedding for."""
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(ready.tokenizer.pad_token_id or 0, *(max(example.input_ids) for example in ready.kept))
    if largest >= rows:
        raise UserError(
            f"the tokenizer makes the token id {largest}, the model has embeddings for ids below {rows}",
            where=source.spec,
            hint="the tokenizer is another model's, or tokens were added without resizing the embeddings",
        )


def _attention(source: ModelSource, config: TrainConfig, device: str) -> tuple[bool, str | None]:
    """(rows side by side?, attention implementation): our CPU attention where it computes the same, else None."""
    from transformers import AutoConfig

    if device == "cpu" and config.fast_cpu:
        try:
            architecture = AutoConfig.from_pretrained(
                source.location, revision=source.revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            problem = f"the model's config cannot be read: {first_line(error)}"
            raise UserError(problem, where=source.spec, hint=hint_of(error)) from None
        if cpu_attention.supported(architecture):
            cpu_attention.register()
            return True, cpu_attention.NAME
        say("fast CPU attention does not cover this architecture: padded batches with torch's attention instead")
    return False, None
