"""The load test's pure parts: stages, prompts, arrivals, figures, knee, validity, counters, the drawing."""

import itertools
import random
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from tunegate.core.commands import run
from tunegate.core.errors import UsageError, UserError
from tunegate.serve import load_counters
from tunegate.serve.load_figures import drifted, figures, goodput, invalid, knee, summary, throughput, warnings
from tunegate.serve.load_plan import (  # fmt: skip
    LoadOptions,
    Prompts,
    Stage,
    arrivals,
    make_prompt,
    numbers,
    plan_stages,
    read_data,
    read_prompts,
)
from tunegate.serve.load_plot import svg
from tunegate.serve.load_report import About, judge, make_report, markdown
from tunegate.serve.load_test import Record, StageRun
from tunegate.serve.loadtest_cli import app


def record(
    number=0, start=0.0, seconds=1.0, *, due=None, warm_up=False, tokens=11, ttft=100.0, error=None, repeated=False
):
    answered = {} if error else {"ttft_ms": ttft, "e2e_ms": 1000 * seconds, "completion_tokens": tokens, "prompt_tokens": 5,
                                 "tpot_ms": (1000 * seconds - ttft) / (tokens - 1), "finish_reason": "stop"}  # fmt: skip
    return Record(
        number=number, warm_up=warm_up, prompt="p", repeated=repeated, due_s=start if due is None else due,
        started_s=start, ended_s=start + seconds, error_kind=error, error=error, **answered,
    )  # fmt: skip


def closed(level, records, **about):
    stage = Stage(kind="closed", level=level, requests=len(records), duration_s=None, warm_up=0)
    return StageRun(stage=stage, records=records, lags_ms=[0.1] * 100, **about)


def waves(streams, count, seconds=1.0):
    """Streams in lock-step: the first of each is warm-up."""
    return [
        record(w * streams + s, w * seconds, seconds, warm_up=w == 0) for w in range(count + 1) for s in range(streams)
    ]


def test_throughput_of_streams_in_lock_step_is_streams_over_latency():
    found = throughput(waves(16, 5))
    assert found["window"] == "full load"
    assert found["requests_per_s"] == pytest.approx(16.0)
    assert found["output_tokens_per_s"] == pytest.approx(16 * 11)


def test_throughput_leaves_out_the_tail_where_streams_stand_idle():
    records = [*waves(4, 5), record(99, 6.0, 30.0)]  # one straggler
    found = throughput(records)
    assert found["seconds"] == pytest.approx(5.0)
    assert found["requests_per_s"] == pytest.approx(4.0)
    assert found["span_requests_per_s"] == pytest.approx(21 / 35)


def test_a_window_shorter_than_a_request_is_said():
    found = throughput([record(0, 0.0, 2.0), record(1, 0.1, 2.0)])
    assert found["window"] == "whole span"
    assert found["requests_per_s"] == pytest.approx(2 / 2.1)
    assert throughput([record(error="timeout")]) is None


def test_percentiles_have_order_statistic_intervals():
    found = summary([float(v) for v in range(1, 101)])
    assert found["p95"] == {"value": 95.0, "low": 90.0, "high": 100.0}  # P(X<=89) = 0.0115, P(X<=98) = 0.963
    assert found["p99"]["high"] is None  # 100 values bound a p99 on one side only
    assert summary([]) is None


def test_a_request_that_timed_out_counts_in_e2e_by_what_it_was_waited_for():
    """Ten of a hundred hang for 2 s: p95 is theirs. A refused connection has no latency."""
    late = [record(i, float(i), 2.0, due=i - 0.1, error="timeout") for i in range(10)]
    quick = [record(i, float(i), 0.4) for i in range(10, 100)]
    found = figures(closed(1, [*late, *quick, record(100, 100.0, 9.0, error="unreachable")]), {})
    assert found["e2e_ms"]["n"] == 100
    assert found["e2e_ms"]["mean"] == pytest.approx(0.1 * 2100 + 0.9 * 400)
    assert found["e2e_ms"]["p50"] == {"value": 400.0, "low": 400.0, "high": 400.0}
    assert found["e2e_ms"]["p95"] == {"value": pytest.approx(2100.0), "low": 400.0, "high": None}
    assert found["ttft_ms"]["n"] == found["tpot_ms"]["n"] == 90


