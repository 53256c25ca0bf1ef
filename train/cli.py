"""`ft train`: options, opening folders, printing. Every key of TrainConfig is an option."""

import dataclasses
import functools
import inspect
import sys
import typing
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from tunegate.core import manifest as manifests
from tunegate.core import same_model
from tunegate.core.architecture import Architecture, from_folder
from tunegate.core.artifacts import Dataset, Run
from tunegate.core.console import JsonOption, emit_json, out, say, warn
from tunegate.core.errors import UsageError, UserError
from tunegate.core.files import home_path, refuse_existing, refuse_input
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.model_source import ModelSource
from tunegate.core.model_source import resolve as resolve_model
from tunegate.train import adapters, dry_run_view, inputs, thread_waits
from tunegate.train.advice import rate_note, warnings
from tunegate.train.config import TrainConfig, field_types, from_file, keys_of, resolve
from tunegate.train.config import as_json as config_json
from tunegate.train.launch_options import Launch, launch_fields, launch_of
from tunegate.train.paths import given_name, given_path
from tunegate.train.stop import Interrupted, told
from tunegate.train.work import FREE, NAMES, began, working_folder

app = typer.Typer(add_completion=False, rich_markup_mode="rich")

OutOption = Annotated[Path, typer.Option("--out", help="Run folder to write.", parser=given_path, metavar="<path>")]


def train(
    dataset: Annotated[Path, typer.Argument(help="Dataset folder, made by ft data prepare.", parser=given_path)],
    out_folder: OutOption,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="YAML file of settings.", parser=given_path, metavar="<path>")
    ] = None,
    recommendation: Annotated[
        Path | None,
        typer.Option("--from", help="recommendation.yaml of ftadvise recommend.", parser=given_path, metavar="<path>"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last complete checkpoint.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, show three examples, train nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing run folder, or an unfinished run.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option("--preflight/--no-preflight", help="Refuse what is predicted not to fit the device's memory."),
    ] = True,
    as_json: JsonOption = False,
    **flags: Any,
) -> None:
    """Fine-tune a model on a dataset folder with LoRA, QLoRA or full tuning; the loss falls on the answers only.

    The methods prompt, few_shot and rag make a run without weights from the training rows (and --docs): it is served
    and judged like the others.

    Settings come from the preset, then --config or --from, then options; each is printed with its origin.
    """
    thread_waits.keep_short()
    given = _given(flags)
    spread = launch_of({spec.name: given.pop(spec.name) for spec, _ in launch_fields() if spec.name in given})
    config, settings, notes = _resolved(config_file, recommendation, given)
    if spread:
        spread.check(config)
    opened = Dataset.open(dataset)
    opened.check_train()
    other = _other(out_folder, opened, config) if resume else None
    if other == "":
        say("the run is finished already: there is nothing left to resume")
        _show_run(Run.open(out_folder), as_json=as_json)
        return
    if not (spread and spread.machine_rank):
        _check_out(out_folder, opened, config, other, force=force, dry_run=dry_run)
    source = resolve_model(config.model)
    for note in [*notes, *_unread(settings, config), *warnings(config, _size_b(source))]:
        warn(note)
    _print_settings({key: setting for key, setting in settings.items() if key in keys_of(config.method)})
    if config.method in WEIGHTLESS:
        _without_weights(opened, source, config, out_folder, dry_run=dry_run, force=force, as_json=as_json)
        return
    day = began(working_folder(out_folder)) if resume else None
    look = {"dry_run": dry_run, "refuse": preflight, "as_json": as_json}
    ready, forecast = _check(opened, source, config, settings, spread, day, **look)
    if dry_run:
        return
    work = {"resume": resume, "force": force, "prepared": ready, "forecast": forecast, "launch": spread}
    _with_weights(opened, source, config, out_folder, work, as_json=as_json)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """The options that were given. Raises UsageError for a name that is empty."""
    given = {key: value for key, value in flags.items() if value is not None}
    for key in NAMES:
        given_name("--" + key.replace("_", "-"), given.get(key, key))
    return given


def _check_out(
    out_folder: Path, dataset: Dataset, config: TrainConfig, other: str | None, *, force: bool, dry_run: bool
) -> None:
    """Refuse an output folder that the run could not write, or that holds what it reads; a dry run only says so. other: how
    the finished run there, which was to be resumed, differs; where an unfinished one is beside it, that was meant."""
    try:
        refuse_input(out_folder, dataset.path, config.adapter, config.model, config.docs)
        if other and not force and not working_folder(out_folder).is_dir():
            raise UserError(f"the run is finished with {other}", where=str(out_folder), hint="choose another --out")
        refuse_existing(out_folder, force=force)
    except UserError as error:
        if not dry_run:
            raise
        warn(f"the run itself will be refused: {error.line()}")


