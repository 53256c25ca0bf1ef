"""Looks at each step's raw loss and gradient norm before the update, and stops a run that has gone astray."""

import math
import statistics
from collections.abc import Sequence

from tunegate.core.errors import ExitCode, TunegateError
from tunegate.train import ranks
from tunegate.train.progress import Progress

WARM = 8  # steps before a spike can be told from a start
NORM_FACTOR = 20.0  # times `spike_factor`, on the norm: clipping makes a large gradient harmless, a huge one is a sign


class TrainingDivergedError(TunegateError):
    """The loss or the gradients of a step are not finite or far off; the weights were not touched by it."""

    kind = "bad_input"
    exit_code = ExitCode.BAD_INPUT


def check_loss(loss: float, step: int, rows: Sequence[str]) -> None:
    """Raise TrainingDivergedError for a loss that is not finite, naming the batch's rows; in every process of the run, for
    one that went on alone would wait for the others."""
    finite = math.isfinite(loss)
    if ranks.any_of(not finite):
        found = ranks.gathered([] if finite else [str(loss), *rows])
        raise _astray(f"the loss is {found[0]}", step, found[1:], "look at these rows, or lower --learning-rate")


def check_step(
    progress: Progress,
    loss: float,
    norm: float,
    step: int,
    rows: Sequence[str],
    *,
    factor: float,
    vocabulary: int,
    clip: float = 0.0,
) -> None:
    """Raise TrainingDivergedError before the update for a gradient norm that is not finite, and for a spike.

    A spike: a loss above `factor` times the median of the last steps and above ln(vocabulary), which is what guessing
    costs; or a norm above 20 `factor` times its median and above `clip`, to which gradients are cut (0: they are not).
    factor 0: spikes are let pass. loss, norm: of the step over all
    processes of the run, so that all of them raise; rows: of this one.
    """
    if not math.isfinite(norm):
        where = ranks.gathered(rows)
        raise _astray("the gradients are not finite", step, where, "look at these rows, or lower --learning-rate")
    if factor <= 0 or len(progress.losses) < WARM:
        return
    usual, usual_norm = statistics.median(progress.losses), statistics.median(progress.norms)
    hint = "look at these rows, lower --learning-rate, or --spike-factor 0 to let it pass"
    if loss > max(factor * usual, math.log(vocabulary)):
        what = f"the loss jumped to {loss:.3g} (median of the steps before: {usual:.3g})"
        raise _astray(what, step, ranks.gathered(rows), hint)
    if norm > max(NORM_FACTOR * factor * usual_norm, clip):
        what = f"the gradient norm jumped to {norm:.3g} (median before: {usual_norm:.3g})"
        raise _astray(what, step, ranks.gathered(rows), hint)


def check_validation(loss: float, step: int) -> None:
    """Raise TrainingDivergedError for a validation loss that is not finite: the same in every process."""
    if not math.isfinite(loss):
        hint = "look at the validation rows, or lower --learning-rate; a checkpoint before it, if any, is whole"
        raise TrainingDivergedError(f"the validation loss is {loss} after step {step}", hint=hint)


def _astray(what: str, step: int, rows: Sequence[str], hint: str) -> TrainingDivergedError:
    shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
    return TrainingDivergedError(
        f"{what} at step {step}; rows {shown}", hint=f"{hint}; the weights were left untouched"
    )
