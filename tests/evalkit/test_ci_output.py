"""What CI hosts read: annotations, summary and JUnit within the hosts' limits, contents shown as text; a run without answers."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from tunegate.evalkit.render import junit, markdown
from tunegate.evalkit.render.annotations import command

NASTY = "a\x00b\x1b[31mred ]]> 100 %\r\n::error::x, <script>" + "y" * 5000


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def five_thousand(echo):
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}] for i in range(5000)]
    write(echo / "eval.jsonl", [{"id": f"i{i},:%", "messages": m} for i, m in enumerate(turns)])
    write(echo / "old.jsonl", [{"id": f"i{i},:%", "output": "a"} for i in range(5000)])
    write(echo / "new.jsonl", [{"id": f"i{i},:%", "output": NASTY} for i in range(5000)])
    return echo


def test_five_thousand_failing_items_stay_within_the_limits(five_thousand, ft, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    done = ft("eval", "new.jsonl", "--task", "task.yaml", "--out", "r", "--against", "old.jsonl", "--json")
    assert done.code == 1
    errors = [line for line in done.err.splitlines() if line.startswith("::")]
    assert len(errors) == 10
    assert all(line.startswith("::error file=eval.jsonl,title=") for line in errors)
    assert any("title=broken%3A i0%2C%3A%25::" in line for line in errors)
    summary = (five_thousand / "r/summary.md").read_text()
    assert len(summary) < 65_536  # characters of a comment
    assert len(summary.encode()) < 2**20  # bytes of a step's summary
    assert "<script>" not in summary
    text = (five_thousand / "r/junit.xml").read_bytes()
    assert len(text) < 30_000_000
    tree = ElementTree.fromstring(text)
    assert jenkins_faults(tree) == []
    names = [case.get("name") for case in tree.iter("testcase")]
    assert len(set(names)) == len(names) == 5001
    assert max(len(failure.text) for failure in tree.iter("failure")) <= 2000


def test_escaping_of_a_workflow_command():
    assert command("error", "50 %\r\n::x", title="a,b:c") == "::error title=a%2Cb%3Ac::50 %25%0D%0A::x"


def test_a_long_text_is_cut_in_a_workflow_command():
    assert command("error", "x" * 9000, title="y" * 9000) == f"::error title={'y' * 499}…::{'x' * 499}…"


@pytest.mark.parametrize("items", [40, 100])
@pytest.mark.parametrize("text", ["x", "&", '"', "\n", "\x00", "\U0001f600", "<&amp;"])
def test_junit_is_cut_by_the_bytes_it_takes_when_escaped(monkeypatch, items, text):
    monkeypatch.setattr(junit, "MAX_BYTES", 100_000)
    answer = {"outcome": "fail", "reason": text * 3000, "cause": "c", "expected": "e", "output": text * 3000}
    report = {"task": {"name": "t"}, "created": "2026-01-01T00:00:00Z", "decision": None}
    made = junit.render(report, [{**answer, "id": f"i{i}"} for i in range(items)]).encode()
    assert len(made) < 120_000  # GitLab's 30 MB to our 25
    assert len(list(ElementTree.fromstring(made).iter("failure"))) == items


def test_a_summary_is_cut_to_a_comment_and_says_so():
    condition = {"metric": "m", "rule": "at_least", "decision": "FAIL", "reason": "&" * 900, "need_n": None}
    report = {"target": {"spec": "s"}, "task": {"name": "t"}, "n": 1, "metrics": {}, "outcomes": {},
              "decision": {"decision": "FAIL", "conditions": [condition] * 500}}  # fmt: skip
    text = markdown.render(report)
    assert len(text) < 65_536
    assert "the whole is in report.html" in text


def test_without_any_answer_and_without_a_gate_it_is_infrastructure(echo, ft):
    write(echo / "none.jsonl", [{"id": f"i{i}", "error": "connection refused"} for i in range(60)])
    done = ft("eval", "none.jsonl", "--task", "task.yaml", "--out", "r", "--json")
    assert done.code == 4
    assert done.json["outcomes"]["infra_error"] == 60
    write(echo / "one.jsonl", [{"id": "i0", "output": "q0"}, *({"id": f"i{i}", "error": "x"} for i in range(1, 60))])
    assert ft("eval", "one.jsonl", "--task", "task.yaml", "--out", "r1").code == 0


# Attributes and time's form as junit-10.xsd of Jenkins' xunit plugin (MIT) has them.
SUITE = {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package", "group", "file", "log", "url"}  # fmt: skip
CASE = {"name", "classname", "time", "group"}
TIME = re.compile(r"(([0-9]{0,3},)*[0-9]{3}|[0-9]{0,3})*(\.[0-9]*)?")


def jenkins_faults(tree):
    """What junit-10.xsd would refuse: elements, attributes and their types; and counts that do not add up."""
    faults = [] if tree.tag == "testsuites" else [tree.tag]
    for suite in tree:
        faults += [] if suite.tag == "testsuite" and set(suite.attrib) <= SUITE and "name" in suite.attrib else [suite]
        faults += [] if TIME.fullmatch(suite.get("time", "")) else [suite.get("time")]
        for key in ("tests", "failures", "errors", "skipped"):
            int(suite.attrib[key])
        counted = {kind: len(suite.findall(f"testcase/{kind}")) for kind in ("failure", "error", "skipped")}
        stated = [int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")]
        faults += [] if stated == [len(suite), *counted.values()] else [counted]
        for case in suite:
            float(case.get("time"))
            inner = [(child.tag, set(child.attrib)) for child in case]
            kinds = ("skipped", "error", "failure")
            known = all(tag in kinds and attributes <= {"message", "type"} for tag, attributes in inner)
            whole = case.tag == "testcase" and {"name", "classname"} <= set(case.attrib) <= CASE
            faults += [] if whole and known and len(inner) <= 1 else [case]
    return faults


def test_allow_different_without_a_baseline_is_wrong_use(echo, ft):
    write(echo / "o.jsonl", [{"id": f"i{i}", "output": "a"} for i in range(60)])
    done = ft("eval", "o.jsonl", "--task", "task.yaml", "--out", "r", "--allow-different", "prompts")
    assert done.code == 2
    assert done.err.startswith("error: --allow-different")
    assert len(done.err.splitlines()) == 1
