"""`ftadvise backtest` and `ftadvise calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunegate.core.console import JsonOption, emit_json, say, table, warn
from tunegate.core.errors import ExitCode, one_of

if TYPE_CHECKING:
    from tunegate.advisor.backtest import Backtest

backtest_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
calibrate_app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@backtest_app.command(epilog="Example: ftadvise backtest --by-source")
def backtest(
    csv: Annotated[
        Path | None, typer.Argument(help="CSV with the columns of measured.csv; the shipped one without.")
    ] = None,
    by_source: Annotated[
        bool, typer.Option("--by-source", help="Also each source against intervals made without it.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Predict published (or your) measurements; exit 1 when a class is worse than its recorded bound."""
    from tunegate.advisor import backtest as testing

    result = testing.backtest(testing.rows_of(csv))
    worse = result.worse_than_recorded()
    if json_:
        emit_json(testing.as_json(result))
    else:
        _print(result)
        if by_source:
            _print_sources(result)
    for sentence in worse:
        warn(sentence)
    if worse:
        raise typer.Exit(ExitCode.GATE_FAIL)


def _print(result: "Backtest") -> None:
    from tunegate.advisor.backtest import summary

    rows = []
    for kind, pairs in result.by_class().items():
        s = summary(pairs)
        skipped = sum(1 for _, _, k in result.skipped if k == kind)
        cells = [f"{100 * s[name]:.1f} %" for name in ("mape", "median_ape", "bias", "within_interval")]
        rows.append([kind, f"{s['n']:g}", str(skipped), *cells])
    columns = ["class", "n", "skipped", "MAPE", "median", "bias", "inside 90 % interval"]
    table("predictions against measurements", columns, rows)
    if result.skipped:
        reasons = [[name, kind, reason] for name, reason, kind in result.skipped]
        table("not predicted", ["row", "class", "reason"], reasons, left=3)


def _print_sources(result: "Backtest") -> None:
    from tunegate.advisor.backtest import coverage_of_left_out_sources

    rows = [
        [kind, source, str(n), f"{100 * mape:.1f} %", f"{100 * bias:+.1f} %", f"{100 * inside:.0f} %"]
        for (kind, source), (n, mape, bias, inside) in coverage_of_left_out_sources(result).items()
    ]
    columns = ["class", "source", "n", "MAPE", "bias", "inside"]
    table("each source, its interval made from the others", columns, rows, left=2)


@calibrate_app.command(
    epilog="Example: ftadvise calibrate run/metrics.jsonl --model builtin:smollm2-135m --gpu cpu --method lora --batch 4 --seq 512"
)
def calibrate(
    log: Annotated[
        Path,
        typer.Argument(help="A Run folder, its metrics.jsonl, a LoadReport folder, or the JSON of vllm bench serve."),
    ],
    model: Annotated[str, typer.Option(help="The model that ran.")],
    gpu: Annotated[str, typer.Option(help="Where it ran.")],
    method: Annotated[str, typer.Option(help="Training: lora, qlora or full.")] = "lora",
    batch: Annotated[int, typer.Option(min=1, help="Training: rows per micro-batch.")] = 4,
    seq: Annotated[int, typer.Option(min=1, help="Training: mean tokens of a row.")] = 512,
    quant: Annotated[str, typer.Option(help="Serving: bf16, fp8 or awq.")] = "bf16",
    input_tokens: Annotated[float, typer.Option(min=1, help="Serving: prompt tokens.")] = 512,
    output_tokens: Annotated[float, typer.Option(min=1, help="Serving: answer tokens.")] = 128,
    concurrency: Annotated[float, typer.Option(min=1, help="Serving: calls at a time.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Learn this machine's speed; later estimates for the GPU use it (drawn to the prior while points are few)."""
    from tunegate.advisor import calibrate as learning
    from tunegate.advisor import estimates
    from tunegate.advisor.gpus import find_gpu
    from tunegate.advisor.models import find
    from tunegate.advisor.serving_speed import QUANTIZATIONS
    from tunegate.core.methods import ALL_LINEAR

    one_of("--method", method, ["lora", "qlora", "full"])
    one_of("--quant", quant, list(QUANTIZATIONS))
    reading, memory = learning.read_log(log), None
    card, base = find_gpu(gpu), find(model)
    known = learning.factor(reading.kind, card.name)
    if reading.load is not None:  # what was measured, not what was typed
        input_tokens, output_tokens, concurrency = reading.load.shape()
    if reading.kind == "train_tps":
        question = estimates.TrainQuestion(
            model=base, method=method, gpu=card, batch=batch, seq=seq, targets=ALL_LINEAR
        )
        answer = estimates.train(question)
        predicted, memory = answer["tokens_per_s"]["value"] / known, answer["memory_gb"]["value"]
        peak = card.tflops * 1e12 / (4.0 * base.architecture.linear_params)
    else:
        served = estimates.ServeQuestion(
            model=base, gpu=card, quantization=quant, input_tokens=input_tokens, output_tokens=output_tokens,
            concurrency=concurrency,
        )  # fmt: skip
        predicted = estimates.serve(served)["tpot_ms"]["value"] / known
        peak = 1e3 * base.architecture.linear_params * 0.5 / (card.bandwidth_gbps * 1e9)
    learning.refuse_impossible(reading.value, predicted, peak, reading.kind)
    factor = learning.save(reading.kind, card, [reading.value / predicted])
    result = {
        "class": reading.kind, "gpu": card.name, "measured": reading.value, "predicted": predicted, "factor": factor,
        "points": reading.points, "peak_memory_gb": reading.peak_memory_gb, "predicted_memory_gb": memory,
        "store": str(learning.store()),
    }  # fmt: skip
    if json_:
        emit_json(result)
        return
    told = f"{reading.kind} on {card.name}: measured {reading.value:.4g}, predicted {predicted:.4g}"
    say(f"{told}; later estimates times {factor:.3f}")
    if reading.peak_memory_gb is not None:
        say(f"peak memory: measured {reading.peak_memory_gb:.3g} GB, predicted {memory:.3g} GB (not corrected by this)")
    say(f"kept in {learning.store()}; ftadvise estimate and recommend use it")
