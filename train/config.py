"""What `ft train` can be told: every key is a YAML key, an option, and a line of the resolved `config.yaml`."""

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunegate.core.errors import UserError, nearest
from tunegate.core.methods import ALL_LINEAR, METHODS, PRESETS, RECOMMENDATION_VERSION, WEIGHTLESS
from tunegate.core.strict_yaml import place_of, read_yaml

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

SELECTIONS = ("auto", "nearest", "fixed")
TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}  # other words for them
CHOICES = {
    "method": METHODS,
    "selection": SELECTIONS,
    "device": ("auto", "cpu", "cuda"),
    "dtype": ("auto", "bfloat16", "float32"),
    "lr_scheduler_type": (
        "cosine", "linear", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt",
    ),
}  # fmt: skip
POSITIVE = (
    "rank", "alpha", "learning_rate", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps",
    "max_length", "max_grad_norm", "logging_steps", "passage_tokens",
)  # fmt: skip
LEAST = {
    "k": -1, "seed": 0, "eval_steps": 0, "save_steps": 0, "early_stopping_patience": 0, "spike_factor": 0,
}  # fmt: skip
MOST = {"seed": 2**32 - 1, "num_train_epochs": 1e6, "alpha": 2**31 - 1}  # NumPy's generator; steps that can be counted
MOST_WHOLE = 2**31 - 1  # of every other whole number: beyond it nothing can be counted or allocated
SHARES = ("dropout", "warmup_ratio", "max_left_out_share", "validation_share", "weight_decay")
LORA_KEYS = (
    "preset", "rank", "alpha", "dropout", "targets", "use_dora", "use_rslora", "modules_to_save", "adapter",
)  # fmt: skip
FULL_LEARNING_RATE = 2e-5  # full tuning takes a tenth, whatever the preset
PRESET_KEYS = ("rank", "alpha", "targets", "learning_rate")
# What each method without weights reads; the settings of training mean nothing to it.
ARM_KEYS = {
    "prompt": ("method", "model", "system_file", "max_length"),
    "few_shot": ("method", "model", "system_file", "k", "selection", "embedder", "max_length", "device"),
    "rag": ("method", "model", "system_file", "k", "docs", "passage_tokens", "embedder", "max_length"),
}
# Read by the methods with weights too: rows are trained with the passages that requests will get.
RETRIEVAL_KEYS = ("docs", "k", "passage_tokens", "embedder")


def keys_of(method: str) -> tuple[str, ...]:
    """The settings that a method reads."""
    if method in WEIGHTLESS:
        return ARM_KEYS[method]
    shared = {"method", "model", "max_length", "device", *RETRIEVAL_KEYS}
    own = {key for keys in ARM_KEYS.values() for key in keys} - shared
    unread = own | (set(LORA_KEYS) if method == "full" else set())
    return tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name not in unread)