def test_goodput_counts_failures_and_every_limit():
    records = [record(ttft=50.0), record(ttft=500.0), record(seconds=9.0), record(error="http_500")]
    found = goodput(records, {"ttft_ms": 100.0, "e2e_ms": 2000.0})
    assert found["share"]["value"] == 0.25
    assert goodput(records, {}) is None


@pytest.mark.parametrize(
    ("levels", "rates", "at"),
    [
        ([1, 2, 4, 8, 16], [10, 20, 38, 41, 42], 4),  # bends at 4
        ([1, 2, 3, 4], [10, 20, 30, 40], None),  # still growing
        ([1, 4, 16], [50, 50, 50], 1),  # flat from the start
        ([1, 4], [10, 20], None),  # two points bend nowhere
    ],
)
def test_knee(levels, rates, at):
    assert knee(levels, rates) == at


def test_a_client_that_was_the_bottleneck_makes_the_run_invalid():
    records = [record(i, i * 1.0) for i in range(100)]
    assert figures(closed(1, records, cpu_share=0.5), {})["invalid"] == []
    (busy,) = figures(closed(1, records, cpu_share=0.9), {})["invalid"]
    assert "0.90 of a core" in busy
    run_ = closed(1, records)
    run_.lags_ms = [0.1] * 90 + [20.0] * 10  # 20 ms late at p99, TTFT is 100 ms
    (late,) = figures(run_, {})["invalid"]
    assert "woke up 20.0 ms late (p99); 5.0 ms" in late
    behind = [record(i, i + 0.2, due=float(i)) for i in range(100)]  # sent 200 ms after they were due
    assert any("sent requests 200.0 ms late" in reason for reason in figures(closed(1, behind), {})["invalid"])


def test_verdict_prefers_failure_over_doubt():
    stage = figures(closed(2, [record(0), record(1, error="timeout")], cpu_share=0.9), {})
    assert judge([stage], 0.01)[0] == "FAILED"
    assert judge([stage], 0.5)[0] == "INVALID"
    assert judge([figures(closed(2, [record(0)]), {})], 0.0)[0] == "VALID"
    assert judge([figures(closed(2, []), {})], 0.0) == ("FAILED", ["there was no answer to measure"])


def test_drift_needs_both_a_difference_that_shows_and_one_that_matters():
    still = [100.0 + (i % 7) for i in range(60)]
    assert drifted(still) is None
    assert drifted([v + 2 * (i >= 30) for i, v in enumerate([100.0] * 60)]) is None  # clear, but 2 %
    assert drifted([*still[:30], *(v + 50 for v in still[:30])]) == pytest.approx(1.485, rel=0.01)


def test_counters_are_summed_over_engines_and_compared():
    text = (
        '# HELP x y\nvllm:prefix_cache_queries_total{engine="0"} 100.0\nvllm:prefix_cache_queries_total{engine="1"} 60 1700000\n'
        'vllm:prefix_cache_hits_total{engine="0"} 40.0\nvllm:num_preemptions_total 3.0\nvllm:num_requests_running 7\n'
    )
    before = load_counters.summed(text)
    assert before == {"prefix_queries": 160.0, "prefix_hits": 40.0, "preemptions": 3.0}
    after = {"prefix_queries": 260.0, "prefix_hits": 90.0, "preemptions": 1.0}
    found = load_counters.Counters(after).since(load_counters.Counters(before))
    assert found["prefix_hit_rate"] == 0.5
    assert found["preemptions"] is None  # went down: another server


