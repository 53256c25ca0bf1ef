"""What is written into a finished run's folder, and what its manifest says."""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tunegate.core.chat_template import DAY, probe_digest, probe_of, render_ids, template_digest
from tunegate.core.errors import InfrastructureError
from tunegate.core.files import read_json, write_json, write_text
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import Row
from tunegate.serve.served_model import ADAPTER
from tunegate.train import adapters, card, examples, loss_curve, probe
from tunegate.train.callbacks import peak_memory_gb
from tunegate.train.config import TrainConfig, to_yaml
from tunegate.train.job import Job
from tunegate.train.progress import Progress
from tunegate.train.work import METRICS


def facts_of(
    config: TrainConfig,
    source: ModelSource,
    tokenizer: Any,
    certificate: examples.MaskCertificate,
    trainer: Any,
    progress: Progress,
) -> dict[str, Any]:
    """What the manifest says of a run."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    frozen = {str(p.dtype).removeprefix("torch.") for p in trainer.model.parameters() if not p.requires_grad}
    probe_ids = render_ids(tokenizer, probe_of(tokenizer), strftime_now=DAY.strftime)
    return {
        "method": config.method,
        "base": source.spec,
        "base_name": source.name,
        "license": card.base_license(source),
        "template_digest": template_digest(tokenizer),
        "probe_digest": probe_digest(tokenizer),
        "mask": {**asdict(certificate), "probe_ids": probe_ids},
        "steps": trainer.state.global_step,
        "tokens": progress.tokens,
        "label_tokens": progress.label_tokens,
        # Patience that ends at the last step ends nothing.
        "stopped_early": progress.stopped_early and trainer.state.global_step < trainer.state.max_steps,
        "trainable_params": sum(p.numel() for p in trained),
        "trained_dtype": sorted({str(p.dtype).removeprefix("torch.") for p in trained}),
        "frozen_dtype": sorted(frozen),
        "peak_memory_gb": round(peak_memory_gb(), 3),
        **({"metrics_lost_bytes": progress.metrics_lost_bytes} if progress.metrics_lost_bytes else {}),
    }


def gathered(trainer: Any) -> dict[str, Any] | None:
    """The whole weights of a model that the processes hold in parts, in the first process; None where each has all of it.
    Every process calls it."""
    held_in_parts = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return trainer.accelerator.get_state_dict(trainer.model_wrapped) if held_in_parts else None


def save(
    folder: Path,
    job: Job,
    trainer: Any,
    tokenizer: Any,
    rows: list[Row],
    facts: dict[str, Any],
    weights: dict[str, Any] | None,
) -> None:
    """Weights or adapter, tokenizer, template, resolved config, metrics with their curve, card, and a few prompts as a
    probe. No pickle is among them. weights: of `gathered`.

    Raises InfrastructureError when the weights cannot be written.
    """
    source, config, work = job.source, job.config, job.folder
    _save_model(folder, trainer.accelerator.unwrap_model(trainer.model), config, weights)
    if config.method != "full":
        adapter = {**read_json(folder / ADAPTER), "base_model_name_or_path": adapters.base_name(source)}
        write_json(folder / ADAPTER, adapter)
    tokenizer.save_pretrained(folder)
    shutil.copy(work / METRICS, folder / METRICS)
    write_text(
        folder / "loss.svg", loss_curve.svg(loss_curve.read(folder / METRICS), whole="metrics_lost_bytes" not in facts)
    )
    write_text(folder / "config.yaml", to_yaml(config))
    probe.write(folder, tokenizer, rows)
    card.write(folder, facts, config, source, name=job.name)


def _save_model(folder: Path, model: Any, config: TrainConfig, weights: dict[str, Any] | None) -> None:
    import torch

    options: dict[str, Any] = {"safe_serialization": True}
    if config.method == "full":
        model.config.use_cache = True
        if weights is None:
            model.to(torch.bfloat16)
        else:
            model.config.dtype = torch.bfloat16
            tied = "lm_head.weight" if model.config.tie_word_embeddings else ""
            weights = {k: w.to(torch.bfloat16) for k, w in weights.items() if k != tied}
    if weights is not None:
        options["state_dict"] = weights
    try:
        model.save_pretrained(folder, **options)
    except (OSError, RuntimeError) as error:
        raise InfrastructureError(
            f"the weights could not be written: {error}", where=str(folder), hint="then the same command with --resume"
        ) from error
