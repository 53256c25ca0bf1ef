"""What a run has counted so far. It is stored in every checkpoint, so that a resumed run counts as an unbroken one."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from tunegate.core.files import read_json, write_json

NAME = "progress.json"
REMEMBERED = 32  # steps that the spike watch looks back on


@dataclass(kw_only=True)
class Progress:
    """Counters of a run.

    tokens, label_tokens: seen in training, padding not counted. losses, norms: raw loss and gradient norm of the last
    steps. window_loss, window_steps: sum of losses since the last metrics line, and their number. eval_loss, eval_step:
    of the last evaluation; best_loss, best_step: of the best one. stale: evaluations since then. stopped_early: the run
    ended because of them. metrics_bytes: length of `metrics.jsonl` that belongs to the counters; metrics_lost_bytes:
    how much of it was gone when the run was resumed.
    """

    tokens: int = 0
    label_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    window_loss: float = 0.0
    window_steps: int = 0
    eval_loss: float | None = None
    eval_step: int = -1
    best_loss: float | None = None
    best_step: int = -1
    stale: int = 0
    stopped_early: bool = False
    metrics_bytes: int = 0
    metrics_lost_bytes: int = 0

    def step(self, loss: float, norm: float) -> None:
        """Count one optimizer step."""
        self.losses = [*self.losses, loss][-REMEMBERED:]
        self.norms = [*self.norms, norm][-REMEMBERED:]
        self.window_loss += loss
        self.window_steps += 1

    def mean_loss(self) -> float:
        """Mean loss since the last call, which begins a new window."""
        mean = self.window_loss / max(1, self.window_steps)
        self.window_loss, self.window_steps = 0.0, 0
        return mean

    def evaluated(self, step: int, loss: float, patience: int) -> None:
        """Count an evaluation. `stopped_early` is set after `patience` without a better one."""
        self.eval_loss, self.eval_step = loss, step
        if self.best_loss is None or loss < self.best_loss:
            self.best_loss, self.best_step, self.stale = loss, step, 0
        else:
            self.stale += 1
        self.stopped_early = patience > 0 and self.stale >= patience

    def write(self, folder: Path, metrics: Path) -> None:
        """Store the counters in a checkpoint, with the length of the metrics file as it is now."""
        self.metrics_bytes = metrics.stat().st_size if metrics.is_file() else 0
        write_json(folder / NAME, asdict(self))

    @staticmethod
    def read(folder: Path) -> "Progress":
        """The counters of a checkpoint."""
        return Progress(**read_json(folder / NAME))
