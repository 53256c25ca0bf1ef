"""`quantize(Release, calibration: Dataset) -> Release`: AWQ W4A16, fp8 or W8A8, by a quantizer in an environment of its own,
proven on held-out answers before and after.

AWQ: Lin et al. 2023, arXiv 2306.00978.
"""

import json
import math
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import machine
from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Release
from tunegate.core.chat_template import probe_digest, template_digest
from tunegate.core.console import say
from tunegate.core.errors import TunegateError
from tunegate.core.files import new_folder, read_json, sha256_text, write_json
from tunegate.core.model_source import of_folder
from tunegate.core.rows import Row, read_rows
from tunegate.serve.prompting.prompting import copy_prompting
from tunegate.serve.template_check import FILE as PROBE_FILE
from tunegate.train.examples import Example
from tunegate.train.model_loading import load_tokenizer, stop_ids
from tunegate.train.release import (
    card,
    merge_base,
    prove,
    prove_model,
    quantize_formats,
    quantize_plan,
    quantize_rows,
    quantize_worker,
)
from tunegate.train.release.quantize_plan import QuantizeConfig
from tunegate.train.release.tensor_files import TensorFiles

# More loss per held-out token than this (nats) is no rounding: the release is broken.
LARGEST_LOSS_INCREASE = 1.0
FORMATS = {
    "awq": "compressed-tensors pack-quantized W4A16",
    "fp8": "compressed-tensors float-quantized W8A8 (e4m3, a scale a row and a token)",
    "w8a8": "compressed-tensors int-quantized W8A8 (int8, a scale a row and a token)",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """One quantization at work: what goes in, and what was asked for. held_out: whose held-out rows prove it."""

    release: Release
    calibration: Dataset
    held_out: Dataset
    config: QuantizeConfig
    group: int | None
    tokenizer: Any
    stops: list[int]


def quantize(
    release: Release,
    calibration: Dataset,
    config: QuantizeConfig,
    out: Path,
    *,
    force: bool,
    check_engine: bool = False,
) -> Release:
    """Write a quantized release. check_engine: vLLM has to load it and answer before it counts.

    Raises UserError for a release that is quantized already, an architecture without mappings, a group size that does not
    divide, or calibration rows that the run held out; InfrastructureError when memory, disk or the environment are not there; TunegateError when the
    result loses more than rounding explains.
    """
    quantize_plan.check_config(config)
    shape, group = quantize_plan.check_release(release, config)
    manifests.refuse_changed(release.path, "the release")
    calibration.check_train()
    rows = calibration_rows(calibration, config)
    held_out = quantize_rows.held_out_of(release, calibration, rows)
    source = of_folder(release.path)
    tokenizer = load_tokenizer(source)
    stops = stop_ids(source, tokenizer)
    work = Work(
        release=release, calibration=calibration, held_out=held_out, config=config, group=group, tokenizer=tokenizer, stops=stops
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="tunegate-quantize-") as temporary:
        scratch = Path(temporary)
        lines, tokens = quantize_worker.write_calibration(rows, tokenizer, stops, scratch / "calibration.jsonl")
        quantize_plan.check_room(shape, config, tokens, out.absolute(), scratch)
        (scratch / "job.json").write_text(
            json.dumps(job(config, group, release.path.resolve(), scratch)), encoding="utf-8"
        )
        passed = quantize_plan.passes(config) * int(shape["num_hidden_layers"])
        quantize_worker.run(config.backend, scratch / "job.json", passed)
        result = read_json(scratch / "result.json")
        if result["rows_used"] != lines:
            raise TunegateError(f"{result['rows_used']} of {lines} calibration lines were used")
        return _finish(
            work, out, scratch / "out", result | {"rows_used": len(rows)}, force=force, check_engine=check_engine
        )


def calibration_rows(dataset: Dataset, config: QuantizeConfig) -> list[Row]:
    """`config.rows` training rows (all of them when there are fewer, said so), chosen by the hash of their id."""
    rows = sorted(read_rows(dataset.train_path), key=lambda row: sha256_text(f"{config.seed}:{row.id}"))
    if len(rows) < config.rows:
        say(f"the dataset has {len(rows)} training rows; all of them calibrate ({config.rows} asked)")
    return rows[: config.rows]


def job(config: QuantizeConfig, group: int | None, model: Path, scratch: Path) -> dict[str, Any]:
    """What a quantizer's worker is asked for, on the calibration rows in `scratch`; group: weights that share a scale."""
    return {
        "model": str(model), "out": str(scratch / "out"),
        "calibration": str(scratch / "calibration.jsonl"), "scheme": config.scheme, "group_size": group,
        "symmetric": config.symmetric, "batch_size": 8, "ignore": ["lm_head"], "grid": config.grid,
        "search": config.search, "rounding": config.rounding, "seed": config.seed,
        "software_bf16": not (machine.bf16_flags() or machine.gpus()),
    }  # fmt: skip


def _finish(work: Work, out: Path, made: Path, result: dict[str, Any], *, force: bool, check_engine: bool) -> Release:
    release, config = work.release, work.config
    before = {k: v for k, v in release.manifest.facts.items() if k != "merge"}
    with new_folder(out, force=force) as folder:
        _files(release, made, folder)
        _same_tokens(release, folder)
        facts = {
            **before,
            "quantization": config.scheme,
            "backend": config.backend,
            "format": FORMATS[config.scheme] if config.backend == "llmcompressor" else "AutoAWQ GEMM W4A16",
            **({"group_size": work.group, "symmetric": config.symmetric} if work.group else {}),
            **({"rounding": config.rounding} if config.backend == "llmcompressor" and config.scheme != "fp8" else {}),
            "calibration_rows": result["rows_used"],
            "calibration_tokens": result["tokens_used"],
            "quantizer_seconds": round(result["seconds"], 1),
            "bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
            "bytes_before": release.manifest.facts["bytes"],
            "quantize": prove_quantized(work, folder),
        }
        card.write(folder, facts, name=out.name)
        inputs = [release.as_input("release"), work.calibration.as_input("calibration")]
        manifests.write(
            folder, "release", inputs=inputs, config=asdict(config), seeds={"seed": config.seed}, facts=facts
        )
        if check_engine:
            from tunegate.train.release.verify import load_in_engine

            say(load_in_engine(folder))
    return Release.open(out)


def _files(release: Release, made: Path, folder: Path) -> None:
    """The quantizer's weights; config, tokenizer and template of the release, byte for byte where they are the same."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    (folder / "recipe.yaml").unlink(missing_ok=True)
    quantization = read_json(made / "config.json")["quantization_config"]
    config = read_json(release.path / "config.json")
    write_json(folder / "config.json", {**config, "quantization_config": quantization})
    kept = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", PROBE_FILE,
            "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", *merge_base.PROCESSORS)  # fmt: skip
    for name in kept:
        (folder / name).unlink(missing_ok=True)
        if (release.path / name).is_file():
            shutil.copy(release.path / name, folder / name)
    copy_prompting(release.path, folder)
    card.copy_licence(release.path, folder)


def _same_tokens(release: Release, folder: Path) -> None:
    tokenizer = load_tokenizer(of_folder(folder))
    facts = release.manifest.facts
    if (template_digest(tokenizer), probe_digest(tokenizer)) != (facts["template_digest"], facts["probe_digest"]):
        raise TunegateError("the quantized release tokenizes or renders differently from the merged one")


def prove_quantized(work: Work, folder: Path) -> dict[str, Any]:
    """Loss and perplexity on held-out answers before and after, as they stand in `release.yaml`; printed.

    Raises TunegateError when the quantized model loses more than `LARGEST_LOSS_INCREASE`.
    """
    rows = prove.held_out(work.held_out, work.tokenizer, work.stops, work.config.proof_rows)
    if not rows:
        say("no held-out answers: the quantized model was not compared")
        return {"held_out_rows": 0}
    files = TensorFiles(work.release.path)
    keep = prove_model.fits(sum(spec.bytes for spec in files.specs.values()) // 2)
    pad = work.tokenizer.pad_token_id
    model = prove_model.given(work.release.path, merge_base.original(files), keep=keep)
    before = prove.listen(model, rows, "merged", pad=pad)
    model = prove_model.given(work.release.path, quantize_formats.dequantized(folder), keep=keep)
    activations = {"fp8": "fp8", "w8a8": "int8"}.get(work.config.scheme)
    if activations:
        quantize_formats.round_activations(model, activations)
    return _compare(rows, before, prove.listen(model, rows, "quantized", pad=pad))


def _compare(rows: list[Example], before: list[prove.Said], after: list[prove.Said]) -> dict[str, Any]:
    first, second = prove.loss_of(before), prove.loss_of(after)
    found = prove.difference(before, after)
    say(
        f"perplexity of {len(rows)} held-out answers: {math.exp(first):.3f} before, {math.exp(min(second, 50)):.3f} after "
        f"(loss {first:.4f}, {second:.4f}); {prove.words(found)}"
    )
    score = prove.answers(before, after)
    say(
        f"held-out answers given exactly: {score['before']} before, {score['after']} after ({score['fixed']} fixed, "
        f"{score['broken']} broken); by a task's own measure: ft ladder"
    )
    if not second - first <= LARGEST_LOSS_INCREASE:
        raise TunegateError(
            f"the quantized model loses {second - first:.2f} nats per held-out token; nothing was written",
            hint="more --rows, --rounding gptq, a smaller --group-size, or serve the merged release",
        )
    return {
        "held_out_rows": len(rows),
        "held_out_tokens": sum(len(s.labels) for s in after),
        "held_out_loss": {"before": first, "after": second},
        "perplexity": {"before": math.exp(first), "after": math.exp(second)},
        "exact_answers": score,
        **prove.as_facts(found),
    }
