"""`ft data`: from your files to a dataset. Options are parsed here; the work is done elsewhere."""

from pathlib import Path
from typing import Annotated

import typer
from tunegate.core.console import JsonOption, emit_json
from tunegate.core.errors import UserError
from tunegate.train.data.formats import Columns
from tunegate.train.data.read import Reading

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Make a dataset from your files: hold out, check, deduplicate.",
    epilog="Example: ft data prepare my.jsonl --out data/",
)

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="IN...",
        help="Files (.jsonl, .json, .csv, .tsv, .parquet, also .gz or .zst), folders of them, or builtin:bfcl.",
        show_default=False,
    ),
]
Out = Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace the output when it exists.")]
Format = Annotated[
    str | None,
    typer.Option("--format", help="messages, sharegpt, alpaca or prompt_completion; found out when left out."),
]
PromptKey = Annotated[str | None, typer.Option("--prompt-key", help="Key of the input, for data in no known format.")]
CompletionKey = Annotated[str | None, typer.Option("--completion-key", help="Key of the output, beside --prompt-key.")]
SystemKey = Annotated[str | None, typer.Option("--system-key", help="Key of a system text, beside --prompt-key.")]
TagKeys = Annotated[list[str] | None, typer.Option("--tag", help="Key that becomes a tag (may be repeated).")]
Fraction = Annotated[float, typer.Option("--eval-fraction", help="Share of the groups held out.")]
MinEval = Annotated[int, typer.Option("--min-eval", help="Rows held out at least (never more than a third).")]
PerLabel = Annotated[int, typer.Option("--min-per-label", help="Groups of each label held out at least.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed, another hold-out.")]
Group = Annotated[str | None, typer.Option("--group", help="Tag or key that rows of one source share.")]
Label = Annotated[str | None, typer.Option("--label", help="Tag or key of the label; found out when left out.")]
Model = Annotated[str | None, typer.Option("--model", help="Model whose tokenizer counts tokens; else an estimate.")]
OnError = Annotated[str, typer.Option("--on-error", help="A malformed line: stop, or reject it and go on.")]
Yes = Annotated[bool, typer.Option("--yes", help="Go on when a step would remove over half of a source.")]
NearThreshold = Annotated[
    float, typer.Option("--near-threshold", help="Overlap of 4-grams from which two inputs are near.")
]


def reading(
    form: str | None, prompt: str | None, completion: str | None, system: str | None, tags: list[str] | None
) -> Reading:
    """The options about reading, as one value. Raises UserError for keys that do not go together."""
    if (prompt is None) != (completion is None) or (system is not None and prompt is None):
        raise UserError("--prompt-key and --completion-key belong together", where="--prompt-key")
    if form is not None and prompt is not None:
        raise UserError("either --format or --prompt-key", where="--format")
    columns = Columns(prompt=prompt, completion=completion or "", system=system) if prompt is not None else None
    return Reading(format=form, columns=columns, tag_keys=tuple(tags or ()))


@app.callback()
def data() -> None:
    """Make a dataset from your files: hold out, check, deduplicate."""


@app.command(epilog="Example: ft data prepare builtin:bfcl --out data/bfcl")
def prepare(
    names: Sources,
    out: Out,
    eval_fraction: Fraction = 0.1,
    min_eval: MinEval = 100,
    min_per_label: PerLabel = 1,
    seed: Seed = 0,
    group: Group = None,
    label: Label = None,
    keep_eval: Annotated[
        Path | None, typer.Option("--keep-eval", help="Earlier eval.jsonl or dataset: its rows stay held out.")
    ] = None,
    near: Annotated[bool, typer.Option("--near/--no-near", help="Remove near duplicates from train.")] = True,
    near_threshold: NearThreshold = 0.9,
    keep: Annotated[str, typer.Option("--keep", help="Which of two twins stays: first or longest.")] = "first",
    keep_leaks: Annotated[
        bool, typer.Option("--keep-leaks", help="Keep train rows whose user text stands in eval.")
    ] = False,
    model: Model = None,
    max_length: Annotated[
        int | None, typer.Option("--max-length", help="Tokens a row may have; reports longer.")
    ] = None,
    drop_long: Annotated[bool, typer.Option("--drop-long", help="Remove rows over --max-length from train.")] = False,
    min_output_tokens: Annotated[
        int | None, typer.Option("--min-output-tokens", help="Remove train rows with a shorter answer.")
    ] = None,
    drop_invalid: Annotated[
        bool, typer.Option("--drop-invalid", help="Remove train rows whose answer breaks JSON or its schema.")
    ] = False,
    drop_refusals: Annotated[bool, typer.Option("--drop-refusals", help="Remove train rows that refuse.")] = False,
    secrets: Annotated[
        str, typer.Option("--secrets", help="Probable secrets in train: flag, mask or remove.")
    ] = "flag",
    form: Format = None,
    prompt_key: PromptKey = None,
    completion_key: CompletionKey = None,
    system_key: SystemKey = None,
    tag: TagKeys = None,
    on_error: OnError = "stop",
    yes: Yes = False,
    force: Force = False,
    as_json: JsonOption = False,
) -> None:
    """Hold out, clean, check and profile, in that order; writes a dataset folder and prints one report."""
    from tunegate.core.files import refuse_existing
    from tunegate.train.data.clean import CleanConfig
    from tunegate.train.data.dedup import DedupConfig
    from tunegate.train.data.prepare import PrepareConfig
    from tunegate.train.data.prepare import prepare as run
    from tunegate.train.data.show import prepared, prepared_json
    from tunegate.train.data.split import SplitConfig

    if on_error not in ("stop", "reject"):
        raise UserError("must be stop or reject", where="--on-error")
    refuse_existing(out, force=force)
    config = PrepareConfig(
        reading=reading(form, prompt_key, completion_key, system_key, tag),
        split=SplitConfig(eval_fraction=eval_fraction, min_eval=min_eval, min_per_label=min_per_label, seed=seed),
        dedup=DedupConfig(near=near, near_threshold=near_threshold, keep=keep),
        clean=CleanConfig(
            max_length=max_length,
            drop_long=drop_long,
            min_output_tokens=min_output_tokens,
            drop_invalid=drop_invalid,
            drop_refusals=drop_refusals,
            secrets=secrets,
        ),
        group=group,
        label=label,
        keep_eval=keep_eval,
        keep_leaks=keep_leaks,
        on_error=on_error,
        model=model,
        yes=yes,
    )
    dataset, report = run(names, out, config, force=force)
    if as_json:
        emit_json(prepared_json(dataset, report))
    else:
        prepared(dataset, report, config)
