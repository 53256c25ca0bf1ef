"""Before training: what it will need against what the device has, and what would fit if it does not."""

import dataclasses
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.advisor import estimates, training_time
from tunegate.advisor.gpus import Gpu, find_gpu
from tunegate.advisor.models import KnownModel, find
from tunegate.advisor.training_plan import FIT_MARGIN
from tunegate.core import machine
from tunegate.core.architecture import Architecture
from tunegate.core.console import say, warn
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource
from tunegate.core.strict_yaml import read_yaml
from tunegate.train import model_loading
from tunegate.train.arguments import recomputes, total_steps
from tunegate.train.config import TrainConfig
from tunegate.train.cpu_attention import LONGEST_DENSE
from tunegate.train.launch_options import Launch
from tunegate.train.lora_targets import projections_of

Json = dict[str, Any]
FEW_ROWS = 50  # below this a tuned model mostly learns its rows by heart
ALONE = Launch(num_processes=1)


@dataclass(frozen=True, kw_only=True)
class Load:
    """What will be trained on. longest, mean: tokens of a row. label_share: of tokens under the loss. rows: for training."""

    rows: int
    longest: int
    mean: float
    label_share: float


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Predictions (value, low, high: 90 % interval) and the device they are held against. memory_gb, device_gb: 1e9 bytes,
    of one process. tokens_per_s: of all together. hours: of the whole run. steps: optimizer steps. proposals: settings
    that are predicted to fit, where these do not. calibrate: the command by which the advisor learns from the run, RUN its folder."""

    device: str
    device_gb: float
    memory_gb: Json
    tokens_per_s: Json
    hours: Json
    steps: int
    trainable_params: int
    fits: bool
    proposals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calibrate: str = "ftadvise calibrate RUN"

    def say(self) -> None:
        """Print it."""
        say(
            f"forecast on {self.device}: memory {_spoken(self.memory_gb)} of {self.device_gb:.1f} GB, "
            f"{_spoken(self.tokens_per_s, '.0f')} tokens/s, {_time(self.hours)} for {self.steps} steps"
        )
        for note in self.notes:
            say(f"  {note}")

    def check(self) -> None:
        """Raise UserError when even the low end of the memory forecast is more than the device has; warn when it is close."""
        if float(self.memory_gb["low"]) > self.device_gb:
            raise UserError(
                f"this needs {_spoken(self.memory_gb)} GB, {self.device} has {self.device_gb:.1f}",
                where="memory",
                hint=f"what would fit: {'; '.join(self.proposals) or 'a smaller model or a larger device'}; --no-preflight tries anyway",
            )
        if not self.fits:
            warn(f"memory may not suffice; {'; '.join(self.proposals) or 'a smaller model would fit'}")

    def measured(self, rate: float, peak: float) -> None:
        """Say how the measured speed and memory (1e9 bytes) compare."""
        speed, memory = rate / float(self.tokens_per_s["value"]), peak / float(self.memory_gb["value"])
        say(
            f"measured: {rate:.0f} tokens/s ({speed:.2f} times the forecast), {peak:.1f} GB ({memory:.2f} times); "
            f"once it is done the advisor learns from it by: {self.calibrate}"
        )


def forecast(
    source: ModelSource, config: TrainConfig, load: Load, device: str, launch: Launch | None = None
) -> Forecast | None:
    """Ask the advisor; None, with a word, where it does not know the model's shape or the device. launch: how the run is
    spread over processes, None for one."""
    launch = _settled(launch or ALONE)
    try:
        # of a cluster it is not known how many run on one machine
        together = 1 if launch.address else launch.num_processes // launch.num_machines
        model, gpu = find(source.location), _gpu(device, together)
    except UserError as error:
        say(f"no forecast of memory and time: {error.message}")
        return None
    found = _estimate(model, gpu, config, load, launch)
    fits = float(found["memory_gb"]["value"]) <= FIT_MARGIN * gpu.memory_gb
    steps = total_steps(config, load.rows, launch.num_processes)
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * launch.num_processes
    tokens = steps * rows * load.mean
    speed = found["tokens_per_s"]
    hours = {
        "value": tokens / speed["value"] / 3600, "low": tokens / speed["high"] / 3600, "high": tokens / speed["low"] / 3600,
        "source": speed["source"], "n": speed["n"],
    }  # fmt: skip
    notes = [f"the interval is wide: {found['extrapolates']}"] if found["extrapolates"] else []
    notes += [text for text in (model.architecture.beyond(load.longest),) if text]
    if launch.num_processes > 1:
        notes.append(f"memory is that of one of {launch.num_processes} processes, tokens/s that of all")
    return Forecast(
        device=gpu.name,
        device_gb=gpu.memory_gb,
        memory_gb=found["memory_gb"],
        tokens_per_s=speed,
        hours=hours,
        steps=steps,
        trainable_params=found["trainable_params"],
        fits=fits,
        proposals=() if fits else _proposals(model, gpu, config, load, launch),
        notes=tuple(notes),
        calibrate=_calibrate(source, gpu) + (" --strategy fsdp2" if _shared(launch) else ""),
    )


def _calibrate(source: ModelSource, gpu: Gpu) -> str:
    """The command line; the rest comes from the Run, but for a GGUF, which is known by the folder it was unpacked to."""
    model = f" --model {shlex.quote(source.location)}" if source.kind == "gguf" else ""
    return f"ftadvise calibrate RUN{model} --gpu {gpu.name}"


def check_data(config: TrainConfig, rows: int, validation: int) -> list[str]:
    """Warnings about the amount of data. Raises UserError for early stopping without rows to judge by."""
    if (config.early_stopping_patience or config.keep_best) and not validation:
        raise UserError(
            "early stopping and the best checkpoint need validation rows",
            where="validation_share",
            hint="raise --validation-share",
        )
    few = f"{rows} rows: a model learns so few by heart; prompting may do better (ftadvise recommend)"
    idle = "no validation rows: --eval-steps measures nothing (raise --validation-share)"
    return [*([few] if rows < FEW_ROWS else []), *([idle] if config.eval_steps and not validation else [])]


def _shared(launch: Launch) -> bool:
    """Whether each process holds a share of the model."""
    return launch.strategy == "fsdp2"


def _settled(launch: Launch) -> Launch:
    """With the strategy that a file of accelerate's asks for, where there is one: fsdp2 for all that shares the model."""
    if not launch.launch_config:
        return launch
    return dataclasses.replace(launch, strategy="fsdp2" if _asks_to_share(Path(launch.launch_config)) else "ddp")


