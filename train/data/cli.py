"""`ft data`: from your files to a dataset. Options are parsed here; the work is done elsewhere."""

from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.console import JsonOption, emit_json
from tunegate.core.embedding import BUILTIN
from tunegate.core.errors import ExitCode
from tunegate.train.data import options as o

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make a dataset from your files: hold out, check, deduplicate.",
    epilog="Example: ft data prepare builtin:bfcl --out data/",
)


@app.command(epilog="Example: ft data prepare builtin:bfcl --out data/bfcl")
@o.takes(o.SPLIT, o.NEAR, o.LEAKS, o.CLEAN, o.READING, o.FAULTS, o.ENGINE, o.SURE)
def prepare(
    ctx: typer.Context,
    names: o.Sources,
    out: o.Out,
    force: o.Force = False,
    as_json: JsonOption = False,
) -> None:
    """Hold out, clean, check and profile, in that order; writes a dataset folder and prints one report."""
    from tunegate.core.files import refuse_existing
    from tunegate.train.data.prepare import prepare as run
    from tunegate.train.data.show import prepared

    refuse_existing(out, force=force)
    config = o.configured(ctx.params)
    prepared(*run(names, out, config, force=force, mapped=o.mapped(ctx.params)), config, as_json=as_json)


@app.command(epilog="Example: ft data split builtin:bfcl --out split/ --eval-fraction 0.2")
@o.takes(o.SPLIT, o.READING, o.FAULTS, o.SURE)
def split(
    ctx: typer.Context,
    names: o.Sources,
    out: o.Out,
    force: o.Force = False,
    as_json: JsonOption = False,
) -> None:
    """Only hold out: a dataset folder whose train rows are not cleaned (copies under one id apart)."""
    from tunegate.core.files import refuse_existing
    from tunegate.train.data.prepare import prepare as run
    from tunegate.train.data.show import prepared

    refuse_existing(out, force=force)
    nothing = {"exact": False, "normalized": False, "near": False, "keep_leaks": True}
    config = o.configured({**ctx.params, **nothing})
    prepared(*run(names, out, config, force=force), config, as_json=as_json)


@app.command(epilog="Example: ft data inspect builtin:bfcl --html profile.html")
@o.takes(o.READING)
def inspect(
    ctx: typer.Context,
    names: o.Sources,
    label: o.Label = None,
    model: o.Model = None,
    html: Annotated[Path | None, typer.Option("--html", help="Also write a page with histograms.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a set looks like: lengths, labels, answers, languages."""
    from tunegate.core.files import refuse_existing_file, write_text
    from tunegate.train.data.show import inspected
    from tunegate.train.data.steps import profile

    if html is not None:
        refuse_existing_file(html)
    found = profile(names, o.reading(ctx.params), label=label, model=model)
    if html is not None:
        from tunegate.train.data.page import page

        html.parent.mkdir(parents=True, exist_ok=True)
        write_text(html, page(found, ", ".join(names)))
    inspected(found, html, as_json=as_json)


@app.command(epilog="Example: ft data check builtin:bfcl")
@o.takes(o.READING)
def check(
    ctx: typer.Context,
    names: o.Sources,
    model: o.Model = None,
    max_length: o.MaxLength = None,
    show_all: Annotated[bool, typer.Option("--all", help="Print every finding, not five of each kind.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Every problem with file, line and JSON pointer; exit code 2 when a line is no row, 0 for doubts only."""
    from tunegate.train.data.show import checked
    from tunegate.train.data.steps import check as run

    result = run(names, o.reading(ctx.params), model=model, max_length=max_length)
    checked(result, show_all=show_all, as_json=as_json)
    if result.errors:
        raise typer.Exit(ExitCode.BAD_INPUT)


@app.command(epilog="Example: ft data clean my.jsonl --drop-refusals --secrets mask --out clean/")
@o.takes(o.CLEAN, o.READING, o.FAULTS, o.SURE)
def clean(
    ctx: typer.Context,
    names: o.Sources,
    out: o.Out,
    force: o.Force = False,
    as_json: JsonOption = False,
) -> None:
    """Row by row: remove what is too long, too short, invalid or a refusal; mask or remove secrets."""
    from tunegate.train.data.show import cleaned
    from tunegate.train.data.steps import clean as run

    cleaned(run(names, out, o.configured(ctx.params), force=force), out, as_json=as_json)


@app.command(epilog="Example: ft data dedup my.jsonl --near-threshold 0.98")
@o.takes(o.NEAR, o.READING, o.FAULTS, o.ENGINE, o.SURE)
def dedup(
    ctx: typer.Context,
    names: o.Sources,
    out: o.OutOrNone = None,
    force: o.Force = False,
    as_json: JsonOption = False,
) -> None:
    """Duplicates, conflicts and contrast pairs, with the pairs just above and below the threshold and its curve."""
    from tunegate.train.data.show import deduplicated
    from tunegate.train.data.steps import dedup as run

    result = run(names, out, o.configured(ctx.params), force=force, mapped=o.mapped(ctx.params))
    deduplicated(result, out, as_json=as_json)


@app.command(epilog="Example: ft data leakage --train data/train.jsonl --eval data/eval.jsonl --clean eval-clean.jsonl")
def leakage(
    train: Annotated[str, typer.Option("--train", help="What is trained on.", show_default=False)],
    held_out: Annotated[str, typer.Option("--eval", help="What is evaluated on.", show_default=False)],
    clean: Annotated[Path | None, typer.Option("--clean", help="Write the eval rows no strict rule finds.")] = None,
    near_model: o.NearModel = BUILTIN,
    near_threshold: o.NearThreshold = None,
    as_json: JsonOption = False,
) -> None:
    """Eval rows that also stand in train, by named rules from strict to loose."""
    from tunegate.train.data.judge import judge
    from tunegate.train.data.show import leaked
    from tunegate.train.data.steps import leakage as run

    leaked(run(train, held_out, clean=clean, near=judge(near_model, near_threshold)), clean, as_json=as_json)


@app.command(epilog="Example: ft data convert builtin:bfcl --to trl --out bfcl.jsonl")
@o.takes(o.READING)
def convert(
    ctx: typer.Context,
    names: o.Sources,
    to: Annotated[str, typer.Option("--to", help="openai, sharegpt, alpaca or trl.", show_default=False)],
    out: o.OutFile,
    drop: Annotated[list[str] | None, typer.Option("--drop", help="Key to leave out knowingly (repeatable).")] = None,
    force: o.Force = False,
    as_json: JsonOption = False,
) -> None:
    """Write rows in another format; a row that would not come back unchanged is refused, naming the field."""
    from tunegate.core.console import say
    from tunegate.train.data.steps import convert as run

    count = run(names, out, to, o.reading(ctx.params), tuple(drop or ()), force=force)
    if as_json:
        emit_json({"rows": count, "to": to, "out": str(out)})
    else:
        say(f"{count} rows written to {out}")
