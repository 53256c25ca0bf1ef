"""`ft bakeoff`: options, opening, printing."""

from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.console import JsonOption, emit_json, out, table
from tunegate.core.errors import UsageError
from tunegate.core.methods import METHODS, RAG_LORA

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


@app.command(
    epilog="Example: ft bakeoff --task task.yaml --train data/ --arms prompt,few_shot,lora --out bakeoff/ --budget-minutes 60"
)
def bakeoff(
    task: Annotated[Path, typer.Option(help="Task file that every arm is judged by.")],
    train: Annotated[
        Path | None, typer.Option(help="Training rows: a Dataset folder, or JSONL; else the Dataset of the items.")
    ] = None,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder for runs, reports and the result.")] = Path(
        "bakeoff"
    ),
    arms: Annotated[
        str, typer.Option(help="Which arms, comma-separated; the base model is always measured.")
    ] = ",".join(METHODS),
    model: Annotated[str, typer.Option(help="Base model of every arm.")] = "builtin:smollm2-135m",
    docs: Annotated[str, typer.Option(help="Documents for the arms rag (else the training rows) and rag_lora.")] = "",
    config: Annotated[
        Path | None, typer.Option(help="YAML of `ft train` settings; under the key arms, settings of one arm alone.")
    ] = None,
    budget_minutes: Annotated[
        float | None, typer.Option(min=1, help="Time for everything; trainings are shortened to fit.")
    ] = None,
    curve: Annotated[
        bool, typer.Option("--curve/--no-curve", help="Train on a quarter, half and all of the rows.")
    ] = True,
    gpu: Annotated[str, typer.Option(help="GPU that the money is worked out for (ftadvise gpus).")] = "L4",
    calls_per_day: Annotated[float, typer.Option(min=1, help="Calls a day, mean.")] = 10_000,
    p95_ms: Annotated[
        float | None, typer.Option(help="Latency bound: an arm predicted to be slower cannot win.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once while judging.")] = 32,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge by the first N items only.")] = None,
    allow_python: Annotated[bool, typer.Option("--allow-python", help="Allow validators of kind python.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Decide and write a finished bake-off again.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure every method on the same items and say which one pays. Killed, the same command goes on where it was."""
    from tunegate.advisor.gpus import find_gpu
    from tunegate.core.model_source import resolve
    from tunegate.evalkit.bakeoff import plan as plans
    from tunegate.evalkit.bakeoff.bake_off import bake_off
    from tunegate.evalkit.runner import RunOptions
    from tunegate.evalkit.task import load_task

    chosen = plans.parse_arms(arms)
    find_gpu(gpu)
    settings, own = plans.read_settings(config) if config else ({}, {})
    if docs and not {*plans.RETRIEVING} & {*chosen}:
        raise UsageError("--docs is for the arms rag and rag_lora, which are not among --arms")
    if not docs and RAG_LORA in chosen:
        raise UsageError("the arm rag_lora needs documents to retrieve from", hint="--docs FOLDER")
    loaded = load_task(task, limit=limit, allow_python=allow_python)
    planned = plans.Plan(
        task=loaded, dataset=plans.dataset_of(train or plans.dataset_with(loaded), loaded, out_folder), source=resolve(model), arms=chosen, docs=docs,
        settings=settings, own_settings=own, out=out_folder,
        business=plans.Business(gpu=gpu, calls_per_day=calls_per_day, p95_ms=p95_ms),
        budget_s=None if budget_minutes is None else 60 * budget_minutes, curve=plans.FRACTIONS if curve else (1.0,),
    )  # fmt: skip
    document = bake_off(planned, RunOptions(concurrency=concurrency), force=force)
    if as_json:
        emit_json({**document, "bakeoff": str(out_folder)})
        return
    _show(document, out_folder)


def _show(document: dict[str, Any], folder: Path) -> None:
    from tunegate.evalkit.bakeoff.page import COLUMNS, sentences, table_rows

    table(f"{document['task']}: {document['n']} items, {document['primary']}", COLUMNS, table_rows(document))
    for text in sentences(document):
        out().print(text, markup=False)
    out().print(f"bake-off: {folder}\npage: {folder / 'bakeoff.html'}", markup=False)
