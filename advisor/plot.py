"""The break-even as a picture (SVG or PNG, drawn by matplotlib) and as a chart in the terminal."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunegate.advisor.break_even import Point
from tunegate.core.console import say
from tunegate.core.errors import UserError
from tunegate.core.files import write_bytes

FORMATS = (".svg", ".png")
INCHES, DPI = (9.0, 6.6), 150
INK, OWN, GRID = "#222222", "#000000", "#dddddd"
# Okabe & Ito's palette: told apart by the colour-blind too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B")


@dataclass(frozen=True, kw_only=True)
class ApiCurve:
    """One API's line. points: (calls a day, own USD a month or None, API USD a month). crossing: break-even in calls a
    day, None for never. hosted: open weights hosted by others, drawn dashed."""

    name: str
    points: Sequence[Point]
    crossing: float | None
    hosted: bool

    @property
    def label(self) -> str:
        """For the legend, with the break-even."""
        kind = "open weights, hosted" if self.hosted else "closed model"
        when = "never" if self.crossing is None else f"{self.crossing:,.0f} calls/day"
        return f"{self.name} ({kind}): break-even {when}"


def refuse_other_formats(path: Path) -> None:
    """Raise UserError for an ending that is neither .svg nor .png, and for a folder that does not exist."""
    if path.suffix.lower() not in FORMATS:
        hint = f"name it {path.stem or 'breakeven'}.svg or {path.stem or 'breakeven'}.png"
        raise UserError("a plot is written as SVG or PNG", where=str(path), hint=hint)
    if not path.parent.is_dir():
        raise UserError("no such folder", where=str(path.parent))


def draw(path: Path, *, title: str, own: str, apis: Sequence[ApiCurve], calls_per_day: float, note: str) -> None:
    """Write the picture: own cost as a staircase, one line an API, a dot at each break-even, both axes logarithmic.

    The background is opaque white, so that it reads on a dark page as on a light one. Raises UserError as
    `refuse_other_formats` does.
    """
    refuse_other_formats(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "tunegate",
            "font.size": 9,
            "text.color": INK,
            "text.parse_math": False,
        }
    ):
        figure = Figure(figsize=INCHES, layout="constrained", facecolor="white")
        axes = figure.add_subplot(facecolor="white")
        _lines(axes, own, apis)
        axes.axvline(
            calls_per_day, color=INK, linewidth=0.8, linestyle=":", label=f"your load: {calls_per_day:,.0f} calls/day"
        )
        axes.set(xscale="log", yscale="log", xlabel="calls per day", ylabel="USD per month")
        axes.set_title(title, loc="left", fontsize=11)
        axes.grid(visible=True, color=GRID, linewidth=0.6)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axes.plot([], [], linestyle="none", label=note)
        figure.legend(loc="outside lower left", fontsize=8, frameon=False)
        kind, picture = path.suffix.lower().lstrip("."), io.BytesIO()
        figure.savefig(picture, format=kind, dpi=DPI, metadata={"Date": None} if kind == "svg" else None)
    write_bytes(path, picture.getvalue())
    say(f"wrote {path}")


def _lines(axes: Any, own: str, apis: Sequence[ApiCurve]) -> None:
    mine = [(calls, usd) for calls, usd, _ in apis[0].points if usd is not None]
    if mine:
        axes.step(*zip(*mine, strict=True), where="post", color=OWN, linewidth=2.4, label=own)
    for number, api in enumerate(apis):
        colour, style = COLOURS[number % len(COLOURS)], "--" if api.hosted else "-"
        shown = [(calls, usd) for calls, _, usd in api.points if usd > 0]
        if shown:
            axes.plot(*zip(*shown, strict=True), color=colour, linestyle=style, linewidth=1.6, label=api.label)
        if api.crossing and shown:
            at = api.crossing * shown[-1][1] / shown[-1][0]  # an API's cost is a straight line through 0
            axes.plot([api.crossing], [at], marker="o", markersize=7, color=colour, markeredgecolor="white", zorder=5)
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.0}
            place = {"xytext": (8, -14), "textcoords": "offset points"}
            axes.annotate(f"{api.crossing:,.0f}", (api.crossing, at), color=colour, bbox=box, **place)


def chart(points: Sequence[Point], crossing: float | None, rows: int = 12) -> str:
    """The same in characters: o own, x API, * both in one place, ^ the break-even; both axes logarithmic."""
    columns = points[:: max(1, len(points) // 30)]
    dollars = [v for _, o, a in columns for v in (o, a) if v and v > 0]
    if not dollars:
        return "neither costs anything"
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
    first, last = columns[0][0], columns[-1][0]
    lines += [f"{'calls a day':>14} +{'-' * len(columns)}", f"{'':16}{first:<12,.0f}{last:>{len(columns) - 12},.0f}"]
    if crossing is None:
        return "\n".join([*lines, f"{'':16}no break-even: never"])
    share = math.log(max(crossing, first) / first) / math.log(last / first)
    place = min(len(columns) - 1, max(0, round(share * (len(columns) - 1))))
    return "\n".join([*lines, f"{'':16}{' ' * place}^ break-even at {crossing:,.0f} calls a day"])
