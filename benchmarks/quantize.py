"""Time and loss of our quantizer against AutoAWQ's: one model, the same calibration rows and group size, each in its own environment.

The model is the embedded SmolLM2-135M-Instruct (or a folder), its first `--layers` layers; the rows are training rows of the
embedded function-calling data. Loading is timed apart from the work, which grows with the layers: seconds a layer are told, and
CPU seconds (with OMP_NUM_THREADS=1 they hold on a machine that other programs use too).
Perplexity of held-out answers, by our own reader of each format, is told for whole models (of a part it means nothing).

Usage: python benchmarks/quantize.py [--short] [--model FOLDER] [--layers 4] [--rows 128] [--only ours|autoawq]
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.files import read_json, write_json
from tunegate.core.model_source import resolve
from tunegate.train.model_loading import load_tokenizer, stop_ids
from tunegate.train.release import environments, merge_base, prove, prove_model, quantize_formats, quantize_worker
from tunegate.train.release.quantize import calibration_rows, job
from tunegate.train.release.quantize_plan import QuantizeConfig, passes
from tunegate.train.release.tensor_files import TensorFiles, write

QUANTIZERS = {
    "AutoAWQ 0.2.9": QuantizeConfig(backend="autoawq"),
    "ours, gptq": QuantizeConfig(rounding="gptq"),
    "ours, nearest": QuantizeConfig(rounding="nearest"),
}


def first_layers(source: Path, folder: Path, layers: int) -> Path:
    """A copy of the model that ends after `layers` layers."""
    files = TensorFiles(source)
    kept = {
        n: s
        for n, s in files.specs.items()
        if ".layers." not in n or int(n.split(".layers.")[1].split(".")[0]) < layers
    }
    folder.mkdir()
    write(folder, kept, files.read, max_shard_bytes=10**12, tick=lambda *_: None)
    for path in source.glob("*.json*"):
        if "safetensors" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    for path in source.glob("*.jinja"):
        (folder / path.name).write_bytes(path.read_bytes())
    write_json(folder / "config.json", {**read_json(source / "config.json"), "num_hidden_layers": layers})
    return folder


def run(choice: QuantizeConfig, work: Path, model: Path, layers: int) -> dict[str, Any]:
    """What one quantizer says of itself, and the seconds with its start."""
    environments.ensure(choice.backend)
    place = work / f"{choice.backend}-{choice.rounding}"
    place.mkdir()
    (place / "calibration.jsonl").hardlink_to(work / "calibration.jsonl")
    write_json(place / "job.json", job(choice, 32, model, place))
    started = time.monotonic()
    quantize_worker.run(choice.backend, place / "job.json", layers * passes(choice))
    return {**read_json(place / "result.json"), "with_start": time.monotonic() - started, "out": place / "out"}


def perplexity(config: Path, source: prove_model.Source, rows: list[Any], pad: int) -> float:
    """Of the answers of held-out rows."""
    model = prove_model.given(config, source, keep=True)
    return math.exp(prove.loss_of(prove.listen(model, rows, "held-out answers", pad=pad)))


def main() -> None:
    """Measure and print one line a quantizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="one layer, 8 rows: under a minute")
    parser.add_argument("--model", default="builtin:smollm2-135m", help="folder or builtin model with 16-bit weights")
    parser.add_argument("--layers", type=int, default=4, help="0: all of them, and perplexity")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--held-out", type=int, default=64, help="answers whose perplexity is taken")
    parser.add_argument("--only", choices=("ours", "autoawq"))
    options = parser.parse_args()
    if options.short:
        options.layers, options.rows = 1, 8
    source = resolve(options.model)
    place = Path(source.location)
    whole = int(read_json(place / "config.json")["num_hidden_layers"])
    layers = options.layers or whole
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        ft = Path(sys.executable).with_name("ft")
        subprocess.run(
            [ft, "data", "prepare", "builtin:bfcl", "--out", work / "data"], check=True, stdout=subprocess.DEVNULL
        )
        data = Dataset.open(work / "data")
        tokenizer = load_tokenizer(source)
        stops = stop_ids(source, tokenizer)
        rows = calibration_rows(data, QuantizeConfig(rows=options.rows))
        _, tokens = quantize_worker.write_calibration(rows, tokenizer, stops, work / "calibration.jsonl")
        model = place if layers == whole else first_layers(place, work / "model", layers)
        print(f"{source.name}, {layers} of {whole} layers, {len(rows)} rows, {tokens:,} tokens\n")
        held = prove.held_out(data, tokenizer, stops, options.held_out) if layers == whole else []
        pad = tokenizer.pad_token_id
        if held:
            print(
                f"perplexity of {len(held)} held-out answers in 16 bits: {perplexity(model, merge_base.original(TensorFiles(model)), held, pad):.4f}"
            )
        theirs, took = 0.0, {}
        for name, choice in QUANTIZERS.items():
            if options.only and (options.only == "autoawq") != (choice.backend == "autoawq"):
                continue
            found = run(choice, work, model, layers)
            seconds = found["seconds"] - found["loading_seconds"]
            busy = found["cpu_seconds"] - found["loading_cpu_seconds"]
            theirs = theirs or (busy if choice.backend == "autoawq" else 0.0)
            took[name] = f"{seconds / layers:.1f} s ({busy / layers:.1f} CPU-s)"
            line = f"- {name}: {seconds:.1f} s of work, {seconds / layers:.2f} s a layer, {busy / layers:.2f} CPU-s a layer"
            line += f"; {found['loading_seconds']:.1f} s ({found['loading_cpu_seconds']:.1f} CPU-s) of loading"
            line += f"; {busy / theirs:.1%} of AutoAWQ's CPU-s" if theirs and choice.backend != "autoawq" else ""
            line += (
                f"; perplexity {perplexity(model, quantize_formats.dequantized(found['out']), held, pad):.4f}"
                if held
                else ""
            )
            print(line, flush=True)
        first, *ours = took.items()
        if not options.only and ours:
            name, text = ours[0]
            print(f"\nheadline | 4-bit quantization, time a layer ({name}) | {text} | {first[1]}: {first[0]}")


if __name__ == "__main__":
    main()
