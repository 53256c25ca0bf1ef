"""The page over a folder of reports: each metric over time with intervals and decisions, and the list of reports.

Static HTML and inline SVG: the page has no script, and its policy allows none.
"""

import math
from typing import Any

from tunegate.evalkit.render.html import asset, style_policy
from tunegate.evalkit.render.html_text import attribute, count, finite, interval, is_rate, number, obj, rows, shown
from tunegate.evalkit.render.html_verdict import GLYPHS, badge

STYLES = ("report.css", "report_trend.css")
TALL, LOW = 220, 116  # of a chart, in px


def style() -> str:
    """The style of the page."""
    return "\n".join(map(asset, STYLES))


def policy() -> str:
    """The Content-Security-Policy of the page: its one style, and nothing else."""
    return style_policy(style())


def render(document: dict[str, Any]) -> str:
    """The page as HTML. document: what `tunegate.evalkit.report_trend.trend` returns."""
    summaries = {str(item.get("key")): item for item in rows(document.get("reports"))}
    tasks = rows(document.get("tasks"))
    parts = "".join(_task(task, summaries, at) for at, task in enumerate(tasks))
    if not summaries:
        parts = '<section><p class="empty">No report was found in this folder.</p></section>'
    links = "".join(f'<a href="#task-{at}">{shown(task.get("name"))}</a>' for at, task in enumerate(tasks))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<meta name="referrer" content="no-referrer"><title>Reports</title><style>{style()}</style></head><body>'
        f'<a class="skip" href="#main">Skip to the trend</a><header class="page-head"><div class="wrap"><h1>Reports</h1>'
        f'<p class="sub">{count(len(summaries), "report")} in <code>{shown(document.get("folder"))}</code></p>'
        f'<nav aria-label="Tasks">{links}</nav></div></header>'
        f'<main class="wrap" id="main" tabindex="-1">{parts}{_skipped(rows(document.get("skipped")))}</main>'
        '<footer class="wrap foot"><p>Oldest on the left; in a point ✓ PASS, ✕ FAIL, ? INCONCLUSIVE, hollow: no gate. The axes do not begin at zero. Bars are 95% intervals; two that overlap may still differ: the '
        "paired test in each report decides. A dashed line means that data, scorer or generation settings changed "
        "between the two, so that the difference is not the model's alone.</p></footer></body></html>\n"
    )


def _task(task: dict[str, Any], summaries: dict[str, dict[str, Any]], at: int) -> str:
    metrics, primary = obj(task.get("metrics")), str(task.get("primary"))
    ordered = sorted(metrics, key=lambda name: name != primary)
    first = _panel(primary, rows(metrics.get(primary)), summaries, large=True) if primary in metrics else ""
    small = "".join(
        _panel(name, rows(metrics[name]), summaries) for name in ordered if name != primary and _worth(name)
    )
    mine = [item for item in summaries.values() if item.get("task") == task.get("name")]
    values = {str(point.get("report")): point for point in rows(metrics.get(primary))}
    return (
        f'<section id="task-{at}" aria-labelledby="task-{at}-title"><h2 id="task-{at}-title">{shown(task.get("name"))}</h2>'
        f'{first}<div class="panels trend-panels">{small}</div>{_table(mine, values, primary)}</section>'
    )


def _worth(name: str) -> bool:
    """The figures that are drawn: scores, and of the others those that people watch."""
    shown_ones = ("latency_p95_ms", "ttft_p95_ms", "cost_per_correct_usd", "truncated_rate", "infra_error_rate")
    return name in shown_ones or (not name.endswith(("_ms", "_rate", "_usd")) and not name.startswith("leakage"))


def _panel(
    name: str, points: list[dict[str, Any]], summaries: dict[str, dict[str, Any]], *, large: bool = False
) -> str:
    """One metric over its reports. Every point is a link to its report."""
    drawn = [point for point in points if finite(point.get("value")) is not None]
    if not drawn:
        return ""
    rate = is_rate(name, *(point.get("value") for point in drawn))
    axis, height = _axis(drawn, rate=rate), TALL if large else LOW
    last = drawn[-1]

    def form(value: Any) -> str:
        return number(value, metric=name, rate=rate)

    marks = [_mark(point, (at + 0.5) / len(drawn), axis, height, form, summaries) for at, point in enumerate(drawn)]
    lines = [_step(drawn, at, axis, height) for at in range(1, len(drawn))]
    places = [_y(axis[0] + share * (axis[1] - axis[0]), axis, height) for share in (0, 0.5, 1)]
    grid = "".join(f'<line class="grid" x1="0%" x2="100%" y1="{y}" y2="{y}"/>' for y in places)
    label = (
        f"{name} over {count(len(drawn), 'report')}, from {form(drawn[0].get('value'))} to {form(last.get('value'))}"
    )
    return (
        f'<figure class="trend{" large" if large else ""}"><figcaption><code>{shown(name)}</code>'
        f"{' <span class=tag>primary</span>' if large else ''} <strong>{form(last.get('value'))}</strong> "
        f"<small>{interval(last.get('low'), last.get('high'), form)}</small></figcaption>"
        f'<div class="chart"><span class="y-label">{form(axis[1])}</span><span class="y-label bottom">{form(axis[0])}</span>'
        f'<svg role="group" aria-label="{attribute(label)}" width="100%" height="{height}">{grid}{"".join(lines)}{"".join(marks)}</svg></div></figure>'
    )


