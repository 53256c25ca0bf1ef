"""Load tests of an endpoint whose model thinks, and with a client that may open too few files."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from tunegate.serve.chat_stream import ChatStream

STANDIN = Path(__file__).with_name("load_standin.py")
FT = "from tunegate.core.ft import main; main()"


@pytest.fixture
def load(tmp_path):
    """load(stand-in's options, ft loadtest's options, files): (exit code, the stage, the stand-in's record, what was
    printed). files: (soft, hard) limit of open files of the client, None: as it is."""
    (tmp_path / "prompts.txt").write_text("".join(f"question {i}\n" for i in range(200)))
    log, started = tmp_path / "standin.jsonl", []

    def call(served, asked, files=None):
        words = [sys.executable, str(STANDIN), "--log", str(log), *map(str, served)]
        started.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        url = f"http://127.0.0.1:{int(started[-1].stdout.readline())}/v1"
        command = ["loadtest", url, "--out", str(tmp_path / "load"), "--prompts", str(tmp_path / "prompts.txt")]
        limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)) if files else None
        done = subprocess.run(
            [sys.executable, "-c", FT, *command, *map(str, asked)],
            capture_output=True, text=True, check=False, timeout=120, preexec_fn=limit,
        )  # fmt: skip
        (stage,) = json.loads((tmp_path / "load" / "report.json").read_text())["stages"]
        truth = [json.loads(line) for line in log.read_text().splitlines()]
        return done.returncode, stage, truth, done.stderr

    yield call
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_the_first_token_of_a_model_that_thinks_is_its_first_thought(load, key):
    """Its usage counts the thoughts: TPOT over the rest alone was half of the real gap here, and a twelfth of it elsewhere."""
    served = ("--ttft-ms", 50, "--chunk-ms", 40, "--chunks", 10, "--tokens-per-chunk", 1, "--reasoning", key)
    _, stage, truth, said = load(served, ("--concurrency", 1, "--requests", 8, "--warm-up", 0))
    assert stage["answers"] == 8, said
    first = median(1000 * (e["first"] - e["received"]) for e in truth)
    gap = median(1000 * (e["ended"] - e["first"]) / 9 for e in truth)
    assert stage["ttft_ms"]["p50"]["value"] == pytest.approx(first, abs=60)
    assert stage["tpot_ms"]["p50"]["value"] == pytest.approx(gap, rel=0.15)


def test_thoughts_that_are_counted_and_never_sent_are_known():
    usage = {"prompt_tokens": 3, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 40}}
    for delta, kept in (({"content": "a"}, 40), ({"reasoning": "hm", "content": "a"}, 0)):
        stream = ChatStream("here")
        stream.take({"choices": [{"delta": delta, "finish_reason": "stop"}], "usage": usage}, 0.1)
        assert stream.completion(200.0, 1, None).kept_tokens == kept


FULL = ("--concurrency", 64, "--requests", 64, "--warm-up", 0)
SLOW = ("--ttft-ms", 700, "--chunk-ms", 1, "--chunks", 2)


def test_a_client_that_may_open_no_more_files_is_the_clients_fault(load):
    """It was the server's, or a crash where the first line of progress was to be printed."""
    code, stage, _, said = load(SLOW, FULL, (40, 40))
    assert code == 3, said
    assert set(stage["errors"]) == {"client"}
    assert stage["error_rate"] == 0.0
    assert "ulimit -n" in said


def test_a_load_test_takes_as_many_files_as_it_may_have(load):
    _, stage, _, said = load(SLOW, FULL, (40, 1024))
    assert (stage["errors"], stage["answers"], stage["client"]["unsent"]) == ({}, 64, 0), said
