"""The break-even as a drawing: SVG without any library, and a chart in the terminal."""

import math
from pathlib import Path

from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.core.files import write_text

Points = list[tuple[float, float | None, float]]
WIDTH, HEIGHT, MARGIN = 720, 420, 60


def svg(points: Points, own: str, api: str, crossing: float | None) -> str:
    """(calls per day, own monthly USD, API monthly USD) on two logarithmic axes as an SVG document."""
    dollars = [v for _, o, a in points for v in (o, a) if v and v > 0]
    x0, x1 = math.log10(points[0][0]), math.log10(points[-1][0])
    y0, y1 = math.floor(math.log10(min(dollars))), math.ceil(math.log10(max(dollars)))

    def at(calls: float, usd: float) -> str:
        x = MARGIN + (math.log10(calls) - x0) / (x1 - x0) * (WIDTH - 2 * MARGIN)
        y = HEIGHT - MARGIN - (math.log10(usd) - y0) / (y1 - y0) * (HEIGHT - 2 * MARGIN)
        return f"{x:.1f},{y:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<polyline fill="none" stroke="#1f77b4" stroke-width="2" points="{" ".join(at(c, o) for c, o, _ in points if o)}"/>',
        f'<polyline fill="none" stroke="#d62728" stroke-width="2" points="{" ".join(at(c, a) for c, _, a in points if a > 0)}"/>',
        f'<text x="{MARGIN}" y="20" fill="#1f77b4">{_escape(own)}</text>',
        f'<text x="{MARGIN}" y="38" fill="#d62728">{_escape(api)}</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">calls per day</text>',
        f'<text x="14" y="{HEIGHT / 2}" transform="rotate(-90 14 {HEIGHT / 2})" text-anchor="middle">USD per month</text>',
    ]
    parts += [_tick(at(10.0**e, 10.0**y0), f"1e{e}", 16) for e in range(math.ceil(x0), math.floor(x1) + 1)]
    parts += [
        _tick(at(points[0][0], 10.0**e), f"${10**e:,}", 4, anchor="end", left=6) for e in range(y0, y1 + 1) if e >= 0
    ]
    verdict = "never" if crossing is None else f"break-even at {crossing:,.0f} calls a day"
    parts.append(f'<text x="{WIDTH - MARGIN}" y="20" text-anchor="end">{verdict}</text></svg>')
    return "\n".join(parts) + "\n"


def refuse_other_formats(path: Path) -> None:
    """Raise UserError for an ending that is not .svg: nothing else is written."""
    if path.suffix.lower() != ".svg":
        raise UserError("only SVG is written", where=str(path), hint=f"name it {path.with_suffix('.svg').name}")


def write_svg(path: Path, document: str) -> None:
    """Write an SVG file. Raises UserError for another ending or a missing folder."""
    refuse_other_formats(path)
    if not path.parent.is_dir():
        raise UserError("no such folder", where=str(path.parent))
    write_text(path, document)
    say(f"wrote {path}")


def chart(points: Points, rows: int = 12) -> str:
    """The same in characters: o own, x API, * both in one place; both axes logarithmic."""
    columns = points[::2]
    dollars = [v for _, o, a in columns for v in (o, a) if v and v > 0]
    low, high = math.log10(min(dollars)), math.log10(max(dollars))
    grid = [[" "] * len(columns) for _ in range(rows)]
    for index, (_, own, api) in enumerate(columns):
        for value, mark in ((own, "o"), (api, "x")):
            if value and value > 0:
                row = rows - 1 - round((math.log10(value) - low) / max(1e-9, high - low) * (rows - 1))
                grid[row][index] = "*" if grid[row][index] not in (" ", mark) else mark
    lines = []
    for number, cells in enumerate(grid):
        value = 10 ** (high - (high - low) * number / (rows - 1))
        lines.append(f"${value:>13,.0f} |{''.join(cells)}")
    axis = f"{'calls a day':>14} +{'-' * len(columns)}\n{'':16}{columns[0][0]:<12,.0f}{columns[-1][0]:>{len(columns) - 12},.0f}"
    return "\n".join([*lines, axis])


def _tick(place: str, label: str, down: float, *, anchor: str = "middle", left: float = 0.0) -> str:
    x, y = place.split(",")
    return (
        f'<text x="{float(x) - left:.1f}" y="{float(y) + down:.1f}" text-anchor="{anchor}" fill="#555">{label}</text>'
    )


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
