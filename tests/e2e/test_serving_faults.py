"""One real server with adapters, and what goes wrong with it: crowds, slow clients, a client that leaves, a stopped
engine, kill -9, also in the middle of an evaluation. One start and two restarts of vLLM."""

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tunegate.core import manifest
from tunegate.core.chat_template import probe_digest, render_ids, template_digest
from tunegate.serve import servers
from tunegate.serve.client import ChatClient, EndpointError
from tunegate.serve.metrics import snapshot
from tunegate.serve.plain_http import call
from tunegate.serve.vllm_process import free_port

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc")]
KEY = "fault-key-7"
MESSAGES = [{"role": "user", "content": "Name three rivers in Europe."}]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)
    return found


def next_token_scores(model, ids):
    """log p of the next token, {id: value} of the 20 likeliest."""
    import torch

    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)
    best = scores.topk(20)
    return dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs with random adapters on the embedded model, and what PEFT makes of them in fp32."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunegate.core.model_source import resolve

    base = resolve("builtin:smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(base.location)
    ids = render_ids(tokenizer, MESSAGES, generate=True)
    wanted, folders = {}, []
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(base.location, dtype=torch.float32)
        wanted["base"] = next_token_scores(model, ids)
        adapted = get_peft_model(model, LoraConfig(r=8 * (seed + 1), lora_alpha=16, target_modules=TARGETS))
        assert isinstance(adapted, PeftModel)
        for key, weight in adapted.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(weight, std=0.25)
        wanted[name] = next_token_scores(adapted.eval(), ids)
        folder = tmp_path_factory.mktemp("runs") / name
        adapted.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "probe.json").write_text(json.dumps({"prompts": [{"messages": MESSAGES, "tools": None, "ids": ids}]}))
        facts = {"method": "lora", "base": base.spec, "template_digest": template_digest(tokenizer),
                 "probe_digest": probe_digest(tokenizer)}  # fmt: skip
        manifest.write(folder, "run", inputs=[], config={}, facts=facts)
        folders.append(folder)
    return folders, wanted


class Server:
    def __init__(self, port, ft, env):
        self.port, self._ft, self.env = port, ft, env
        self.root = f"http://127.0.0.1:{port}"

    def ft(self, *words):
        return subprocess.run(
            [self._ft, *words], env=self.env, capture_output=True, text=True, timeout=300, check=False
        )

    def record(self):
        return next(r for r in servers.records() if r["port"] == self.port)

    def state(self):
        return servers.look(self.record())[0]

    def group(self):
        leader, found = self.record()["server_pid"], {}
        for process in psutil.process_iter(["pid", "status", "name"]):
            try:
                if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process.info["name"]
            except ProcessLookupError:
                continue
        return found

    def chat(self, model="one", **fields):
        body = {"model": model, "messages": MESSAGES, "max_tokens": 8, "temperature": 0, **fields}
        return call(f"{self.root}/v1/chat/completions", body=body, key=KEY, timeout_s=120)

    def stream(self, tokens):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        body = {"model": "one", "messages": MESSAGES, "max_tokens": tokens, "stream": True, "ignore_eos": True}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        response.readline()
        return connection, response

    def running(self):
        return snapshot(call(f"{self.root}/metrics", key=KEY).body.decode(), 0.0).running


@pytest.fixture(scope="module")
def server(runs, tmp_path_factory):
    from pathlib import Path

    (one, two), _ = runs
    cache = tmp_path_factory.mktemp("cache")
    real = os.environ.get("TUNEGATE_CACHE") or Path.home() / ".cache" / "tunegate"
    (cache / "models").symlink_to(Path(real) / "models")
    patch = pytest.MonkeyPatch()
    patch.setenv("TUNEGATE_CACHE", str(cache))
    env = {
        **os.environ,
        "TUNEGATE_API_KEY": KEY,
        "TUNEGATE_HEADER_S": "4",
        "TUNEGATE_BODY_S": "4",
        "HF_HUB_OFFLINE": "1",
    }
    env.pop("OMP_NUM_THREADS", None)
    made = Server(free_port("127.0.0.1"), str(Path(sys.executable).parent / "ft"), env)
    done = made.ft("serve", str(one), "--adapter", f"two={two}", "--port", str(made.port), "--detach", "--start", "fast",
                   "--max-model-len", "1024", "--drain", "4", "--hang-after", "12", "--restart", "2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield made
    made.ft("serve", "stop", "--port", str(made.port))
    patch.undo()


def test_each_adapter_answers_as_peft_does_and_not_as_the_base(server, runs):
    """Log probabilities of the next token, bf16 against PEFT in fp32: about 0.1 apart by rounding, far more between models."""
    _, wanted = runs

    def served(model):
        reply = server.chat(model, max_tokens=1, logprobs=True, top_logprobs=20, return_tokens_as_token_ids=True).json()
        found = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {int(t["token"].removeprefix("token_id:")): t["logprob"] for t in found}

    def apart(a, b):
        common = [abs(a[t] - b[t]) for t in list(b)[:5] if t in a]
        return sum(common) / len(common) if len(common) >= 3 else float("inf")

    assert apart(served("one-base"), wanted["base"]) < 0.3
    for name, other in (("one", "two"), ("two", "one")):
        scores = served(name)
        assert apart(scores, wanted[name]) < 0.4
        assert apart(scores, wanted["base"]) > 0.8
        assert apart(scores, wanted[other]) > 0.8


def test_two_hundred_clients_at_once_are_all_answered(server):
    async def crowd():
        base = ChatClient(f"{server.root}/v1", "one-base", key=KEY)
        adapted = ChatClient(f"{server.root}/v1", "two", key=KEY)
        async with base, adapted:
            clients = [base] * 192 + [adapted] * 8
            asked = [c.complete(MESSAGES, generation={"max_tokens": 8, "temperature": 0}) for c in clients]
            return await asyncio.gather(*asked)

    answers = asyncio.run(crowd())
    assert len({a.text for a in answers[:192]}) <= 3, "one prompt, greedy: batches of other sizes may round differently"
    assert not {a.text for a in answers[:192]} & {a.text for a in answers[192:]}
    assert all(a.completion_tokens for a in answers)
    until(lambda: server.running() == 0, 5)


def test_a_client_that_leaves_in_mid_stream_leaves_no_request_behind(server):
    connection, response = server.stream(900)
    assert server.running() == 1
    response.close()
    connection.close()
    until(lambda: server.running() == 0, 2)


def test_slow_clients_hold_nobody_up_and_are_sent_away(server):
    heads = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(30)]
    for client in heads:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n")
        client.settimeout(15)
    body = socket.create_connection(("127.0.0.1", server.port))
    body.settimeout(15)
    body.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode()
                 + b"\r\nContent-Length: 500\r\n\r\n{")  # fmt: skip
    assert server.chat().status == 200
    assert {client.recv(1) for client in heads} == {b""}
    assert body.recv(100).startswith(b"HTTP/1.1 408")
    for client in (*heads, body):
        client.close()


