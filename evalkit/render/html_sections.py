"""The middle and the end of the report page: key figures, causes, slices, speed and length, where it all came from."""

import json
from collections import Counter
from typing import Any
from urllib.parse import quote

from tunegate.core.statistics import quantile
from tunegate.evalkit.render.html_operations import leakage, operations
from tunegate.evalkit.render.html_plots import histogram, interval_plot, nice_ceiling
from tunegate.evalkit.render.html_text import (
    as_text,
    attribute,
    count,
    finite,
    interval,
    is_rate,
    number,
    obj,
    p_value,
    points,
    rows,
    shown,
)

OUTCOMES = {
    "pass": "right",
    "fail": "wrong",
    "truncated": "cut off at max_tokens",
    "refused": "refused to answer",
    "unparsable": "could not be read",
    "infra_error": "infrastructure error (not the model's)",
}
Rows = list[dict[str, Any]]
_FEW = 12  # rows of a table that are shown at once; the rest is one click away


def key_figures(report: dict[str, Any], flips: list[dict[str, Any]]) -> str:
    """The strip under the verdict: items, primary score, flips, latency, tokens, size, speed; what is absent is left out."""
    primary = str(obj(report.get("task")).get("primary") or "")
    score = obj(obj(report.get("metrics")).get(primary))
    facts: list[tuple[str, str, str]] = []
    if finite(report.get("n")) is not None:
        facts.append(("Items", number(report["n"]), _outcome_note(report)))
    if finite(score.get("value")) is not None:
        rate = is_rate(primary, score.get("value"))
        facts.append((f"Score, {shown(primary)}", number(score["value"], metric=primary, rate=rate), "candidate"))
    if obj(report.get("comparison")):
        kinds = Counter(str(flip.get("direction")) for flip in flips)
        links = "&ensp;".join(_flip_link(name, sign, kinds[name]) for name, sign in (("broken", "▼"), ("fixed", "▲")))
        facts.append(("Changed", links, "broken, fixed"))
    latency = obj(obj(report.get("latency")).get("latency_ms"))
    if finite(latency.get("p95")) is not None:
        facts.append(
            ("Latency, p95", number(latency["p95"], metric="_ms"), f"p50 {number(latency.get('p50'), metric='_ms')}")
        )
    tokens = finite(obj(report.get("tokens")).get("completion"))
    items = (finite(report.get("n")) or 0) - (finite(obj(report.get("outcomes")).get("infra_error")) or 0)
    answered = finite(obj(report.get("tokens")).get("answers")) or items  # older reports: one an item
    if tokens is not None and answered > 0:
        facts.append(("Answer length", f"{tokens / answered:,.0f} tokens", "mean"))
    if finite(report.get("size_bytes")) is not None:
        facts.append(("Size on disk", number(report["size_bytes"], metric="_bytes"), ""))
    cost = finite(obj(obj(report.get("operations")).get("cost_per_correct_usd")).get("value"))
    if cost is not None:
        facts.append(("Cost per right answer", number(cost, metric="_usd"), "answers that are wrong included"))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in facts)
    return f'<dl class="figures">{cells}</dl>' if cells else ""


def _flip_link(name: str, sign: str, n: int) -> str:
    return (
        f'<button type="button" class="link" data-filter="change={name}" aria-label="{n} {name}">{sign} {n:,}</button>'
    )


def _outcome_note(report: dict[str, Any]) -> str:
    outcomes = obj(report.get("outcomes"))
    odd = [
        f"{number(outcomes[key])} {key.replace('_', ' ')}" for key in list(OUTCOMES)[2:] if finite(outcomes.get(key))
    ]
    return ", ".join(odd) or "none cut off, refused or lost"


