"""Starts a run's processes by Ray Train: `python -m tunegate.train.ray_driver JOB --processes N --address A`.

Ray gives each worker its place in a process group (`RANK`, `WORLD_SIZE` and the like), which accelerate finds as it finds
torchrun's. Every node of the cluster needs this package, and the paths of the job.
"""

import argparse
import sys
from pathlib import Path
from typing import Any


def _train(told: dict[str, Any]) -> None:
    """One worker."""
    import os
    from pathlib import Path

    os.environ.update(told["environment"])
    os.chdir(told["folder"])  # paths of the job may be relative to where `ft train` was called
    from tunegate.train.worker import main as work

    code = work(Path(told["job"]))
    if code:
        raise RuntimeError(f"exit code {code}")


def main() -> int:
    """Run the job on the cluster; 1 when a worker failed."""
    import os

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--address", default="")
    told = parser.parse_args()
    ray.init(address=told.address or "local", log_to_driver=False)
    on_gpus = bool(ray.cluster_resources().get("GPU"))
    passed = (
        "ACCELERATE_", "FSDP_", "OMP_", "GOMP_", "TUNEGATE_",
        "HF_", "TENSORBOARD_", "MLFLOW_", "WANDB_", "TRACKIO_",
    )  # fmt: skip
    trainer = TorchTrainer(
        _train,
        train_loop_config={
            "job": str(told.job),
            "folder": str(Path.cwd()),
            "environment": {k: v for k, v in os.environ.items() if k.startswith(passed)},
        },
        scaling_config=ScalingConfig(num_workers=told.processes, use_gpu=on_gpus),
        run_config=RunConfig(storage_path=str(told.job.resolve().parent / "ray")),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray wraps whatever a worker raised; the worker has told it in its own file
        print(error, file=sys.stderr)
        return 1
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