def _with_weights(
    dataset: Dataset, source: ModelSource, config: TrainConfig, out_folder: Path, work: dict[str, Any], *, as_json: bool
) -> None:
    """Train. work: what `sft.train` takes beside what it is told here."""
    from tunegate.train import sft

    spread = work["launch"]
    try:
        with redirect_stdout(sys.stderr):  # trackers print; standard output is for the result
            if spread and spread.machine_rank > 0:
                sft.join(dataset, source, config, out_folder, resume=work["resume"], launch=spread)
                return
            run = sft.train(dataset, source, config, out_folder, **work)
    except Interrupted as stopped:
        say(str(stopped))
        raise
    _show_run(run, as_json=as_json)


def _resolved(config_file: Path | None, recommendation: Path | None, flags: dict[str, Any]) -> Any:
    """(config, settings, notes); an adapter to go on from brings its own rank, targets and the like."""
    layers = _layers(config_file, recommendation, flags)
    config, settings, notes = resolve(layers)
    if not config.adapter:
        return config, settings, notes
    brought = adapters.settings(home_path(config.adapter))
    config, settings, notes = resolve([*layers, (f"adapter {config.adapter}", brought)])
    return config, settings, [*notes, *_overruled(flags, config, brought)]


def _overruled(flags: dict[str, Any], config: TrainConfig, brought: dict[str, Any]) -> list[str]:
    """Options that an adapter to go on from decides otherwise: said, or a rank that was asked for would pass for done."""
    given = {key: value for key, value in flags.items() if key in brought}
    shown = {key: ",".join(v) if isinstance(v := getattr(config, key), tuple) else v for key in given}
    return [
        f"{key} {v} means nothing here: the adapter has {shown[key]}" for key, v in given.items() if v != shown[key]
    ]


def _check(
    dataset: Dataset,
    source: ModelSource,
    config: TrainConfig,
    settings: dict[str, Any],
    spread: Launch | None,
    day: str | None,
    *,
    dry_run: bool,
    refuse: bool,
    as_json: bool,
) -> tuple[Any, Any]:
    """(prepared rows, forecast), shown. spread: over several processes. day: when a resumed run began. refuse: raise UserError for a run that cannot fit."""
    from tunegate.train import sft, template_check

    if dry_run and config.adapter:
        adapters.as_inputs(home_path(config.adapter))
        adapters.check_base(home_path(config.adapter), source, source.as_input())
    if (size := _size_b(source)) is not None:
        say(rate_note(config, size))
    ready = sft.prepare(dataset, source, config, day)
    if too_long := _beyond_context(source, max(len(example.input_ids) for example in ready.kept)):
        warn(f"the longest row: {too_long}, and no server takes so many (--max-length leaves such rows out)")
    template = template_check.check(ready, source)
    say(
        f"template: {template.rows} rows are the same tokens in training and at the server, ended by {' '.join(template.learnt)}"
    )
    forecast = sft.forecast_of(ready, source, config, spread)
    if forecast:
        forecast.say()
        if refuse:
            forecast.check()
    if dry_run:
        dry_run_view.show(ready, template, config, settings, forecast, as_json=as_json)
    return ready, forecast


def _unread(settings: dict[str, Any], config: TrainConfig) -> list[str]:
    """Options that mean nothing to the method."""
    read = keys_of(config.method)
    given = [key for key, setting in settings.items() if setting.origin == "flag" and key not in read]
    return [f"{key} means nothing to the method {config.method}" for key in given]


def _size_b(source: ModelSource) -> float | None:
    """Parameters in 1e9; None where the shape is not at hand or not modelled."""
    shape = _shape(source)
    return shape.params / 1e9 if shape else None


def _beyond_context(source: ModelSource, tokens: int) -> str:
    """Why a row of so many tokens does not go into the model; empty where it does, and where that is not known."""
    shape = _shape(source)
    return shape.beyond(tokens) if shape else ""


def _shape(source: ModelSource) -> Architecture | None:
    """The model's shape; None where it is not at hand or not modelled."""
    try:
        return from_folder(source.path) if source.path else None
    except UserError:
        return None


