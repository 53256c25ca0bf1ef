"""`report.html`: one self-contained page of an evaluation. Nothing in it is fetched, and no model output is ever markup.

The verdict, scores and lineage are static HTML; the items are JSON that `report.js` shows as text. A strict
Content-Security-Policy names the one style and the one script by their SHA-256, so that nothing else can run.
"""

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files
from typing import Any

from tunegate.core.visible_text import HIDDEN_RANGES
from tunegate.evalkit.render import html_sections, html_verdict
from tunegate.evalkit.render.html_text import (
    LABELS,
    as_text,
    attribute,
    count,
    finite,
    number,
    obj,
    rows,
    script_json,
    shown,
)

SCRIPTS = ("report_text.js", "report_items.js", "report_page.js")
Rows = list[dict[str, Any]]
PAGE_ITEMS = 20_000  # items on a page: more, and a phone has trouble with it


def render(report: dict[str, Any], results: Rows, baseline_results: Rows | None = None, *, served: bool = False) -> str:
    """The whole page as one HTML document.

    report: the content of `report.json`. results: rows of `results.jsonl`. baseline_results: the baseline's rows, paired
    by `id`; without them the page shows the candidate alone. served: with a link to the list of reports (`/`).
    Keys that an older report lacks are left out of the page.
    Equal input gives equal bytes.
    """
    baseline = rows(baseline_results)
    comparison = obj(report.get("comparison"))
    results, flips = rows(results), rows(comparison.get("flips"))
    primary = str(obj(report.get("task")).get("primary") or "")
    style = asset("report.css")
    script = "(() => {\n'use strict';\n" + "\n".join(map(asset, SCRIPTS)) + "\n})();\n"
    change = html_verdict.agreement(obj(obj(comparison.get("metrics")).get(primary)), primary)
    breakdown = html_sections.causes(flips) + html_sections.slices(report)
    return _fill(
        asset("report.html"),
        {
            "csp": content_security_policy(style, script),
            "title": attribute(report.get("name") or "Evaluation report"),
            "style": style,
            "up": '<a href="/">All reports</a>' if served else "",
            "heading": shown(report.get("name") or "Evaluation report"),
            "subheading": _subheading(report, comparison),
            "verdict": html_verdict.verdict(report),
            "figures": html_sections.key_figures(report, flips),
            "scores": html_verdict.scores(report),
            "changes": f'{change}<div class="columns">{breakdown}</div>' if change or breakdown else "",
            "changes_hidden": "" if change or breakdown else " hidden",
            "changes_title": "What changed" if comparison else "By slice",
            "speed": html_sections.speed(report, results, baseline),
            "provenance": html_sections.provenance(report),
            "left_out": _left_out(len(results)),
            "data": script_json(_data(report, _first(results, flips), baseline, flips)),
            "script": script,
        },
    )


