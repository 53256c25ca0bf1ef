"""The options of `ft data`, each said once, and how they become the settings of the steps."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunegate.core.embedding import BUILTIN
from tunegate.core.errors import UserError, one_of
from tunegate.train.paths import given_path

if TYPE_CHECKING:
    from tunegate.train.data.engine import Mapped
    from tunegate.train.data.prepare import PrepareConfig
    from tunegate.train.data.read import Reading

Command = Callable[..., None]
Given = tuple[str, Any, Any]

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="IN...",
        help="Files (.jsonl, .json, .csv, .tsv, .parquet, also .gz or .zst), folders, hf:NAME:SPLIT, or builtin:bfcl.",
        show_default=False,
    ),
]
Out = Annotated[
    Path, typer.Option("--out", help="Folder to write.", show_default=False, parser=given_path, metavar="<path>")
]
OutOrNone = Annotated[
    Path | None,
    typer.Option("--out", help="Folder to write; without it nothing is written.", parser=given_path, metavar="<path>"),
]
OutFile = Annotated[
    Path, typer.Option("--out", help="File to write.", show_default=False, parser=given_path, metavar="<path>")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier output (a folder of ours, a converted file).")]
Format = Annotated[
    str | None, typer.Option("--format", help="messages, sharegpt, alpaca or prompt_completion; else found out.")
]
PromptKey = Annotated[str | None, typer.Option("--prompt-key", help="Key of the input, for data in no known format.")]
CompletionKey = Annotated[str | None, typer.Option("--completion-key", help="Key of the output, with --prompt-key.")]
SystemKey = Annotated[str | None, typer.Option("--system-key", help="Key of a system text, with --prompt-key.")]
TagKeys = Annotated[list[str] | None, typer.Option("--tag", help="Key that becomes a tag (may be repeated).")]
OnError = Annotated[str, typer.Option("--on-error", help="At a malformed line: stop, or reject it and go on.")]

Fraction = Annotated[float, typer.Option("--eval-fraction", help="Share of the groups held out.")]
MinEval = Annotated[int, typer.Option("--min-eval", help="Rows held out at least (never over a third of the rows).")]
PerLabel = Annotated[int, typer.Option("--min-per-label", help="Groups of each label held out at least.")]
Seed = Annotated[int, typer.Option("--seed", help="Another seed, another hold-out.")]
Group = Annotated[str | None, typer.Option("--group", help="Tag or key that rows of one source share.")]
Label = Annotated[str | None, typer.Option("--label", help="Tag or key of the label; else found out.")]
KeepEval = Annotated[
    Path | None,
    typer.Option(
        "--keep-eval",
        help="Earlier eval.jsonl or dataset: its rows stay held out.",
        parser=given_path,
        metavar="<path>",
    ),
]

Near = Annotated[bool, typer.Option("--near/--no-near", help="Remove near duplicates.")]
NearModel = Annotated[
    str,
    typer.Option("--near-model", help="Encoder whose cosine is the verdict: a folder, a hub id; or lexical: 4-grams."),
]
NearThreshold = Annotated[
    float | None,
    typer.Option("--near-threshold", help="From which two inputs are near; else 0.95 of a cosine, 0.9 of 4-grams."),
]
Keep = Annotated[
    str, typer.Option("--keep", help="Which of two twins stays: first, longest or best:KEY (highest number).")
]
KeepLeaks = Annotated[bool, typer.Option("--keep-leaks", help="Keep train rows whose prompt stands in eval.")]
Yes = Annotated[bool, typer.Option("--yes", help="Go on when a step would remove over half of a source.")]

EngineName = Annotated[
    str, typer.Option("--engine", help="local, or ray: rows are parsed, compared and checked on a cluster's workers.")
]
Address = Annotated[str | None, typer.Option("--address", help="Of a running Ray cluster; else a local one is made.")]

Model = Annotated[
    str | None,
    typer.Option(
        "--model", help="Model whose tokenizer counts tokens and whose chat template renders them; else an estimate."
    ),
]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens a row may have; longer ones are reported.")]
DropLong = Annotated[bool, typer.Option("--drop-long", help="Remove rows over --max-length.")]
MinOutput = Annotated[int | None, typer.Option("--min-output-tokens", help="Remove rows with a shorter answer.")]
DropInvalid = Annotated[
    bool, typer.Option("--drop-invalid", help="Remove rows whose answer breaks JSON or its schema.")
]
DropRefusals = Annotated[bool, typer.Option("--drop-refusals", help="Remove rows whose answer refuses.")]
Secrets = Annotated[str, typer.Option("--secrets", help="Probable secrets and personal data: flag, mask or remove.")]


# Options that several commands have: (parameter's name, annotation, default). Each stands here once, and a command names the
# groups it has (`takes`).
SPLIT: tuple[Given, ...] = (
    ("eval_fraction", Fraction, 0.1),
    ("min_eval", MinEval, 100),
    ("min_per_label", PerLabel, 1),
    ("seed", Seed, 0),
    ("group", Group, None),
    ("label", Label, None),
    ("keep_eval", KeepEval, None),
)
NEAR: tuple[Given, ...] = (
    ("near", Near, True),
    ("near_model", NearModel, BUILTIN),
    ("near_threshold", NearThreshold, None),
    ("keep", Keep, "first"),
)
LEAKS: tuple[Given, ...] = (("keep_leaks", KeepLeaks, False),)
CLEAN: tuple[Given, ...] = (
    ("model", Model, None),
    ("max_length", MaxLength, None),
    ("drop_long", DropLong, False),
    ("min_output_tokens", MinOutput, None),
    ("drop_invalid", DropInvalid, False),
    ("drop_refusals", DropRefusals, False),
    ("secrets", Secrets, "flag"),
)
READING: tuple[Given, ...] = (
    ("form", Format, None),
    ("prompt_key", PromptKey, None),
    ("completion_key", CompletionKey, None),
    ("system_key", SystemKey, None),
    ("tag", TagKeys, None),
)
FAULTS: tuple[Given, ...] = (("on_error", OnError, "stop"),)
ENGINE: tuple[Given, ...] = (("engine", EngineName, "local"), ("address", Address, None))
SURE: tuple[Given, ...] = (("yes", Yes, False),)
LAST = ("force", "as_json")  # a command's own options that stand behind those it shares


def takes(*groups: tuple[Given, ...]) -> Callable[[Command], Command]:
    """Give a command the options of these groups, before its own --force and --json.

    Typer reads them off the signature; the command finds their values in its context's `params`.
    """

    def decorate(function: Command) -> Command:
        own = inspect.signature(function).parameters
        shared = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for group in groups
            for name, annotation, default in group
        ]
        ordered = [
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in own.items() if name not in LAST),
            *shared,
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, p in own.items() if name in LAST),
        ]

        @functools.wraps(function)
        def command(**given: Any) -> None:
            function(**{name: given[name] for name in own})

        command.__signature__ = inspect.Signature(ordered)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in ordered}
        return command

    return decorate


def mapped(params: dict[str, Any]) -> "Mapped":
    """The engine that the options name. Raises as `engine` does."""
    from tunegate.train.data.engine import engine

    return engine(params["engine"], params["address"])


def reading(params: dict[str, Any]) -> "Reading":
    """The options about reading, as one value. Raises UserError for keys that do not go together."""
    from tunegate.train.data.formats import FORMATS, Columns
    from tunegate.train.data.read import Reading

    form, prompt, completion, system = (params.get(k) for k in ("form", "prompt_key", "completion_key", "system_key"))
    if (prompt is None) != (completion is None) or (system is not None and prompt is None):
        raise UserError("--prompt-key and --completion-key belong together", where="--prompt-key")
    if form is not None and prompt is not None:
        raise UserError("either --format or --prompt-key", where="--format")
    if form is not None:
        one_of("--format", form, FORMATS)
    columns = Columns(prompt=prompt, completion=str(completion), system=system) if prompt is not None else None
    return Reading(format=form, columns=columns, tag_keys=tuple(params.get("tag") or ()))


def configured(params: dict[str, Any]) -> "PrepareConfig":
    """The settings of all steps from a command's parameters; what a command has no option for keeps its default."""
    from dataclasses import fields

    from tunegate.train.data.clean import CleanConfig
    from tunegate.train.data.dedup import DedupConfig
    from tunegate.train.data.prepare import PrepareConfig
    from tunegate.train.data.split import SplitConfig

    def part(kind: type[Any]) -> Any:
        names = {field.name for field in fields(kind)}
        return kind(**{name: value for name, value in params.items() if name in names})

    one_of("--on-error", params.get("on_error", "stop"), ("stop", "reject"))
    own = ("group", "label", "keep_eval", "keep_leaks", "on_error", "model", "yes")
    return PrepareConfig(
        reading=reading(params),
        split=part(SplitConfig),
        dedup=part(DedupConfig),
        clean=part(CleanConfig),
        **{name: params[name] for name in own if name in params},
    )
