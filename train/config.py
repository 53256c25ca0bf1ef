"""What `ft train` can be told: every key is a YAML key, an option, and a line of the resolved `config.yaml`."""

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.core.errors import UsageError, UserError, nearest
from tunegate.core.methods import ALL_LINEAR, METHODS, PRESETS, TRAINED
from tunegate.core.strict_yaml import read_yaml

# Names of the article this project grew from, and of older TRL and transformers, and what they are called now.
FORMER_NAMES = {
    "max_seq_length": "max_length",
    "torch_dtype": "dtype",
    "lora_r": "rank",
    "r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "targets",
    "warmup_steps": "warmup_ratio",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
}


def _key(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, fully resolved. Field help texts are the option help texts."""

    method: str = _key("lora", "lora, qlora (4-bit NF4 base) or full.")
    model: str = _key("builtin:smollm2-135m", "Base model: hub id, folder, GGUF file or builtin:smollm2-135m.")
    preset: str = _key("recommended", "LoRA preset: conservative, recommended or aggressive.")
    rank: int = _key(16, "LoRA rank r.")
    alpha: int = _key(32, "LoRA alpha; the update is scaled by alpha / r.")
    dropout: float = _key(0.0, "LoRA dropout, a fraction.")
    targets: tuple[str, ...] = _key(ALL_LINEAR, "LoRA target modules, comma-separated.")
    learning_rate: float = _key(2e-4, "Peak learning rate.")
    num_train_epochs: float = _key(3.0, "Passes over the training rows.")
    max_steps: int = _key(-1, "Stop after this many optimizer steps; -1: by epochs.")
    per_device_train_batch_size: int = _key(4, "Rows in one forward pass on one device.")
    gradient_accumulation_steps: int = _key(4, "Forward passes before one optimizer step.")
    lr_scheduler_type: str = _key("cosine", "Learning-rate schedule: cosine, linear, constant, ...")
    warmup_ratio: float = _key(0.03, "Share of the steps over which the rate rises to its peak.")
    weight_decay: float = _key(0.0, "AdamW weight decay.")
    max_grad_norm: float = _key(1.0, "Gradient clipping norm.")
    max_length: int = _key(2048, "Longest row in tokens; longer rows are left out, never cut, and counted.")
    max_left_out_share: float = _key(0.2, "Refuse to train when more than this share of rows is too long.")
    validation_share: float = _key(0.04, "Share of TRAINING rows set aside for the validation loss (at most 64 rows).")
    eval_steps: int = _key(0, "Validation loss every this many steps; 0: after each epoch.")
    save_steps: int = _key(100, "Checkpoint every this many steps, for --resume; 0: none.")
    logging_steps: int = _key(1, "One line of metrics.jsonl every this many steps.")
    seed: int = _key(0, "Seed of initialisation, order and dropout.")
    gradient_checkpointing: bool | None = _key(
        None, "Trade time for memory. Default: on for CUDA and for qlora, off on the CPU."
    )
    fast_cpu: bool = _key(True, "On the CPU: rows side by side without padding, attention as plain matrix products.")
    device: str = _key("auto", "auto, cpu or cuda.")


def field_types() -> dict[str, Any]:
    """Resolved annotation of every key."""
    return typing.get_type_hints(TrainConfig)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One key's value and where it is from: default, preset NAME, FILE, or flag."""

    value: Any
    origin: str


def resolve(layers: list[tuple[str, dict[str, Any]]]) -> tuple[TrainConfig, dict[str, Setting], list[str]]:
    """Lay settings over each other: defaults, then the preset's, then each layer (origin, {key: value}) in order.

    Returns the config, each key's value with its origin, and notes about names that were mapped.
    Raises UserError for an unknown key (with the nearest name) or a value of the wrong type or range.
    """
    notes: list[str] = []
    clean = [(origin, _known(origin, values, notes)) for origin, values in layers]
    preset = next((values["preset"] for _, values in reversed(clean) if "preset" in values), "recommended")
    if preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}", where="preset", hint=nearest(str(preset), list(PRESETS)))
    chosen = PRESETS[preset]
    settings = {f.name: Setting(value=f.default, origin="default") for f in dataclasses.fields(TrainConfig)}
    for name in ("rank", "alpha", "targets", "learning_rate"):
        settings[name] = Setting(value=getattr(chosen, name), origin=f"preset {preset}")
    method = next((values["method"] for _, values in reversed(clean) if "method" in values), "lora")
    if method == "full":
        settings["learning_rate"] = Setting(value=2e-5, origin="default for full")
    types_by_key = field_types()
    for origin, values in clean:
        for key, value in values.items():
            settings[key] = Setting(value=_typed(key, value, types_by_key[key], origin), origin=origin)
    config = TrainConfig(**{key: setting.value for key, setting in settings.items()})
    _check(config, settings)
    return config, settings, notes


