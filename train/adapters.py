"""Going on from an adapter: its settings, whether it is one, and loading it to be trained further."""

from pathlib import Path
from typing import Any

from tunegate.core import manifest as manifests
from tunegate.core import same_model
from tunegate.core.artifacts import Run
from tunegate.core.console import warn
from tunegate.core.errors import UserError, first_line
from tunegate.core.files import read_json
from tunegate.core.manifest import Input
from tunegate.core.model_source import ModelSource
from tunegate.serve.served_model import ADAPTER

WEIGHTS = "adapter_model.safetensors"


def settings(folder: Path) -> dict[str, Any]:
    """The settings that an adapter brings along, in our names. Raises UserError for a folder without a LoRA adapter."""
    path = folder / ADAPTER
    if not path.is_file():
        raise UserError(f"no {ADAPTER}: not an adapter", where=str(folder), hint="give the folder of a LoRA run")
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError("not an adapter's settings: a mapping is needed", where=str(path), hint="it is damaged")
    if found.get("peft_type") != "LORA":
        raise UserError(f"the adapter is of type {found.get('peft_type')}, LoRA is needed", where=str(path))
    missing = [key for key in ("r", "lora_alpha") if not isinstance(found.get(key), int | float)]
    if missing:
        raise UserError(f"damaged: {missing[0]} is no number", where=str(path), hint="save the adapter again")
    targets = found.get("target_modules") or []
    return {
        "rank": found["r"],
        "alpha": found["lora_alpha"],
        "dropout": found.get("lora_dropout", 0.0),
        "targets": [targets] if isinstance(targets, str) else sorted(targets),
        "use_dora": bool(found.get("use_dora")),
        "use_rslora": bool(found.get("use_rslora")),
        "modules_to_save": list(found.get("modules_to_save") or []),
    }


def as_inputs(folder: Path) -> list[Input]:
    """The adapter that a run goes on from, as its inputs: a run's folder, else the adapter's two files. Raises UserError for
    a run that was changed since it was written, and for an adapter in another format than ours."""
    if manifests.is_finished(folder):
        run = Run.open(folder)
        manifests.refuse_changed(folder, "the adapter's run")
        return [run.as_input("adapter")]
    if not (folder / WEIGHTS).is_file():
        hint = "save it with PEFT's safe_serialization"
        raise UserError(
            f"no {WEIGHTS}: an adapter in another format (a pickle) is not read", where=str(folder), hint=hint
        )
    return [Input.of_file(folder / name, "adapter") for name in (WEIGHTS, ADAPTER)]


def check_base(folder: Path, source: ModelSource, base: Input) -> None:
    """Hold an adapter against the model. base: `source.as_input()`. Raises UserError when it was trained on another one than
    `source`, as its run or its own config says."""
    if not manifests.is_finished(folder):
        _check_named_base(folder / ADAPTER, source)
        return
    run = Run.open(folder)
    before = next((i for i in run.manifest.inputs if i.role == "base_model"), None)
    if before is not None and not same_model.same_digest(source, base, before.digest):
        raise UserError(
            f"the adapter was trained on other weights ({before.path})", where=str(folder), hint="give that model"
        )


def _check_named_base(path: Path, source: ModelSource) -> None:
    """Hold an adapter that no run vouches for against the model: equal shapes fit, whatever it was trained on."""
    config = read_json(path)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(named, str) or not named:
        warn(f"{path}: names no base model; whether the adapter was trained on {source.spec} is not known")
        return
    same = same_model.named_so(named, source)
    if same is None:
        warn(f"{path}: its base is {named}, which is not here; whether that is {source.spec} is not known")
    elif not same:
        raise UserError(
            f"the adapter was trained on {named}, not on {source.spec}",
            where=str(path),
            hint=f"--model {named}; where both are one model, write {base_name(source)} as its base_model_name_or_path",
        )


def load(model: Any, folder: Path) -> Any:
    """The base with the adapter of `folder`, to be trained further. Raises UserError when it does not fit."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True, autocast_adapter_dtype=True)
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise UserError(f"the adapter does not fit this base model: {first_line(error)}", where=str(folder)) from error


def base_name(source: ModelSource) -> str:
    """What `adapter_config.json` calls the base: its name in the world where it has one, else its folder."""
    return source.name if source.kind == "builtin" else source.location
