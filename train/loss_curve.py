"""The run's loss as a drawing: `loss.svg`, made without any library."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tunegate.core.axis import round_step
from tunegate.core.rows import read_jsonl

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 44, 48
SMOOTH = 0.15  # weight of the newest loss in the bold line (exponential moving average)
INK, GRID, TRAIN, EVAL = "#222", "#e3e3e3", "#1f77b4", "#d62728"


@dataclass(frozen=True)
class Points:
    """(step, loss) of training and of validation."""

    train: list[tuple[int, float]]
    evaluation: list[tuple[int, float]]


def read(metrics: Path) -> Points:
    """The losses of a `metrics.jsonl`."""
    lines = [value for _, value in read_jsonl(metrics)]
    return Points(
        [(m["step"], m["loss"]) for m in lines if "loss" in m],
        [(m["step"], m["eval_loss"]) for m in lines if "eval_loss" in m],
    )


def svg(points: Points, *, whole: bool = True) -> str:
    """An SVG document: each step's loss pale, its moving average bold, the validation loss as dots. Loss axis from 0.
    whole: no points were lost; else the drawing says so."""
    both = points.train + points.evaluation
    last = max((step for step, _ in both), default=1)
    largest = max((loss for _, loss in both), default=1.0)
    step_x, step_y = round_step(last, 6), round_step(largest, 6)
    top = step_y * math.ceil(largest / step_y + 1e-9)

    def at(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + step / max(last, 1) * (WIDTH - LEFT - RIGHT)
        return round(x, 1), round(HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="{INK}" role="img" aria-label="training and validation loss">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for n in range(round(top / step_y) + 1):
        x, y = at(0, n * step_y)
        parts.append(f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}" stroke="{GRID}"/>')
        parts.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end">{n * step_y:g}</text>')
    for n in range(math.floor(last / step_x) + 1):
        x, y = at(n * step_x, 0)
        parts.append(f'<text x="{x}" y="{y + 18}" text-anchor="middle">{n * step_x:g}</text>')
    parts += [_line([at(*p) for p in points.train], TRAIN, 'stroke-width="1" opacity="0.35"')]
    parts += [_line([at(*p) for p in _smooth(points.train)], TRAIN, 'stroke-width="2.5"')]
    evaluated = [at(*p) for p in points.evaluation]
    parts += [_line(evaluated, EVAL, 'stroke-width="1.5" stroke-dasharray="5 4"')]
    parts += [f'<circle cx="{x}" cy="{y}" r="4" fill="{EVAL}"/>' for x, y in evaluated]
    parts += [
        f'<text x="{LEFT}" y="26" fill="{TRAIN}">training loss (pale: each step)</text>',
        *([f'<text x="{LEFT + 200}" y="26" fill="{EVAL}">validation loss</text>'] if evaluated else []),
        *(
            []
            if whole
            else [f'<text x="{LEFT}" y="40">some steps are missing: their metrics were lost before a resume</text>']
        ),
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">optimizer steps</text>',
        f'<text x="16" y="{HEIGHT / 2}" transform="rotate(-90 16 {HEIGHT / 2})" text-anchor="middle">loss per answer token</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential moving average, corrected for its start (as Adam's first moment, arXiv 1412.6980, section 3)."""
    mean, found = 0.0, []
    for n, (step, loss) in enumerate(points, 1):
        mean += SMOOTH * (loss - mean)
        found.append((step, mean / (1.0 - (1.0 - SMOOTH) ** n)))
    return found


def _line(points: list[tuple[float, float]], colour: str, style: str) -> str:
    """One path with a point each, without points that lie on the one before."""
    kept = points[:1] + [b for a, b in pairwise(points) if b != a]
    return f'<polyline fill="none" stroke="{colour}" {style} points="{" ".join(f"{x},{y}" for x, y in kept)}"/>'
