"""`ftadvise backtest` and `ftadvise calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, say, table, warn
from tunegate.core.errors import ExitCode, UsageError, UserError, one_of

if TYPE_CHECKING:
    from tunegate.advisor.backtest import Backtest
    from tunegate.advisor.calibrate import RunFacts
    from tunegate.advisor.gpus import Gpu
    from tunegate.advisor.models import KnownModel

Json = dict[str, Any]
SAME_SIZE = 0.02  # by which two sizes of one model may differ: tied embeddings and biases left out
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
    """Predict published (or your) measurements; exit 1 when a class is worse than its recorded bound, 3 when no row
    can be compared."""
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
    if not result.by_class():
        warn("no row could be compared: the reasons are under skipped")
        raise typer.Exit(ExitCode.INCONCLUSIVE)


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
    gpu: Annotated[str, typer.Option(help="Where it ran.")],
    model: Annotated[str | None, typer.Option(help="The model that ran. \\[default: the Run's]")] = None,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that worked together; of a Run folder its processes. \\[default: 1]")
    ] = None,
    strategy: Annotated[str, typer.Option(help="Training on several GPUs: ddp or fsdp2, as ft train had it.")] = "ddp",
    method: Annotated[
        str | None, typer.Option(help="Training: lora, qlora or full. \\[default: the Run's, else lora]")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Training: rows per micro-batch. \\[default: the Run's, else 4]")
    ] = None,
    seq: Annotated[
        int | None, typer.Option(min=1, help="Training: mean tokens of a row. \\[default: the Run's, else 512]")
    ] = None,
    quant: Annotated[str, typer.Option(help="Serving: bf16, fp8 or awq.")] = "bf16",
    input_tokens: Annotated[float, typer.Option(min=1, help="Serving: prompt tokens.")] = 512,
    output_tokens: Annotated[float, typer.Option(min=1, help="Serving: answer tokens.")] = 128,
    concurrency: Annotated[float, typer.Option(min=1, help="Serving: calls at a time.")] = 1,
    json_: JsonOption = False,
) -> None:
    """Learn this machine's speed; later estimates for the GPU use it (drawn to the prior while points are few)."""
    from tunegate.advisor import calibrate as learning
    from tunegate.advisor import limits
    from tunegate.advisor.gpus import find_gpu
    from tunegate.advisor.models import find
    from tunegate.advisor.serving_speed import QUANTIZATIONS

    one_of("--quant", quant, list(QUANTIZATIONS))
    one_of("--strategy", strategy, ["ddp", "fsdp2"])
    reading = learning.read_log(log)
    run = reading.run
    card, base = find_gpu(gpu), find(_agreed(model, method, run))
    together = gpus or (None if card.is_cpu else run.processes) or 1  # processes of one machine share its CPU
    memory: float | None = None
    if reading.kind == "train_tps":
        shape: Json = {"method": method or run.method or "lora", "batch": batch or run.batch or 4}
        shape |= {"seq": seq or run.seq or 512, **run.unasked(on_cpu=card.is_cpu)}
        predicted, memory = _trained(base, card, together, strategy, shape)
        peak = limits.train_tokens_per_s(base.architecture, card, together)
    else:
        typed = (input_tokens, output_tokens, concurrency)
        predicted = _served(base, card, together, quant, reading.load.shape() if reading.load is not None else typed)
        peak = limits.token_ms(base.architecture, card, together)
    learning.refuse_impossible(reading.value, predicted, peak, reading.kind)
    factor = learning.save(reading.kind, card, reading.value / predicted, reading.log)
    result = {
        "class": reading.kind, "model": base.spec, "gpu": card.name, "gpus": together, "measured": reading.value,
        "predicted": predicted, "factor": factor, "points": reading.points, "peak_memory_gb": reading.peak_memory_gb,
        "predicted_memory_gb": memory, "store": str(learning.store()),
    }  # fmt: skip
    if json_:
        emit_json(result)
    else:
        _tell(result)


def _tell(found: Json) -> None:
    """What was learnt, for people."""
    place = found["gpu"] if found["gpus"] == 1 else f"{found['gpus']} x {found['gpu']}"
    told = f"{found['class']} on {place}: measured {found['measured']:.4g}, predicted {found['predicted']:.4g}"
    say(f"{told}; later estimates times {found['factor']:.3f}")
    if found["peak_memory_gb"] is not None:
        memory = f"measured {found['peak_memory_gb']:.3g} GB, predicted {found['predicted_memory_gb']:.3g} GB"
        say(f"peak memory: {memory} (not corrected by this)")
    say(f"kept in {found['store']}; ftadvise estimate and recommend use it")


def _agreed(model: str | None, method: str | None, run: "RunFacts") -> str:
    """The model that ran: as typed, else as the Run says. Raises UsageError for an unknown method and where neither names the
    model, UserError where the Run says that it was another one, or another method."""
    from tunegate.advisor.models import find

    one_of("--method", method or "lora", ["lora", "qlora", "full"])
    if method and run.method and method != run.method:
        raise UserError(f"this run was {run.method}, not {method}", where="--method", hint="leave out --method")
    if model is None:
        if run.model is None:
            raise UsageError("the log does not say which model ran", where="--model", hint="give --model")
        try:
            find(run.model)
        except UserError:
            told = f"the model of this run is not known here: {run.model}"
            raise UsageError(told, where="--model", hint="give --model") from None
        return run.model
    if run.model is not None and not _alike(model, run.model):
        raise UserError(f"this run is of {run.model}, not {model}", where="--model", hint="leave out --model")
    return model


def _alike(one: str, other: str) -> bool:
    """Whether two names may mean one model: it is of the same size; nothing is known of a folder that is gone."""
    from tunegate.advisor.models import find

    typed = find(one).architecture.params
    try:
        return abs(find(other).architecture.params / typed - 1) < SAME_SIZE
    except UserError:
        return True


def _trained(base: "KnownModel", card: "Gpu", gpus: int, strategy: str, shape: Json) -> tuple[float, float]:
    """(tokens/s of all GPUs together, peak memory of one in 1e9 bytes) as computed, without what was learnt before. shape:
    fields of a TrainQuestion."""
    from tunegate.advisor import calibrate as learning
    from tunegate.advisor import estimates, training_time
    from tunegate.core.methods import ALL_LINEAR

    shared = gpus if strategy == "fsdp2" else 1
    question = estimates.TrainQuestion(model=base, gpu=card, gpus=shared, targets=ALL_LINEAR, **shape)
    answer = estimates.train(question)
    speed = answer["tokens_per_s"]["value"] / learning.factor("train_tps", card.name)
    return speed * training_time.scaling(gpus) / training_time.scaling(shared), answer["memory_gb"]["value"]


def _served(base: "KnownModel", card: "Gpu", gpus: int, quant: str, load: tuple[float, float, float]) -> float:
    """Time per token in ms as computed, without what was learnt before. load: tokens in, tokens out, calls at a time."""
    from tunegate.advisor import calibrate as learning
    from tunegate.advisor import estimates

    inputs, outputs, concurrency = load
    question = estimates.ServeQuestion(
        model=base, gpu=card, gpus=gpus, quantization=quant, input_tokens=inputs, output_tokens=outputs,
        concurrency=concurrency,
    )  # fmt: skip
    return float(estimates.serve(question)["tpot_ms"]["value"]) / learning.factor("tpot", card.name)
