"""The table of `ft eval` and `ft gate` on terminals of several widths: no name, verdict or number is broken."""

import pytest
from rich.console import Console

from tunegate.core import console
from tunegate.evalkit.terminal import metric_table

FIGURE = {"value": 0.7667, "low": 0.6456, "high": 0.8556}
CHANGE = {"difference": 0.0833, "low": -0.0377, "high": 0.2041, "fixed": 12, "broken": 7}


@pytest.fixture
def shown(monkeypatch, capsys):
    def call(width):
        def out():
            return Console(width=width, force_terminal=True, color_system=None, highlight=False)

        monkeypatch.setattr(console, "out", out)
        rules = (("exact", "non_inferior"), ("exact", "superior"), ("infra_error_rate", "at_most"))
        metric_table({
            "task": {"name": "t"}, "target": {"spec": "o.jsonl"}, "n": 60, "outcomes": {"pass": 60},
            "metrics": {"exact": FIGURE}, "operations": {"infra_error_rate": FIGURE},
            "comparison": {"baseline": {"metrics": {"exact": FIGURE}}, "metrics": {"exact": CHANGE}},
            "decision": {"conditions": [
                {"metric": m, "rule": r, "decision": "INCONCLUSIVE", "slice": None, "need_n": None, "reason": "open"}
                for m, r in rules
            ]},
        })  # fmt: skip
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_word_is_broken_at_any_width(shown, width):
    text = shown(width)
    table = text.partition("outcomes:")[0]
    assert max(map(len, text.splitlines())) <= width
    assert {"exact", "infra_error_rate", "0.7667", "[0.6456,", "+0.0833", "0.2041]", "12/7"} <= set(table.split())
    assert "INCONCLUSIVE: exact non_inferior: open" in text
    assert ("┃ metric" in table) == (width >= 80)
    assert ("verdict" in table) == (width >= 100)
    assert "INCONCLUSIVE" in table.split() or width < 100
