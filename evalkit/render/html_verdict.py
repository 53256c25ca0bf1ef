"""The top of the report page: may this model be released, why, and the scores the answer rests on."""

from typing import Any

from tunegate.core.statistics import wilson
from tunegate.evalkit.render.html_operations import caveats
from tunegate.evalkit.render.html_plots import interval_plot, stacked_bar
from tunegate.evalkit.render.html_text import (
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

DIFFERENCE_RULES = ("non_inferior", "superior")
GLYPHS = {"PASS": "✓", "FAIL": "✕", "INCONCLUSIVE": "?"}


def badge(decision: str) -> str:
    """A verdict as a sign and a word, so that colour is never the only signal."""
    name = decision.lower() if decision in GLYPHS else "none"
    return f'<span class="badge {name}"><b aria-hidden="true">{GLYPHS.get(decision, "·")}</b>{shown(decision)}</span>'


def verdict(report: dict[str, Any]) -> str:
    """The banner: the decision in one word, what it means in one sentence, and each condition with its numbers."""
    decision = obj(report.get("decision"))
    if not decision:
        return (
            '<div class="banner none"><div class="banner-head"><p class="verdict-word" id="verdict-title">No gate was applied</p>'
            '<p class="verdict-why">This report measures; it does not decide. Run <code>ft gate</code> on it, or '
            f"<code>ft eval --against</code> a baseline, for a verdict.</p>{caveats(report)}</div></div>"
        )
    word = str(decision.get("decision", "unknown"))
    order = ["FAIL", "INCONCLUSIVE"]
    conditions = sorted(
        rows(decision.get("conditions")),
        key=lambda item: order.index(item["decision"]) if item.get("decision") in order else len(order),
    )
    body = "".join(_condition(item) for item in conditions)
    table = (
        '<table class="conditions"><caption class="quiet-caption">Conditions of the gate</caption><thead><tr><th scope="col">Result</th>'
        '<th scope="col">Condition</th><th scope="col" class="num">Measured</th>'
        f'<th scope="col"><span class="visually-hidden">Plot</span></th></tr></thead><tbody>{body}</tbody></table>'
        if conditions
        else ""
    )
    name = word.lower() if word in GLYPHS else "none"
    return (
        f'<div class="banner {name}"><div class="banner-head"><p class="verdict-word" id="verdict-title">'
        f'<b class="verdict-glyph" aria-hidden="true">{GLYPHS.get(word, "·")}</b>{shown(word)}</p>'
        f'<p class="verdict-why">{_why(report, word, conditions)}</p>{caveats(report)}</div>{table}</div>'
    )


def _why(report: dict[str, Any], word: str, conditions: list[dict[str, Any]]) -> str:
    """One or two plain sentences: what the verdict means for the release, and which conditions made it."""
    name = f"<strong>{shown(report.get('name') or 'This model')}</strong>"
    baseline = obj(obj(report.get("comparison")).get("baseline"))
    other = f" replace <strong>{shown(baseline['name'])}</strong>" if baseline.get("name") else " be released"
    by = {key: [item for item in conditions if item.get("decision") == key] for key in GLYPHS}
    total = count(len(conditions), "condition")
    if word == "PASS":
        return f"{name} may{other}. {'It is' if len(conditions) == 1 else f'All {total} are'} shown by the data."
    if word == "FAIL":
        named = ", ".join(shown(item.get("metric")) for item in by["FAIL"])
        return f"{name} may not{other}. The data show the contrary of {len(by['FAIL'])} of {total}: {named}."
    if word == "INCONCLUSIVE":
        need = max((int(n) for item in conditions if (n := finite(item.get("need_n"))) is not None), default=None)
        more = (
            ""
            if need is None
            else f" About <strong>{need:,}</strong> items would settle it; this run had {_n(report)}."
        )
        named = ", ".join(shown(item.get("metric")) for item in by["INCONCLUSIVE"])
        return f"Not yet known whether {name} may{other}. {len(by['INCONCLUSIVE'])} of {total} could not be settled: {named}.{more}"
    return f"The gate's answer for {name} is not one this page knows."


def _n(report: dict[str, Any]) -> str:
    n = finite(report.get("n"))
    return "an unknown number" if n is None else f"{n:,}"


def _condition(item: dict[str, Any]) -> str:
    metric, rule = str(item.get("metric", "")), str(item.get("rule", ""))
    limit = next(
        (finite(item[key]) for key in ("bound", "limit", "threshold", "margin") if finite(item.get(key)) is not None),
        None,
    )
    form = _form(metric, rule, item)
    measured = interval(item.get("low"), item.get("high"), form)
    need = finite(item.get("need_n"))
    where = f' <span class="tag">{shown(item["slice"])}</span>' if item.get("slice") else ""
    notes = [shown(item["reason"])] if item.get("reason") else []
    notes += [f"needs about {need:,.0f} items"] if need is not None and item.get("decision") == "INCONCLUSIVE" else []
    return (
        f"<tr><td>{badge(str(item.get('decision', 'unknown')))}</td>"
        f'<th scope="row">{_in_words(metric, rule, limit, form)}{where}<small>{"; ".join(notes)}</small></th>'
        f'<td class="num"><strong>{form(item.get("value"))}</strong>{f"<small>{measured}</small>" if measured else ""}</td>'
        f'<td class="plot">{_condition_plot(item, metric, rule, limit, form)}</td></tr>'
    )


def _form(metric: str, rule: str, item: dict[str, Any]) -> Any:
    """How to write this condition's numbers: points for differences of rates, percent for rates, else the unit."""
    rate = is_rate(metric, item.get("value"), item.get("low"), item.get("high"))
    if rule in DIFFERENCE_RULES:
        return points if rate else lambda value: number(value, metric=metric)
    return lambda value: number(value, metric=metric, rate=rate)


def _in_words(metric: str, rule: str, limit: float | None, form: Any) -> str:
    name = f"<code>{shown(metric)}</code>"
    bound = "" if limit is None else form(abs(limit)).removeprefix("+").replace(".0", "")
    if rule == "non_inferior":
        return f"{name} is not worse than the baseline" + (f" by {bound} or more" if bound else " beyond the margin")
    if rule == "superior":
        return f"{name} is better than the baseline"
    words = {"at_least": "is at least", "at_most": "is at most"}.get(rule)
    return f"{name} {words} {bound or 'the limit'}" if words else f"{name} {shown(rule)}"


def _condition_plot(item: dict[str, Any], metric: str, rule: str, limit: float | None, form: Any) -> str:
    value, low, high = (finite(item.get(key)) for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return ""
    if rule in DIFFERENCE_RULES:
        limit = -abs(limit) if rule == "non_inferior" and limit is not None else 0.0
    drawn = [low, high, value, *([limit] if limit is not None else [])]
    spread = (max(drawn) - min(drawn)) or abs(value) or 1
    axis = (min(drawn) - 0.12 * spread, max(drawn) + 0.12 * spread)
    label = f"{metric}: {form(value)}, {interval(low, high, form)}" + (
        "" if limit is None else f", limit {form(limit)}"
    )
    mark = {"value": value, "low": low, "high": high, "series": "candidate"}
    return interval_plot([mark], axis, label, limit)


def baseline_metric(difference: dict[str, Any], candidate: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """The baseline's own score: as saved, else from the four counts with a Wilson interval, else by subtraction.

    Returns {value, low, high}; any may be missing.
    """
    if finite(saved.get("value")) is not None:
        return saved
    counts = [finite(difference.get(key)) for key in ("both_pass", "broken", "fixed", "both_fail")]
    known = [n for n in counts if n is not None]
    if len(known) == len(counts) and sum(known) > 0:
        rate = wilson(known[0] + known[1], sum(known))
        return {"value": rate.value, "low": rate.low, "high": rate.high}
    value, change = finite(candidate.get("value")), finite(difference.get("difference"))
    return {"value": value - change} if value is not None and change is not None else {}


def scores(report: dict[str, Any]) -> str:
    """A table of every metric: candidate and baseline with intervals, drawn on one axis, and the paired difference."""
    metrics = {str(name): obj(value) or {"value": value} for name, value in obj(report.get("metrics")).items()}
    comparison = obj(report.get("comparison"))
    differences, saved = obj(comparison.get("metrics")), obj(obj(comparison.get("baseline")).get("metrics"))
    if not metrics:
        return '<p class="empty">This report has no scores.</p>'
    primary = obj(report.get("task")).get("primary")
    body = ""
    for name in sorted(metrics, key=lambda metric: metric != primary):
        change = obj(differences.get(name))
        base = baseline_metric(change, metrics[name], obj(saved.get(name))) if comparison else {}
        body += _score_row(name, metrics[name], base, change, primary=name == primary, compared=bool(comparison))
    extra = '<th scope="col" class="num">Baseline</th>' if comparison else ""
    level = finite(comparison.get("level"))
    of = "paired" if level is None else f"paired, {level:.0%}"
    change_head = f'<th scope="col" class="num">Difference ({of})</th>' if comparison else ""
    return (
        '<table class="scores"><caption class="visually-hidden">Scores with 95% intervals</caption><thead><tr><th scope="col">Metric</th>'
        f'<th scope="col" class="num">Candidate</th>{extra}<th scope="col" class="plot-head">{_axis(compared=bool(comparison))}</th>'
        f"{change_head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _axis(*, compared: bool) -> str:
    key = '<span class="key candidate">candidate</span>' + (
        '<span class="key baseline">baseline</span>' if compared else ""
    )
    return f'<span class="axis-labels"><span>0%</span><span class="keys">{key}</span><span>100%</span></span>'


def _score_row(
    name: str, mine: dict[str, Any], base: dict[str, Any], change: dict[str, Any], *, primary: bool, compared: bool
) -> str:
    rate = is_rate(name, mine.get("value"), mine.get("low"), mine.get("high"))

    def form(value: Any) -> str:
        return number(value, metric=name, rate=rate)

    def cell(score: dict[str, Any], series: str) -> str:
        ends = interval(score.get("low"), score.get("high"), form)
        return f'<td class="num" data-label="{series}"><strong>{form(score.get("value"))}</strong><small>{ends}</small></td>'

    marks = [{**mine, "series": "candidate"}] + ([{**base, "series": "baseline"}] if compared else [])
    tag = ' <span class="tag">primary</span>' if primary else ""
    label = f"{name}: candidate {form(mine.get('value'))}" + (
        f", baseline {form(base.get('value'))}" if compared else ""
    )
    plot = interval_plot(marks, (0.0, 1.0), label) if rate else ""
    row = f'<tr><th scope="row"><code>{shown(name)}</code>{tag}</th>{cell(mine, "Candidate")}{cell(base, "Baseline") if compared else ""}<td class="plot">{plot}</td>'
    return row + (_difference(change, points if rate else form) if compared else "") + "</tr>"


def _difference(change: dict[str, Any], form: Any) -> str:
    if finite(change.get("difference")) is None:
        return '<td class="num">–</td>'
    tests = []
    if finite(change.get("mcnemar_p")) is not None:
        tests.append(f"McNemar p {_equals(change['mcnemar_p'])}")
    if finite(change.get("non_inferior_p")) is not None:
        tests.append(f"non-inferiority p {_equals(change['non_inferior_p'])}")
    ends = interval(change.get("low"), change.get("high"), form)
    return f'<td class="num" data-label="Difference (paired)"><strong>{form(change["difference"])}</strong><small>{ends}</small><small>{"<br>".join(tests)}</small></td>'


def _equals(value: Any) -> str:
    text = p_value(value)
    return text if text.startswith("<") else f"= {text}"


def agreement(change: dict[str, Any], metric: str) -> str:
    """The four counts of the paired comparison as one bar; each part filters the items below."""
    parts = [
        ("both-pass", "both_pass", "✓", "right both times"),
        ("fixed", "fixed", "▲", "fixed"),
        ("broken", "broken", "▼", "broken"),
        ("both-fail", "both_fail", "✕", "wrong both times"),
    ]
    counts = {key: int(finite(change.get(key)) or 0) for _, key, _, _ in parts}
    total = sum(counts.values())
    if not total:
        return ""
    said = ", ".join(f"{counts[key]} {words}" for _, key, _, words in parts)
    keys = "".join(
        f'<li><button type="button" class="link key {name}" data-filter="change={name}"><span aria-hidden="true">{sign}</span> <b>{counts[key]:,}</b> {words}</button></li>'
        for name, key, sign, words in parts
    )
    bar = stacked_bar([(name, sign, counts[key] / total) for name, key, sign, _ in parts], f"{metric}: {said}")
    return f'<div class="agreement">{bar}<ul class="keys-row">{keys}</ul></div>'