def _asks_to_share(file: Path) -> bool:
    asked = read_yaml(file) or {}
    if str(asked.get("distributed_type")).upper() == "DEEPSPEED":
        stage = (asked.get("deepspeed_config") or {}).get("zero_stage")  # none where it stands in a file of DeepSpeed's
        return str(stage) not in ("0", "1", "2")
    of_fsdp = asked.get("fsdp_config") or {}
    return "FSDP" in str(asked.get("distributed_type")).upper() and "NO_SHARD" not in str(of_fsdp)


def _estimate(model: KnownModel, gpu: Gpu, config: TrainConfig, load: Load, launch: Launch) -> Json:
    """The advisor's estimate, memory_gb of one process, tokens_per_s of all: those of one machine share its CPU."""
    device = "cpu" if gpu.is_cpu else "cuda"
    shares = launch.num_processes if _shared(launch) else 1
    found = estimates.train(
        estimates.TrainQuestion(
            model=model,
            method=config.method,
            gpu=gpu,
            gpus=shares,
            batch=config.per_device_train_batch_size,
            accumulation=config.gradient_accumulation_steps,
            seq=load.longest,
            rank=config.rank,
            targets=projections_of(config.targets, mixture=model.architecture.experts > 1),
            examples=load.rows,
            epochs=config.num_train_epochs,
            mean_tokens=load.mean,
            checkpointing=recomputes(config, device),
        )
    )
    value = float(found["memory_gb"]["value"])
    # only label positions reach the output matrix
    changed = value - float(found["terms_gb"]["logits"]) * (1.0 - load.label_share)
    if gpu.is_cpu and config.fast_cpu and load.longest <= LONGEST_DENSE:
        changed += _scores_gb(model.architecture, config, load, recompute=recomputes(config, device))
    if gpu.is_cpu and config.method == "lora" and model_loading.settled(config).dtype == "float32":
        changed += 2.0 * model.architecture.params / shares / 1e9  # 4 bytes a parameter where the estimate has 2
    devices = launch.num_machines if gpu.is_cpu else launch.num_processes
    faster = training_time.scaling(devices) / training_time.scaling(shares)
    for name, factor in (("memory_gb", changed / value), ("tokens_per_s", faster)):
        found[name] |= {key: float(found[name][key]) * factor for key in ("value", "low", "high")}
    return found


