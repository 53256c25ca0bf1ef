"""GitHub's annotations: workflow commands in the job's log, within GitHub's limit of 10 of each type a step."""

import os
from typing import Any

PER_TYPE = 10  # docs: actions/toolkit, problem-matchers.md
MAX_TEXT = 500  # characters


def render(report: dict[str, Any]) -> list[str]:
    """Conditions that failed and items that broke as errors, conditions that stay open as warnings, at the data's file."""
    decision, comparison = report.get("decision") or {}, report.get("comparison") or {}
    file = os.path.relpath(report["data"]["path"])
    lines: dict[str, list[str]] = {"error": [], "warning": []}
    for condition in decision.get("conditions", ()):
        kind = {"FAIL": "error", "INCONCLUSIVE": "warning"}.get(condition["decision"])
        if kind is not None:
            names = (condition["metric"], condition["rule"], condition.get("slice"))
            title = f"{condition['decision']}: {' '.join(str(name) for name in names if name)}"
            lines[kind].append(command(kind, condition["reason"], file=file, title=title))
    if decision.get("decision") == "FAIL":
        for flip in comparison.get("flips", ()):
            if flip["direction"] == "broken":
                text = f"{flip['cause']}: {flip['reason']}"
                lines["error"].append(command("error", text, file=file, title=f"broken: {flip['id']}"))
    return [line for found in lines.values() for line in found[:PER_TYPE]]


def command(kind: str, text: str, **properties: str) -> str:
    """One workflow command. Escaped as GitHub reads it: %, CR and LF, in properties also colon and comma."""
    named = ",".join(
        f"{key}={_escaped(value).replace(':', '%3A').replace(',', '%2C')}" for key, value in properties.items()
    )
    return f"::{kind} {named}::{_escaped(text)}"


def _escaped(text: str) -> str:
    cut = text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
    return cut.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
