"""vLLM's counters as text, what went on between two of them, and the view made of that."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tunegate.core.commands import run
from tunegate.serve.cli import app
from tunegate.serve.metrics import between, parse, snapshot

# What vLLM 0.32 answered at /metrics after a few requests to a base model and two adapters.
REAL = (Path(__file__).parent / "vllm_metrics.txt").read_text()


def lines(**values):
    return "\n".join(f"vllm:{name} {value}" for name, value in values.items())


def test_the_text_format():
    text = '# HELP a b\na 1\nb{x="1",y="q\\"u,o}te"} 2.5e3\nc{x="1"} +Inf 1700000000\nvllm:d 4\nnonsense\nhello world\nvllm:d four\n'
    found = [(s.name, s.labels, s.value) for s in parse(text)]
    assert found[:2] == [("a", {}, 1.0), ("b", {"x": "1", "y": 'q\\"u,o}te'}, 2500.0)]
    assert found[2][2] == float("inf")
    assert found[3] == ("vllm:d", {}, 4.0)
    assert len(found) == 4


def test_a_real_scrape():
    seen = snapshot(REAL, 0.0)
    assert seen.generated_tokens > 900
    assert 0 <= seen.cache_hits < seen.cache_queries == seen.prompt_tokens
    assert seen.finished["length"] >= 8
    assert set(seen.finished) <= {"stop", "length", "abort", "error", "repetition"}
    assert seen.ttft_count >= 8
    assert seen.running == seen.waiting == 0


def test_engines_are_summed_and_the_fullest_cache_counts():
    text = 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 4\n'
    text += 'vllm:kv_cache_usage_perc{engine="0"} 0.2\nvllm:kv_cache_usage_perc{engine="1"} 0.7\n'
    seen = snapshot(text, 0.0)
    assert (seen.running, seen.kv_use) == (7, 0.7)


def test_rates_between_two_scrapes():
    before = snapshot(lines(generation_tokens_total=100, prompt_tokens_total=10, prefix_cache_queries_total=50,
                            prefix_cache_hits_total=10, time_to_first_token_seconds_sum=1,
                            time_to_first_token_seconds_count=2), 10.0)  # fmt: skip
    after = snapshot(lines(generation_tokens_total=160, prompt_tokens_total=40, prefix_cache_queries_total=150,
                           prefix_cache_hits_total=85, time_to_first_token_seconds_sum=1.6,
                           time_to_first_token_seconds_count=5, num_requests_running=2, num_preemptions_total=1), 12.0)  # fmt: skip
    seen = between(before, after)
    assert (seen["generated_tokens_per_s"], seen["prompt_tokens_per_s"]) == (30, 15)
    assert seen["cache_hit_rate"] == 0.75
    assert seen["ttft_ms"] == pytest.approx(200)
    assert seen["tpot_ms"] is None
    assert (seen["running"], seen["preemptions"]) == (2, 1)


def test_a_restarted_server_counts_from_zero():
    seen = between(snapshot(lines(generation_tokens_total=500), 0.0), snapshot(lines(generation_tokens_total=20), 2.0))
    assert seen["generated_tokens_per_s"] == 10
    assert seen["requests_per_s"] == 0


@pytest.fixture
def metrics():
    """A server whose /metrics wants a key and has written 30 tokens more at every look."""
    looks = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            looks.append(self.path)
            allowed = self.headers.get("Authorization") == "Bearer k"
            known = self.path == "/metrics"
            self.send_response(401 if not allowed else 200 if known else 404)
            self.end_headers()
            text = lines(generation_tokens_total=30 * len(looks), num_requests_running=3, kv_cache_usage_perc=0.25)
            odd = "\nhello world\nvllm:num_requests_waiting NaN\nvllm:kv_cache_usage_perc +Inf\n"
            self.wfile.write((text + odd + 'vllm:request_success_total{finished_reason="stop"} 7\n').encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def top(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))

    def call(*argv, key="k"):
        if key:
            monkeypatch.setenv("TUNEGATE_API_KEY", key)
        code = run(app, prog="ft serve", argv=["top", *argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_one_look_as_json_and_as_a_table(metrics, top):
    code, out, _ = top(metrics, "--once", "--interval", "0.2", "--json")
    seen = json.loads(out)
    assert code == 0
    assert (seen["url"], seen["running"], seen["kv_use"], seen["finished"]) == (metrics, 3, 0.25, {"stop": 7})
    assert seen["generated_tokens_per_s"] == pytest.approx(30 / seen["interval_s"])
    assert (seen["cache_hit_rate"], seen["waiting"]) == (None, 0)
    code, out, _ = top(metrics, "--once", "--interval", "0.2")
    assert code == 0
    assert "KV cache in use" in out
    assert "25.0%" in out
    assert "finished: stop 7" in out


def test_what_can_be_wrong(metrics, top, tiny_model):
    code, out, err = top(metrics, "--once", key="wrong")
    assert (code, out) == (4, "")
    assert "the key is missing or wrong" in err
    code, _, err = top(metrics.replace("/v1", "/other"), "--once")
    assert code == 4
    assert "only vLLM's server has them" in err
    assert top("http://127.0.0.1:9/v1", "--once")[0] == 4
    assert top(metrics, "--json")[0] == 2
    code, _, err = top()
    assert code == 2
    assert "no server was started here" in err
