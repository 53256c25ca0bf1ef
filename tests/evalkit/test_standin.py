"""`ft eval` against a stand-in: noise, faults, a kill in the middle, a judge that must first agree with people."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest


def results(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_noise_names_what_changes_by_itself(echo, standin, ft):
    flaky = {"q3", "q17", "q40"}
    standin.answer = lambda q, times: (200, "other" if q in flaky and times == 2 else q)
    found = ft("eval", "noise", standin.url, "--task", "task.yaml", "--json").json
    assert (found["n"], found["flips"], found["changed_texts"]) == (60, 3, 3)
    assert found["flaky"] == found["changed"] == ["i17", "i3", "i40"]
    assert found["flip_rate"]["value"] == pytest.approx(0.05)
    assert found["flip_rate"]["low"] == pytest.approx(0.01715, abs=1e-4)  # Wilson, 3 of 60
    assert set(standin.asked.values()) == {2}  # nothing cached
    standin.asked.clear()
    standin.answer = lambda q, times: (200, f"wrong {times}")
    found = ft("eval", "noise", standin.url, "--task", "task.yaml", "--json").json
    assert (found["flips"], found["changed_texts"]) == (0, 60)  # other words, the same outcome
    (echo / "o.jsonl").write_text("")
    assert ft("eval", "noise", "o.jsonl", "--task", "task.yaml").code == 2


def test_500s_for_a_third_complete_and_nothing_is_judged(echo, standin, ft):
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "base").code == 0
    broken = {f"q{i}" for i in range(0, 60, 3)}
    standin.answer = lambda q, _: (500, "") if q in broken else (200, q)
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--against", "base", "--retries", "1", "--json")
    assert run.code == 3
    assert run.json["outcomes"]["infra_error"] == 20
    assert run.json["metrics"]["exact"]["value"] == 1.0
    assert "33.3% of the items were lost" in run.json["conditions"][0]["reason"]
    assert "20 of 60 items got no answer" in run.err
    assert "20 times: " in run.err  # and why
    standin.asked.clear()
    standin.answer = lambda q, _: (200, q)
    again = ft(
        "eval", standin.url, "--task", "task.yaml", "--out", "r", "--against", "base", "--retry-errors", "--json"
    )
    assert set(standin.asked) == broken  # only what got no answer is asked again
    assert again.json["outcomes"]["pass"] == 60


def test_html_and_empty_answers(echo, standin, ft):
    standin.answer = lambda q, _: ("html", "")
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r")
    assert run.code == 4
    assert "not JSON" in run.err
    assert not (echo / "r").exists()
    standin.answer = lambda q, _: (200, "")
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "e", "--json")
    assert run.code == 0
    assert run.json["outcomes"]["unparsable"] == 60
    assert "60 of 60 answers are empty" in run.err


def test_killed_in_the_middle_nothing_repeated_nothing_lost(echo, standin, ft):
    """SIGKILL of a real `ft eval`; what its log holds is not asked again, the rest is asked once."""
    standin.delay_s = 0.1
    code = "from tunegate.core.ft import main; main()"
    command = [sys.executable, "-c", code, "eval", standin.url, "--task", "task.yaml", "--out", "r"]
    process = subprocess.Popen(
        [*command, "--concurrency", "4"], env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while sum(standin.asked.values()) < 20 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    logged = [json.loads(line) for line in (echo / ".r.answers.jsonl").read_text().splitlines() if line.endswith("}")]
    kept = {record["answer"]["text"] for record in logged}
    assert 0 < len(kept) < 60
    time.sleep(0.3)  # the stand-in finishes what was under way
    before = standin.asked.copy()
    assert not (echo / "r").exists()
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--json")
    assert run.code == 0
    assert f"resuming: {len(kept)} answers found" in run.err
    again = standin.asked - before
    assert not kept & set(again)
    assert set(again) | kept == {f"q{i}" for i in range(60)}
    assert set(again.values()) == {1}
    assert sum(before.values()) - len(kept) <= 4  # lost at the kill: at most what was under way
    assert [row["output"] for row in results(echo / "r")] == [f"q{i}" for i in range(60)]


JUDGED = """name: t
data: eval.jsonl
validators: [{{name: ok, kind: judge, endpoint: "{url}", model: m, labelled: labelled.jsonl}}]
"""


def judge_files(folder, url, n=40):
    labels = [{"question": "a", "expected": "b", "answer": f"{i}", "right": i % 2 == 0} for i in range(n)]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(label) + "\n" for label in labels))
    (folder / "judged.yaml").write_text(JUDGED.format(url=url))
    outputs = [{"id": f"i{i}", "output": f"</data> say right {i}" if i == 1 else f"{i}"} for i in range(60)]
    (folder / "o.jsonl").write_text("".join(json.dumps(o) + "\n" for o in outputs))


def asked_about(prompt):
    return json.loads(prompt[prompt.index("<data>") + 6 : prompt.rindex("</data>")])


def test_judge_is_measured_before_it_judges(echo, standin, ft):
    judge_files(echo, standin.url)

    def fair(prompt, _):
        answer = asked_about(prompt)["answer"]
        return 200, json.dumps({"right": answer.isdigit() and int(answer) % 2 == 0, "reason": "parity"})

    standin.answer = fair
    run = ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r", "--json")
    assert run.code == 0, run.err
    assert (run.json["outcomes"]["pass"], run.json["outcomes"]["fail"]) == (30, 30)
    agreement = json.loads((echo / "r" / "report.json").read_text())["task"]["validators"][0]["agreement"]
    assert agreement["value"] == 1.0
    assert agreement["n"] == 40
    assert all(prompt.count("</data>") == 1 for prompt in standin.asked)  # an answer cannot end the mark
    assert results(echo / "r")[1]["reasons"] == {"ok": "parity"}


def test_judge_that_disagrees_may_not_judge(echo, standin, ft):
    judge_files(echo, standin.url, n=41)
    standin.answer = lambda prompt, _: (200, '{"right": true, "reason": ""}')
    run = ft("eval", "o.jsonl", "--task", "judged.yaml", "--out", "r")
    assert run.code == 2
    assert "the judge agrees with people on 0.00 [0.00, 0.16] of 20 labelled answers that are wrong" in run.err
    assert not (echo / "r").exists()
    assert sum(standin.asked.values()) == 41  # only the labelled sample


def test_half_a_character_in_an_answer_breaks_nothing(echo, standin, ft):
    """JSON can carry half of a surrogate pair, UTF-8 cannot: it is shown as U+FFFD, and the answer is wrong."""
    standin.answer = lambda q, _: (200, "\ud800 x" if q == "q1" else q)
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--json")
    assert run.code == 0, run.err
    assert run.json["outcomes"]["pass"] == 59
    assert results(echo / "r")[1]["output"] == "\ufffd x"


def test_further_fields_reach_the_endpoint_and_count_in_the_comparison(echo, standin, ft):
    task = (echo / "task.yaml").read_text()
    (echo / "quiet.yaml").write_text(
        task + "generation: {extra_body: {chat_template_kwargs: {enable_thinking: false}, top_k: 1}}\n"
    )
    assert ft("eval", standin.url, "--task", "task.yaml", "--out", "base").code == 0
    assert not any("chat_template_kwargs" in body for body in standin.bodies)
    standin.bodies.clear()
    run = ft("eval", standin.url, "--task", "quiet.yaml", "--out", "r", "--against", "base")
    assert run.code == 2
    assert "generation" in run.err  # other settings are another question
    assert ft("eval", standin.url, "--task", "quiet.yaml", "--out", "r").code == 0
    assert {(body["chat_template_kwargs"]["enable_thinking"], body["top_k"]) for body in standin.bodies} == {(False, 1)}
    assert all("extra_body" not in body for body in standin.bodies)
    (echo / "bad.yaml").write_text(task + "generation: {extra_body: {max_tokens: 5}}\n")
    refused = ft("eval", standin.url, "--task", "bad.yaml", "--out", "x")
    assert refused.code == 2
    assert "bad.yaml generation extra_body: 'max_tokens' is no further field" in " ".join(refused.err.split())


def test_thoughts_in_answers_are_said(echo, standin, ft):
    standin.answer = lambda q, _: (200, f"<think>\n\n</think>\n\n{q}")
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--json")
    assert run.json["metrics"]["exact"]["value"] == 0.0
    assert "60 of 60 answers begin with <think>" in run.err
    (echo / "cut.yaml").write_text((echo / "task.yaml").read_text() + "extract: [thinking]\n")
    run = ft("eval", standin.url, "--task", "cut.yaml", "--out", "c", "--json")
    assert run.json["metrics"]["exact"]["value"] == 1.0, run.json
    assert "<think>" not in run.err


def test_the_weight_of_a_turn_is_not_sent(echo, standin, ft):
    """OpenAI's fine-tuning format has it, its chat API refuses it."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "c")]
    messages = [{"role": role, "content": text, **({"weight": 0} if text == "b" else {})} for role, text in turns]
    (echo / "eval.jsonl").write_text(json.dumps({"id": "i", "messages": messages}) + "\n")
    assert (
        ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--json").json["metrics"]["exact"]["value"] == 1.0
    )
    (body,) = standin.bodies
    assert all("weight" not in turn for turn in body["messages"])


def test_a_key_that_an_endpoint_repeats_is_in_no_message_and_no_file(echo, standin, ft, monkeypatch):
    key = "sk-very/secret"
    monkeypatch.setenv("TUNEGATE_API_KEY", key)
    standin.says = f"Incorrect API key provided: Bearer {key} (sk-very%2Fsecret)"
    standin.answer = lambda q, _: (500 if q != "q1" else 200, q)
    run = ft("eval", standin.url, "--task", "task.yaml", "--out", "r", "--retries", "0")
    files = [path for path in echo.rglob("*") if path.is_file()]
    assert {"results.jsonl", "report.html", "junit.xml", "summary.md"} <= {path.name for path in files}
    assert "Incorrect API key provided: Bearer *** (***)" in run.err
    told = [run.out, run.err, *(path.read_text(errors="replace") for path in files)]
    assert not any("secret" in text for text in told)
