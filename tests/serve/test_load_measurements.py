"""A LoadReport read back: by `ftadvise calibrate`, and as figures for a gate."""

import json
from dataclasses import replace

import pytest

from tunegate.advisor.calibrate import read_log
from tunegate.advisor.cli import app as advise
from tunegate.core import manifest
from tunegate.core.artifacts import LoadReport, open_any
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.measurements import late_share, load_interval, load_metrics, load_records
from tunegate.serve.load_plan import LoadOptions, Stage
from tunegate.serve.load_report import About, make_report, write_load_report
from tunegate.serve.load_test import Record, StageRun


def stage_run(streams, *, tpot=20.0, count=100, cpu_share=0.1, kind="closed", errors=0):
    """`count` answers of 33 tokens: TTFT 100..199 ms."""
    records = [
        Record(number=i, warm_up=False, prompt=str(i), repeated=False, due_s=float(i), started_s=float(i), ended_s=i + 1.0,
               ttft_ms=100.0 + i % 100, e2e_ms=100.0 + i % 100 + 32 * tpot, tpot_ms=tpot, prompt_tokens=200, completion_tokens=33)
        if i >= errors else
        Record(number=i, warm_up=False, prompt=str(i), repeated=False, due_s=float(i), started_s=float(i), ended_s=i + 1.0,
               error_kind="timeout", error="no answer")
        for i in range(count)
    ]  # fmt: skip
    stage = Stage(kind=kind, level=float(streams), requests=count, duration_s=None, warm_up=0)
    return StageRun(stage=stage, records=records, cpu_share=cpu_share, lags_ms=[0.1])


@pytest.fixture
def written(tmp_path):
    def write(*runs):
        options = LoadOptions(stages=tuple(r.stage for r in runs), generation={})
        about = About(target="t", endpoint="http://x/v1", model="m", prompts={}, engine={}, inputs=[])
        document = make_report(list(runs), options, about, max_error_rate=0.01)
        return write_load_report(tmp_path / "load", document, list(runs), about, force=True)

    return write


def test_records_are_the_valid_closed_stages(written):
    report = written(stage_run(16, tpot=40.0), stage_run(1), stage_run(4, cpu_share=0.95), stage_run(3, kind="open"))
    records = load_records(report)
    assert [(r.concurrency, r.tpot_ms, r.prompt_tokens, r.completion_tokens) for r in records] == [
        (1, 20.0, 200, 33), (16, 40.0, 200, 33)
    ]  # fmt: skip
    assert isinstance(open_any(report.path), LoadReport)
    assert manifest.verify(report.path) == []
    with pytest.raises(UserError, match="no stage"):
        load_records(written(stage_run(4, cpu_share=0.95)))


def test_this_machines_own_limits_are_no_errors_of_the_server(written):
    run = stage_run(4, errors=10)
    run.records[0] = replace(run.records[0], error_kind="client")
    error = load_interval(written(run), "load_error_rate", level=0.9)
    assert error.value == pytest.approx(9 / 99)


def test_calibrate_takes_the_measured_load_not_the_typed_one(written, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    report = written(stage_run(4), stage_run(8, tpot=30.0))
    reading = read_log(report.path)
    assert (reading.kind, reading.value, reading.points, reading.load.concurrency) == ("tpot", 20.0, 100, 4)
    words = ["calibrate", str(report.path), "--model", "llama-3.1-8b", "--gpu", "A100-80GB", "--json"]
    assert run(advise, prog="ftadvise", argv=words) == 0
    plain = json.loads(capsys.readouterr().out)
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "other"))
    from tunegate.advisor import calibrate

    calibrate._factors.cache_clear()
    typed = ["--input-tokens", "9000", "--output-tokens", "900", "--concurrency", "64"]
    assert run(advise, prog="ftadvise", argv=[*words, *typed]) == 0
    assert json.loads(capsys.readouterr().out)["predicted"] == plain["predicted"]
    calibrate._factors.cache_clear()


def test_gate_figures_come_from_the_heaviest_stage_at_any_level(written):
    report = written(stage_run(1), stage_run(8, tpot=30.0, errors=2, count=200))
    p95 = load_interval(report, "load_ttft_p95_ms", level=0.90)
    assert p95.low < p95.value == 195.0 < p95.high
    assert load_interval(report, "load_tpot_p50_ms", level=0.90).value == 30.0
    assert load_interval(report, "load_error_rate", level=0.90).value == 0.01
    assert set(load_metrics()) >= {"load_e2e_p99_ms", "load_error_rate"}
    with pytest.raises(UserError, match=r"has no .load_ttft_p59_ms"):
        load_interval(report, "load_ttft_p59_ms", level=0.9)
    assert load_interval(written(stage_run(1, cpu_share=0.95)), "load_ttft_p95_ms", level=0.9) is None


def test_a_gate_counts_requests_that_timed_out_as_the_load_test_does(written):
    report = written(stage_run(8, errors=1, count=100))
    told = report.report()["stages"][0]["e2e_ms"]["p99"]
    found = load_interval(report, "load_e2e_p99_ms", level=0.95)
    assert (found.value, found.low, found.high, found.n) == (told["value"], told["low"], None, 100)
    assert load_interval(report, "load_ttft_p99_ms", level=0.95).n == 99
    assert (late_share(report, "load_e2e_p99_ms"), late_share(report, "load_ttft_p99_ms")) == (0.01, 0.0)


def test_gate_figures_come_from_no_failed_or_interrupted_test_and_not_from_the_last_stage_listed(written):
    """Answers that came between errors are no latency of a server that holds, and a request every other second is no load beside 64 at once."""
    mixed = written(stage_run(64, tpot=90.0), stage_run(0.5, kind="open", tpot=10.0))
    assert load_interval(mixed, "load_tpot_p50_ms", level=0.9).value == 90.0
    fast = written(stage_run(2, tpot=10.0), stage_run(500, kind="open", tpot=90.0))
    assert load_interval(fast, "load_tpot_p50_ms", level=0.9).value == 90.0
    failed = written(stage_run(8, errors=60))
    assert failed.report()["verdict"] == "FAILED"
    assert load_interval(failed, "load_ttft_p95_ms", level=0.9) is None
    assert load_interval(failed, "load_error_rate", level=0.9).value == 0.6
    both = written(stage_run(16, count=300), stage_run(0.2, kind="open", count=30, errors=30))
    assert load_interval(both, "load_error_rate", level=0.9).value == 1.0, "the worst stage, not the heaviest"
    silent = written(stage_run(8, count=30, errors=30), stage_run(0.2, kind="open"))
    assert load_interval(silent, "load_error_rate", level=0.9).value == 1.0
    cut = stage_run(1)
    cut.stopped = "interrupted"
    report = written(cut)
    assert report.report()["interrupted"]
    assert {load_interval(report, name, level=0.9) for name in ("load_ttft_p95_ms", "load_error_rate")} == {None}
