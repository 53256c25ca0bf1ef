"""What is printed holds by itself: the front at the precision shown, a backtest that compared nothing."""

import json

import pytest

from tunegate.advisor.cli import app
from tunegate.core.commands import run


def call(capsys, *argv):
    code = run(app, prog="ftadvise", argv=[str(a) for a in argv])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("calls", [1e6, 1e8])
def test_no_option_of_the_front_is_beaten_by_its_own_printed_numbers(capsys, calls):
    code, found = call(capsys, "recommend", "--calls-per-day", calls, "--needs", "cost", "--json")
    assert code == 0

    def beaten(a, b):
        pairs = [(a[k], b[k]) for k in ("monthly_usd", "train_usd", "p95_ms")] + [
            (b["quality_proxy"], a["quality_proxy"])
        ]
        return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)

    front = found["pareto"]
    assert len(front) > 5
    assert [(a["model"], b["model"]) for a in front for b in front if beaten(a, b)] == []


def test_a_backtest_that_compared_nothing_is_inconclusive(capsys, tmp_path):
    from tunegate.advisor.backtest import rows_of

    columns = list(rows_of(None)[0])
    (tmp_path / "m.csv").write_text(",".join(columns) + "\n" + ",".join("x" for _ in columns) + "\n")
    code, found = call(capsys, "backtest", tmp_path / "m.csv", "--json")
    assert (code, found["rows"], len(found["skipped"])) == (3, [], 1)


def test_the_printed_training_command_survives_a_space(tmp_path, capsys):
    out = tmp_path / "my r" / "rec.yaml"
    out.parent.mkdir()
    assert run(app, prog="ftadvise", argv=["recommend", "--examples", "500", "--out", str(out)]) == 0
    assert f"--from '{out}' --out RUN" in " ".join(capsys.readouterr().err.split())
