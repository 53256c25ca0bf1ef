"""What happens at each step of training: progress, `metrics.jsonl`, a look at the gradients, and stopping on a signal."""

import json
import math
import resource
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

from tunegate.core.console import Ticker, say
from tunegate.train.trainer import TrainingDivergedError


def peak_memory_gb() -> float:
    """Peak memory of this process in 1e9 bytes: allocated on the GPU where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a checkpoint and a clean end; the second one interrupts at once."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            raise KeyboardInterrupt
        self.asked = number
        say("stopping after this step, with a checkpoint (once more: at once)")


def make_callback(
    metrics_path: Path, tick: Ticker, stop: StopRequest, tokens_per_step: float, *, checkpoints: bool
) -> Any:
    """The TrainerCallback. tokens_per_step: mean number of tokens that one optimizer step sees, padding not counted."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.last = time.monotonic()
            self.last_step = 0
            self.seen = -1
            self.eval_loss: float | None = None
            self.evaluated_at = -1

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.last, self.last_step = time.monotonic(), state.global_step
            tick(state.global_step, None)

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            norm = sum(float(p.grad.detach().float().norm()) ** 2 for p in model.parameters() if p.grad is not None)
            if not math.isfinite(norm):
                raise TrainingDivergedError(
                    f"the gradients are not finite at step {state.global_step + 1}",
                    hint="lower --learning-rate; the weights were left untouched",
                )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tick(1, None)
            if stop.asked is not None:
                control.should_save = checkpoints
                control.should_training_stop = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            logs = logs or {}
            if "eval_loss" in logs:
                _write(metrics_path, {"step": state.global_step, "epoch": state.epoch, "eval_loss": logs["eval_loss"]})
                self.eval_loss, self.evaluated_at = logs["eval_loss"], state.global_step
            elif "loss" in logs and state.global_step > self.seen:
                self.seen = state.global_step
                now = time.monotonic()
                steps = max(1, state.global_step - self.last_step)
                rate = tokens_per_step * steps / max(1e-9, now - self.last)
                self.last, self.last_step = now, state.global_step
                line = {
                    "step": state.global_step,
                    "epoch": state.epoch,
                    "loss": float(logs["loss"]),
                    "learning_rate": float(logs.get("learning_rate", 0.0)),
                    "grad_norm": float(logs.get("grad_norm", 0.0)),
                    "tokens_per_s": round(rate, 1),
                    "peak_memory_gb": round(peak_memory_gb(), 3),
                }
                _write(metrics_path, line)
                tail = "" if self.eval_loss is None else f", eval loss {self.eval_loss:.4f}"
                tick(0, f"loss {line['loss']:.4f}{tail}, {rate:.0f} tok/s, {line['peak_memory_gb']:.1f} GB")

    return Callback()


def _write(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")
