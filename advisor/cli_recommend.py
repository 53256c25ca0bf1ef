"""`ftadvise recommend`."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.advisor.quick_command import QuickCommand
from tunegate.core.console import JsonOption, emit_json, say
from tunegate.core.errors import UserError

if TYPE_CHECKING:
    from tunegate.advisor.constraints import Constraints
    from tunegate.advisor.recommend import Recommendation

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(
    cls=QuickCommand,
    epilog="Example: ftadvise recommend --needs format,cost --examples 5000 --calls-per-day 20000 --out recommendation.yaml",
)
def recommend(
    data: Annotated[
        Path | None, typer.Argument(help="JSONL of rows, or a Dataset folder: lengths, count and format are measured.")
    ] = None,
    constraints: Annotated[Path | None, typer.Option(help="YAML of the options below; options win.")] = None,
    calls_per_day: Annotated[float | None, typer.Option(help="Mean calls a day (assumed 1000).")] = None,
    input_tokens: Annotated[float | None, typer.Option(help="Mean prompt tokens of a call.")] = None,
    output_tokens: Annotated[float | None, typer.Option(help="Mean answer tokens of a call.")] = None,
    p95_ms: Annotated[float | None, typer.Option(help="Bound on a whole answer, 95th percentile, ms.")] = None,
    privacy: Annotated[str | None, typer.Option(help="public, or no-egress: data may not leave your machines.")] = None,
    facts: Annotated[str | None, typer.Option(help="static, or changing: knowledge that must be looked up.")] = None,
    needs: Annotated[
        str | None, typer.Option(help="Of format,style,latency,cost,quality,privacy; the first is the priority.")
    ] = None,
    examples: Annotated[int | None, typer.Option(help="Training examples at hand.")] = None,
    domain: Annotated[str | None, typer.Option(help="near, or far: language the base has hardly seen.")] = None,
    budget_usd: Annotated[float | None, typer.Option(help="One-off budget, USD.")] = None,
    monthly_budget_usd: Annotated[float | None, typer.Option(help="Running budget, USD a month.")] = None,
    quality: Annotated[str | None, typer.Option(help="normal, high or max.")] = None,
    hardware: Annotated[str | None, typer.Option(help="GPU[:COUNT] you own, or cpu.")] = None,
    ops: Annotated[str | None, typer.Option(help="Appetite to run servers: low, medium or high.")] = None,
    model: Annotated[str | None, typer.Option(help="Fix the base model: hub id, folder, builtin:smollm2-135m.")] = None,
    peak_factor: Annotated[float | None, typer.Option(help="Busiest hour over the mean (assumed 3).")] = None,
    prices: Annotated[
        Path | None, typer.Option(help="CSV of API prices that replace or add to the shipped ones.")
    ] = None,
    evidence: Annotated[
        list[str] | None,
        typer.Option(help="REPORT, METHOD=REPORT or BAKEOFF folder: measured, in place of priors; repeatable."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write recommendation.yaml here; without it nothing is written.")
    ] = None,
    launch: Annotated[
        str | None,
        typer.Option(help="sky, or sky:INFRA (sky:kubernetes, sky:aws): also write a SkyPilot task beside --out."),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Show rules, votes, what would flip the answer, probes.")] = False,
    json_: JsonOption = False,
) -> None:
    """Say whether to fine-tune, with what, on what and at what price; every assumption is named."""
    stated: dict[str, Any] = {
        "calls_per_day": calls_per_day, "input_tokens": input_tokens, "output_tokens": output_tokens, "p95_ms": p95_ms,
        "privacy": privacy, "facts": facts, "needs": needs, "examples": examples, "domain": domain,
        "budget_usd": budget_usd, "monthly_budget_usd": monthly_budget_usd, "quality": quality, "hardware": hardware,
        "ops": ops, "model": model, "peak_factor": peak_factor,
    }  # fmt: skip
    _refuse_inputs(out, data, constraints, prices)
    answer = _answer(data, constraints, stated, prices, evidence or [])
    from tunegate.advisor import render

    task = _task(answer, out, launch)
    document = render.as_json(answer, why=why and json_)  # what can fail has been done before a file is written
    _write(answer, out, task, data)
    if json_:
        emit_json(document)
        return
    render.print_answer(answer, why=why)
    if out is None:
        say("nothing was written: --out FILE writes recommendation.yaml for ft train --from")


def _refuse_inputs(out: Path | None, *read: Path | None) -> None:
    """Raise UserError for an --out that is a file read here, or lies in the folder of rows."""
    if out is None:
        return
    from tunegate.core.files import refuse_input

    named = [path for path in read if path is not None]
    refuse_input(out, *named)
    for folder in named:
        if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
            hint = "choose another --out: a finished folder keeps the files that its manifest names"
            raise UserError(f"lies in {folder}, which is read", where=f"--out {out}", hint=hint)


def _answer(
    data: Path | None, file: Path | None, stated: dict[str, Any], prices: Path | None, reports: list[str]
) -> "Recommendation":
    from tunegate.advisor.constraints import from_mapping, read_file
    from tunegate.advisor.evidence import read
    from tunegate.advisor.prices import offers
    from tunegate.advisor.recommend import recommend as answer_for

    asked = from_mapping(stated)
    if file is not None:
        told = from_mapping(read_file(file), file=file)
        _known_names(told, file)
        asked = told.under(asked)
    measured = None
    if data is not None:
        from tunegate.advisor.data_profile import profile

        measured = profile(data, asked.model)
    return answer_for(asked, measured, offers(prices), read(reports))


def _known_names(told: "Constraints", file: Path) -> None:
    """Raise UserError with the file's line for a GPU or a model that is unknown."""
    from tunegate.advisor.gpus import parse_hardware
    from tunegate.advisor.models import find
    from tunegate.core.strict_yaml import place_of

    for name, look_up in (("hardware", parse_hardware), ("model", find)):
        if value := getattr(told, name):
            try:
                look_up(value)
            except UserError as error:
                raise UserError(error.message, where=place_of(file, name), hint=error.hint) from None


def _task(answer: "Recommendation", out: Path | None, launch: str | None) -> dict[str, Any] | None:
    """The task of --launch, None without it."""
    if launch is None:
        return None
    from tunegate.advisor.launch import prepare

    return prepare(answer, launch, out)


def _write(answer: "Recommendation", out: Path | None, task: dict[str, Any] | None, data: Path | None) -> None:
    if out is None:
        return
    from tunegate.advisor.render import spread_words, train_section, write_yaml

    write_yaml(answer, out)
    rows = shlex.quote(str(data)) if data is not None and data.is_dir() else "DATASET"
    say(f"wrote {out}; run it with: ft train {rows} --from {shlex.quote(str(out))} --out RUN{spread_words(answer)}")
    for note in train_section(answer)[1]:
        say(f"  {note}")
    if task is not None:
        from tunegate.advisor.launch import write_task

        say(f"wrote {write_task(task, out)}")
