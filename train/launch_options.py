"""The options of `ft train` that spread a run over processes and machines."""

import dataclasses
import importlib.util
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core import errors
from tunegate.core.errors import UsageError, UserError
from tunegate.core.methods import WEIGHTLESS
from tunegate.core.strict_yaml import read_yaml
from tunegate.train.config import TrainConfig

BY = ("accelerate", "ray")
STRATEGIES = ("ddp", "fsdp2")


def _key(default: Any, help_text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How to spread a run. Field help texts are the option help texts."""

    launch: str = _key("", "Train in several processes, started by accelerate (torchrun) or ray (Ray Train).")
    num_processes: int = _key(2, "Processes, over all machines; one for each GPU.")
    strategy: str = _key("ddp", "ddp: each process holds the whole model. fsdp2: each holds a share of it.")
    launch_config: str = _key("", "accelerate's own YAML file instead (accelerate config): FSDP, DeepSpeed.")
    num_machines: int = _key(1, "Machines; the same command is run on each, with its rank.")
    machine_rank: int = _key(0, "This machine's number; machine 0 writes the run.")
    rdzv_endpoint: str = _key("", "Where torchrun's processes meet: HOST:PORT of machine 0.")
    address: str = _key("", "ray: address of the cluster; else one is started on this machine.")

    @property
    def told(self) -> str:
        """Number and kind of the processes; a resumed run must have the same."""
        return f"{self.num_processes} {self.launch_config or self.strategy}"

    def check(self, config: TrainConfig) -> None:
        """Raise UsageError or UserError for what cannot be started."""
        errors.one_of("--launch", self.launch, BY)
        errors.one_of("--strategy", self.strategy, STRATEGIES)
        if config.method in WEIGHTLESS:
            raise UsageError(f"the method {config.method} trains no weights", where="--launch")
        if self.num_machines < 1 or self.num_processes < 1 or self.num_processes % self.num_machines:
            text = f"{self.num_processes} processes cannot be shared evenly by {self.num_machines} machines"
            raise UsageError(text, where="--num-processes")
        if not 0 <= self.machine_rank < self.num_machines:
            raise UsageError(f"{self.num_machines} machines are 0 to {self.num_machines - 1}", where="--machine-rank")
        if self.num_machines > 1 and self.launch == "accelerate" and not self.rdzv_endpoint:
            raise UsageError(
                "several machines need a place to meet", where="--rdzv-endpoint", hint="HOST:PORT of machine 0"
            )
        if self.strategy == "fsdp2" and config.method == "qlora":
            raise UserError(
                "4-bit weights are not sharded", where="--strategy", hint="--strategy ddp, or --method lora"
            )
        if self.launch == "ray" and not _installed("ray"):
            raise UserError("Ray is not installed", where="--launch", hint="pip install 'ray[train]'")
        if self.launch_config:
            self._check_file(Path(self.launch_config))

    def _check_file(self, path: Path) -> None:
        found = read_yaml(path)
        if not isinstance(found, dict) or "distributed_type" not in found:
            raise UserError(
                "not a config of accelerate: no distributed_type", where=str(path), hint="accelerate config"
            )
        if self.launch != "accelerate":
            raise UsageError("only --launch accelerate reads it", where="--launch-config")
        if found.get("use_cpu") or found["distributed_type"] == "MULTI_CPU":
            raise UserError(
                "accelerate's launcher starts one process on a CPU",
                where=str(path),
                hint="--num-processes N without a file",
            )
        if found["distributed_type"] == "DEEPSPEED" and not _installed("deepspeed"):
            raise UserError("DeepSpeed is not installed", where=str(path), hint="pip install deepspeed")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # a module that was made unavailable
        return False


def launch_fields() -> list[tuple[Any, Any]]:
    """(field, type) of each option."""
    kinds = typing.get_type_hints(Launch)
    return [(spec, Path if spec.name == "launch_config" else kinds[spec.name]) for spec in dataclasses.fields(Launch)]


def launch_of(given: dict[str, Any]) -> Launch | None:
    """The launch that options ask for; None for none. Raises UsageError for options of a launch without one."""
    if given and not given.get("launch"):
        option = "--" + next(iter(given)).replace("_", "-")
        raise UsageError("means nothing without --launch", where=option, hint="--launch accelerate, or ray")
    return Launch(**given) if given else None