def content_security_policy(style: str, script: str) -> str:
    """The policy of the page: nothing but this style and this script, no network, no frames, no string as markup.

    CSP level 3 (W3C), hash sources; `require-trusted-types-for` makes a string given to `innerHTML` an error.
    """
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def style_policy(style: str) -> str:
    """The policy of a page without any script: this one style, and nothing else; it may not be framed."""
    return (
        f"default-src 'none'; style-src '{_hash(style)}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@cache
def asset(name: str) -> str:
    """A file of the page: style, script or template, with one kind of line end."""
    return files("tunegate.evalkit.render").joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _fill(template: str, parts: dict[str, str]) -> str:
    """Put the parts in their `{{slots}}`, in one pass, so that nothing inside a part is taken for a slot."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match.group(1)], template)


def _subheading(report: dict[str, Any], comparison: dict[str, Any]) -> str:
    baseline = obj(comparison.get("baseline")).get("name")
    task = obj(report.get("task")).get("name")
    n = finite(report.get("n"))
    parts = [
        f"against <strong>{shown(baseline)}</strong>" if baseline else "",
        f"task <strong>{shown(task)}</strong>" if task else "",
        count(int(n), "item") if n is not None else "",
        shown(report.get("created")),
    ]
    return " · ".join(part for part in parts if part)


def _data(report: dict[str, Any], results: Rows, baseline: Rows, flips: Rows) -> dict[str, Any]:
    """What `report.js` reads: the items, and which characters to make visible (the same ones as in the static part)."""
    keys = obj(report.get("task")).get("slices")
    other = {as_text(row.get("id")): row for row in baseline}
    flip = {as_text(item.get("id")): item for item in flips}
    items = [_item(row, other, flip) for row in results]
    return {
        "items": items,
        "compared": bool(baseline or flips),
        "answers": bool(baseline),
        "lost": bool(flips) and not baseline,
        "slices": [as_text(key) for key in keys] if isinstance(keys, list) and keys else _tag_names(items),
        "outcomes": html_sections.OUTCOMES,
        "hidden": [list(pair) for pair in HIDDEN_RANGES],
        "labels": {str(code): label for code, label in LABELS.items()},
    }


def _first(results: Rows, flips: Rows) -> Rows:
    """The rows that stand on the page, in their order: what changed goes first, then what did not pass."""
    if len(results) <= PAGE_ITEMS:
        return results
    changed = {as_text(flip.get("id")) for flip in flips}

    def rank(index: int) -> int:
        row = results[index]
        return 0 if as_text(row.get("id")) in changed else 2 if row.get("outcome") == "pass" else 1

    return [results[index] for index in sorted(sorted(range(len(results)), key=rank)[:PAGE_ITEMS])]


def _left_out(n: int) -> str:
    if n <= PAGE_ITEMS:
        return ""
    return (
        f'<p class="notice">{PAGE_ITEMS:,} of the {n:,} items stand on this page: those that changed first, then those that '
        "did not pass. Figures above and below are over all of them; every row is in results.jsonl beside this file.</p>"
    )


def _tag_names(items: list[dict[str, Any]]) -> list[str]:
    return sorted({key for item in items for key in item["tags"]})


def _item(row: dict[str, Any], others: dict[str, dict[str, Any]], flips: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name = as_text(row.get("id"))
    base, flip = others.get(name), flips.get(name, {})
    item: dict[str, Any] = {
        "id": name,
        "change": _change(row, base, flip),
        "cause": as_text(flip.get("cause") or row.get("cause")),
        "why": as_text(flip.get("reason") or row.get("reason")),
        "expected": None if row.get("expected") is None else as_text(row["expected"]),
        "tags": {as_text(key): as_text(value) for key, value in obj(row.get("tags")).items()},
        "prompt": _messages(row.get("messages")),
        "candidate": _answer(row),
    }
    if base is not None:
        item["baseline"] = _answer(base)
        prompt = _messages(base.get("messages"))
        if prompt and prompt != item["prompt"]:
            item["baseline_prompt"] = prompt
    return item


def _change(row: dict[str, Any], base: dict[str, Any] | None, flip: dict[str, Any]) -> str:
    """`fixed` or `broken` as the comparison says; else from the two outcomes; empty where there is nothing to compare."""
    if flip.get("direction") in ("fixed", "broken"):
        return str(flip["direction"])
    if base is None or "infra_error" in (row.get("outcome"), base.get("outcome")):
        return ""
    now, before = row.get("outcome") == "pass", base.get("outcome") == "pass"
    return {(True, True): "both-pass", (True, False): "fixed", (False, True): "broken"}.get((now, before), "both-fail")


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """One side's answer, with why each validator failed it and what each judge said."""
    reasons = {**obj(row.get("judged")), **obj(row.get("reasons"))}
    return {
        "text": _said(row.get("output"), row.get("tool_calls")),
        "outcome": as_text(row.get("outcome")) or "unknown",
        "reason": as_text(row.get("reason") or row.get("error")),
        "finish": as_text(row.get("finish_reason")),
        "ms": finite(row.get("latency_ms")),
        "ttft": finite(row.get("ttft_ms")),
        "tokens": finite(row.get("completion_tokens")),
        "prompt_tokens": finite(row.get("prompt_tokens")),
        "scores": {as_text(key): _score(value, reasons.get(key)) for key, value in obj(row.get("scores")).items()},
        **_rarely(row),
    }


def _said(text: Any, calls: Any) -> str:
    """What an answer says and calls."""
    return "\n".join(part for part in (as_text(text), as_text(calls) if calls else "") if part)


def _rarely(row: dict[str, Any]) -> dict[str, Any]:
    """What few rows have: repeats [outcome, text, ms], the cost, attempts beyond one, the context of a prompted run."""
    found: dict[str, Any] = {}
    outputs, outcomes, times = (row.get(key) for key in ("outputs", "outcomes", "latencies_ms"))
    if isinstance(outputs, list) and isinstance(outcomes, list) and len(outputs) == len(outcomes):
        calls = row.get("each_tool_calls")
        found["repeats"] = [
            [as_text(outcome), _said(text, call), finite(ms)]
            for outcome, text, call, ms in zip(
                outcomes, outputs, _as_many(calls, outputs), _as_many(times, outputs), strict=True
            )
        ]
    if (cost := finite(row.get("cost_usd"))) is not None:
        found["cost"] = number(cost, metric="_usd")
    if (attempts := finite(row.get("attempts"))) is not None and attempts > 1:
        found["attempts"] = attempts
    if row.get("context"):
        found["context"] = as_text(row["context"])
    return found


def _as_many(values: Any, as_these: list[Any]) -> list[Any]:
    """A list of the same length, None where it has nothing."""
    known = values[: len(as_these)] if isinstance(values, list) else []
    return [*known, *[None] * (len(as_these) - len(known))]


def _score(value: Any, why: Any = None) -> dict[str, Any]:
    """One validator's result as {pass: bool or null, score: text, reason}. why: given for one that failed, or a judge's."""
    if not isinstance(value, dict):
        value = {"pass": value if isinstance(value, bool) else None, "score": value}
    passed = value.get("pass", value.get("passed"))
    amount = finite(value.get("score"))
    if not isinstance(passed, bool):
        passed = amount >= 1 if amount is not None and amount in (0, 1) else None
    return {
        "pass": passed,
        "score": "" if amount is None else number(amount),
        "reason": as_text(value.get("reason") or why),
    }


def _messages(value: Any) -> list[list[str]]:
    """[role, text] for each turn; text parts joined, other parts and tool calls as JSON."""
    turns = []
    for turn in rows(value):
        content = turn.get("content")
        parts = content if isinstance(content, list) else [content]
        text = "\n".join(as_text(obj(part).get("text") or part) for part in parts)
        calls = as_text(turn["tool_calls"]) if turn.get("tool_calls") else ""
        turns.append([as_text(turn.get("role")), "\n".join(part for part in (text, calls) if part)])
    return turns
