"""`ft serve` with a stand-in for vLLM: the guard, the supervisor and the kernel are real. What ends, ends with all it has
started; what hangs is called hung; what dies is started again when asked for."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tunegate.core.commands import run
from tunegate.serve import servers
from tunegate.serve.cli import app
from tunegate.serve.plain_http import call
from tunegate.serve.vllm_process import free_port

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups and /proc")
MAIN = "import tunegate.serve.vllm_process as v\nv.SERVER_MODULE = 'standin_vllm'\nfrom tunegate.core.ft import main\nmain()\n"


def until(condition, seconds=60.0):
    """What `condition` gives once it is true; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.05)
    return found


class Served:
    """A supervisor in a process of its own, and what there is to know of it."""

    def __init__(self, tmp_path, model, *options, env=()):
        self.port = free_port("127.0.0.1")
        self.mode = tmp_path / "mode"
        self.mode.write_text("")
        self.connections = []
        here = str(Path(__file__).parent)
        self.env = {**os.environ, "PYTHONPATH": here, "STANDIN_MODE": str(self.mode), **dict(env)}
        self.ft = tmp_path / "ft"
        self.ft.write_text(f"#!{sys.executable}\n{MAIN}")
        self.ft.chmod(0o755)
        self.command = [str(self.ft), "serve", str(model), "--port", str(self.port), *options]
        self.process = subprocess.Popen(
            self.command, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def record(self):
        return next((r for r in servers.records() if r["port"] == self.port), {})

    def state(self):
        record = self.record()
        return servers.look(record)[0] if record else None

    def ready(self):
        until(lambda: self.state() == "serving" or self.process.poll() is not None)
        assert self.process.poll() is None, self.process.communicate()
        return self

    def group(self):
        """Live processes of the server's group."""
        return group(self.record()["server_pid"])

    def ask(self, path, body=None):
        """(status, Retry-After, body) of one request."""
        reply = call(f"http://127.0.0.1:{self.port}{path}", body=body)
        return reply.status, reply.headers.get("retry-after"), reply.body

    def stream(self, tokens):
        """An open stream whose first token has come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        self.connections.append(connection)
        connection.request("POST", "/v1/chat/completions", json.dumps({"stream": True, "max_tokens": tokens}))
        response = connection.getresponse()
        response.readline()
        return response

    def ended(self, seconds=90):
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


def group(leader):
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if os.getpgid(process.pid) == leader and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
def served(tmp_path, tiny_model, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    started = []

    def start(*options, **env):
        started.append(Served(tmp_path, tiny_model, *options, env=env))
        return started[-1]

    yield start
    for one in started:
        leader = one.record().get("server_pid")
        one.process.kill()
        one.process.communicate()
        for connection in one.connections:
            connection.close()
        if leader:
            until(lambda leader=leader: not group(leader), 10)


@pytest.fixture
def ft_serve(capsys):
    def call(*argv):
        code = run(app, prog="ft serve", argv=[str(a) for a in argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_phases_a_line_with_the_url_and_a_request_that_works(served):
    one = served().ready()
    one.process.send_signal(signal.SIGINT)
    code, out, err = one.ended()
    assert code == 0
    assert err.index("importing") < err.index("loading weights") < err.index("ready after")
    assert "draining" in err
    ready, curl = out.splitlines()
    assert ready == f"ready: http://127.0.0.1:{one.port}/v1 (model tiny); Ctrl-C stops it"
    assert re.search(r"""-d '(\{.*\})'$""", curl)
    assert one.record() == {}


@pytest.mark.parametrize("victim", ["server", "supervisor", "both"])
def test_kill_9_leaves_nothing_within_five_seconds(served, victim, ft_serve):
    one = served().ready()
    members, leader = one.group(), one.record()["server_pid"]
    assert len(members) >= 2
    if victim != "supervisor":
        os.kill(leader, signal.SIGKILL)
    if victim != "server":
        one.process.kill()
    until(lambda: not group(leader), 5)
    if victim == "server":
        code, _, err = one.ended()
        assert code == 4
        assert "the server died (signal 9" in err
        assert "--restart N starts it again; log: " in err
    code, out, _ = ft_serve("status", "--json")
    (shown,) = json.loads(out)["servers"]
    assert (code, shown["state"], shown["healthy"], shown["alive"]) == (4, "dead", False, False)
    assert ("died" if victim == "server" else "supervisor is gone") in shown["detail"]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", one.port))
    assert ft_serve("stop", "--port", one.port)[0] == 0
    assert ft_serve("status")[1] == "no server is running\n"


def test_a_server_that_dies_is_started_again_as_often_as_asked(served, ft_serve):
    one = served("--restart", "1").ready()
    first = one.record()["server_pid"]
    os.kill(first, signal.SIGKILL)
    until(lambda: one.state() == "restarting", 20)
    until(lambda: one.state() == "serving")
    record = one.record()
    assert record["restarts"] == 1
    assert record["server_pid"] != first
    assert Path(record["log"]).with_suffix(".log.1").is_file()
    assert one.ask("/health")[0] == 200
    os.kill(record["server_pid"], signal.SIGKILL)
    code, out, err = one.ended()
    assert code == 4
    assert "starting it again in 1 s (0 restarts left)" in err
    assert out.count("ready: ") == 1
    assert ft_serve("status")[0] == 4


def test_a_hung_engine_is_called_hung_and_well_again_when_tokens_come(served, ft_serve):
    one = served("--hang-after", "1").ready()
    one.mode.write_text("hang")
    until(lambda: one.state() == "hung", 60)
    status, _, body = one.ask("/health")
    assert (status, json.loads(body)["error"]["code"]) == (503, "hung")
    code, out, _ = ft_serve("status")
    assert code == 4
    assert "hung: no token for" in out
    one.mode.write_text("")
    until(lambda: one.state() == "serving")
    assert ft_serve("status", "--port", one.port)[0] == 0


@pytest.mark.slow
def test_a_hung_engine_is_killed_and_started_again_where_that_was_asked_for(served):
    one = served("--hang-after", "1", "--restart", "1", "--drain", "60").ready()
    first = one.record()["server_pid"]
    one.mode.write_text("hang")
    until(lambda: one.state() == "restarting")
    one.mode.write_text("")
    assert not group(first)
    until(lambda: one.state() == "serving")


@pytest.mark.slow
def test_a_stopped_server_process_is_called_hung_too(served):
    one = served("--hang-after", "1").ready()
    os.kill(one.record()["server_pid"], signal.SIGSTOP)
    assert one.state() == "hung"
    os.kill(one.record()["server_pid"], signal.SIGCONT)
    until(lambda: one.state() == "serving")


def test_stop_lets_a_running_stream_finish_and_refuses_new_requests(served, ft_serve):
    one = served().ready()
    stream = one.stream(40)
    one.process.terminate()
    until(lambda: one.state() == "draining", 20)
    assert one.ask("/v1/chat/completions", {"stream": True, "max_tokens": 1})[:2] == (503, "30")
    assert ft_serve("status")[0] == 0
    assert stream.read().endswith(b"data: 39\n\ndata: [DONE]\n\n")
    assert one.ended()[0] == 0


def test_the_drain_has_an_end_and_says_so_in_the_stream(served, ft_serve):
    one = served("--drain", "0.5").ready()
    leader = one.record()["server_pid"]
    stream = one.stream(10_000)
    started = time.monotonic()
    code, out, _ = ft_serve("stop", "--json")
    answer = json.loads(out)
    assert (code, answer["stopped"], answer["killed"]) == (0, one.port, False)
    assert b'"code": "draining"' in stream.read()
    assert time.monotonic() - started < 6
    assert not group(leader)


@pytest.mark.slow
def test_stop_with_less_time_than_the_server_would_take(served, ft_serve):
    one = served("--drain", "300").ready()
    leader = one.record()["server_pid"]
    one.stream(10_000)
    code, out, _ = ft_serve("stop", "--timeout", "0.5", "--json")
    assert code == 0
    assert json.loads(out)["took_s"] < 6
    assert not group(leader)


@pytest.mark.slow
def test_a_supervisor_that_is_stopped_is_killed_by_stop_with_its_server(served, ft_serve, monkeypatch):
    monkeypatch.setattr("tunegate.serve.cli_manage.KILL_S", 0.5)
    one = served().ready()
    leader = one.record()["server_pid"]
    one.process.send_signal(signal.SIGSTOP)
    code, out, _ = ft_serve("stop", "--timeout", "0.3", "--json")
    assert code == 0
    assert json.loads(out)["killed"] is True
    until(lambda: not group(leader), 5)


@pytest.mark.slow
def test_clients_that_send_their_headers_for_ever_are_closed_and_hold_nobody_up(served):
    one = served(TUNEGATE_HEADER_S="2").ready()
    slow = [socket.create_connection(("127.0.0.1", one.port)) for _ in range(50)]
    for client in slow:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX: ")
        client.settimeout(30)
    assert one.ask("/health")[0] == 200
    assert {client.recv(1) for client in slow} == {b""}
    for client in slow:
        client.close()


def test_a_body_that_is_too_long_gets_its_answer(served):
    one = served("--max-request-mb", "0.1").ready()
    assert one.ask("/v1/chat/completions", {"x": "y" * 500_000})[0] == 413


def test_a_start_that_fails_names_cause_and_log_in_one_line(served):
    one = served()
    one.mode.write_text("fail")
    code, _, err = one.ended()
    assert code == 4
    last = err.splitlines()[-1]
    assert last.startswith("error: vLLM did not start: the KV cache is too small for one request (")
    assert f"{one.port}.log" in last
    assert one.record() == {}, "it was never there"


@pytest.mark.slow
def test_a_restart_that_fails_is_tried_again_and_then_given_up(served):
    one = served("--restart", "2").ready()
    one.mode.write_text("fail")
    os.kill(one.record()["server_pid"], signal.SIGKILL)
    code, _, err = one.ended()
    assert code == 4
    assert "in 1 s (1 restarts left)" in err
    assert "in 2 s (0 restarts left)" in err
    assert one.record()["state"] == "dead"


def test_tls_files_are_used(served, tmp_path):
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=somewhere.example",
            "-keyout", str(private), "-out", str(certificate)]  # fmt: skip
    try:
        subprocess.run(made, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no openssl here")
    one = served("--tls-cert", str(certificate), "--tls-key", str(private)).ready()
    assert one.record()["url"].startswith("https://")
    with pytest.raises(OSError):
        one.ask("/health")


def test_detached_it_runs_on_and_logs_can_be_followed(served, tmp_path, ft_serve):
    one = served("--detach")
    code, out, err = one.ended()
    assert code == 0, err
    assert out == f"serving tiny at http://127.0.0.1:{one.port}/v1 in the background; ft serve stop --port {one.port}\n"
    assert "loading weights" in err
    follow = subprocess.Popen(
        [sys.executable, "-c", MAIN, "serve", "logs", "-f", "--lines", "1"],
        env=one.env,
        stdout=subprocess.PIPE,
        text=True,
    )
    with follow:
        follow.stdout.readline()
        with Path(one.record()["log"]).open("a") as log:
            log.write("a new line [x]\n")
        assert "a new line [x]\n" in iter(follow.stdout.readline, "")  # the server's own lines come between
        follow.send_signal(signal.SIGINT)
        assert follow.wait(10) == 130
    assert ft_serve("stop")[0] == 0
    assert servers.records() == []


@pytest.mark.parametrize("options", [(), ("--detach",)])
@pytest.mark.parametrize(("mode", "ends", "says"), [("fail", 4, "KV cache is too small"), ("flag", 2, "--no-such 1")])
def test_a_start_that_fails_ends_alike_in_the_foreground_and_detached(served, options, mode, ends, says):
    one = served(*options)
    one.mode.write_text(mode)
    code, out, err = one.ended()
    assert (code, out) == (ends, "")
    assert says in err.splitlines()[-1]
    assert one.record() == {}


def test_a_server_that_no_restart_helps_is_dead_at_once(served):
    one = served("--restart", "3").ready()
    one.mode.write_text("flag")
    os.kill(one.record()["server_pid"], signal.SIGKILL)
    code, _, err = one.ended()
    assert code == 2
    assert err.count("starting it again") == 1
    assert (one.record()["state"], "--no-such 1" in one.record()["detail"]) == ("dead", True)


def test_ctrl_c_while_waiting_ends_what_was_detached_and_a_second_one_is_refused(served):
    one = served("--detach")
    one.mode.write_text("import")
    supervisor = psutil.Process(until(lambda: one.record().get("pid")))
    try:
        log = Path(one.record()["log"]).with_suffix(".supervisor.log")
        until(lambda: "importing" in log.read_text())
        second = subprocess.run(one.command, env=one.env, capture_output=True, text=True, timeout=60, check=False)
        assert (second.returncode, second.stdout) == (4, "")
        assert f"a server was started on port {one.port} and is starting (process {supervisor.pid})" in second.stderr
        assert "importing" in log.read_text()
        one.process.send_signal(signal.SIGINT)
        assert one.ended()[0] == 130
        supervisor.wait(20)
        assert one.record() == {}
    finally:
        if supervisor.is_running():
            supervisor.kill()


def test_json_is_one_object_even_where_the_server_dies_later(served):
    one = served("--json").ready()
    os.kill(one.record()["server_pid"], signal.SIGKILL)
    code, out, err = one.ended()
    assert (code, json.loads(out)["state"]) == (4, "serving")
    assert err.splitlines()[-1].startswith("error: the server died (signal 9")
    one = served("--json", "--restart", "5").ready()
    os.kill(one.record()["server_pid"], signal.SIGKILL)
    until(lambda: one.state() == "restarting", 20)
    one.process.send_signal(signal.SIGINT)
    code, out, err = one.ended()
    assert (code, json.loads(out)["state"], err.splitlines()[-1]) == (130, "serving", "interrupted")
