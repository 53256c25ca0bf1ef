"""`ft train`: options, opening folders, printing. Every key of TrainConfig is an option."""

import dataclasses
import inspect
import json
import typing
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core.artifacts import Dataset
from tunegate.core.console import JsonOption, emit_json, out, say, table, warn
from tunegate.core.errors import UsageError
from tunegate.core.files import refuse_existing
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import resolve as resolve_model
from tunegate.train.advice import warnings
from tunegate.train.config import TrainConfig, field_types, from_file, keys_of, resolve
from tunegate.train.stop import Interrupted

app = typer.Typer(add_completion=False, rich_markup_mode="rich")


def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, made by ft data prepare.")],
    out_folder: Annotated[Path, typer.Option("--out", help="Run folder to write.")],
    config_file: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    recommendation: Annotated[
        Path | None, typer.Option("--from", help="recommendation.yaml of ftadvise recommend.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show three examples, train nothing.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing run folder.")] = False,
    as_json: JsonOption = False,
    **flags: Any,
) -> None:
    """Fine-tune a model on a dataset folder with LoRA, QLoRA or full tuning; the loss falls on the answers only.

    The methods prompt, few_shot and rag make a run without weights from the training rows (and --docs): it is served
    and judged like the others.

    Settings come from the preset, then --config or --from, then options; each is printed with its origin.
    """
    layers = _layers(config_file, recommendation, {k: v for k, v in flags.items() if v is not None})
    config, settings, notes = resolve(layers)
    for note in [*notes, *warnings(config)]:
        warn(note)
    if not dry_run:
        refuse_existing(out_folder, force=force)
    opened = Dataset.open(dataset)
    source = resolve_model(config.model)
    used = keys_of(config.method)
    for key, setting in settings.items():
        if setting.origin == "flag" and key not in used:
            warn(f"{key} means nothing to the method {config.method}")
    _print_settings({key: setting for key, setting in settings.items() if key in used})
    if config.method in WEIGHTLESS:
        _without_weights(opened, source, config, out_folder, dry_run=dry_run, force=force, as_json=as_json)
        return
    from tunegate.train import sft

    if dry_run:
        _dry_run(opened, source, config, as_json=as_json)
        return
    try:
        run = sft.train(opened, source, config, out_folder, resume=resume, force=force)
    except Interrupted as stopped:
        say(str(stopped))
        raise
    facts = run.manifest.facts
    if as_json:
        emit_json({"run": str(run.path), "digest": run.digest, **facts})
        return
    loss = facts["validation_loss"]
    words = (
        "" if loss is None else f", validation loss {loss:.4f} on {facts['validation_rows']} training rows set aside"
    )
    out().print(
        f"run: {run.path} ({facts['steps']} steps{words}, peak memory {facts['peak_memory_gb']:.1f} GB)", markup=False
    )
    next_step = (
        f"ft merge {run.path} --out RELEASE"
        if config.method != "full"
        else f"ft merge {run.path} --out RELEASE (copies full weights)"
    )
    out().print(f"next: {next_step}", markup=False)


def _without_weights(
    dataset: Dataset, source: Any, config: TrainConfig, out_folder: Path, *, dry_run: bool, force: bool, as_json: bool
) -> None:
    """Make (or, in a dry run, only show) a run of the method prompt, few_shot or rag."""
    from tunegate.train.arms.build import build, preview

    if dry_run:
        shown = preview(dataset, source, config)
        if as_json:
            emit_json({"dry_run": True, "config": json.loads(json.dumps(dataclasses.asdict(config))), **shown})
            return
        for turn in shown["messages"]:
            out().print(f"[bold]{turn['role']}[/bold]")
            out().print(str(turn.get("content") or ""), markup=False)
        return
    run = build(dataset, source, config, out_folder, force=force)
    if as_json:
        emit_json({"run": str(run.path), "digest": run.digest, **run.manifest.facts})
        return
    facts = run.manifest.facts
    words = {
        "prompt": f"instructions of {facts['instruction_tokens']} tokens",
        "few_shot": f"{facts.get('k')} {facts.get('selection')} examples of {facts.get('examples')}",
        "rag": f"{facts.get('k')} of {facts.get('passages')} passages a request",
    }
    out().print(f"run: {run.path} ({words[config.method]}; no weights)", markup=False)
    out().print(f"next: ft serve {run.path}   or   ft eval {run.path} --task task.yaml --out REPORT", markup=False)


def _layers(
    config_file: Path | None, recommendation: Path | None, flags: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    if config_file and recommendation:
        raise UsageError("--config and --from exclude each other", hint="options override either")
    layers = [(str(file), from_file(file)) for file in (config_file, recommendation) if file]
    return [*layers, ("flag", flags)]


def _print_settings(settings: dict[str, Any]) -> None:
    shown = {k: ", ".join(s.value) if isinstance(s.value, tuple) else s.value for k, s in settings.items()}
    width = max(len(key) for key in settings)
    for key, setting in settings.items():
        say(f"  {key:<{width}}  {shown[key]}  ({setting.origin})")


def _dry_run(dataset: Dataset, source: Any, config: TrainConfig, *, as_json: bool) -> None:
    from tunegate.train import examples, sft

    ready = sft.prepare(dataset, source, config)
    tokenizer, kept, certificate = ready.tokenizer, ready.kept, ready.certificate
    if as_json:
        emit_json(
            {
                "dry_run": True,
                "config": json.loads(json.dumps(dataclasses.asdict(config))),
                "mask": examples.as_facts(certificate),
            }
        )
        return
    for example in kept[:3]:
        out().rule(f"row {example.id}: dim is not learnt")
        out().print(examples.preview(example, tokenizer), markup=True)
    table("what the loss sees", ["", ""], [[k, str(v)] for k, v in examples.as_facts(certificate).items()])


def _with_config_options(function: Any) -> Any:
    """Give `function` one optional keyword option for each TrainConfig key, in place of its **flags."""
    signature = inspect.signature(function)
    fixed = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("flags", None)
    added = []
    for key, kind in field_types().items():
        spec = next(f for f in dataclasses.fields(TrainConfig) if f.name == key)
        option = "--" + key.replace("_", "-")
        base: Any = bool if kind in (bool, bool | None) else str if typing.get_origin(kind) is tuple else kind
        names = [f"{option}/--no-{option[2:]}"] if base is bool else [option]
        shown = ",".join(spec.default) if isinstance(spec.default, tuple) else spec.default
        text = spec.metadata["help"] + ("" if shown is None else f" [default: {shown}]")
        hint = Annotated[base | None, typer.Option(*names, help=text, show_default=False, rich_help_panel="Settings")]
        hints[key] = hint
        added.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in fixed]
    function.__signature__ = signature.replace(parameters=[*keyword, *added])
    function.__annotations__ = hints
    return function


app.command(
    epilog="Example: ft train data/ --out run/ --model builtin:smollm2-135m --learning-rate 5e-4 --max-steps 120"
)(_with_config_options(train))