def _key(default: Any, help_text: str, told: str | None = None) -> Any:
    """A field. told: the default in words, where the value alone does not say it."""
    return field(default=default, metadata={"help": help_text, "told": told})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run, fully resolved. Field help texts are the option help texts."""

    method: str = _key(
        "lora", "lora, qlora (4-bit NF4 base) or full; or, without training weights: prompt, few_shot or rag."
    )
    model: str = _key("builtin:smollm2-135m", "Base model: hub id, folder, GGUF file or builtin:smollm2-135m.")
    preset: str = _key("recommended", "LoRA preset: conservative, recommended or aggressive.")
    rank: int = _key(16, "LoRA rank r.", "16, by the preset")
    alpha: float = _key(32, "LoRA alpha; the update is scaled by alpha / r.", "32, by the preset")
    dropout: float = _key(0.0, "LoRA dropout, a fraction.")
    targets: tuple[str, ...] = _key(
        ALL_LINEAR, "LoRA target modules, comma-separated.", f"{','.join(ALL_LINEAR)}, by the preset"
    )
    use_dora: bool = _key(False, "DoRA: direction and magnitude apart. vLLM serves it only merged.")
    use_rslora: bool = _key(False, "Rank-stabilised LoRA: the update is scaled by alpha / sqrt(r).")
    modules_to_save: tuple[str, ...] = _key(
        (), "Modules trained whole beside the adapter. vLLM serves them only merged."
    )
    adapter: str = _key("", "Go on training this adapter: a run folder, or one with adapter_config.json.")
    learning_rate: float = _key(2e-4, "Peak learning rate.", "2e-4, by the preset; full: 2e-5")
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
    template_defaults: tuple[str, ...] = _key(
        (), "Variables of the chat template, comma-separated: enable_thinking=false. The run's template keeps them."
    )
    validation_share: float = _key(0.04, "Share of TRAINING rows set aside for the validation loss (at most 64 rows).")
    eval_steps: int = _key(0, "Validation loss every this many steps; 0: after each epoch.")
    early_stopping_patience: int = _key(
        0, "Stop after this many evaluations without a better validation loss; 0: never."
    )
    keep_best: bool | None = _key(
        None, "End with the weights of the best validation loss. Default: on with --eval-steps or early stopping."
    )
    spike_factor: float = _key(
        5.0, "Stop before an update whose loss is this many times the usual and worse than guessing; 0: never."
    )
    save_steps: int = _key(100, "Checkpoint every this many steps, for --resume; 0: none.")
    logging_steps: int = _key(1, "One line of metrics.jsonl every this many steps.")
    report_to: tuple[str, ...] = _key(
        (), "Trackers, comma-separated: tensorboard, mlflow, wandb, trackio; none by default."
    )
    seed: int = _key(0, "Seed of initialisation, order and dropout.")
    gradient_checkpointing: bool | None = _key(
        None, "Trade time for memory. Default: on for CUDA, off on the CPU (qlora with --no-fast-cpu: on)."
    )
    fast_cpu: bool = _key(True, "On the CPU: rows side by side without padding, attention as plain matrix products.")
    dtype: str = _key(
        "auto",
        "Arithmetic and frozen weights: bfloat16 or float32; auto: float32 on a processor that has no bfloat16, where it "
        "would be many times slower. Trained weights are float32.",
    )
    device: str = _key("auto", "auto, cpu or cuda.")
    system_file: str = _key(
        "", "prompt, few_shot, rag: text file of instructions; else they are written from the data."
    )
    k: int = _key(-1, "few_shot, rag, --docs: most examples or passages a request gets; -1: chosen (few_shot), else 4.")
    selection: str = _key(
        "auto", "few_shot: nearest to each request, fixed for all, or auto: the better on training rows."
    )
    docs: str = _key(
        "",
        "Folder of text files or JSONL to retrieve from. rag: else the training rows. lora, qlora, full: trained and "
        "served with its passages; else without.",
    )
    passage_tokens: int = _key(200, "rag, --docs: longest passage in tokens.")
    embedder: str = _key(
        "builtin:minilm", "few_shot, rag, --docs: sentence encoder, builtin:minilm, a folder or a hub id."
    )


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
    preset, place = next(
        ((values["preset"], _place(origin, "preset")) for origin, values in reversed(clean) if "preset" in values),
        ("recommended", None),
    )
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UserError(f"unknown preset {preset!r}", where=place, hint=nearest(str(preset), list(PRESETS)))
    chosen = PRESETS[preset]
    settings = {f.name: Setting(value=f.default, origin="default") for f in dataclasses.fields(TrainConfig)}
    for name in PRESET_KEYS:
        settings[name] = Setting(value=getattr(chosen, name), origin=f"preset {preset}")
    method = next((values["method"] for _, values in reversed(clean) if "method" in values), "lora")
    if method == "full":
        settings["learning_rate"] = Setting(value=FULL_LEARNING_RATE, origin="default for full")
    types_by_key = field_types()
    for origin, values in clean:
        for key, value in values.items():
            settings[key] = Setting(value=_typed(key, value, types_by_key[key], _place(origin, key)), origin=origin)
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
        version = document.get("schema_version", RECOMMENDATION_VERSION)
        if version != RECOMMENDATION_VERSION:
            raise UserError(
                f"schema_version {version!r} is not known here, {RECOMMENDATION_VERSION} is",
                where=place_of(path, "schema_version"),
                hint="written by another version: run ftadvise recommend again",
            )
        names = {spec.name for spec in dataclasses.fields(TrainConfig)}
        beside = next((key for key in document if str(key).replace("-", "_") in names), None)
        if beside is not None:
            raise UserError(
                f"{beside!r} stands beside `train:`, whose settings are the ones that count",
                where=place_of(path, str(beside)),
                hint="move it under train:",
            )
        document = document["train"]
        if not isinstance(document, dict):
            raise UserError('"train" must be a mapping of settings', where=place_of(path, "train"))
    return {str(key).replace("-", "_"): value for key, value in document.items()}


def template_values(config: TrainConfig) -> dict[str, bool | int | float | str]:
    """`template_defaults` as variables and values: true, false and numbers as such, other words as text. Raises UserError."""
    found: dict[str, bool | int | float | str] = {}
    for item in config.template_defaults:
        name, equals, word = (part.strip() for part in item.partition("="))
        if not equals or not name.isidentifier():
            raise UserError(f"{item!r} is not NAME=VALUE", where="template_defaults", hint="enable_thinking=false")
        try:
            value = json.loads(word)
        except ValueError:
            value = word
        found[name] = value if isinstance(value, bool | int | float | str) else word
    return found


def as_json(config: TrainConfig) -> dict[str, Any]:
    """The resolved config as it is read back from JSON or YAML: lists in place of tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}