def _axis(points: list[dict[str, Any]], *, rate: bool) -> tuple[float, float]:
    """Both ends of the axis: room for every interval, not from zero, because a change of points is what is looked for."""
    ends = [end for point in points for key in ("value", "low", "high") if (end := finite(point.get(key))) is not None]
    low, high = min(ends), max(ends)
    if rate:
        low, high = math.floor(20 * low - 0.2) / 20, math.ceil(20 * high + 0.2) / 20
        return (max(0.0, low), min(1.0, high)) if min(ends) >= 0 else (low, high)
    room = 0.2 * (high - low or abs(high) or 1.0)
    return max(0.0, low - room) if low >= 0 else low - room, high + room


def _y(value: float, axis: tuple[float, float], height: int) -> str:
    share = (value - axis[0]) / (axis[1] - axis[0])
    return f"{height - 14 - (height - 28) * min(1.0, max(0.0, share)):.1f}"


def _step(points: list[dict[str, Any]], at: int, axis: tuple[float, float], height: int) -> str:
    before, now = points[at - 1], points[at]
    kind = "link changed" if now.get("changed") else "link"
    return (
        f'<line class="{kind}" x1="{(at - 0.5) / len(points):.3%}" x2="{(at + 0.5) / len(points):.3%}" '
        f'y1="{_y(before["value"], axis, height)}" y2="{_y(now["value"], axis, height)}"/>'
    )


def _mark(
    point: dict[str, Any],
    x: float,
    axis: tuple[float, float],
    height: int,
    form: Any,
    summaries: dict[str, dict[str, Any]],
) -> str:
    report = summaries.get(str(point.get("report")), {})
    low, high = finite(point.get("low")), finite(point.get("high"))
    word = str(point.get("decision") or "no gate")
    changed = point.get("changed")
    differs = f", {', '.join(map(str, changed))} changed before it" if isinstance(changed, list) and changed else ""
    label = f"{report.get('name')}, {str(point.get('created'))[:10]}: {form(point.get('value'))}, {interval(low, high, form)}, {word}{differs}"
    at, y = f'cx="{x:.3%}"', _y(point["value"], axis, height)
    bar = ""
    if low is not None and high is not None:
        ends = f'x1="{x:.3%}" x2="{x:.3%}" y1="{_y(low, axis, height)}" y2="{_y(high, axis, height)}"'
        bar = f'<line class="range candidate" {ends}/>'
    sign = f'<text class="sign" x="{x:.3%}" y="{y}" dy="3.5">{GLYPHS[word]}</text>' if word in GLYPHS else ""
    return (
        f'<a href="{_address(point.get("report"))}" aria-label="{attribute(label)}"><title>{shown(label)}</title>{bar}'
        f'<circle class="hit" {at} cy="{y}" r="14"/><circle class="mark {word.lower() if sign else "none"}" {at} cy="{y}" r="7"/>{sign}</a>'
    )


def _address(key: Any) -> str:
    return f"/report/{attribute(key)}"


def _table(summaries: list[dict[str, Any]], values: dict[str, dict[str, Any]], primary: str) -> str:
    """The reports of a task, newest first."""
    body = "".join(_row(item, obj(values.get(str(item.get("key")))), primary) for item in reversed(summaries))
    return (
        f'<table class="scores reports"><caption class="visually-hidden">Reports, newest first</caption><thead><tr><th scope="col">Report</th>'
        f'<th scope="col">Gate</th><th scope="col" class="num">{shown(primary)}</th><th scope="col" class="num">Items</th>'
        f'<th scope="col">Judged</th><th scope="col">Made</th></tr></thead><tbody>{body}</tbody></table>'
    )


def _row(item: dict[str, Any], point: dict[str, Any], primary: str) -> str:
    rate = is_rate(primary, point.get("value"))

    def form(value: Any) -> str:
        return number(value, metric=primary, rate=rate)

    ends = interval(point.get("low"), point.get("high"), form)
    against = f"<small>against {shown(item['against'])}</small>" if item.get("against") else ""
    verdict = badge(str(item["decision"])) if item.get("decision") else '<span class="quiet">none</span>'
    changed = point.get("changed")
    note = (
        f"<small>{shown(', '.join(map(str, changed)))} changed</small>" if isinstance(changed, list) and changed else ""
    )
    return (
        f'<tr><th scope="row"><a href="{_address(item.get("key"))}">{shown(item.get("name"))}</a>{against}</th><td>{verdict}</td>'
        f'<td class="num" data-label="{attribute(primary)}"><strong>{form(point.get("value"))}</strong><small>{ends}</small>{note}</td>'
        f'<td class="num" data-label="Items">{number(item.get("n"))}</td><td><code>{shown(item.get("target"))}</code>'
        f"<small>{shown(str(item.get('target_digest') or '')[:12])}</small></td><td>{shown(item.get('created'))}</td></tr>"
    )


def _skipped(items: list[dict[str, Any]]) -> str:
    if not items:
        return ""
    body = "".join(f"<li><code>{shown(item.get('path'))}</code>: {shown(item.get('reason'))}</li>" for item in items)
    return f'<section aria-labelledby="skipped-title"><h2 id="skipped-title">Could not be read</h2><ul>{body}</ul></section>'