def test_stages_are_ordered_and_sized():
    stages = plan_stages([16, 1, 16], [2.0], requests=None, duration_s=None, warm_up=None)
    assert [(s.kind, s.level, s.requests, s.warm_up) for s in stages] == [
        ("closed", 1.0, 80, 1), ("closed", 16.0, 128, 16), ("open", 2.0, 40 * 2, 5)
    ]  # fmt: skip
    with pytest.raises(UsageError, match="two ways"):
        plan_stages([1], [], requests=5, duration_s=3.0, warm_up=None)


@pytest.mark.parametrize("text", [",", "0", "a,b", "-1", "1,,x", "1e9"])
def test_a_list_of_numbers_is_checked(text):
    with pytest.raises(UsageError):
        numbers(text, "--concurrency", int)


def test_arrivals_are_poisson_and_repeatable():
    stage = Stage(kind="open", level=50.0, requests=4000, duration_s=None, warm_up=10)
    times = list(arrivals(stage, random.Random(1)))
    assert len(times) == 4010
    assert times == list(arrivals(stage, random.Random(1)))
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((g - mean) ** 2 for g in gaps) / len(gaps)
    assert mean == pytest.approx(0.02, rel=0.05)
    assert variance == pytest.approx(mean**2, rel=0.1)  # an exponential's deviation is its mean
    timed = Stage(kind="open", level=50.0, requests=None, duration_s=2.0, warm_up=10)
    inside = list(arrivals(timed, random.Random(2)))
    assert inside[-1] - inside[10] < 2.0
    assert 60 < len(inside) - 10 < 140


def test_prompts_come_once_each_before_any_comes_again():
    made = [make_prompt(({"role": "user", "content": str(i)},)) for i in range(5)]
    source = Prompts(made, seed=0)
    first = [source.next() for _ in range(5)]
    assert {p.key for p, _ in first} == {p.key for p in made}
    assert not any(again for _, again in first)
    assert all(source.next()[1] for _ in range(5))