def _scores_gb(architecture: Architecture, config: TrainConfig, load: Load, *, recompute: bool) -> float:
    """Attention scores that our CPU attention keeps for the backward pass, 1e9 bytes: 5 * n_h * s a token and layer
    (Korthikanti et al., arXiv 2205.05198, equation 2), of one layer where they are computed again."""
    layers = 1 if recompute else architecture.layers
    tokens = config.per_device_train_batch_size * load.longest
    return 5.0 * architecture.heads * load.longest * tokens * layers / 1e9


def _proposals(model: KnownModel, gpu: Gpu, config: TrainConfig, load: Load, launch: Launch) -> tuple[str, ...]:
    """Changes, alone and then together, after which it is predicted to fit; the first three that do."""
    rows = config.per_device_train_batch_size * config.gradient_accumulation_steps
    shorter = max(128, load.longest // 2)
    ours = launch.num_processes > 1 and not launch.launch_config
    qlora = "--method qlora" + (" --strategy ddp" if ours and _shared(launch) else "")  # 4-bit weights are not shared
    steps: list[tuple[str, Json, Load]] = [
        ("--gradient-checkpointing", {"gradient_checkpointing": True}, load),
        (f"--per-device-train-batch-size 1 --gradient-accumulation-steps {rows}",
         {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows}, load),
        ("--method lora", {"method": "lora"}, load),
        (qlora, {"method": "qlora"}, load),
        (f"--max-length {shorter}", {}, dataclasses.replace(load, longest=shorter)),
        ("--dtype bfloat16", {"dtype": "bfloat16"}, load),
    ]  # fmt: skip
    alone = [_tried(model, gpu, config, *step, launch) for step in steps if not _is_so(config, step[1])]
    if ours and not _shared(launch) and config.method != "qlora":
        shared = dataclasses.replace(launch, strategy="fsdp2")
        alone.insert(0, _tried(model, gpu, config, "--strategy fsdp2", {}, load, shared))
    smallest = {"method": "qlora", "gradient_checkpointing": True, **steps[1][1]}
    together = f"{qlora} --gradient-checkpointing {steps[1][0]}"
    found = [text for text in alone if text] or [_tried(model, gpu, config, together, smallest, load, launch)]
    return tuple(text for text in found if text)[:3]


def _is_so(config: TrainConfig, changes: Json) -> bool:
    if changes.get("method") == "lora" and config.method != "full":
        return True
    return bool(changes) and all(getattr(config, key) == value for key, value in changes.items())


def _tried(
    model: KnownModel, gpu: Gpu, config: TrainConfig, text: str, changes: Json, load: Load, launch: Launch
) -> str:
    peak = float(_estimate(model, gpu, dataclasses.replace(config, **changes), load, launch)["memory_gb"]["value"])
    return f"{text} ({peak:.1f} GB)" if peak <= FIT_MARGIN * gpu.memory_gb else ""


def _gpu(device: str, processes: int) -> Gpu:
    """The device in the advisor's table, with the memory that one of this machine's processes really has: a GPU of its own,
    or its part of the CPU's. Raises UserError if unknown."""
    if device == "cpu":
        return dataclasses.replace(find_gpu("cpu"), memory_gb=machine.memory_gb() / processes)
    own = machine.gpus()[0]
    short = re.sub(r"(?i)nvidia|tesla|geforce|quadro", "", own.name).strip()
    words = re.split(r"[\s]+", short)
    for name in (short, "".join(words[:2]), words[0]):
        try:
            return dataclasses.replace(find_gpu(name), memory_gb=own.memory_gb)
        except UserError:
            continue
    raise UserError(f"the GPU {own.name} is not in the advisor's table", where="gpu")


def _spoken(estimate: Json, form: str = ".3g") -> str:
    return f"{float(estimate['value']):{form}} ({float(estimate['low']):{form}} to {float(estimate['high']):{form}})"


def _time(hours: Json) -> str:
    unit, factor = ("min", 60.0) if float(hours["value"]) < 2 else ("h", 1.0)
    return f"{_spoken({k: float(hours[k]) * factor for k in ('value', 'low', 'high')})} {unit}"
