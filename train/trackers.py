"""Trackers by name, through TRL's own reporting: where each writes, all local unless the user's environment says otherwise."""

import importlib.util
import os
from pathlib import Path

from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.train.config import TrainConfig

FOLDER = "tracking"  # beside the run: a run's own folder is closed by its manifest


def prepare(config: TrainConfig, out: Path) -> None:
    """Set the environment that transformers' callbacks read. Raises UserError for a tracker that is not installed."""
    missing = [name for name in config.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"the tracker {missing[0]} is not installed", where="report_to", hint=f"pip install {' '.join(missing)}"
        )
    folder = (out.parent / FOLDER).absolute()
    for name in config.report_to:
        folder.mkdir(parents=True, exist_ok=True)
        for key, value in _environment(name, folder, out.name).items():
            os.environ.setdefault(key, value)
        say(f"tracker {name}: {_place(name, folder)}")


def _environment(name: str, folder: Path, run: str) -> dict[str, str]:
    match name:
        case "tensorboard":
            return {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard" / run)}
        case "mlflow":  # its file store is deprecated: sqlite
            return {
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
                "MLFLOW_EXPERIMENT_NAME": "tunegate",
                "MLFLOW_FLATTEN_PARAMS": "1",
                "DO_NOT_TRACK": "1",
            }
        case "wandb":
            online = "WANDB_API_KEY" in os.environ
            return {
                "WANDB_DIR": str(folder),
                "WANDB_PROJECT": "tunegate",
                **({} if online else {"WANDB_MODE": "offline"}),
            }
        case _:
            return {"TRACKIO_DIR": str(folder / "trackio")}


def _place(name: str, folder: Path) -> str:
    match name:
        case "tensorboard":
            return f"tensorboard --logdir {folder / 'tensorboard'}"
        case "mlflow":
            return f"mlflow ui --backend-store-uri {os.environ['MLFLOW_TRACKING_URI']}"
        case "wandb":
            return f"{os.environ.get('WANDB_MODE', 'online')}, files below {folder / 'wandb'}"
        case _:
            return f"TRACKIO_DIR={os.environ['TRACKIO_DIR']} trackio show"
