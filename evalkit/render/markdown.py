"""`summary.md`: for a GitHub step summary (1 MiB) or a pull request's comment (65,536 characters)."""

import re
from typing import Any

from tunegate.core.visible_text import HIDDEN

LIMIT = 60_000  # characters
FLIPS = 20
_MARKS = re.compile(r"""[&<>"'`|@*_~!\[\]\\#$:{}^]|(?<=www)\.""", re.IGNORECASE)
SIGNS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "⚠️"}


def render(report: dict[str, Any]) -> str:
    """The Markdown text; what comes from a model or a user is escaped."""
    parts = [_head(report), _metrics(report)]
    if report.get("decision"):
        parts.append(_decision(report["decision"]))
    if report.get("comparison"):
        parts += [_flips(report["comparison"]), _slices(report["comparison"])]
    parts.append(_foot(report))
    text = "\n".join(part for part in parts if part)
    if len(text) <= LIMIT:
        return text
    cut = text[:LIMIT].rsplit("\n", 1)[0]
    if cut.count("<details>") > cut.count("</details>"):
        cut += "\n\n</details>"
    return f"{cut}\n\n_cut at {LIMIT} characters; the whole is in report.html_\n"


def shown(value: Any, limit: int = 200) -> str:
    """Text as code that neither Markdown nor HTML nor a mention can break out of.

    A mark given as a character reference starts no structure (CommonMark 0.31, section 6.2): no link, picture or emphasis.
    Control characters and those that change the direction of writing are shown as U+FFFD.
    """
    text = HIDDEN.sub("\ufffd", " ".join(str(value).split()))
    text = text if len(text) <= limit else text[: limit - 1] + "…"
    return f"<code>{_MARKS.sub(lambda mark: f'&#{ord(mark[0])};', text)}</code>" if text else ""


def number(value: Any) -> str:
    """A figure in four digits; a dash where there is none."""
    return "–" if value is None else f"{value:.4g}"


def span(figure: dict[str, Any]) -> str:
    """A value with its interval."""
    return f"{number(figure.get('value'))} [{number(figure.get('low'))}, {number(figure.get('high'))}]"


def _head(report: dict[str, Any]) -> str:
    decision = report.get("decision")
    verdict = f"{SIGNS[decision['decision']]} gate: {decision['decision']}" if decision else "evaluation"
    against = f" against {shown(report['comparison']['baseline']['name'])}" if report.get("comparison") else ""
    return f"## {verdict}\n\n{shown(report['target']['spec'])} on {shown(report['task']['name'])}{against}: {report['n']} items\n"


def _metrics(report: dict[str, Any]) -> str:
    comparison = report.get("comparison") or {}
    before = comparison.get("baseline", {}).get("metrics", {})
    lines = ["| metric | baseline | candidate | difference | fixed / broken |", "|---|---:|---:|---:|---:|"]
    for name, figure in report["metrics"].items():
        change = comparison.get("metrics", {}).get(name)
        difference = (
            f"{change['difference']:+.4f} [{number(change['low'])}, {number(change['high'])}]" if change else ""
        )
        flips = f"{change['fixed']} / {change['broken']}" if change else ""
        lines.append(
            f"| {shown(name)} | {span(before[name]) if name in before else ''} | {span(figure)} | {difference} | {flips} |"
        )
    outcomes = ", ".join(f"{name} {n}" for name, n in report["outcomes"].items() if n)
    return "\n".join(lines) + f"\n\nOutcomes: {outcomes}\n"


def _decision(decision: dict[str, Any]) -> str:
    lines = ["| condition | decision | why | items needed |", "|---|---|---|---:|"]
    for c in decision["conditions"]:
        name = " ".join(str(p) for p in (c["metric"], c["rule"], c.get("slice")) if p)
        lines.append(
            f"| {shown(name)} | {SIGNS[c['decision']]} {c['decision']} | {shown(c['reason'], 300)} | {c['need_n'] or ''} |"
        )
    return "\n".join(lines) + "\n"


def _flips(comparison: dict[str, Any]) -> str:
    flips = comparison["flips"]
    if not flips:
        return ""
    lines = [
        f"<details><summary>{len(flips)} items changed</summary>\n",
        "| item | change | cause | reason |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {shown(f['id'], 60)} | {f['direction']} | {shown(f['cause'])} | {shown(f['reason'])} |"
        for f in flips[:FLIPS]
    ]
    if len(flips) > FLIPS:
        lines.append(f"| | | | and {len(flips) - FLIPS} more in report.html |")
    return "\n".join(lines) + "\n\n</details>\n"


def _slices(comparison: dict[str, Any]) -> str:
    if not comparison["slices"]:
        return ""
    lines = ["| slice | n | difference | p (Holm) |", "|---|---:|---:|---:|"]
    for s in comparison["slices"][:50]:
        difference = f"{s['difference']:+.4f} [{number(s['low'])}, {number(s['high'])}]"
        lines.append(f"| {shown(s['key'] + '=' + s['value'], 80)} | {s['n']} | {difference} | {number(s['p_holm'])} |")
    return "\n".join(lines) + "\n"


def _foot(report: dict[str, Any]) -> str:
    allowed = (report.get("comparison") or {}).get("allowed_differences") or []
    note = f"Compared although these differ: {', '.join(allowed)}. " if allowed else ""
    return f"{note}Metrics: 95 % intervals; differences and gate: level 1 − 2α, one-sided error α.\n"
