"""Inline SVG for the report page. Positions are percentages, so that a plot takes any width without a script."""

import math
from typing import Any

from tunegate.core.statistics import quantile
from tunegate.evalkit.render.html_text import attribute, finite


def interval_plot(
    marks: list[dict[str, Any]], axis: tuple[float, float], label: str, limit: float | None = None
) -> str:
    """Points with their intervals on one axis.

    marks: {value, low, high, series}, series `candidate` (filled dot, solid line) or `baseline` (hollow dot, dashed
    line). limit: a dotted line at this value. Values outside the axis are drawn at its end.
    """
    height = 14 * len(marks) + 8
    parts = [f'<line class="axis" x1="0%" x2="100%" y1="{height - 1}" y2="{height - 1}"/>']
    quarters = ("0%", "25%", "50%", "75%", "100%") if limit is None else ()
    parts += [f'<line class="grid" x1="{at}" x2="{at}" y1="0" y2="{height}"/>' for at in quarters]
    if limit is not None:
        at = _percent(limit, axis)
        parts.append(f'<line class="limit" x1="{at}" x2="{at}" y1="0" y2="{height}"/>')
    for index, mark in enumerate(marks):
        middle = 11 + 14 * index
        low, high, value = finite(mark.get("low")), finite(mark.get("high")), finite(mark.get("value"))
        name = "baseline" if mark.get("series") == "baseline" else "candidate"
        if low is not None and high is not None:
            ends = f'x1="{_percent(low, axis)}" x2="{_percent(high, axis)}" y1="{middle}" y2="{middle}"'
            parts.append(f'<line class="range {name}" {ends}/>')
        if value is not None:
            parts.append(f'<circle class="dot {name}" cx="{_percent(value, axis)}" cy="{middle}" r="4.5"/>')
    return _svg("interval-plot", height, label, parts)


def stacked_bar(shares: list[tuple[str, str, float]], label: str) -> str:
    """One bar of adjoining parts: (class name, its sign, share of 1), in order; parts with room carry their sign."""
    parts, left = [], 0.0
    for name, sign, share in shares:
        if share > 0:
            parts.append(f'<rect class="part {name}" x="{left:.3%}" width="{share:.3%}" y="0" height="28"/>')
        if share > 0.06:
            parts.append(f'<text class="part-sign {name}" x="{left + share / 2:.3%}" y="19">{sign}</text>')
        left += share
    return _svg("stacked-bar", 28, label, parts)


def histogram(values: list[float], axis: tuple[float, float], bins: int, series: str, label: str) -> str:
    """Counts of values in equal bins over the axis; what lies above the axis is counted in the last bin."""
    counts = [0] * bins
    low, high = axis
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    tallest = max(counts) or 1
    parts = [
        f'<rect class="bar {series}" x="{index / bins:.3%}" width="{0.86 / bins:.3%}" '
        f'y="{58 - 54 * n / tallest:.1f}" height="{54 * n / tallest:.1f}"/>'
        for index, n in enumerate(counts)
        if n
    ]
    parts.append('<line class="axis" x1="0%" x2="100%" y1="58.5" y2="58.5"/>')
    for share in (0.5, 0.95):
        at = _percent(quantile(sorted(values), share), axis)
        parts.append(f'<line class="quantile" x1="{at}" x2="{at}" y1="0" y2="58"/>')
    return _svg("histogram", 60, label, parts)


def nice_ceiling(value: float) -> float:
    """The smallest 1, 1.5, 2, 3, 4, 5, 6 or 8 times a power of ten that is not below the value; 1 for none."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8) if step * power >= value), 10 * power)


def _percent(value: float, axis: tuple[float, float]) -> str:
    low, high = axis
    share = 0.5 if high <= low else (value - low) / (high - low)
    return f"{min(1.0, max(0.0, share)):.2%}"


def _svg(name: str, height: int, label: str, parts: list[str]) -> str:
    return (
        f'<svg class="{name}" role="img" aria-label="{attribute(label)}" width="100%" height="{height}">'
        f"{''.join(parts)}</svg>"
    )
