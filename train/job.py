"""One training run as a process is told it: in a call, or in a file where another process is to do it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.core.artifacts import Dataset
from tunegate.core.files import read_json, write_json
from tunegate.core.model_source import ModelSource
from tunegate.train.config import TrainConfig, as_json
from tunegate.train.preflight import Forecast


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train. folder: the working folder, for checkpoints and metrics. name: of the run, for its card."""

    dataset: Dataset
    source: ModelSource
    config: TrainConfig
    folder: Path
    name: str
    resume: bool
    forecast: Forecast | None = None

    def write(self, path: Path, final: Path) -> None:
        """Store it, with the folder that the run's files go to."""
        told: dict[str, Any] = {
            "dataset": str(self.dataset.path.absolute()),
            "source": dataclasses.asdict(self.source),
            "config": as_json(self.config),
            "folder": str(self.folder.absolute()),
            "name": self.name,
            "resume": self.resume,
            "forecast": dataclasses.asdict(self.forecast) if self.forecast else None,
            "final": str(final.absolute()),
        }
        write_json(path, told)

    @staticmethod
    def read(path: Path) -> "tuple[Job, Path]":
        """(job, folder that the run's files go to)."""
        told = read_json(path)
        config: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told["config"].items()}
        job = Job(
            dataset=Dataset.open(Path(told["dataset"])),
            source=ModelSource(**told["source"]),
            config=TrainConfig(**config),
            folder=Path(told["folder"]),
            name=told["name"],
            resume=told["resume"],
            forecast=Forecast(**told["forecast"]) if told["forecast"] else None,
        )
        return job, Path(told["final"])
