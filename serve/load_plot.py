"""A load test as a drawing: throughput, time to first token and end-to-end latency over the load. SVG, no library."""

import math
from html import escape
from typing import Any

from tunegate.core.axis import round_step

PANEL_W, PANEL_H = 300, 260
LEFT, TOP, GAP, BOTTOM = 64, 56, 84, 64
COLOURS = {"p50": "#1f77b4", "p95": "#ff7f0e", "p99": "#d62728", "": "#2ca02c"}
Series = dict[str, list[tuple[float, float, float | None, float | None]]]


def svg(report: dict[str, Any]) -> str:
    """Three panels over the load (concurrency, or requests a second where only those were tested)."""
    kind = "closed" if any(s["kind"] == "closed" for s in report["stages"]) else "open"
    stages = [s for s in report["stages"] if s["kind"] == kind and s["answers"]]
    axis = "requests at once" if kind == "closed" else "requests a second"
    level = "concurrency" if kind == "closed" else "rate"
    panels: list[tuple[str, Series]] = [
        ("output tokens/s", {"": _rates(stages, level)}),
        ("time to first token, ms", _latencies(stages, level, "ttft_ms")),
        ("end to end, ms", _latencies(stages, level, "e2e_ms")),
    ]
    width, height = LEFT + 3 * PANEL_W + 2 * GAP + 20, TOP + PANEL_H + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="15">{escape(str(report["model"]))} - {report["verdict"]}</text>',
    ]
    for index, (title, series) in enumerate(panels):
        parts += _panel(LEFT + index * (PANEL_W + GAP), title, axis, series)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rates(stages: list[dict[str, Any]], level: str) -> list[tuple[float, float, float | None, float | None]]:
    """Tokens a second by load, of the stages whose endpoint counted tokens."""
    counted = [s for s in stages if s["throughput"] and s["throughput"]["output_tokens_per_s"] is not None]
    return [(s[level], s["throughput"]["output_tokens_per_s"], None, None) for s in counted]


def _latencies(stages: list[dict[str, Any]], level: str, figure: str) -> Series:
    shown = [s for s in stages if s[figure]]
    return {
        name: [(s[level], *(s[figure][name][key] for key in ("value", "low", "high"))) for s in shown]
        for name in ("p50", "p95", "p99")
    }


def _panel(left: float, title: str, axis: str, series: Series) -> list[str]:
    points = [point for line in series.values() for point in line]
    base, foot = TOP + PANEL_H, left + PANEL_W / 2
    parts = [
        f'<text x="{left}" y="{TOP - 12}">{title}</text>',
        f'<path d="M{left} {TOP}V{base}H{left + PANEL_W}" fill="none" stroke="#555"/>',
        f'<text x="{foot}" y="{base + 40}" text-anchor="middle" fill="#555">{axis}</text>',
    ]
    if not points:
        return [*parts, f'<text x="{foot}" y="{TOP + PANEL_H / 2}" text-anchor="middle">not measured</text>']
    levels = sorted({point[0] for point in points})
    largest = max(v for p in points for v in p[1:] if v is not None) or 1.0  # answers of no tokens have an axis too
    step = round_step(largest, 5)
    top = step * math.ceil(largest / step)

    def x(value: float) -> float:
        """Loads are doubled from stage to stage as a rule: places by logarithm."""
        if len(levels) == 1:
            return foot
        share = math.log(value / levels[0]) / math.log(levels[-1] / levels[0])
        return left + 16 + (PANEL_W - 32) * share

    def y(value: float) -> float:
        return base - PANEL_H * value / top

    for number in range(round(top / step) + 1):
        height = y(number * step)
        parts.append(f'<path d="M{left} {height:.1f}h{PANEL_W}" stroke="#eee"/>')
        parts.append(
            f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end" fill="#555">{number * step:,g}</text>'
        )
    parts += [f'<text x="{x(v):.1f}" y="{base + 18}" text-anchor="middle" fill="#555">{v:g}</text>' for v in levels]
    for index, (name, line) in enumerate(series.items()):
        parts += _line(line, COLOURS[name], x, y)
        if name:
            parts.append(
                f'<text x="{left + PANEL_W - 34 * (3 - index)}" y="{TOP - 12}" fill="{COLOURS[name]}">{name}</text>'
            )
    return parts


def _line(line: list[tuple[float, float, float | None, float | None]], colour: str, x: Any, y: Any) -> list[str]:
    """A polyline with a dot a stage, and a bar over the interval where it has both bounds."""
    path = " ".join(f"{x(level):.1f},{y(value):.1f}" for level, value, _, _ in line)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for level, value, low, high in line:
        parts.append(f'<circle cx="{x(level):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>')
        if low is not None and high is not None:
            parts.append(
                f'<path d="M{x(level):.1f} {y(low):.1f}V{y(high):.1f}" stroke="{colour}" stroke-opacity="0.5"/>'
            )
    return parts
