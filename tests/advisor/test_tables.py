"""What `ftadvise` shows people: the same figures as `--json`, in tables."""

import json

import pytest

TRAIN = ("estimate", "train", "--model", "Llama-3.1-8B", "--gpu", "L4")
SERVE = ("estimate", "serve", "--model", "Llama-3.1-8B", "--gpu", "L4", "--input-tokens", 600, "--output-tokens", 150)


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "220")


@pytest.mark.parametrize("question", [(*TRAIN, "--method", "full"), SERVE], ids=["train", "serve"])
def test_an_estimate_is_shown_with_its_interval_and_source(advise, question):
    _, known, _ = advise(*question, "--json")
    code, _, shown = advise(*question)
    assert code == 0
    for name in ("memory_gb", "tokens_per_s"):
        figure = known[name]
        row = next(line for line in shown.out.splitlines() if f" {name} " in line)
        assert f"{figure['value']:g}" in row
        assert f"{figure['low']:g} to {figure['high']:g}" in row
        assert f"n = {figure['n']}" in row
    assert all(f"note: {note}" in shown.err for note in known["notes"])


def test_what_does_not_fit_is_said(advise):
    assert "warning: does not fit" in advise(*TRAIN, "--method", "full")[2].err
    assert "does not fit" not in advise(*TRAIN, "--method", "qlora")[2].err


@pytest.mark.parametrize("question", [TRAIN, SERVE], ids=["train", "serve"])
def test_a_sweep_has_a_row_for_each_way_and_gpu(advise, question):
    code, swept, _ = advise(*question, "--sweep", "--json")
    _, _, shown = advise(*question, "--sweep")
    assert code == 0
    labels = [entry["configuration"] for entry in swept["sweep"]]
    assert len(labels) == len(set(labels)) > 30
    for entry in swept["sweep"]:
        row = next(line for line in shown.out.splitlines() if line.startswith(f"│ {entry['configuration']} "))
        assert f"{entry['memory_gb']['value']:g}" in row
        assert ("yes" if entry["fits"] else "no") in row
        assert all(f"* {note}" in shown.err for note in entry["notes"])


def test_the_back_test_is_shown_by_class_and_by_source(advise):
    code, known, _ = advise("backtest", "--json")
    _, _, shown = advise("backtest", "--by-source")
    assert code == 0
    for name, figures in known["classes"].items():
        row = next(line for line in shown.out.splitlines() if line.startswith(f"│ {name} "))
        assert f"{100 * figures['mape']:.1f} %" in row
    assert "InternLM/lmdeploy" in shown.out


def test_a_calibration_says_what_it_changed_and_where_it_is_kept(advise, tmp_path):
    log = tmp_path / "metrics.jsonl"
    steps = [{"step": i, "loss": 1.0, "tokens_per_s": 400.0, "peak_memory_gb": 3.0} for i in range(5)]
    log.write_text("".join(json.dumps(step) + "\n" for step in steps))
    code, _, shown = advise("calibrate", log, "--model", "builtin:smollm2-135m", "--gpu", "cpu")
    assert code == 0
    assert "train_tps on cpu: measured 400, predicted" in shown.err
    assert "kept in" in shown.err
    assert list((tmp_path / "cache").rglob("*.json")), "there it is"
