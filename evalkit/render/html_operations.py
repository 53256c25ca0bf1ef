"""Figures beside the scores (latency, outcomes, cost, leakage), and what a reader must know before trusting a comparison."""

from typing import Any

from tunegate.evalkit.render.html_text import count, finite, interval, is_rate, number, obj, shown

_LOCKED = {
    "data": "the items and what is expected of them",
    "prompts": "the messages that were sent",
    "template": "the prompts' token ids (chat template and tokenizer)",
    "generation": "the generation settings",
    "scorer": "validators and scorer version",
}


def operations(report: dict[str, Any]) -> str:
    """A folded table of `report["operations"]`: each figure that a gate can name, candidate and baseline with intervals.

    Nothing where the report has none.
    """
    mine = obj(report.get("operations"))
    theirs = obj(obj(obj(report.get("comparison")).get("baseline")).get("operations"))
    if not mine:
        return ""
    body = "".join(
        f'<tr><th scope="row"><code>{shown(name)}</code></th>{_cell(name, mine.get(name), "Candidate")}'
        f"{_cell(name, theirs.get(name), 'Baseline') if theirs else ''}</tr>"
        for name in mine
    )
    other = '<th scope="col" class="num">Baseline</th>' if theirs else ""
    return (
        f'<details class="rest"><summary>{count(len(mine), "figure")} that a gate can name, with 95% intervals</summary>'
        '<table class="small-table slices operations"><caption class="visually-hidden">Figures beside the scores</caption>'
        f'<thead><tr><th scope="col">Figure</th><th scope="col" class="num">Candidate</th>{other}</tr></thead>'
        f"<tbody>{body}</tbody></table></details>"
    )


def _cell(name: str, value: Any, series: str) -> str:
    figure = obj(value)
    rate = name.endswith("_rate") and is_rate(name, figure.get("value"))

    def form(amount: Any) -> str:
        return number(amount, metric=name, rate=rate)

    ends = interval(figure.get("low"), figure.get("high"), form)
    if not ends and finite(figure.get("low")) is not None:
        ends = f"{form(figure['low'])} or more"  # too few answers for an upper end
    if finite(figure.get("low")) == finite(figure.get("high")):
        ends = ""  # counted, not sampled
    return (
        f'<td class="num" data-label="{series}"><strong>{form(figure.get("value"))}</strong><small>{ends}</small></td>'
    )


def caveats(report: dict[str, Any]) -> str:
    """What the comparison could not check and what it was allowed to overlook, as a list under the verdict."""
    comparison, lines = obj(report.get("comparison")), []
    if allowed := _names(comparison.get("allowed_differences")):
        lines.append(f"<strong>Compared although these differ:</strong> {_told(allowed)}.")
    if unknown := _names(comparison.get("unknown")):
        lines.append(
            f"<strong>Not known for one of the two, so not checked ({len(unknown)} of {len(_LOCKED)}):</strong> {_told(unknown)}."
        )
    items = finite(obj(obj(report.get("leakage")).get("metrics")).get("leakage"))
    if items:
        lines.append(
            f"<strong>Leakage:</strong> {count(int(items), 'item')} stand in the training data; a score on them says less."
        )
    return f'<ul class="caveats">{"".join(f"<li>{line}</li>" for line in lines)}</ul>' if lines else ""


def _names(value: Any) -> list[str]:
    return [str(name) for name in value] if isinstance(value, list) else []


def _told(names: list[str]) -> str:
    return "; ".join(shown(_LOCKED.get(name, name)) for name in names)


def leakage(report: dict[str, Any]) -> str:
    """How many items stand in the training data, by rule, and in how many rows it was looked for."""
    found = obj(report.get("leakage"))
    metrics = obj(found.get("metrics"))
    if not metrics:
        return ""
    by = ", ".join(
        f"{shown(str(name).removeprefix('leakage_'))} {number(n)}" for name, n in metrics.items() if name != "leakage"
    )
    return f"{count(int(finite(metrics.get('leakage')) or 0), 'item')} in the training data ({by}), of {number(found.get('train_rows'))} rows"
