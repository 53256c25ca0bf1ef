"""`ftadvise estimate train` and `ftadvise estimate serve`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, say, table, warn
from tunegate.core.errors import UsageError, one_of

if TYPE_CHECKING:
    from tunegate.advisor.gpus import Gpu

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Memory, speed and cost of one configuration.",
    epilog="Example: ftadvise estimate train --model Llama-3.1-8B --method qlora --gpu L4",
)
ModelOption = Annotated[str, typer.Option(help="Name, hub id, folder with config.json, or builtin:smollm2-135m.")]
GpuOption = Annotated[str, typer.Option(help="GPU name, see ftadvise gpus; or cpu.")]
GpusOption = Annotated[int, typer.Option(min=1, max=1024, help="How many.")]
GpuFile = Annotated[Path | None, typer.Option(help="CSV of GPUs that replace or add to the shipped ones.")]


@app.command(epilog="Example: ftadvise estimate train --model Llama-3.1-8B --method lora --gpu A100-80GB --seq 2048")
def train(
    model: ModelOption,
    gpu: GpuOption,
    method: Annotated[str, typer.Option(help="lora, qlora or full.")] = "lora",
    gpus: GpusOption = 1,
    batch: Annotated[int, typer.Option(min=1, max=100_000, help="Rows per micro-batch.")] = 4,
    accumulation: Annotated[int, typer.Option(min=1, max=100_000, help="Micro-batches per optimizer step.")] = 1,
    seq: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Tokens of the LONGEST row: it drives memory.")
    ] = 1024,
    mean_tokens: Annotated[
        float | None, typer.Option(min=1, help="Mean tokens of a row: it drives time (default seq).")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=65_536, help="LoRA rank.")] = 16,
    targets: Annotated[str, typer.Option(help="LoRA modules, comma-separated, or all-linear.")] = "all-linear",
    examples: Annotated[int, typer.Option(min=1, help="Rows.")] = 1000,
    epochs: Annotated[float, typer.Option(min=0.0001, max=10_000, help="Passes over the rows.")] = 3.0,
    checkpointing: Annotated[
        bool | None, typer.Option(help="Recompute activations. \\[default: as ft train: on a GPU, not on the CPU]")
    ] = None,
    state: Annotated[
        str, typer.Option(help="Full tuning's state: amp, pure_bf16, adamw_8bit, paged_in_backward.")
    ] = "amp",
    software: Annotated[str, typer.Option(help="hf, deepspeed, torchtune, unsloth or litgpt.")] = "hf",
    gpu_file: GpuFile = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="A table over methods and GPUs.")] = False,
    json_: JsonOption = False,
) -> None:
    """Memory, speed, hours and cost of a training run."""
    from tunegate.advisor import estimates
    from tunegate.advisor.gpus import find_gpu, known_gpus
    from tunegate.advisor.models import find
    from tunegate.advisor.training_memory import SOFTWARE, STATE_BYTES, lora_targets

    one_of("--method", method, ["lora", "qlora", "full"])
    if mean_tokens is not None and mean_tokens > seq:
        raise UsageError(
            f"a mean of {mean_tokens:g} tokens is above the longest row's {seq}", where="--mean-tokens, --seq"
        )
    one_of("--state", state, list(STATE_BYTES))
    one_of("--software", software, list(SOFTWARE))
    shared: dict[str, Any] = {
        "model": find(model), "gpus": gpus, "batch": batch, "seq": seq, "rank": rank,
        "accumulation": accumulation, "targets": lora_targets(targets), "examples": examples, "epochs": epochs,
        "mean_tokens": mean_tokens, "state": state, "software": software,
    }  # fmt: skip

    def trained(how: str, card: "Gpu") -> dict[str, Any]:
        again = not card.is_cpu if checkpointing is None else checkpointing
        return estimates.train(estimates.TrainQuestion(method=how, gpu=card, checkpointing=again, **shared))

    if not sweep:
        _show(trained(method, find_gpu(gpu, gpu_file)), json_)
        return
    rows = [
        (f"{how} on {name}:{gpus}", trained(how, card))
        for how in ("qlora", "lora", "full")
        for name, card in known_gpus(gpu_file).items()
    ]
    _show_sweep(rows, ("memory_gb", "tokens_per_s", "hours", "usd"), json_)


@app.command(
    epilog="Example: ftadvise estimate serve --model Llama-3.1-8B --gpu L4 --quant awq --input-tokens 600 --output-tokens 150 --concurrency 16"
)
def serve(
    model: ModelOption,
    gpu: GpuOption,
    input_tokens: Annotated[float, typer.Option(min=1, max=1e7, help="Prompt tokens of a call.")],
    output_tokens: Annotated[float, typer.Option(min=1, max=1e6, help="Answer tokens of a call.")],
    concurrency: Annotated[float, typer.Option(min=1, max=100_000, help="Calls at a time.")] = 1.0,
    gpus: GpusOption = 1,
    quant: Annotated[str, typer.Option(help="bf16, fp8 or awq.")] = "bf16",
    prefix_hit: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the prompt found in the prefix cache.")
    ] = 0.0,
    gpu_file: GpuFile = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="A table over quantizations and GPUs.")] = False,
    json_: JsonOption = False,
) -> None:
    """Memory, latency, throughput and cost of serving with vLLM."""
    from tunegate.advisor import estimates
    from tunegate.advisor.gpus import find_gpu, known_gpus
    from tunegate.advisor.models import find
    from tunegate.advisor.serving_speed import QUANTIZATIONS

    one_of("--quant", quant, list(QUANTIZATIONS))
    shared: dict[str, Any] = {
        "model": find(model), "gpus": gpus, "input_tokens": input_tokens, "output_tokens": output_tokens,
        "concurrency": concurrency, "prefix_hit": prefix_hit,
    }  # fmt: skip
    if not sweep:
        _show(
            estimates.serve(estimates.ServeQuestion(quantization=quant, gpu=find_gpu(gpu, gpu_file), **shared)), json_
        )
        return
    rows = [
        (
            f"{weights} on {name}:{gpus}",
            estimates.serve(estimates.ServeQuestion(quantization=weights, gpu=card, **shared)),
        )
        for weights in QUANTIZATIONS
        for name, card in known_gpus(gpu_file).items()
        if weights != "fp8" or card.fp8_tflops
    ]
    _show_sweep(rows, ("memory_gb", "ttft_ms", "tpot_ms", "tokens_per_s", "usd_per_1k_calls"), json_)


def _show(result: dict[str, Any], json_: bool) -> None:
    if json_:
        emit_json(result)
        return
    table(
        None,
        ["", "estimate", "90 % interval", "from"],
        [_row(k, v) for k, v in result.items() if k not in ("terms_gb", "notes")],
        left=4,
    )
    for note in result["notes"]:
        say(f"note: {note}")
    if result.get("extrapolates"):
        warn(f"extrapolates: {result['extrapolates']}")
    if result.get("fits") is False:
        warn("does not fit")


def _row(name: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [
            name,
            f"{value['value']:g}",
            f"{value['low']:g} to {value['high']:g}",
            f"{value['source']}, n = {value['n']}",
        ]
    return [
        name,
        ("no" if name == "extrapolates" else "unknown")
        if value is None
        else (f"{value:,}" if type(value) is int else str(value)),
        "",
        "",
    ]


def _show_sweep(rows: list[tuple[str, dict[str, Any]]], names: tuple[str, ...], json_: bool) -> None:
    if json_:
        emit_json({"sweep": [{"configuration": label, **result} for label, result in rows]})
        return
    cells = [
        [
            f"{label} *" if r["notes"] else label,
            "yes" if r["fits"] else "no",
            *(f"{r[n]['value']:g}" if r[n] else "?" for n in names),
        ]
        for label, r in rows
    ]
    table(None, ["configuration", "fits", *names], cells)
    for note in sorted({note for _, r in rows for note in r["notes"]}):
        say(f"* {note}")
