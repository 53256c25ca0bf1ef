"""`quantize(Release, calibration: Dataset) -> Release`: AWQ W4A16 by llm-compressor in an environment of its own.

AWQ: Lin et al. 2023, arXiv 2306.00978.
"""

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Dataset, Release
from tunegate.core.chat_template import mask, probe_digest, template_digest
from tunegate.core.console import progress, say
from tunegate.core.errors import InfrastructureError, TunegateError, UserError
from tunegate.core.files import new_folder, read_json, sha256_text
from tunegate.core.model_source import ModelSource
from tunegate.core.rows import Row, read_rows
from tunegate.train.model_loading import load_tokenizer, stop_ids
from tunegate.train.release import card, environments

GROUP_SIZES = (128, 64, 32)
# Layers narrower than this lose visibly more at 4 bits, so they get the smallest group.
NARROW = 1024
# Classes llm-compressor 0.14 has layer mappings for (its modifiers/transform/awq/mappings.py) and vLLM serves as W4A16.
ARCHITECTURES = frozenset(
    f"{name}ForCausalLM"
    for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "Phi3", "Gemma2", "Cohere", "Cohere2", "Granite", "Olmo2", "Olmo3", "Exaone4")
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """One quantization. rows: calibration rows, from the training part only. symmetric: no zero points.

    search: `gram` (errors at the linear layers, from the second moment of their inputs) or `module` (llm-compressor's
    own: errors at the parent module, several times slower). grid: candidates for the scale's exponent. rounding: `gptq`
    (each column's rounding error is made up for in the columns after it: Frantar et al. 2022, arXiv 2210.17323) or
    `nearest` (faster, loses more).
    """

    rows: int = 128
    group_size: int | None = None
    symmetric: bool = False
    search: str = "gram"
    grid: int = 20
    rounding: str = "gptq"
    seed: int = 0


