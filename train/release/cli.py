"""`ft merge` and `ft quantize`: options, opening folders, printing."""

import math
from pathlib import Path
from typing import Annotated

import typer

from tunegate.core.artifacts import Dataset, Release, Run
from tunegate.core.console import JsonOption, emit_json, out, say
from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.files import refuse_existing, refuse_input
from tunegate.core.model_source import resolve
from tunegate.train.paths import given_path

merge_app = typer.Typer(add_completion=False, rich_markup_mode="rich")
quantize_app = typer.Typer(add_completion=False, rich_markup_mode="rich")

OutOption = Annotated[Path, typer.Option("--out", help="Release folder to write.", parser=given_path, metavar="<path>")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing folder.")]


@merge_app.command(epilog="Example: ft merge run/ --out release/")
def merge(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of ft train.", parser=given_path)],
    out_folder: OutOption,
    onto: Annotated[
        str, typer.Option(help="qlora: fold into the dequantized (NF4) base, the original, or auto (the better one).")
    ] = "auto",
    keep_adapter: Annotated[
        bool, typer.Option("--keep-adapter", help="Do not merge: the release serves base and adapter.")
    ] = False,
    max_shard_size: Annotated[
        float, typer.Option("--max-shard-size", min=0.001, help="Largest weight file, in GB (1e9 bytes).")
    ] = 5.0,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Dataset whose held-out answers prove the merge; default: the run's own.",
            parser=given_path,
            metavar="<path>",
        ),
    ] = None,
    rows: Annotated[
        int | None, typer.Option(min=0, help="Held-out answers of the proof; default 8, 32 to tell two merges apart.")
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Fold a run's adapter into its base model and write a release that vLLM loads, compared with adapter-on-base."""
    run = Run.open(run_folder)
    refuse_input(out_folder, run_folder, run.base, *([data] if data else []))
    refuse_existing(out_folder, force=force)
    from tunegate.train.release import merge as merging

    if onto not in merging.ONTO:
        raise UsageError(f"--onto {onto}: unknown", hint=nearest(onto, list(merging.ONTO)))
    if math.isinf(max_shard_size):
        raise UsageError("--max-shard-size must be a number of GB, not infinite", hint="a large one makes one file")
    config = merging.MergeConfig(onto=onto, keep_adapter=keep_adapter, max_shard_gb=max_shard_size, rows=rows)
    dataset = Dataset.open(data) if data else None if keep_adapter else _own_dataset(run)
    refuse_input(out_folder, *([dataset.path] if dataset else []))
    _report(
        merging.merge(run, resolve(run.base), out_folder, force=force, dataset=dataset, config=config), as_json=as_json
    )


def _own_dataset(run: Run) -> Dataset | None:
    from tunegate.train.release.prove import find_dataset

    try:
        return find_dataset(run)
    except UserError as error:
        say(f"proof without held-out answers: {error.message} (--data names another)")
        return None


@quantize_app.command(epilog="Example: ft quantize release/ --out release-awq/")
def quantize(
    ctx: typer.Context,
    release_folder: Annotated[
        Path, typer.Argument(metavar="RELEASE", help="Release folder of ft merge.", parser=given_path)
    ],
    out_folder: OutOption,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Dataset folder to calibrate on; default: the one it was trained on.",
            parser=given_path,
            metavar="<path>",
        ),
    ] = None,
    backend: Annotated[str, typer.Option(help="Quantizer: llmcompressor or autoawq.")] = "llmcompressor",
    scheme: Annotated[
        str, typer.Option(help="awq (4-bit weights), fp8 (for CUDA) or w8a8 (int8 weights and activations).")
    ] = "awq",
    rows: Annotated[int, typer.Option(min=1, help="Calibration rows, from the training part.")] = 128,
    group_size: Annotated[int | None, typer.Option(help="128, 64 or 32; default: by the model's widths.")] = None,
    symmetric: Annotated[bool, typer.Option("--symmetric/--asymmetric", help="Without or with zero points.")] = False,
    search: Annotated[str, typer.Option(help="gram (fast) or module (llm-compressor's own, slower).")] = "gram",
    rounding: Annotated[str, typer.Option(help="gptq (loses least) or nearest (fastest).")] = "gptq",
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
    proof_rows: Annotated[int, typer.Option(min=0, help="Held-out answers scored before and after.")] = 16,
    check_engine: Annotated[
        bool, typer.Option("--check-engine", help="vLLM has to load the result and answer before it is kept.")
    ] = False,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Quantize a merged release for vLLM: AWQ W4A16 (4-bit weights, 16-bit activations), fp8 or W8A8."""
    from tunegate.train.release.quantize_plan import QuantizeConfig, check_config

    config = QuantizeConfig(
        backend=backend, scheme=scheme, rows=rows, group_size=group_size, symmetric=symmetric, search=search,
        rounding=rounding, seed=seed, proof_rows=proof_rows,
    )  # fmt: skip
    check_config(config, given_options(ctx))
    release = Release.open(release_folder)
    refuse_input(out_folder, release_folder, *([calibration] if calibration else []))
    refuse_existing(out_folder, force=force)
    from tunegate.train.release import prove
    from tunegate.train.release.quantize import quantize as do_quantize

    dataset = Dataset.open(calibration) if calibration else prove.find_dataset(release)
    refuse_input(out_folder, dataset.path)
    made = do_quantize(release, dataset, config, out_folder, force=force, check_engine=check_engine)
    _report(made, as_json=as_json)


def given_options(ctx: typer.Context) -> list[str]:
    """The options that stand on the command line, by their parameters' names, with their defaults' values too."""
    return [name for name in ctx.params if (source := ctx.get_parameter_source(name)) and source.name == "COMMANDLINE"]


def _report(release: Release, *, as_json: bool) -> None:
    facts = release.manifest.facts
    if as_json:
        emit_json({"release": str(release.path), "digest": release.digest, **facts})
        return
    size = f"{facts['bytes'] / 1e6:.0f} MB of weights"
    if "bytes_before" in facts:
        group = f", group size {facts['group_size']}" if "group_size" in facts else ""
        size += f" ({facts['bytes_before'] / 1e6:.0f} MB before){group}, calibrated on {facts['calibration_rows']} rows"
    out().print(f"release: {release.path} ({size})", markup=False)
    out().print(
        f"next: ft serve {release.path}, or ft eval {release.path} --task task.yaml --out report/", markup=False
    )