def to_yaml(config: TrainConfig) -> str:
    """The resolved config as YAML."""
    import yaml

    return str(yaml.safe_dump(as_json(config), sort_keys=False))


def commented_yaml(method: str = "lora", values: dict[str, Any] | None = None) -> str:
    """A config file to begin with: every key the method reads, with its meaning and default.

    What the preset or the device decides is commented out, so that it still does; `values` stand as they are given.
    """
    import yaml

    values = {"method": method, **(values or {})}
    lines = ["# Settings of `ft train --config THIS_FILE`. Options of the command line override them.", ""]
    for spec in dataclasses.fields(TrainConfig):
        if spec.name not in keys_of(method):
            continue
        decided = spec.name not in values and (spec.default is None or spec.name in PRESET_KEYS)
        full_rate = method == "full" and spec.name == "learning_rate"
        value = values.get(spec.name, FULL_LEARNING_RATE if full_rate else spec.default)
        shown = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
        lines += [f"# {spec.metadata['help']}"]
        lines += [f"{'# ' if decided else ''}{spec.name}: {shown.replace('...', '').strip()}", ""]
    return "\n".join(lines)


def _known(origin: str, values: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    known: dict[str, Any] = {}
    for key, value in values.items():
        name = key
        if name not in names and name in FORMER_NAMES:
            name = FORMER_NAMES[key]
            if key == "warmup_steps" and isinstance(value, int | float) and value >= 1:
                raise UserError(
                    "a count of steps", where=_place(origin, key), hint="give warmup_ratio, a share of them"
                )
            notes.append(f"{origin}: {key} is called {name} here")
        if name not in names:
            raise UserError(f"unknown setting {key!r}", where=_place(origin, key), hint=nearest(key, sorted(names)))
        if name in known:
            former = key if key != name else next(k for k in values if FORMER_NAMES.get(k) == name)
            raise UserError(f"{former} and {name} are one setting, given twice", where=_place(origin, key))
        known[name] = _dtype(value, _place(origin, key)) if name == "dtype" else value
    return known


def _dtype(value: Any, where: str) -> Any:
    """The article's `torch_dtype`, whichever way it is spelt. Raises UserError for float16."""
    name = str(value).removeprefix("torch.")
    if name in ("float16", "fp16", "half"):
        raise UserError(
            "float16 overflows in training without a loss scaler", where=where, hint="bfloat16 has its size and speed"
        )
    return DTYPES.get(name, name)


def _place(origin: str, key: str) -> str:
    """Where a key stands: line of a file (by its former name, where it has that one there), option; else the origin."""
    if origin == "flag":
        return "--" + key.replace("_", "-")
    if not Path(origin).is_file():
        return origin
    names = (key, *(former for former, name in FORMER_NAMES.items() if name == key))
    found = [place_of(Path(origin), name, under="train") for name in names]
    return next((place for place in found if place[-1].isdigit()), found[0])


def _typed(key: str, value: Any, kind: Any, origin: str) -> Any:
    """`value` as the key's type; YAML gives "5e-4" as text, and 3 where 3.0 is meant."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(i, str) for i in items):
            raise UserError(f"{key} must be a list of names, not {value!r}", where=origin)
        words = tuple(i.strip() for i in items if i.strip())
        if key == "targets" and words in ((), ("none",)):
            raise UserError(f"{key} must be a list of names, not {value!r}", where=origin)
        return () if words == ("none",) else words
    if kind is bool:
        if not isinstance(value, bool):
            raise UserError(f"{key} must be true or false, not {value!r}", where=origin)
        return value
    if kind is str:
        if not isinstance(value, str):
            raise UserError(f"{key} must be text, not {value!r}", where=origin, hint="text in quotes")
        return value
    try:
        if value is None or isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        if kind is float and math.isinf(float(value)):
            raise ValueError
        whole = kind is int or (key == "alpha" and float(value).is_integer())
        return int(float(value)) if whole else kind(value)
    except (TypeError, ValueError, OverflowError):
        names = {int: "a whole number", float: "a number"}
        raise UserError(f"{key} must be {names[kind]}, not {value!r}", where=origin) from None


def _check(config: TrainConfig, settings: dict[str, Setting]) -> None:
    def refused(name: str, message: str, hint: str | None = None) -> UserError:
        return UserError(message, where=_place(settings[name].origin, name), hint=hint)

    for name, known in CHOICES.items():
        if (value := getattr(config, name)) not in known:
            raise refused(name, f"unknown {name} {value!r}", nearest(str(value), list(known)))
    for name in ("model", "embedder"):
        if not getattr(config, name).strip():
            raise refused(name, f"{name} is empty", "name one, or leave it out")
    for name in config.report_to:
        if name not in TRACKERS:
            raise refused("report_to", f"unknown tracker {name!r}", nearest(name, list(TRACKERS)))
    for name in POSITIVE:
        if not (value := getattr(config, name)) > 0:
            raise refused(name, f"{name} must be above 0, not {value}")
    for name in SHARES:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise refused(name, f"{name} must be between 0 and 1, not {value}")
    template_values(config)
    if config.dropout == 1:
        raise refused("dropout", "dropout must be below 1: nothing would be left to train")
    if config.max_steps == 0 or config.max_steps < -1:
        raise refused("max_steps", f"max_steps must be 1 or more, not {config.max_steps}", "-1, the default: by epochs")
    for name, least in LEAST.items():
        if not (value := getattr(config, name)) >= least:
            raise refused(name, f"{name} must be {least} or more, not {value}")
    whole = dict.fromkeys((name for name, kind in field_types().items() if kind is int), MOST_WHOLE)
    for name, most in {**whole, **MOST}.items():
        if (value := getattr(config, name)) > most:
            raise refused(name, f"{name} must be at most {most:.10g}, not {value:g}")
    tied = sorted({"lm_head", "embed_tokens"} & set(config.targets))
    if tied:
        message = f"no LoRA on {tied[0]}: TRL refuses it, and with tied embeddings the merged model would be wrong"
        raise refused("targets", message, f"--modules-to-save {tied[0]}")
    if config.method == "full":
        if config.adapter:
            raise refused("adapter", "full tuning does not go on from an adapter", "ft merge it first")
        for name in ("use_dora", "use_rslora"):
            if getattr(config, name):
                raise refused(name, f"{name} is a kind of LoRA: full tuning has none", "leave it out, or --method lora")