def quantize(release: Release, calibration: Dataset, config: QuantizeConfig, out: Path, *, force: bool) -> Release:
    """Write a 4-bit release.

    Raises UserError for a release that is quantized already, an architecture without mappings, or a group size that
    does not divide; InfrastructureError when the environment cannot be made.
    """
    if release.quantization != "none":
        raise UserError(f"the release is quantized already ({release.quantization})", where=str(release.path))
    shape = read_json(release.path / "config.json")
    architecture = (shape.get("architectures") or ["unknown"])[0]
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"AWQ has no layer mappings for {architecture}",
            where=str(release.path),
            hint="serve the merged release in bf16",
        )
    group = pick_group_size(shape, config.group_size)
    source = ModelSource(str(release.path), "folder", str(release.path), release.path.name)
    tokenizer = load_tokenizer(source)
    rows = calibration_rows(calibration, config)
    with tempfile.TemporaryDirectory(prefix="tunegate-awq-") as temporary:
        work = Path(temporary)
        _write_calibration(rows, tokenizer, stop_ids(source, tokenizer), work / "calibration.jsonl")
        job = {
            "model": str(release.path.resolve()), "out": str(work / "out"), "calibration": str(work / "calibration.jsonl"),
            "group_size": group, "symmetric": config.symmetric, "batch_size": 8, "ignore": ["lm_head"],
            "grid": config.grid, "search": config.search, "rounding": config.rounding,
            "seed": config.seed,
        }  # fmt: skip
        (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
        passes = 2 if config.rounding == "gptq" else 1
        _run_worker(work / "job.json", passes * int(shape["num_hidden_layers"]))
        result = read_json(work / "result.json")
        if result["rows_used"] != len(rows):
            raise TunegateError(f"{result['rows_used']} of {len(rows)} calibration rows were used")
        return _finish(release, calibration, config, out, work / "out", group, result, force=force)


def pick_group_size(shape: dict[str, Any], wanted: int | None) -> int:
    """Weights that share one scale: the largest of 128, 64, 32 that divides every layer's inputs; 32 for narrow models.

    Raises UserError when `wanted`, or every candidate, does not divide.
    """
    hidden, ffn = int(shape["hidden_size"]), int(shape["intermediate_size"])
    heads = int(shape["num_attention_heads"])
    inputs = {hidden, ffn, heads * int(shape.get("head_dim") or hidden // heads)}
    fitting = [size for size in GROUP_SIZES if all(width % size == 0 for width in inputs)]
    if wanted is not None:
        if wanted not in GROUP_SIZES or wanted not in fitting:
            raise UserError(
                f"group size {wanted} does not fit layer widths {sorted(inputs)}",
                where="--group-size",
                hint=f"possible here: {', '.join(map(str, fitting)) or 'none'}",
            )
        return wanted
    if not fitting:
        raise UserError(
            f"no group size of {GROUP_SIZES} divides the layer widths {sorted(inputs)}", hint="serve in bf16"
        )
    return fitting[-1] if hidden < NARROW else fitting[0]


def calibration_rows(dataset: Dataset, config: QuantizeConfig) -> list[Row]:
    """`config.rows` training rows (all of them when there are fewer, said so), chosen by the hash of their id."""
    rows = sorted(read_rows(dataset.train_path), key=lambda row: sha256_text(f"{config.seed}:{row.id}"))
    if len(rows) < config.rows:
        say(f"the dataset has {len(rows)} training rows; all of them calibrate ({config.rows} asked)")
    return rows[: config.rows]


def _write_calibration(rows: list[Row], tokenizer: Any, stops: list[int], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            masked = mask(tokenizer, row.messages, stops, tools=row.tools)
            line = {"input_ids": masked.input_ids, "loss_mask": [int(label != -100) for label in masked.labels]}
            stream.write(json.dumps(line) + "\n")


def _run_worker(job: Path, layers: int) -> None:
    """Run the worker, showing its layers. Raises TunegateError with its last line when it fails."""
    python = environments.ensure("llmcompressor")
    command = [str(python), str(environments.WORKERS / "llmcompressor_awq.py"), str(job)]
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    lines: list[str] = []
    worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert worker.stderr is not None
    try:
        with worker.stderr, progress("quantizing, layers", layers) as tick:
            done = 0
            for line in worker.stderr:
                lines = [*lines[-40:], line.rstrip()]
                if line.startswith("layer "):
                    now = int(line.split()[1])
                    tick(now - done)
                    done = now
        code = worker.wait()
    finally:
        if worker.poll() is None:
            worker.kill()
            worker.wait()
    if code == -9:
        raise InfrastructureError(
            "the quantizer was killed, probably for memory", hint="fewer --rows, or a machine with more memory"
        )
    if code:
        with tempfile.NamedTemporaryFile("w", prefix="tunegate-quantize-", suffix=".log", delete=False) as log:
            log.write("\n".join(lines))
        raise TunegateError(
            f"the quantizer failed: {next((x for x in reversed(lines) if x.strip()), 'no message')}",
            hint=f"its last lines are in {log.name}",
        )


def _finish(
    release: Release,
    calibration: Dataset,
    config: QuantizeConfig,
    out: Path,
    made: Path,
    group: int,
    result: dict[str, Any],
    *,
    force: bool,
) -> Release:
    source = ModelSource(str(made), "folder", str(made), out.name)
    with new_folder(out, force=force) as folder:
        shutil.copytree(made, folder, dirs_exist_ok=True)
        (folder / "recipe.yaml").unlink(missing_ok=True)
        # The quantizer's transformers writes tokenizer files in its own way: keep ours, byte for byte.
        for name in (
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
            "probe.json",
        ):
            if (release.path / name).is_file():
                shutil.copy(release.path / name, folder / name)
        tokenizer = load_tokenizer(ModelSource(str(folder), "folder", str(folder), source.name))
        if (template_digest(tokenizer), probe_digest(tokenizer)) != (
            release.manifest.facts["template_digest"],
            release.manifest.facts["probe_digest"],
        ):
            raise TunegateError("the quantized release tokenizes or renders differently from the merged one")
        facts = {
            **{k: v for k, v in release.manifest.facts.items() if k != "merge"},
            "quantization": "awq",
            "format": "compressed-tensors pack-quantized W4A16",
            "group_size": group,
            "symmetric": config.symmetric,
            "rounding": config.rounding,
            "calibration_rows": result["rows_used"],
            "calibration_tokens": result["tokens_used"],
            "bytes": sum(p.stat().st_size for p in folder.glob("*.safetensors")),
            "bytes_before": release.manifest.facts["bytes"],
        }
        card.write(folder, facts, name=out.name)
        inputs = [release.as_input("release"), calibration.as_input("calibration")]
        manifests.write(
            folder, "release", inputs=inputs, config=asdict(config), seeds={"seed": config.seed}, facts=facts
        )
    return Release.open(out)
