"""A report that somebody else made, or damaged, with a manifest that fits it: one line, never a crash."""

import copy
import json

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import EvalReport
from tunegate.core.errors import UserError
from tunegate.evalkit.evaluate import open_reading
from tunegate.evalkit.report_trend import collect

# (path in report.json, value or None to take it out)
OF_REPORT = [
    (("n",), "60"), (("n",), None), (("outcomes",), []), (("outcomes", "pass"), None), (("outcomes", "great"), 1),
    (("metrics", "exact"), {}), (("metrics", "exact", "value"), "high"), (("metrics",), [1]), (("task", "slices"), "intent"),
    (("task", "primary"), None), (("target",), None), (("data", "n"), 1.5), (("comparison", "baseline"), None),
    (("comparison", "metrics", "exact", "difference"), None), (("comparison", "flips"), [{"id": 3}]),
    (("decision", "decision"), "MAYBE"), (("decision", "conditions"), [{}]), (("operations",), {"latency_p95_ms": 3}),
    (("leakage",), {"metrics": "none"}), (("created",), 3), (("schema_version",), "1"),
    (("target",), ["a"]), (("name",), "\ud800"),
]  # fmt: skip
OF_ROWS = [
    ("outcome", "passed"), ("scores", [1]), ("scores", {"exact": "1"}), ("id", None), ("id", 7), ("tags", None),
    ("latency_ms", "fast"), ("outcomes", "pass"), ("output", None), ("group", ["a"]), ("messages", "hello"), ("messages", [{"content": "q"}]),
]  # fmt: skip
COMMANDS = [
    ("report", "r"), ("report", "r", "--html", "h.html", "--junit", "j.xml", "--markdown", "m.md"), ("gate", "r"),
    ("report", "r", "--to", "inspect", "--out", "log.json"), ("eval", "power", "--report", "r"),
    ("eval", "a.jsonl", "--task", "task.yaml", "--out", "s", "--against", "r"),
]  # fmt: skip


@pytest.fixture
def made(echo, ft):
    for name, right in (("a", 60), ("b", 50)):
        lines = [json.dumps({"id": f"i{i}", "output": f"q{i}" if i < right else "x"}) + "\n" for i in range(60)]
        (echo / f"{name}.jsonl").write_text("".join(lines))
    assert ft("eval", "a.jsonl", "--task", "task.yaml", "--out", "r", "--against", "b.jsonl").code in (0, 1, 3)
    return echo / "r"


def remade(folder, name, text):
    """The folder with another file content and a manifest that fits."""
    was = manifest.read(folder)
    (folder / name).write_text(text)
    manifest.write(
        folder, EvalReport.kind, inputs=list(was.inputs), config=was.config, seeds=was.seeds, facts=was.facts
    )


def changed(document, path, value):
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    if value is None:
        del inner[path[-1]]
    return document


def test_every_changed_part_is_one_error_that_names_it(made):
    document = json.loads((made / "report.json").read_text())
    for path, value in OF_REPORT:
        remade(made, "report.json", json.dumps(changed(document, path, value)))
        with pytest.raises(UserError) as caught:
            open_reading(EvalReport.open(made), name="r")
        assert str(made / "report.json") in caught.value.where, path
    remade(made, "report.json", json.dumps(document))
    rows = [json.loads(line) for line in (made / "results.jsonl").read_text().splitlines()]
    for key, value in OF_ROWS:
        remade(
            made,
            "results.jsonl",
            "".join(json.dumps(r | ({key: value} if n == 4 else {})) + "\n" for n, r in enumerate(rows)),
        )
        with pytest.raises(UserError) as caught:
            open_reading(EvalReport.open(made), name="r")
        assert caught.value.where.startswith(f"{made / 'results.jsonl'}:5"), key


def test_a_trend_leaves_it_out_and_says_why(made):
    document = json.loads((made / "report.json").read_text())
    remade(made, "report.json", json.dumps(changed(document, ("target",), ["a"])))
    found = collect(made.parent)
    assert [(path, "damaged report" in reason) for path, reason in found.skipped] == [(made, True)]
    assert made not in {entry.folder for entry in found.entries}


def test_every_command_that_reads_it_says_so_and_ends_with_2(made, ft):
    document = json.loads((made / "report.json").read_text())
    for text in (
        json.dumps(changed(document, ("task", "primary"), None)),
        "[1]",
        "null",
        "[" * 100_000,
        "NaN",
        "9" * 5000,
    ):
        remade(made, "report.json", text)
        for command in COMMANDS:
            run = ft(*command)
            assert (run.code, run.out) == (2, ""), (command, text[:20], run.err)
            assert run.err.splitlines()[-1].startswith("error: ")
