"""The bake-off as a table in the terminal, as Markdown, and as one page without scripts."""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 360, 56, 48, 64, 72
STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--dim:#5b6470;--line:#d5dae0;--paper:#fff;--mark:#0b62c4;--good:#157f3b}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ed;--dim:#9aa4b0;--line:#3a424c;--paper:#14181d;--mark:#6cb2ff;--good:#5fd38a}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;max-width:80rem;padding:1.5rem 1rem}
h1{font-size:1.5rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2rem 0 .5rem}p{max-width:46rem}
.verdict{border-left:4px solid var(--good);padding:.5rem 1rem;margin:1rem 0}.dim{color:var(--dim)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;white-space:nowrap;font-size:.9rem}
th,td{padding:.35rem .55rem;border-bottom:1px solid var(--line);text-align:right}th:first-child,td:first-child{text-align:left}
tr.winner td{font-weight:600}svg{max-width:min(100%,44rem);width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
@media(max-width:38rem){svg text{font-size:18px}}svg .axis{stroke:var(--line)}svg .mark{stroke:var(--mark);fill:var(--mark)}svg .bar{stroke:var(--mark);stroke-width:1.5}
svg .front{stroke:var(--good);fill:none;stroke-dasharray:4 4}
"""
COLUMNS = [
    "arm", "quality", "to the best", "p (Holm)", "tokens in / out", "p95 ms", "made in", "memory", "$ / 1k calls",
    "training $", "P(best)",
]  # fmt: skip


def table_rows(document: dict[str, Any]) -> list[list[str]]:
    """The table's cells as text, in the order of COLUMNS, best first."""
    primary = document["primary"]
    ordered = sorted(document["arms"], key=lambda r: -r["metrics"][primary]["value"])
    return [_cells(row, primary) for row in ordered]


def _cells(row: dict[str, Any], primary: str) -> list[str]:
    figure, change = row["metrics"][primary], row["to_best"]
    same = change["arm"] == row["arm"]
    difference = f"{change['difference']:+.1%} [{_signed(change['low'])}, {_signed(change['high'])}]"
    return [
        row["arm"],
        f"{figure['value']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]",
        "best" if same else difference,
        "" if same else f"{change['p_holm']:.3g}",
        f"{_number(row['prompt_tokens'])} / {_number(row['completion_tokens'])}",
        _number(row["latency_p95_ms"]),
        "" if row["made_s"] is None else f"{row['made_s']:,.0f} s",
        "" if row["peak_memory_gb"] is None else f"{row['peak_memory_gb']:.1f} GB",
        _usd(row["usd_per_1k_calls"]),
        _usd(row["train_usd"]),
        f"{row['probability_best']:.0%}",
    ]


def sentences(document: dict[str, Any]) -> list[str]:
    """What the figures say, a sentence each."""
    won, found = document["winner"], []
    if won["arm"] is None:
        return [f"No winner: {won['why']}."]
    found.append(f"{won['arm']}: {won['why']}. It has the highest score in {won['probability_best']:.0%} of resamples.")
    if won["undecided"]:
        names = ", ".join(
            f"{other['arm']} ({'none one can make' if other['need_n'] is None else 'about {:,}'.format(other['need_n'])})"
            for other in won["undecided"]
        )
        found.append(f"Not told from the best by {document['n']} items (with the number that would): {names}.")
    for arm, points in document["curves"].items():
        if len(points) > 1:
            found.append(_more_data(arm, points))
    for name, why in document["failed"].items():
        found.append(f"{name} is not in the table: {why}.")
    return found


def _more_data(arm: str, points: Sequence[dict[str, Any]]) -> str:
    before, last = points[-2], points[-1]
    gain = last["gain"]
    words = "more data would probably help" if (gain["low"] or 0.0) > 0 else "no clear gain"
    bounds = f"[{_signed(gain['low'])}, {_signed(gain['high'])}]"
    return f"{arm} from {before['rows']} to {last['rows']} rows: {gain['value']:+.1%} {bounds}; {words}."


def markdown(document: dict[str, Any]) -> str:
    """`summary.md`."""
    lines = [f"# Bake-off: {document['task']} ({document['n']} items)", ""]
    lines += [f"- {_escape_markdown(text)}" for text in sentences(document)]
    lines += ["", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(map(_escape_markdown, cells)) + " |" for cells in table_rows(document)]
    return "\n".join([*lines, "", _footnote(document), ""])


def page(document: dict[str, Any]) -> str:
    """`bakeoff.html`: one file, no script, no network."""
    first, *others = sentences(document)
    won = document["winner"]["arm"]
    head = "".join(f"<th scope=col>{html.escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        f"<tr{' class=winner' if cells[0] == won else ''}>"
        + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
        + "</tr>"
        for cells in table_rows(document)
    )
    curves = "".join(
        f"<h2>Learning curve: {html.escape(arm)}</h2>{curve(points)}"
        for arm, points in document["curves"].items()
        if len(points) > 1
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        "<!doctype html><html lang=en><head><meta charset=utf-8>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Bake-off: {html.escape(document['task'])}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>Bake-off: {html.escape(document['task'])}</h1>"
        f"<p class=dim>{html.escape(document['model'])}, {document['n']} items, {html.escape(document['primary'])}</p>"
        f"<p class=verdict>{html.escape(first)}</p>"
        + ("<ul>" + "".join(f"<li>{html.escape(t)}</li>" for t in others) + "</ul>" if others else "")
        + f"<h2>Arms</h2><div class=wide tabindex=0 role=region aria-label=Arms><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        f"<p class=dim>{html.escape(_footnote(document))}</p>"
        f"<h2>Quality and cost</h2>{scatter(document)}{curves}</main></body></html>\n"
    )


def _footnote(document: dict[str, Any]) -> str:
    return (
        f"quality: {document['primary']} with its 95 % interval. To the best: paired, 90 % interval, p adjusted over the arms. "
        f"$: the advisor's figures for {document['gpu']} at {document['calls_per_day']:,.0f} calls a day, from the tokens measured "
        "here, machines billed by the hour. p95, making time and memory: measured on this machine."
    )


def scatter(document: dict[str, Any]) -> str:
    """Quality (with interval) over the cost of a call at capacity, logarithmic; a dashed line joins the Pareto set."""
    primary = document["primary"]
    points = [
        (r["arm"], r["usd_per_1k_calls_at_capacity"], r["metrics"][primary])
        for r in document["arms"]
        if r["usd_per_1k_calls_at_capacity"]
    ]
    if not points:
        return "<p>No cost is known for this model and GPU.</p>"
    least, most = min(p[1] for p in points), max(p[1] for p in points)
    pad = max(1.03, (most / least) ** 0.15)
    low, high = least / pad, most * pad
    top = max(0.01, *(p[2]["high"] for p in points))

    def x(usd: float) -> float:
        return float(LEFT + (WIDTH - LEFT - RIGHT) * math.log(usd / low) / math.log(high / low))

    def y(value: float) -> float:
        return float(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top)

    parts = [_axes(top, y, "dollars per 1,000 calls, machines kept busy"), *_ticks_x(sorted({least, most}), x)]
    front = sorted((p for p in points if p[0] in document["pareto"]), key=lambda p: p[1])
    joined = " ".join(f"{x(usd):.1f},{y(f['value']):.1f}" for _, usd, f in front)
    parts.append(f'<polyline class="front" points="{joined}"/>')
    free = float(HEIGHT)
    last = -1000.0
    for arm, usd, figure in sorted(points, key=lambda p: p[1]):
        px, py = x(usd), y(figure["value"])
        parts.append(_bar(px, y(figure["low"]), y(figure["high"])))
        parts.append(f'<circle class="mark" cx="{px:.1f}" cy="{py:.1f}" r="4"/>')
        label = y(figure["high"]) - 6  # above the bar; above the neighbour's label where that is near
        if px - last < 64 and abs(label - free) < 14:
            label = free - 14
        free, last = label, px
        parts.append(f'<text x="{px:.1f}" y="{max(12.0, label):.1f}" text-anchor="middle">{html.escape(arm)}</text>')
    return _svg(parts, f"{primary} over cost for each arm")


def curve(points: Sequence[dict[str, Any]]) -> str:
    """Quality with its interval over training rows."""
    most, top = max(p["rows"] for p in points), max(0.01, *(p["high"] for p in points))

    def x(rows: float) -> float:
        return float(LEFT + (WIDTH - LEFT - RIGHT) * rows / most)

    def y(value: float) -> float:
        return float(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / top)

    parts = [_axes(top, y, "training rows")]
    joined = " ".join(f"{x(p['rows']):.1f},{y(p['value']):.1f}" for p in points)
    parts.append(f'<polyline class="bar" fill="none" points="{joined}"/>')
    for p in points:
        parts.append(_bar(x(p["rows"]), y(p["low"]), y(p["high"])))
        parts.append(f'<circle class="mark" cx="{x(p["rows"]):.1f}" cy="{y(p["value"]):.1f}" r="4"/>')
        parts.append(f'<text x="{x(p["rows"]):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{p["rows"]}</text>')
    return _svg(parts, "quality over training rows")


def _axes(top: float, y: Callable[[float], float], label: str) -> str:
    lines = [
        f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}"/>'
        f'<text x="{LEFT - 8}" y="{y(v) + 4:.1f}" text-anchor="end">{v:.0%}</text>'
        for v in (0.0, top / 2, top)
    ]
    return (
        "".join(lines) + f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{label}</text>'
    )


def _ticks_x(values: Sequence[float], x: Callable[[float], float]) -> list[str]:
    return [f'<text x="{x(v):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_usd(v)}</text>' for v in values]


def _bar(x: float, low: float, high: float) -> str:
    return f'<line class="bar" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'


def _svg(parts: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">{"".join(parts)}</svg>'


def _usd(value: float | None) -> str:
    if value is None:
        return ""
    return f"${value:,.2f}" if value >= 0.1 else f"${value:.2g}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _signed(value: float | None) -> str:
    return "?" if value is None else f"{value:+.1%}"


def _escape_markdown(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