def causes(flips: list[dict[str, Any]]) -> str:
    """Flips grouped by cause: a table of counts, fixed and broken, each a filter of the items below."""
    groups = Counter((str(flip.get("cause") or "unknown"), str(flip.get("direction"))) for flip in flips)
    if not groups:
        return ""
    names = sorted(
        {name for name, _ in groups}, key=lambda name: (-groups[name, "broken"], -groups[name, "fixed"], name)
    )

    def cell(name: str, direction: str) -> str:
        n = groups[name, direction]
        said = f"{n} {direction}, cause {name}"
        target = attribute(f"change={direction}&cause={_quoted(name)}")
        link = (
            f'<button type="button" class="link" data-filter="{target}" aria-label="{attribute(said)}">{n:,}</button>'
        )
        return f'<td class="num">{link if n else "0"}</td>'

    body = "".join(
        f'<tr><th scope="row">{shown(name.replace("_", " "))}</th>{cell(name, "broken")}{cell(name, "fixed")}</tr>'
        for name in names[:_FEW]
    )
    if len(names) > _FEW:
        body += f'<tr><th scope="row" colspan="3">{count(len(names) - _FEW, "more cause")} in the filter of the items</th></tr>'
    return (
        '<div><h3>By cause</h3><table class="small-table"><caption class="visually-hidden">Flips by cause</caption><thead><tr>'
        '<th scope="col">What the wrong answer did</th><th scope="col" class="num">▼ broken</th><th scope="col" class="num">▲ fixed</th>'
        f"</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _quoted(text: str) -> str:
    return quote(text, safe="", errors="replace")


def slices(report: dict[str, Any]) -> str:
    """A table for each slice key: items, the primary score with its interval, and the difference where compared."""
    primary = str(obj(report.get("task")).get("primary") or "")
    compared: dict[tuple[str, str], dict[str, Any]] = {}
    for item in rows(obj(report.get("comparison")).get("slices")):
        key, value = str(item.get("key", item.get("slice", ""))), str(item.get("value", item.get("name", "")))
        if item.get("metric", primary) == primary:
            compared[key, value] = item
    tables = ""
    for key, values in obj(report.get("slices")).items():
        ordered = sorted(obj(values).items(), key=lambda pair: (-(finite(obj(pair[1]).get("n")) or 0), pair[0]))
        body = [_slice_row(key, value, obj(content), compared.get((key, value)), primary) for value, content in ordered]
        rest = ""
        if len(body) > _FEW:
            more = f"<summary>{len(body) - _FEW:,} more, with fewer items</summary>"
            rest = f'<details class="rest">{more}{_slice_table(key, primary, body[_FEW:], compared=bool(compared))}</details>'
        few = _slice_table(key, primary, body[:_FEW], compared=bool(compared))
        tables += f'<div class="wide"><h3>By {shown(key)}</h3>{few}{rest}</div>'
    return tables


def _slice_table(key: str, primary: str, body: list[str], *, compared: bool) -> str:
    change = '<th scope="col" class="num">Difference</th><th scope="col" class="num">p (Holm)</th>' if compared else ""
    return (
        f'<table class="small-table slices"><caption class="visually-hidden">{shown(primary)} by {shown(key)}</caption>'
        f'<thead><tr><th scope="col">{shown(key)}</th><th scope="col" class="num">Items</th>'
        f'<th scope="col" class="num">{shown(primary)}</th><th scope="col"><span class="visually-hidden">Plot, 0% to 100%</span></th>'
        f"{change}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    )


def _slice_row(key: str, value: str, content: dict[str, Any], change: dict[str, Any] | None, primary: str) -> str:
    score = obj(obj(content.get("metrics")).get(primary))
    rate = is_rate(primary, score.get("value"), score.get("low"), score.get("high"))

    def form(amount: Any) -> str:
        return number(amount, metric=primary, rate=rate)

    ends = interval(score.get("low"), score.get("high"), form)
    plot = (
        interval_plot([{**score, "series": "candidate"}], (0.0, 1.0), f"{value}: {form(score.get('value'))}, {ends}")
        if rate
        else ""
    )
    target = attribute(f"slice={_quoted(json.dumps([key, value], ensure_ascii=False, separators=(',', ':')))}")
    row = (
        f'<tr><th scope="row"><button type="button" class="link" data-filter="{target}">{shown(value)}</button></th>'
        f'<td class="num" data-label="Items">{number(content.get("n"))}</td><td class="num" data-label="{attribute(primary)}"><strong>{form(score.get("value"))}</strong><small>{ends}</small></td>'
        f'<td class="plot">{plot}</td>'
    )
    if change is not None:
        p = next(
            (
                change[name]
                for name in ("p_holm", "holm_p", "p_adjusted", "mcnemar_p", "p")
                if finite(change.get(name)) is not None
            ),
            None,
        )
        ends = interval(change.get("low"), change.get("high"), points)
        row += f'<td class="num" data-label="Difference"><strong>{points(change.get("difference"))}</strong><small>{ends}</small></td><td class="num" data-label="p (Holm)">{p_value(p)}</td>'
    return row + "</tr>"


def speed(report: dict[str, Any], results: Rows, baseline: Rows) -> str:
    """Latency, time to first token and answer length: histograms of candidate and baseline on one axis, their quantiles,
    and every figure beside the scores that a gate can name."""
    panels = ""
    for key, title, unit in (
        ("latency_ms", "Latency", "_ms"),
        ("ttft_ms", "Time to first token", "_ms"),
        ("completion_tokens", "Answer length", "_tokens"),
    ):
        series = {name: sorted(_values(items, key)) for name, items in (("candidate", results), ("baseline", baseline))}
        panels += _distribution(title, unit, {name: values for name, values in series.items() if values})
    timing = obj(report.get("timing"))
    wall, rate = timing.get("wall_s"), timing.get("requests_per_s")
    note = '<p class="quiet">Dashed lines: p50 and p95.'
    if finite(wall) is not None:
        note += f" The run took {number(wall, metric='_s')}, {number(rate, metric='_per_s')}."
    drawn = (
        f'<div class="panels">{panels}</div>{note}</p>'
        if panels
        else '<p class="empty">No latency or length was recorded.</p>'
    )
    return drawn + operations(report)


def _values(items: Rows, key: str) -> list[float]:
    """The finite values of a field, one for each repeat where an item was asked several times."""
    repeated = {"latency_ms": "latencies_ms", "ttft_ms": "ttfts_ms"}.get(key, "")
    found = [value for item in items for value in _list(item.get(repeated)) or [item.get(key)]]
    return [float(value) for value in map(finite, found) if value is not None and value >= 0]


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _distribution(title: str, unit: str, series: dict[str, list[float]]) -> str:
    if not series:
        return ""
    top = nice_ceiling(max(max(quantile(values, 0.99), 1e-9) for values in series.values()))
    drawn, body = "", ""
    for name, values in series.items():
        p50, p95, p99 = (number(quantile(values, share), metric=unit) for share in (0.5, 0.95, 0.99))
        label = f"{title}, {name}: {len(values)} answers, p50 {p50}, p95 {p95}"
        drawn += f'<figcaption class="key {name}">{name}, {count(len(values), "answer")}</figcaption>{histogram(values, (0.0, top), 32, name, label)}'
        body += f'<tr><th scope="row">{name}</th><td class="num">{p50}</td><td class="num">{p95}</td><td class="num">{p99}</td></tr>'
    return (
        f'<section class="panel"><h3>{title}</h3><figure>{drawn}<div class="axis-labels"><span>0</span>'
        f"<span>{number(top / 2, metric=unit)}</span><span>{number(top, metric=unit)} and more</span></div></figure>"
        f'<table class="small-table"><caption class="visually-hidden">{title}, quantiles</caption><thead><tr><td></td><th scope="col" class="num">p50</th>'
        f'<th scope="col" class="num">p95</th><th scope="col" class="num">p99</th></tr></thead><tbody>{body}</tbody></table></section>'
    )


def provenance(report: dict[str, Any]) -> str:
    """What was judged, on what, with which settings, what was allowed to differ, and the ancestors of it all."""
    target, task, data = obj(report.get("target")), obj(report.get("task")), obj(report.get("data"))
    base = obj(obj(report.get("comparison")).get("baseline"))
    validators = ", ".join(f"{item.get('name')} ({item.get('kind')})" for item in rows(task.get("validators")))
    settings = ", ".join(f"{key} {value}" for key, value in obj(report.get("generation")).items())
    facts = [
        ("Candidate", _thing(target.get("spec"), target.get("digest"), target.get("kind"))),
        ("Baseline", _thing(base.get("spec") or base.get("name"), base.get("digest"), None) if base else ""),
        ("Task", _thing(task.get("name"), task.get("digest"), None)),
        (
            "Data",
            _thing(
                data.get("path"),
                data.get("sha256"),
                count(int(n), "row") if (n := finite(data.get("n"))) is not None else None,
            ),
        ),
        ("Validators", shown(validators)),
        ("Generation", shown(settings)),
        ("Rendered prompts", _digest(report.get("prompt_digest"))),
        ("Prompt token ids", _digest(report.get("prompt_ids_digest"))),
        ("Chat template", _digest(report.get("template_digest"))),
        ("Scorer version", shown(report.get("scorer_version"))),
        ("Test of the difference", _test(report)),
        ("Leakage", leakage(report)),
        ("Served by", _server(obj(report.get("server")))),
        ("Created", shown(report.get("created"))),
    ]
    body = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value)
    return f'<dl class="facts">{body}</dl>{_lineage(rows(report.get("lineage")))}'


def _test(report: dict[str, Any]) -> str:
    """Which test the primary metric's difference was put to, and the design effect where rows share a group."""
    primary = obj(report.get("task")).get("primary")
    change = obj(obj(obj(report.get("comparison")).get("metrics")).get(str(primary)))
    effect = finite(change.get("design_effect"))
    note = f"<small>design effect {effect:.2f}</small>" if effect is not None and effect != 1 else ""
    return f"{shown(change['test'])} {note}" if change.get("test") else ""


def _server(server: dict[str, Any]) -> str:
    """The engine and the flags it was started with."""
    flags = server.get("flags")
    told = " ".join(as_text(flag) for flag in flags) if isinstance(flags, list) else ""
    if not server.get("engine"):
        return ""
    start = finite(server.get("start_s"))
    note = f"<small>started in {start:.1f} s</small>" if start is not None else ""
    folded = f'<details class="rest"><summary>Flags</summary><code>{shown(told)}</code></details>' if told else ""
    return f"{shown(server['engine'])} {note}{folded}"


def _thing(name: Any, digest: Any, note: Any) -> str:
    parts = [
        f"<span>{shown(name)}</span>" if name else "",
        f"<small>{shown(note)}</small>" if note else "",
        _digest(digest),
    ]
    return " ".join(part for part in parts if part)


def _digest(value: Any) -> str:
    """The first twelve hex digits, the whole in the title."""
    return f'<code class="digest" title="{attribute(value)}">{shown(str(value)[:12])}</code>' if value else ""


def _lineage(items: Rows) -> str:
    if not items:
        return '<p class="empty">No lineage was recorded.</p>'
    body = ""
    for item in items:
        depth = min(8, max(1, int(finite(item.get("depth")) or 1)))
        body += (
            f'<li class="depth-{depth}"><span class="role">{shown(item.get("role"))}</span> <strong>{shown(item.get("kind"))}</strong> '
            f'<span class="path">{shown(item.get("path"))}</span> {_digest(item.get("digest"))} <small>{shown(item.get("created"))}</small></li>'
        )
    return f'<h3>Made from</h3><ol class="lineage">{body}</ol>'