def test_a_stopped_engine_is_called_hung_while_vllm_says_it_is_well_and_started_again(server):
    engine = next(pid for pid, name in server.group().items() if "EngineCore" in name)
    before = server.group()
    os.kill(engine, signal.SIGSTOP)
    try:
        until(lambda: call(f"{server.root}/health").status == 503, 60)
    except OSError:
        pass  # the supervisor was quicker and has killed it already
    until(lambda: server.record()["state"] == "restarting", 60)
    assert "hung" in server.record()["detail"]
    until(lambda: not any(psutil.pid_exists(pid) for pid in before), 5)
    until(lambda: server.state() == "serving", 180)
    assert server.record()["restarts"] == 1
    assert server.chat("two").status == 200


def test_a_request_longer_than_the_context_is_refused_at_once_and_not_asked_again(server):
    async def ask():
        async with ChatClient(f"{server.root}/v1", "one-base", key=KEY) as client:
            await client.complete([{"role": "user", "content": "word " * 3000}], generation={"max_tokens": 8})

    started = time.monotonic()
    with pytest.raises(EndpointError, match="maximum context length is 1024") as caught:
        asyncio.run(ask())
    assert (caught.value.status, caught.value.fatal, caught.value.cause) == (400, False, "http_400")
    assert time.monotonic() - started < 5


def test_an_evaluation_whose_engine_is_killed_goes_on_where_it_was(server, tmp_path):
    """kill -9 of the engine in the middle of `ft eval`: no request is an answer that is none, and the same command asks the rest.

    It ends with 4 when the server stays away, or, when that is back soon, with the items that got no answer named as such.
    """
    rows = [
        {
            "id": str(n),
            "messages": [{"role": "user", "content": f"Count from {n}."}, {"role": "assistant", "content": "1"}],
        }
        for n in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "count", "data": "rows.jsonl", "validators": [{"name": "same", "kind": "exact_match"}], "primary": "same",
            "generation": {"max_tokens": 32, "temperature": 0}}  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    log = tmp_path / ".eval.answers.jsonl"
    words = [server._ft, "eval", f"{server.root}/v1", "--model", "one-base", "--task", str(tmp_path / "task.yaml"),
             "--out", str(tmp_path / "eval"), "--concurrency", "8", "--json"]  # fmt: skip
    first = subprocess.Popen(words, env=server.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: log.is_file() and len(log.read_bytes().splitlines()) >= 12, 90)
    os.kill(next(pid for pid, name in server.group().items() if "EngineCore" in name), signal.SIGKILL)
    out, err = first.communicate(timeout=240)
    if first.returncode == 4:
        assert "the endpoint is gone" in json.loads(out)["error"]["message"]
    else:
        assert first.returncode == 0, err
        lost = json.loads(out)["outcomes"]["infra_error"]
        assert f"{lost} of 60 items got no answer (infrastructure errors)" in err
    kept = [json.loads(line)["key"] for line in log.read_text().splitlines()]
    assert 12 <= len(kept) < 60
    until(lambda: server.state() == "serving", 180)
    again = subprocess.run(
        [*words, *(["--retry-errors"] if first.returncode == 0 else [])],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    assert f"resuming: {len(kept)} answers found" in again.stderr
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    assert report["timing"]["requests"] == 60 - len(kept), "no request was repeated"
    assert report["outcomes"].get("infra_error", 0) == 0
    assert len((tmp_path / "eval" / "results.jsonl").read_text().splitlines()) == 60


def test_kill_9_of_the_engine_is_an_error_in_the_stream_and_leaves_nothing(server):
    connection, response = server.stream(900)
    members = server.group()
    os.kill(next(pid for pid, name in members.items() if "EngineCore" in name), signal.SIGKILL)
    started = time.monotonic()
    until(lambda: not any(psutil.pid_exists(pid) for pid in members), 6)
    try:
        rest = response.read()
    except (http.client.HTTPException, OSError):
        rest = b""
    assert b'"finish_reason":"stop"' not in rest
    connection.close()
    until(lambda: server.state() == "dead", 3)
    assert time.monotonic() - started < 10
    status = server.ft("serve", "status", "--json")
    assert status.returncode == 4
    assert json.loads(status.stdout)["servers"][0]["state"] == "dead"
    assert server.ft("serve", "stop").returncode == 0