def test_prompt_files(tmp_path, makers):
    makers.jsonl(tmp_path / "rows.jsonl", makers.rows(3))
    assert next(p.messages for p in read_data(tmp_path / "rows.jsonl")) == (
        {"role": "user", "content": "What is 0 plus 0?"},
    )
    (tmp_path / "p.txt").write_text("one\n\ntwo\n")
    assert len(read_prompts(tmp_path / "p.txt")) == 2
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a"}\n{"messages": [{"role": "user", "content": "b"}]}\n{"text": 1}\n'
    )
    with pytest.raises(UserError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert caught.value.where.endswith("p.jsonl:3")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(UserError, match="no prompt"):
        read_prompts(tmp_path / "empty.txt")


def test_report_and_drawing_are_text_whatever_the_model_is_called(tmp_path):
    runs = [closed(c, waves(c, 6)) for c in (1, 4, 16)]
    options = LoadOptions(stages=tuple(r.stage for r in runs), generation={}, slo={"e2e_ms": 2000.0})
    about = About(target="t", endpoint="e", model="<script>|&", prompts={}, engine={}, inputs=[])
    document = make_report(runs, options, about, max_error_rate=0.01)
    assert document["verdict"] == "VALID"
    assert [s["goodput"]["share"]["value"] for s in document["stages"]] == [1.0, 1.0, 1.0]
    root = ET.fromstring(svg(document))
    assert sum(child.tag.endswith("polyline") for child in root.iter()) == 1 + 3 + 3
    text = markdown(document)
    assert "<script>" not in text
    assert "\\|" in text
    failed = make_report([closed(1, [record(error="timeout")])], options, about, max_error_rate=0.01)
    assert "not measured" in "".join(ET.fromstring(svg(failed)).itertext())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["http://127.0.0.1:9/v1", "--out", "o", "--prompts", "p.txt", "--data", "p.txt"], 2, "--data"),
        (["http://127.0.0.1:9/v1", "--out", "o", "--prompts", "missing.txt"], 2, "no such file"),
        (["http://127.0.0.1:9/v1", "--out", "o", "--prompts", "p.txt", "--concurrency", "x"], 2, "--concurrency"),
        (["http://127.0.0.1:9/v1", "--out", "o", "--prompts", "p.txt", "--", "--dtype", "x"], 2, "no vLLM flags"),
        (["http://127.0.0.1:9/v1", "--out", "o", "--prompts", "p.txt"], 4, "nothing answers"),
    ],
)
def test_wrong_use_is_one_line_and_leaves_nothing(words, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.txt").write_text("q\n")
    assert run(app, prog="ft loadtest", argv=words) == code
    captured = capsys.readouterr()
    assert says in captured.err.splitlines()[-1]
    assert not (tmp_path / "o").exists()


def test_invalid_without_answers_does_not_stumble():
    stage = figures(closed(1, [record(error="timeout")]), {})
    assert invalid(stage) == []
    assert stage["throughput"] is None


def test_an_endpoint_that_counts_no_tokens_is_told_of():
    stage = {"repeated_prompts": 0, "unfinished": 0, "counters": None}
    counted, uncounted = record(), replace(record(), completion_tokens=None)
    told = ["the endpoint reports no token counts (usage): TPOT and tokens a second are not known"]
    assert warnings(stage, [uncounted, uncounted]) == told
    assert warnings(stage, [uncounted, counted]) == []
    assert warnings(stage, []) == []


def test_a_limit_of_a_figure_that_was_not_measured_is_no_goodput():
    """It was 100 %: an answer without the figure kept to every limit."""
    whole = [replace(record(i), ttft_ms=None, tpot_ms=None) for i in range(3)]
    uncounted = [replace(record(i), tpot_ms=None, completion_tokens=None) for i in range(3)]
    both = {"ttft_ms": 500.0, "tpot_ms": 500.0}
    unstreamed = "the endpoint does not stream: {} is not known: goodput is not known"
    for answers, slo, told in (
        (whole, both, [unstreamed.format("TTFT"), unstreamed.format("TPOT")]),
        (whole, {"e2e_ms": 5000.0}, []),
        (uncounted, {"ttft_ms": 500.0}, []),
        (uncounted, {"tpot_ms": 500.0}, ["the endpoint reports no token counts (usage): TPOT is not known: goodput is not known"]),
    ):  # fmt: skip
        found = figures(closed(1, answers), slo)
        assert [w for w in found["warnings"] if "goodput" in w] == told
        assert (found["goodput"] is None) == bool(told)
    assert goodput([record(error="timeout")], {"ttft_ms": 9.0})["share"]["value"] == 0.0


def test_one_token_has_no_tpot_and_a_figure_that_others_have_is_a_miss():
    single = replace(record(), tpot_ms=None, completion_tokens=1)
    empty = replace(record(), ttft_ms=None, tpot_ms=None, completion_tokens=0)
    assert goodput([single, single], {"tpot_ms": 9.0})["share"]["value"] == 1.0
    assert goodput([record(), single, empty], {"ttft_ms": 500.0})["share"]["value"] == pytest.approx(2 / 3)
    assert goodput([record(), single, empty], {"tpot_ms": 500.0})["share"]["value"] == pytest.approx(2 / 3)


def test_a_request_that_the_client_could_not_send_says_nothing_about_the_server():
    run = closed(3, [record(0), record(1), record(2, error="client")], stopped="the client could not send a request")
    stage = figures(run, {"ttft_ms": 500.0})
    assert (stage["error_rate"], stage["errors"], stage["goodput"]["share"]["value"]) == (0.0, {"client": 1}, 1.0)
    verdict, (reason,) = judge([stage], 0.01)
    assert (verdict, "could not send 1 requests" in reason) == ("INVALID", True)
    assert judge([figures(closed(1, [record(error="client")]), {})], 0.01)[0] == "INVALID"
    assert judge([figures(closed(1, [record(error="client"), record(error="timeout")]), {})], 0.01)[0] == "FAILED"


def test_a_counter_that_is_no_finite_number_is_none():
    before, after = load_counters.Counters({"preemptions": 1.0}), load_counters.Counters({"preemptions": float("inf")})
    assert after.since(before)["preemptions"] is None
