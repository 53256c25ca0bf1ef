"""`junit.xml`: one test case an item, by its id, in the dialect that Jenkins, GitLab and GitHub read (junit-10.xsd)."""

import re
from typing import Any
from xml.sax.saxutils import escape, quoteattr

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_PART = re.compile(r"&[^;]*$")  # of a character reference
MAX_BODY = 2000  # bytes of a failure's body
MAX_MESSAGE = 400  # bytes of its message, which has 300 characters at most
MAX_BYTES = 25_000_000  # GitLab reads files under 30 MB
GATE = {"FAIL": "failure", "INCONCLUSIVE": "skipped"}


def render(report: dict[str, Any], results: list[dict[str, Any]]) -> str:
    """The XML text. Wrong answers are failures, infrastructure errors are errors; gate conditions form a suite of their own."""
    name = str(report["task"]["name"])
    body = MAX_BODY if len(results) * (MAX_BODY + 300) < MAX_BYTES else max(0, MAX_BYTES // max(1, len(results)) - 500)
    suites = [_suite(name, [_item(name, row, body) for row in results], report)]
    if decision := report.get("decision"):
        suites.append(_suite(f"{name} gate", _conditions(f"{name} gate", decision["conditions"]), report))
    return '<?xml version="1.0" encoding="UTF-8"?>\n<testsuites>\n' + "".join(suites) + "</testsuites>\n"


def _suite(name: str, cases: list[tuple[str, str, float]], report: dict[str, Any]) -> str:
    counts = {kind: sum(found == kind for _, found, _ in cases) for kind in ("failure", "error", "skipped")}
    head = (
        f'<testsuite name={_attribute(name)} tests="{len(cases)}" failures="{counts["failure"]}" '
        f'errors="{counts["error"]}" skipped="{counts["skipped"]}" time="{sum(t for _, _, t in cases):.3f}" '
        f"timestamp={_attribute(str(report['created']).removesuffix('Z'))}>\n"
    )
    return head + "".join(text for text, _, _ in cases) + "</testsuite>\n"


def _item(suite: str, row: dict[str, Any], body: int) -> tuple[str, str, float]:
    outcome, seconds = row["outcome"], (row.get("latency_ms") or 0.0) / 1000.0
    kind = "" if outcome == "pass" else "error" if outcome == "infra_error" else "failure"
    detail = ""
    if kind:
        text = f"{row['reason']}\nexpected: {row['expected']}\ngot: {row['output']}"
        detail = _detail(kind, f"{outcome}: {row['reason']}", row.get("cause") or outcome, text, body)
    return _case(suite, row["id"], detail, seconds), kind, seconds


def _conditions(suite: str, conditions: list[dict[str, Any]]) -> list[tuple[str, str, float]]:
    cases = []
    for name, condition in zip(_names(conditions), conditions, strict=True):
        kind = GATE.get(condition["decision"], "")
        detail = _detail(kind, condition["reason"], condition["decision"], condition["reason"]) if kind else ""
        cases.append((_case(suite, name, detail, 0.0), kind, 0.0))
    return cases


def _names(conditions: list[dict[str, Any]]) -> list[str]:
    """Metric, rule and slice. Where two would be called alike, of which GitLab keeps the first: also margin or value, and
    then a number."""
    names = [" ".join(str(c[key]) for key in ("metric", "rule", "slice") if c.get(key)) for c in conditions]
    alike = {name for name in names if names.count(name) > 1}
    names = [name + _number(c) if name in alike else name for name, c in zip(names, conditions, strict=True)]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _number(condition: dict[str, Any]) -> str:
    """The margin or value, as gate.yaml has it; of a margin the bound is the negative."""
    bound = condition.get("bound")
    return "" if bound is None else f" {-bound if condition['rule'] == 'non_inferior' else bound}"


def _case(suite: str, name: str, detail: str, seconds: float) -> str:
    head = f'<testcase name={_attribute(name)} classname={_attribute(suite)} time="{seconds:.3f}"'
    return f"{head}>{detail}</testcase>\n" if detail else f"{head}/>\n"


def _detail(kind: str, message: str, cause: str, text: str, body: int = MAX_BODY) -> str:
    message = message[:300]
    while len((shown := _attribute(message)).encode()) > MAX_MESSAGE:
        message = message[: len(message) * 3 // 4]
    if kind == "skipped":
        return f"<skipped message={shown}/>"
    return f"<{kind} message={shown} type={_attribute(cause)}>{_body(text[:body], body)}</{kind}>"


def _body(text: str, limit: int) -> str:
    """Escaped, and cut to so many bytes after that: an `&` becomes five."""
    cut = escape(_clean(text)).encode()[:limit].decode("utf-8", "ignore")
    return _PART.sub("", cut)


def _attribute(text: str) -> str:
    return quoteattr(_clean(text), {"\n": "&#10;", "\r": "&#13;", "\t": "&#9;"})


def _clean(text: str) -> str:
    """Without the characters that XML 1.0 forbids."""
    return _ILLEGAL.sub("\ufffd", str(text))