def _other(out_folder: Path, dataset: Dataset, config: TrainConfig) -> str | None:
    """In what the finished run there differs from the one that this command would make: empty where in nothing, None where
    none is there."""
    if not manifests.is_finished(out_folder):
        return None
    run = Run.open(out_folder)
    had, has = _weighty(run.manifest.config), _weighty(config_json(_as_trained(config)))
    changed = [key for key in {**has, **had} if had.get(key) != has.get(key)]
    if changed:
        told = (f"{key} {_shown(had.get(key))}, not {_shown(has.get(key))}" for key in changed)
        return f"other settings: {'; '.join(told)}"
    made_from = {i.role: i.digest for i in run.manifest.inputs}
    if made_from.get("dataset") != dataset.digest:
        return "another dataset"
    if not _same_model(run, config.model, made_from.get("base_model", "")):
        return "another base model"
    before = [(i.role, i.digest) for i in run.manifest.inputs if i.role not in ("dataset", "base_model")]
    now = [(i.role, i.digest) for i in inputs.others(config)]
    roles = {role for role, _ in [*before, *now]}
    unlike = sorted(role for role in roles if [i for i in before if i[0] == role] != [i for i in now if i[0] == role])
    return f"other inputs: {', '.join(unlike)}" if unlike else ""


def _same_model(run: Run, spec: str, digest: str) -> bool:
    """Whether `spec` is the model of a finished run, or another spelling of it. digest: of that model."""
    if run.manifest.config.get("model") == spec:
        return True
    source = resolve_model(spec)
    return same_model.same_digest(source, source.as_input(), digest)


def _as_trained(config: TrainConfig) -> TrainConfig:
    """The settings as a run keeps them: `dtype` is what `auto` means on this machine."""
    from tunegate.train.model_loading import settled

    return config if config.method in WEIGHTLESS else settled(config)


def _weighty(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide the weights, names of models and files apart: `--resume` takes the others as they come."""
    return {key: value for key, value in config.items() if key not in (*FREE, *NAMES)}


def _show_run(run: Run, *, as_json: bool) -> None:
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
    full = " (copies full weights)" if facts["method"] == "full" else ""
    out().print(f"next: ft merge {run.path} --out RELEASE{full}", markup=False)


def _without_weights(
    dataset: Dataset, source: Any, config: TrainConfig, out_folder: Path, *, dry_run: bool, force: bool, as_json: bool
) -> None:
    """Make (or, in a dry run, only show) a run of the method prompt, few_shot or rag."""
    from tunegate.train.arms.build import build, preview

    if dry_run:
        shown = preview(dataset, source, config)
        if as_json:
            emit_json({"dry_run": True, "config": config_json(config), **shown})
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
    width = max(len(key) for key in settings)
    for key, setting in settings.items():
        say(f"  {key:<{width}}  {_shown(setting.value)}  ({setting.origin})")


def _shown(value: Any) -> str:
    """A setting's value, for people."""
    text = ", ".join(value) if isinstance(value, tuple | list) else value
    return "by device or other settings" if text is None else "none" if text == "" else str(text)


def _interruptible(function: Any) -> Any:
    """`function`, with Ctrl-C and SIGTERM told as `--json` tells an error."""

    @functools.wraps(function)
    def called(**options: Any) -> None:
        with told(options["out_folder"], as_json=options["as_json"]):
            function(**options)

    return called


def _with_config_options(function: Any) -> Any:
    """Give `function` one optional keyword option for each TrainConfig key, and those of a launch, in place of its **flags."""
    signature = inspect.signature(function)
    fixed = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    hints = typing.get_type_hints(function, include_extras=True)
    hints.pop("flags", None)
    added = []
    options = [_option(spec, field_types()[spec.name], "Settings") for spec in dataclasses.fields(TrainConfig)]
    options += [_option(spec, kind, "Processes") for spec, kind in launch_fields()]
    for key, hint in options:
        hints[key] = hint
        added.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in fixed]
    function.__signature__ = signature.replace(parameters=[*keyword, *added])
    function.__annotations__ = hints
    return function


def _option(spec: Any, kind: Any, panel: str) -> tuple[str, Any]:
    """(parameter, its annotation) of a dataclass's field as an option that may be left out."""
    option = "--" + spec.name.replace("_", "-")
    base: Any = bool if kind in (bool, bool | None) else str if typing.get_origin(kind) is tuple else kind
    names = [f"{option}/--no-{option[2:]}"] if base is bool else [option]
    shown = ",".join(spec.default) if isinstance(spec.default, tuple) else spec.default
    if isinstance(shown, bool):
        shown = ("" if shown else "no-") + option[2:]
    shown = spec.metadata.get("told") or shown
    text = spec.metadata["help"] + ("" if shown in (None, "") else rf" \[default: {shown}]")
    return spec.name, Annotated[base | None, typer.Option(*names, help=text, show_default=False, rich_help_panel=panel)]


app.command(
    epilog="Example: ft train data/ --out run/ --model builtin:smollm2-135m --learning-rate 5e-4 --max-steps 120"
)(_with_config_options(_interruptible(train)))
