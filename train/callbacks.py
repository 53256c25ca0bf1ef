"""What happens at each step of training: progress, `metrics.jsonl`, early stopping, and stopping on a signal."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunegate.core import machine
from tunegate.core.console import Ticker, say
from tunegate.train import ranks
from tunegate.train.progress import Progress
from tunegate.train.stop import StopFile, StopRequest

MEASURED_STEPS = 10  # after which the measured speed is held against the predicted one
SLOW_STEPS = 2  # at the start, left out of it


def peak_memory_gb() -> float:
    """Peak memory of this process in 1e9 bytes: allocated on the GPU where there is one, else resident."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated() / 1e9)
    return machine.peak_resident_gb()


def make_callback(
    metrics: Path,
    tick: Ticker,
    stop: StopRequest | StopFile,
    progress: Progress,
    *,
    checkpoints: bool,
    keep_best: bool,
    measured: Callable[[float, float], None],
) -> Any:
    """The TrainerCallback. checkpoints: a stop leaves one. measured: told tokens/s and peak memory (1e9 bytes) once."""
    from transformers import TrainerCallback

    class Callback(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            state.compute_steps(args, state.max_steps)  # of a checkpoint are those of the run that was broken off
            self.began = time.monotonic()
            self.first = self.logged = state.global_step
            self.at_log, self.at_settled = (0.0, progress.tokens), (0.0, progress.tokens)
            self.busy = 0.0  # seconds inside steps: evaluations and checkpoints are no part of the speed
            tick(state.global_step, None)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.step_began = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            tick(int(state.global_step < state.max_steps), None)  # the last one with its own loss: `on_log`
            self.busy += time.monotonic() - self.step_began
            done = state.global_step - self.first
            if done == SLOW_STEPS:
                self.at_settled = (self.busy, progress.tokens)
            if done == MEASURED_STEPS:
                measured(self._rate(self.at_settled), peak_memory_gb())
            control.should_log |= state.global_step >= state.max_steps  # the last steps have a line too
            if stop.wanted():
                control.should_save = checkpoints
                control.should_training_stop = True

        def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if keep_best and progress.best_step == state.global_step:
                control.should_save = checkpoints
            if progress.stopped_early and state.global_step < state.max_steps:
                _say_early(progress, state.global_step)
                control.should_save, control.should_training_stop = checkpoints, True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
            if "eval_loss" in logs:
                _write(metrics, {"step": state.global_step, "epoch": state.epoch, "eval_loss": logs["eval_loss"]})
            elif "loss" in logs and state.global_step > self.logged:
                self.logged = state.global_step
                rate = self._rate(self.at_log)
                self.at_log = (self.busy, progress.tokens)
                _write(metrics, line := _line(state, logs, progress, rate))
                done, left = state.global_step - self.first, state.max_steps - state.global_step
                tick(int(not left), _text(line, progress, left * (time.monotonic() - self.began) / done))

        def _rate(self, since: tuple[float, int]) -> float:
            return (progress.tokens - since[1]) / max(1e-9, self.busy - since[0])

    return Callback()


def _say_early(progress: Progress, step: int) -> None:
    say(
        f"stopped early at step {step}: no better validation loss in {progress.stale} evaluations "
        f"since {progress.best_loss:.4f} at step {progress.best_step}"
    )


def _line(state: Any, logs: dict[str, Any], progress: Progress, rate: float) -> dict[str, Any]:
    """One step's line of `metrics.jsonl`. rate: tokens per second."""
    return {
        "step": state.global_step,
        "epoch": state.epoch,
        "loss": progress.mean_loss(),
        "learning_rate": float(logs.get("learning_rate", 0.0)),
        "grad_norm": float(logs.get("grad_norm", 0.0)),
        "tokens": progress.tokens,
        "label_tokens": progress.label_tokens,
        "tokens_per_s": round(rate, 1),
        "peak_memory_gb": round(peak_memory_gb(), 3),
    }


def _text(line: dict[str, Any], progress: Progress, left_s: float) -> str:
    """What stands beside the progress bar. left_s: seconds to the end."""
    evaluated = "" if progress.eval_loss is None else f", eval loss {progress.eval_loss:.4f}"
    left = f", {_duration(left_s)} left" if left_s else ""
    return (
        f"loss {line['loss']:.4f}{evaluated}, {line['tokens_per_s']:.0f} tok/s, {line['peak_memory_gb']:.1f} GB{left}"
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _write(path: Path, line: dict[str, Any]) -> None:
    if ranks.rank() > 0:  # the first of several processes writes
        return
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")
