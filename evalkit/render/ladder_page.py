"""The ladder's page: one HTML file with a picture (inline SVG), the table behind it, and the items that changed."""

from html import escape
from typing import Any

WIDTH, LEFT, RIGHT, ROW, TOP = 860, 150, 300, 64, 46
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6472; --line: #d5dae1; --page: #ffffff; --dot: #1f5fa8; --drop: #b3261e; --gain: #1b7a43; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf0; --soft: #a3adba; --line: #39424f; --page: #14181f; --dot: #7db4f0; --drop: #ff9a91; --gain: #7fd6a2; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; } p { max-width: 46rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; } td, th { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child, td.text, th.text { text-align: left; } .scroll { overflow-x: auto; } code { font-size: .9em; overflow-wrap: anywhere; }
svg { width: 100%; min-width: 44rem; height: auto; } td { white-space: nowrap; } td.text { white-space: normal; } svg text { font: 13px system-ui, sans-serif; fill: var(--ink); } svg .soft { fill: var(--soft); }
.axis { stroke: var(--line); } .range, .link { stroke: var(--dot); fill: none; } .range { stroke-width: 2; } .link { stroke-dasharray: 3 4; opacity: .7; } .dot { fill: var(--dot); }
.drop { fill: var(--drop) !important; color: var(--drop); font-weight: 600; } .gain { fill: var(--gain) !important; color: var(--gain); font-weight: 600; }
"""


def render(document: dict[str, Any]) -> str:
    """The whole page. Nothing is loaded from elsewhere; every text is escaped."""
    task = document["task"]
    total = document["total"]
    drop = document["largest_drop"]
    lead = (
        f"The largest drop that is shown is due to <strong class=drop>{escape(drop)}</strong>."
        if drop
        else "No step shows a drop."
    )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Ladder: {escape(task['name'])}</title><style>{STYLE}</style>"
        f"<h1>{escape(task['name'])}: {escape(task['metric'])}, step by step</h1>"
        f"<p>{lead} From {escape(str(total['from']))} to {escape(str(total['to']))}: {total['difference']:+.3f} "
        f"[{total['low']:+.3f}, {total['high']:+.3f}] on the same {total['n']} items.</p>"
        f"{_picture(document)}<h2>Steps</h2>{_steps(document)}<h2>Changes</h2>{_changes(document)}"
        "<p>Intervals of scores are of level 95 %, of changes 90 % (Tango's score interval on the pairs). A change is shown when McNemar's "
        f"exact test, corrected by Holm for {len(document['changes'])} steps, has p below {2 * document['alpha']:g}. "
        "Smallest seen: the drop that this many items show with a power of 80 %; smaller ones go unseen.</p>"
        f"{_flips(document)}</html>\n"
    )


def _picture(document: dict[str, Any]) -> str:
    """Scores with intervals, top down; beside each the change from the step it is compared with."""
    steps, changes = document["steps"], {c["to"]: c for c in document["changes"]}
    height = TOP + ROW * len(steps)
    places = {step["name"]: TOP + ROW * index + 18 for index, step in enumerate(steps)}
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        at = _x(tick)
        parts.append(
            f'<line class="axis" x1="{at}" x2="{at}" y1="{TOP - 14}" y2="{height - 10}"/><text class="soft" x="{at}" y="18" text-anchor="middle">{tick:g}</text>'
        )
    for step in steps:
        change = changes.get(step["name"])
        if change:
            before = next(s for s in steps if s["name"] == change["from"])
            parts.append(
                f'<path class="link" d="M{_x(before["value"])} {places[before["name"]]} L{_x(step["value"])} {places[step["name"]]}"/>'
            )
    for step in steps:
        y, change = places[step["name"]], changes.get(step["name"])
        parts.append(
            f'<text x="0" y="{y + 1}">{escape(step["name"])}</text><text class="soft" x="0" y="{y + 17}">{_size(step["size_bytes"])}</text>'
        )
        parts.append(
            f'<line class="range" x1="{_x(step["low"])}" x2="{_x(step["high"])}" y1="{y}" y2="{y}"/><circle class="dot" cx="{_x(step["value"])}" cy="{y}" r="6"/>'
        )
        parts.append(f'<text x="{_x(step["value"])}" y="{y - 11}" text-anchor="middle">{step["value"]:.3f}</text>')
        if change:
            kind = {"drop": "drop", "gain": "gain"}.get(change["verdict"], "soft")
            parts.append(f'<text class="{kind}" x="{WIDTH - RIGHT + 24}" y="{y + 1}">{change["difference"]:+.3f} {escape(change["cause"])}</text>'
                         f'<text class="soft" x="{WIDTH - RIGHT + 24}" y="{y + 17}">{change["fixed"]} fixed, {change["broken"]} broken, p {escape(_p(change["mcnemar_p"]))}</text>')  # fmt: skip
    label = f"{document['task']['metric']} at each step: " + ", ".join(f"{s['name']} {s['value']:.3f}" for s in steps)
    return f'<div class="scroll"><svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg></div>'


def _x(value: float) -> str:
    return f"{LEFT + (WIDTH - LEFT - RIGHT) * min(1.0, max(0.0, value)):.1f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:,.0f} MB"


def _steps(document: dict[str, Any]) -> str:
    rows = [
        [step["name"], step["target"], step["digest"][:12], f"{step['value']:.3f}", f"{step['low']:.3f} to {step['high']:.3f}",
         ", ".join(f"{k} {n}" for k, n in step["outcomes"].items() if n)]
        for step in document["steps"]
    ]  # fmt: skip
    return _table(["step", "what", "digest", document["task"]["metric"], "95 % interval", "outcomes"], rows)


def _changes(document: dict[str, Any]) -> str:
    tokens = {True: "the same", False: "DIFFER", None: "not known"}
    rows = [
        [f"{c['from']} to {c['to']}", c["cause"], f"{c['difference']:+.3f}", f"{c['low']:+.3f} to {c['high']:+.3f}", f"{c['fixed']}/{c['broken']}",
         _p(c["mcnemar_p"]), _p(c["p_holm"]), c["verdict"], f"{c['detectable']:.2f}" if c["detectable"] else "", tokens[c["same_prompt_tokens"]]]
        for c in document["changes"]
    ]  # fmt: skip
    return _table(
        [
            "change",
            "due to",
            "difference",
            "90 % interval",
            "fixed/broken",
            "McNemar p",
            "Holm p",
            "shown",
            "smallest seen",
            "prompt tokens",
        ],
        rows,
    )


def _flips(document: dict[str, Any]) -> str:
    parts = []
    for change in document["changes"]:
        if change["flips"]:
            rows = [[f["id"], f["direction"], f["cause"], f["reason"] or ""] for f in change["flips"][:100]]
            more = f" (the first 100 of {len(change['flips'])})" if len(change["flips"]) > 100 else ""
            parts.append(f"<details><summary>{escape(change['from'])} to {escape(change['to'])}: {len(change['flips'])} items{more}</summary>"
                         f"{_table(['item', 'direction', 'cause', 'reason'], rows)}</details>")  # fmt: skip
    return "<h2>Items that changed</h2>" + "".join(parts) if parts else ""


def _table(heads: list[str], rows: list[list[str]]) -> str:
    texts = {"what", "digest", "due to", "outcomes", "shown", "prompt tokens", "direction", "cause", "reason"}
    cell = ["text" if head in texts else "" for head in heads]
    head = "".join(f'<th class="{c}">{escape(h)}</th>' for h, c in zip(heads, cell, strict=True))
    body = "".join(
        "<tr>" + "".join(f'<td class="{c}">{escape(str(v))}</td>' for v, c in zip(row, cell, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