def from_file(path: Path) -> dict[str, Any]:
    """Keys of a YAML file: a training config, or a `recommendation.yaml` (its `train:` part).

    Raises UserError with the line for YAML that is not valid.
    """
    document = read_yaml(path)
    if not isinstance(document, dict):
        raise UserError("expected a mapping of settings", where=str(path))
    if "train" in document:
        document = document["train"]
        if not isinstance(document, dict):
            raise UserError('"train" must be a mapping of settings', where=str(path))
    return {str(key).replace("-", "_"): value for key, value in document.items()}


def to_yaml(config: TrainConfig) -> str:
    """The resolved config as YAML."""
    import yaml

    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return str(yaml.safe_dump(values, sort_keys=False))


def _known(origin: str, values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = key
        if name not in names and name in FORMER_NAMES and FORMER_NAMES[name] in names:
            name = FORMER_NAMES[key]
            notes.append(f"{origin}: {key} is called {name} here")
        if name not in names:
            raise UserError(f"unknown setting {key!r}", where=origin, hint=nearest(key, sorted(names)))
        known[name] = value
    return known


def _typed(key: str, value: Any, kind: Any, origin: str) -> Any:
    """`value` as the key's type; YAML gives "5e-4" as text, and 3 where 3.0 is meant."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items) or not items:
            raise UserError(f"{key} must be a list of names, not {value!r}", where=origin)
        return tuple(i.strip() for i in items)
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} must be true or false, not {value!r}", where=origin)
        return value
    try:
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        names = {int: "a whole number", float: "a number", str: "text"}
        raise UserError(f"{key} must be {names[kind]}, not {value!r}", where=origin) from None


def _check(config: TrainConfig, settings: dict[str, Setting]) -> None:
    if config.method not in TRAINED:
        if config.method in METHODS:
            raise UserError(
                f"method {config.method!r} trains no weights and cannot be run yet",
                where=settings["method"].origin,
                hint="--method lora, qlora or full",
            )
        raise UserError(
            f"unknown method {config.method!r}",
            where=settings["method"].origin,
            hint=nearest(config.method, list(TRAINED)),
        )
    positive = ("rank", "alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size",
                "gradient_accumulation_steps", "max_length", "max_grad_norm", "logging_steps")  # fmt: skip
    for name in positive:
        if not getattr(config, name) > 0:
            raise UserError(f"{name} must be above 0, not {getattr(config, name)}", where=settings[name].origin)
    for name in ("dropout", "warmup_ratio", "max_left_out_share", "validation_share", "weight_decay"):
        if not 0 <= getattr(config, name) <= 1:
            raise UserError(f"{name} must be between 0 and 1, not {getattr(config, name)}", where=settings[name].origin)
    if config.device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"unknown device {config.device!r}", hint=nearest(config.device, ["auto", "cpu", "cuda"]))


def advice(config: TrainConfig) -> list[str]:
    """Words of caution about a learning rate that does not fit the method.

    LoRA takes about ten times the rate of full tuning (LoRA Without Regret, Thinking Machines 2025).
    """
    if config.method in ("lora", "qlora") and config.learning_rate < 5e-5:
        return [
            f"learning rate {config.learning_rate:g} is a full-tuning rate: LoRA usually needs about ten times as much (2e-4 to 1e-3)"
        ]
    if config.method == "full" and config.learning_rate > 1e-4:
        return [
            f"learning rate {config.learning_rate:g} is a LoRA rate: full tuning usually needs a tenth (1e-5 to 1e-4)"
        ]
    return []
