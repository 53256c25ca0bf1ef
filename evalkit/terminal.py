"""The table that `ft eval` and `ft gate` print."""

from typing import Any

from tunegate.core import console


def metric_table(report: dict[str, Any]) -> None:
    """One table: metric, baseline, candidate, difference with interval, fixed/broken, verdict; then outcomes and reasons."""
    comparison, decision = report.get("comparison") or {}, report.get("decision") or {}
    before = {
        **comparison.get("baseline", {}).get("metrics", {}),
        **comparison.get("baseline", {}).get("operations", {}),
    }
    figures = {
        **report["metrics"],
        **{k: v for k, v in report.get("operations", {}).items() if _worth_showing(k, v, decision)},
    }
    rows = []
    for name, figure in figures.items():
        change = comparison.get("metrics", {}).get(name)
        rows.append(
            [
                name,
                _estimate(before.get(name)),
                _estimate(figure),
                f"{change['difference']:+.4f} [{_number(change['low'])}, {_number(change['high'])}]" if change else "",
                f"{change['fixed']}/{change['broken']}" if change else "",
                ", ".join(
                    f"{c['rule']}: {c['decision']}"
                    for c in decision.get("conditions", [])
                    if c["metric"] == name and not c["slice"]
                ),
            ]
        )
    title = f"{report['task']['name']}: {report['target']['spec']}, {report['n']} items"
    if comparison:
        _print(title, ["metric", "baseline", "candidate", "difference", "fixed/broken", "verdict"], rows)
    else:
        _print(title, ["metric", "value"], [[row[0], row[2]] for row in rows])
    outcomes = ", ".join(f"{name} {n}" for name, n in report["outcomes"].items() if n)
    console.out().print(f"outcomes: {outcomes}", markup=False)
    for side, causes in comparison.get("flip_causes", {}).items():
        if causes:
            console.out().print(f"{side}: {', '.join(f'{cause} {n}' for cause, n in causes.items())}", markup=False)
    for condition in decision.get("conditions", []):
        _condition(condition)


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """The table, no word of it broken; 140 columns where the output is no terminal, so that a CI log is not folded to 80.

    Where a terminal is too narrow for the longest words the verdicts, which each condition's own line tells, are left out; where
    it is then too narrow still, each row is a list.
    """
    from rich.table import Table
    from rich.text import Text

    out = console.out()
    width = out.width if out.is_terminal else 140
    if columns[-1] == "verdict" and _spare(columns, rows, width) < 0:
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    spare = _spare(columns, rows, width)
    if spare < 0:
        out.print(title, markup=False)
        for row in rows:
            cells = (f"  {name} {cell}" for name, cell in zip(columns[1:], row[1:], strict=True) if cell)
            out.print("\n".join([row[0], *cells]), markup=False)
        return
    grid = Table(title=Text(title), title_justify="left", header_style="bold")
    for index, name in enumerate(columns):
        least, whole = _widths([name, *(row[index] for row in rows)])
        given = min(whole, least + spare)
        spare -= given - least
        grid.add_column(name, justify="left" if index == 0 or name == "verdict" else "right", width=given)
    for row in rows:
        grid.add_row(*map(Text, row))
    out.print(grid, width=width)


def _spare(columns: list[str], rows: list[list[str]], width: int) -> int:
    """What is left of `width` when each column is as wide as its longest word, and 3 for its edge and space."""
    least = (_widths([name, *(row[i] for row in rows)])[0] for i, name in enumerate(columns))
    return width - 1 - sum(3 + cells for cells in least)


def _widths(cells: list[str]) -> tuple[int, int]:
    """(terminal cells of the longest word, of the longest cell)."""
    from rich.cells import cell_len

    return max(cell_len(word) for cell in cells for word in cell.split() or [""]), max(map(cell_len, cells))


def _condition(condition: dict[str, Any]) -> None:
    name = " ".join(str(p) for p in (condition["metric"], condition["rule"], condition["slice"]) if p)
    need = f" (about {condition['need_n']} items would decide it)" if condition["need_n"] else ""
    console.out().print(f"{condition['decision']}: {name}: {condition['reason']}{need}", markup=False)


def _worth_showing(name: str, figure: dict[str, Any], decision: dict[str, Any]) -> bool:
    named = any(c["metric"] == name for c in decision.get("conditions", []))
    return (
        named
        or name in ("latency_p95_ms", "ttft_p95_ms", "cost_per_correct_usd")
        or (name.endswith("_rate") and bool(figure["value"]))
    )


def _estimate(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return ""
    return f"{_number(figure['value'])} [{_number(figure['low'])}, {_number(figure['high'])}]"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.1f}"
