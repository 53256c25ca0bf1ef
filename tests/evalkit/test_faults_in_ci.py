"""A gate in CI whose endpoint or job fails: what is kept, asked again, saved, and how the command ends."""

import json
import os
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tunegate.core.files import sha256_file
from tunegate.evalkit import runner
from tunegate.evalkit.compare import Reading
from tunegate.evalkit.gate import decide
from tunegate.evalkit.policy import make_policy
from tunegate.evalkit.summary import latency, measure
from tunegate.evalkit.validators import judge

ROOT = Path(__file__).parents[2]
EVAL = ("--task", "task.yaml", "--retries", "0", "--json")


def put(path, values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def outputs(path, right, n=60):
    put(path, [{"id": f"i{i}", "output": f"q{i}" if i < right else "no"} for i in range(n)])


def report_of(folder):
    return json.loads((folder / "report.json").read_text())


def kept(log):
    return len(log.read_text().splitlines())


def after(standin, n, status, first=200):
    """The stand-in says `first` to n requests, and `status` to any other."""
    left = iter(range(n))
    standin.answer = lambda q, _: (status if next(left, None) is None else first, q)


def test_what_the_gate_did_not_pass_is_not_saved_as_the_next_baseline(echo, ft):
    for name, right in (("old", 60), ("bad", 20), ("few", 58)):
        outputs(echo / f"{name}.jsonl", right)
    assert ft("eval", "old.jsonl", "--task", "task.yaml", "--out", "old", "--save-as", "base").code == 0
    for name, code in (("bad", 1), ("few", 3), ("bad", 1)):
        options = ("--task", "task.yaml", "--out", name, "--against", "base", "--save-as", "base", "--force")
        done = ft("eval", f"{name}.jsonl", *options)
        assert done.code == code
        assert f"not saved as 'base': the gate says {'FAIL' if code == 1 else 'INCONCLUSIVE'}" in done.err
    (echo / "gate.yaml").write_text("conditions: [{metric: exact, rule: at_least, value: 0.5}]\n")
    policy = ("--policy", "gate.yaml", "--against", "base", "--save-as", "next")
    assert ft("eval", "few.jsonl", "--task", "task.yaml", "--out", "ok", *policy).code == 0
    assert ft("eval", "old.jsonl", "--task", "task.yaml", "--out", "again", "--against", "next").code != 2


def test_a_report_that_is_its_own_baseline_is_named(echo, ft):
    outputs(echo / "old.jsonl", 60)
    assert ft("eval", "old.jsonl", "--task", "task.yaml", "--out", "r", "--save-as", "base").code == 0
    for same in ("r", "base"):
        done = ft("gate", "r", "--against", same)
        assert (done.code, "this report itself" in done.err) == (3, True)  # 60 equal answers show little


def killed(echo, standin, ft, *options):
    """Baseline judged, then the endpoint ends while the candidate is asked: the command that was cut short."""
    command = ("eval", standin.url.replace("127.0.0.1", "localhost"), *EVAL, "--out", "r", "--against", standin.url)
    after(standin, 60 + 20, 401)
    done = ft(*command, *options)
    assert (done.code, kept(echo / ".r.answers.jsonl")) == (4, 20)
    time.sleep(0.3)  # the stand-in ends what was under way
    standin.answer = lambda q, _: (200, q)
    standin.asked.clear()
    return command


@pytest.mark.parametrize("options", [(), ("--force",)])
def test_a_baseline_judged_before_the_kill_is_not_asked_again(echo, standin, ft, options):
    command = killed(echo, standin, ft, *options)
    done = ft(*command, *options)
    assert (done.code, done.json["n"], sum(standin.asked.values())) == (3, 60, 40)
    assert report_of(echo / "r")["comparison"]["baseline"]["spec"] == standin.url
    standin.asked.clear()
    again = ft(*command, *options)  # finished: a run of its own
    assert (again.code, sum(standin.asked.values())) == ((3, 120) if options else (2, 0))


def test_a_baseline_of_another_run_stands_in_the_way(echo, standin, ft):
    command = killed(echo, standin, ft)
    task = (echo / "task.yaml").read_text()
    (echo / "task.yaml").write_text(task + "generation: {max_tokens: 7}\n")
    done = ft(*command)  # asked otherwise by now
    assert (done.code, "r-baseline" in done.err + done.out, sum(standin.asked.values())) == (2, True, 0)
    (echo / "task.yaml").write_text(task)
    assert ft("eval", standin.url, *EVAL, "--out", "r-baseline", "--force").code == 0  # not the one of that run
    standin.asked.clear()
    assert (ft(*command).code, sum(standin.asked.values())) == (2, 0)


@pytest.mark.parametrize("status", [503, 429, 500])
def test_an_endpoint_that_only_fails_is_gone(echo, standin, ft, monkeypatch, status):
    monkeypatch.setattr(runner, "DEAD_S", 0.0)
    after(standin, 10, status)
    done = ft("eval", standin.url, *EVAL, "--out", "r")
    assert (done.code, kept(echo / ".r.answers.jsonl")) == (4, 10)
    assert "the 10 answers so far are kept" in done.json["error"]["hint"]
    assert sum(standin.asked.values()) <= 10 + 32 + runner.DEAD_AFTER
    standin.asked.clear()
    standin.answer = lambda q, _: (200, q)
    assert ft("eval", standin.url, *EVAL, "--out", "r").code == 0
    assert len(standin.asked) in (50, 51)  # whether it is gone may have been asked once more, and arrive only now


def test_few_answers_that_each_fail_long_end_the_run(echo, standin, ft, monkeypatch):
    monkeypatch.setattr(runner, "DEAD_AT_LATEST_S", 0.4)
    standin.delay_s = 0.15
    after(standin, 0, 503)
    done = ft("eval", standin.url, *EVAL, "--out", "r", "--concurrency", "1")
    assert done.code == 4
    assert sum(standin.asked.values()) < runner.DEAD_AFTER


def test_an_overload_that_passes_ends_no_run(echo, standin, ft, monkeypatch):
    after(standin, 40, 200, first=503)
    run = ft("eval", standin.url, *EVAL, "--out", "short")  # 40 in a row, but not for long
    assert (run.code, run.json["outcomes"]["infra_error"]) == (0, 40)
    monkeypatch.setattr(runner, "DEAD_S", 0.0)
    standin.asked.clear()
    standin.answer = lambda q, _: (503 if int(q[1:]) % 4 else 200, q)  # answers in between
    run = ft("eval", standin.url, *EVAL, "--out", "mixed", "--concurrency", "1")
    assert (run.code, run.json["outcomes"]["infra_error"]) == (0, 45)


def test_items_that_always_fail_are_no_dead_endpoint(echo, standin, ft, monkeypatch):
    """Forty in a row that the engine cannot answer, beside an item that it still answers."""
    monkeypatch.setattr(runner, "DEAD_S", 0.0)
    standin.answer = lambda q, _: (500 if int(q[1:]) >= 20 else 200, q)
    run = ft("eval", standin.url, *EVAL, "--out", "r", "--concurrency", "1")
    assert (run.code, run.json["outcomes"]["infra_error"]) == (0, 40)


@pytest.mark.parametrize("says", [
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase credits.",
    "You exceeded your current quota", "Insufficient funds", "Your account is not active", None])  # fmt: skip
def test_money_that_runs_out_is_infrastructure(echo, standin, ft, says):
    assert ft("eval", standin.url, *EVAL, "--out", "base").code == 0
    standin.asked.clear()
    after(standin, 20, 402 if says is None else 400)
    standin.says = says or "no"
    done = ft("eval", standin.url, *EVAL, "--out", "r", "--against", "base")
    assert (done.code, kept(echo / ".r.answers.jsonl")) == (4, 20)
    assert "the 20 answers so far are kept" in done.json["error"]["hint"]


@pytest.mark.parametrize("own", [0, 7])
def test_an_error_that_repeats_the_items_own_words_is_no_empty_account(echo, standin, ft, own):
    """Even where nothing was answered before, and where the other item meets an overload."""
    standin.answer = lambda q, times: (400 if q == f"q{own}" else 503 if q == "q0" and times == 2 else 200, q)
    standin.says = "Input should be a valid string: 'a question about billing'"
    run = ft("eval", standin.url, *EVAL, "--out", "r", "--concurrency", "1")
    assert (run.code, run.json["outcomes"]["fail"], run.json["outcomes"]["pass"]) == (0, 1, 59)


def test_an_account_that_was_always_empty_ends_the_run_soon(echo, standin, ft):
    after(standin, 0, 400)
    standin.says = "Insufficient credits"
    assert ft("eval", standin.url, *EVAL, "--out", "r", "--concurrency", "1").code == 4
    assert sum(standin.asked.values()) == 2


def test_an_item_too_long_stays_the_systems_own_failure(echo, standin, ft):
    standin.answer = lambda q, _: (400 if q == "q7" else 200, q)
    standin.says = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
    run = ft("eval", standin.url, *EVAL, "--out", "r")
    assert (run.json["outcomes"]["fail"], run.json["outcomes"]["infra_error"]) == (1, 0)


def test_rejections_that_meet_an_answered_item_too_are_infrastructure(echo, standin, ft):
    assert ft("eval", standin.url, *EVAL, "--out", "base").code == 0
    standin.asked.clear()
    after(standin, 20, 400)
    run = ft("eval", standin.url, *EVAL, "--out", "r", "--against", "base")
    assert (run.code, run.json["outcomes"]["fail"], run.json["outcomes"]["infra_error"]) == (3, 0, 40)
    standin.answer = lambda q, _: (200, q)
    run = ft("eval", standin.url, *EVAL, "--out", "r", "--against", "base", "--retry-errors")
    assert run.json["outcomes"]["pass"] == 60


JUDGED = """name: t
data: eval.jsonl
validators: [{{name: ok, kind: judge, endpoint: "{url}", model: m, labelled: labelled.jsonl}}]
"""


@pytest.fixture
def judged(echo, standin):
    """A judge that is right; 60 outputs, one of them LONG."""
    labels = [{"question": "a", "expected": "b", "answer": "ab"[i % 2], "right": bool(i % 2)} for i in range(40)]
    put(echo / "labelled.jsonl", labels)
    (echo / "judged.yaml").write_text(JUDGED.format(url=standin.url))
    put(echo / "o.jsonl", [{"id": f"i{i}", "output": "LONG" if i == 3 else f"q{i}"} for i in range(60)])

    def fair(prompt, _):
        asked = json.loads(prompt[prompt.index("<data>") + 6 : prompt.rindex("</data>")])
        if asked["answer"] == "LONG":
            return judged.status, ""
        return 200, json.dumps({"right": asked["answer"] == asked["expected"], "reason": ""})

    standin.answer, judged.status = fair, 400
    judge._kept.cache_clear()
    judge._agreement.cache_clear()
    return judged


def test_an_answer_that_the_judge_cannot_take_is_lost_alone(judged, echo, ft):
    run = ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r", "--json")
    assert (run.code, run.json["outcomes"]["pass"], run.json["outcomes"]["infra_error"]) == (0, 59, 1)
    assert "the judge gave no verdict" in run.err
    assert "HTTP 400: broken" in run.err


@pytest.mark.parametrize("status", [401, 402])
def test_a_judge_that_takes_nobody_ends_the_evaluation(judged, echo, ft, status):
    judged.status = status
    assert ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r").code == 4
    assert not (echo / "r").exists()


def test_a_judge_that_fails_on_and_on_ends_it(judged, echo, standin, ft, monkeypatch):
    judged.status = 501  # a fault that no retry mends, of one item: lost
    assert ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r").code == 0
    fair = standin.answer
    standin.answer = lambda prompt, times: fair(prompt, times) if '"answer": "q' not in prompt else (501, "")
    judge._kept.cache_clear()
    monkeypatch.setenv("TUNEGATE_HOME", str(echo / "other"))
    done = ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r2")
    assert done.code == 4
    assert not (echo / "r2").exists()


@pytest.mark.parametrize(("name", "code", "job"), [("few", 3, 0), ("lost", 3, 3), ("none", 3, 3)])
def test_the_action_lets_no_lost_run_through(echo, ft, name, code, job):
    """The action's own script, with an `ft` that leaves what this one made."""
    outputs(echo / "old.jsonl", 60)
    outputs(echo / "few.jsonl", 58)
    put(echo / "lost.jsonl", [{"id": f"i{i}", **({"error": "x"} if i % 3 else {"output": "a"})} for i in range(60)])
    put(echo / "none.jsonl", [{"id": f"i{i}", "error": "x"} for i in range(60)])
    assert ft("eval", f"{name}.jsonl", "--task", "task.yaml", "--out", "r", "--against", "old.jsonl").code == code
    (echo / "bin").mkdir()
    (echo / "bin/ft").write_text(f"#!/bin/sh\nexit {code}\n")
    (echo / "bin/ft").chmod(0o755)
    (step,) = [s for s in yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"] if s.get("id") == "gate"]
    given = {"TARGET": "t", "TASK": "k", "AGAINST": "a", "POLICY": "", "OUT": "r", "ON_INCONCLUSIVE": "pass",
             "GITHUB_OUTPUT": str(echo / "output"), "GITHUB_STEP_SUMMARY": str(echo / "summary"),
             "PATH": f"{echo}/bin:{os.environ['PATH']}"}  # fmt: skip
    done = subprocess.run(["bash", "-c", step["run"]], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == job, done.stderr
    assert bool(re.search("let through", done.stdout)) is (job == 0)


def timed(n, late):
    """Rows of n answers that took 100 ms, and of `late` that were waited for a second and a half."""
    lost = {"outcome": "infra_error", "latency_ms": None, "timed_out_ms": 1500.0}
    rows = [{"outcome": "pass", "latency_ms": 100.0}] * n + [lost] * late + [{**lost, "timed_out_ms": None}] * 5
    return [{**row, "id": str(i), "scores": {}} for i, row in enumerate(rows)]


def test_a_request_that_timed_out_took_at_least_that_long():
    p95 = [measure(timed(200, late), {}, "latency_p95_ms", level=0.9, exact=True).interval for late in (0, 8, 40)]
    assert [(i.value, i.low, i.high, i.n) for i in p95] == [
        (100.0, 100.0, 100.0, 200),
        (100.0, 100.0, None, 208),  # the upper end is one of them: no bound
        (1500.0, 1500.0, None, 240),
    ]
    policy = make_policy({"conditions": [{"metric": "latency_p95_ms", "rule": "at_most", "value": 800}]}, "g")
    report = {"task": {"slices": []}, "metrics": {"exact": None}}
    allowed = replace(policy, max_infra_error_rate=0.5)
    (found,) = decide(allowed, Reading(name="r", report=report, rows=timed(200, 8)), None)["conditions"]
    assert found["decision"] == "INCONCLUSIVE"
    assert found["need_n"] > 1000  # 3.8 % are to be told from 5 %: one more would not do
    median = measure(timed(200, 8), {}, "latency_p50_ms", level=0.9, exact=True).interval
    assert (median.value, median.high) == (100.0, 100.0)
    assert latency(timed(200, 40))["latency_ms"]["p95"] == 1500.0
    row = {"id": "r", "scores": {}, "outcome": "pass", "outcomes": ["pass", "infra_error", "infra_error"],
           "latencies_ms": [100.0, None, None], "each_timed_out_ms": [None, 1500.0, None]}  # fmt: skip
    assert measure([row], {}, "latency_p99_ms", level=0.9).interval.value == 1500.0
    assert measure([row], {}, "ttft_p99_ms", level=0.9).interval is None


def test_how_long_a_request_was_waited_for_is_kept(echo, standin, ft):
    standin.delay_s = 0.4
    done = ft("eval", standin.url, *EVAL, "--out", "r", "--limit", "4", "--timeout-s", "0.1")
    assert done.code == 4
    rows = [json.loads(line) for line in (echo / "r/results.jsonl").read_text().splitlines()]
    assert [(row["latency_ms"], row["timed_out_ms"]) for row in rows] == [(None, 100.0)] * 4
    assert done.json["operations"]["latency_p50_ms"]["value"] == 100.0
    put(echo / "o.jsonl", rows)  # as recorded outputs
    again = ft("eval", "o.jsonl", *EVAL, "--out", "again", "--limit", "4")
    assert again.json["operations"]["latency_p50_ms"] == done.json["operations"]["latency_p50_ms"]


def test_the_manifest_names_the_files_that_were_judged_by(echo, standin, ft):
    before = {name: sha256_file(echo / name) for name in ("task.yaml", "eval.jsonl")}

    def answer(question, _):
        for name in before:
            (echo / name).write_text((echo / name).read_text() + "\n")
        return 200, question

    standin.answer = answer
    assert ft("eval", standin.url, *EVAL, "--out", "r").code == 0
    named = json.loads((echo / "r/manifest.json").read_text())["inputs"]
    assert {Path(i["path"]).name: i["digest"] for i in named if i["role"] in ("task", "data")} == before
    told = {Path(i["path"]).name: i["digest"] for i in report_of(echo / "r")["lineage"]}
    assert before.items() <= told.items()


def test_tokens_count_every_repeat_and_are_null_where_some_are_not_known(echo, standin, ft):
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "repeats: 3\n")
    assert ft("eval", standin.url, *EVAL, "--out", "r").code == 0
    assert report_of(echo / "r")["tokens"] == {"prompt": 1800, "completion": 900, "answers": 180, "counted": 180}
    put(echo / "o.jsonl", [{"id": f"i{i}", "output": "a", **({"prompt_tokens": 1, "completion_tokens": 2} if i else {})}
                           for i in range(60) for _ in range(3)])  # fmt: skip
    assert ft("eval", "o.jsonl", *EVAL, "--out", "o").code == 0
    assert report_of(echo / "o")["tokens"] == {"prompt": None, "completion": None, "answers": 180, "counted": 177}


def test_a_count_beyond_any_is_not_known(echo, standin, ft):
    price = "price: {prompt_usd_per_1m: 1, completion_usd_per_1m: 1}\n"
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + price)
    standin.usage = {"prompt_tokens": 1, "completion_tokens": int("9" * 400)}
    assert ft("eval", standin.url, *EVAL, "--out", "r").code == 0
    row = json.loads((echo / "r/results.jsonl").read_text().splitlines()[0])
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == (1, None, None)


def test_the_baselines_model_is_chosen_by_its_own_option(echo, standin, ft):
    standin.models = ["new", "old"]
    both = ("eval", standin.url, *EVAL, "--model", "new", "--against", standin.url)
    done = ft(*both, "--out", "r")
    assert (done.code, done.json["error"]["hint"]) == (2, "choose one with --against-model: new, old")
    assert ft(*both, "--against-model", "old", "--out", "r").code == 3
    assert {body["model"] for body in standin.bodies} == {"new", "old"}
    assert (report_of(echo / "r-baseline")["target"]["model"], report_of(echo / "r")["target"]["model"]) == (
        "old",
        "new",
    )
    again = ft("gate", "r", "--against", standin.url, "--against-model", "old", "--force", "--json")
    assert again.code == 3
    assert ft("eval", standin.url, *EVAL, "--model", "new", "--against-model", "old", "--out", "x").code == 2
