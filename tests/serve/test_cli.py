"""`ft serve` before vLLM: what is refused at once, and the servers that are known."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.core.errors import InfrastructureError, UsageError
from tunegate.serve import cli
from tunegate.serve.cli import app
from tunegate.serve.vllm_process import Child, free_port, refuse_taken, stop


@pytest.fixture
def ft_serve(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))

    def call(*argv):
        code = run(app, prog="ft serve", argv=[str(a) for a in argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


@pytest.fixture
def taken():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def test_a_taken_port_is_refused_in_less_than_a_second(taken, ft_serve, tiny_model):
    start = time.monotonic()
    with pytest.raises(InfrastructureError, match=f"port {taken} on 127.0.0.1 cannot be used") as caught:
        refuse_taken("127.0.0.1", taken)
    assert time.monotonic() - start < 1
    assert "choose another --port" in caught.value.hint
    code, out, err = ft_serve(tiny_model, "--port", taken)
    assert (code, out) == (4, "")
    assert err.startswith("error: --port: port")


def test_a_free_port_is_free():
    refuse_taken("127.0.0.1", free_port("127.0.0.1"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may bind any port")
def test_a_port_that_needs_rights():
    with pytest.raises(UsageError, match="needs more rights"):
        refuse_taken("127.0.0.1", 80)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_other_addresses_than_loopback_need_a_key(ft_serve, tiny_model, host):
    code, out, err = ft_serve(tiny_model, "--host", host)
    assert (code, out) == (2, "")
    assert f"listening on {host} needs an API key" in err
    assert "TUNEGATE_API_KEY" in err


@pytest.mark.parametrize(
    ("target", "says"), [("/no/such", "no model '/no/such'"), ("builtin:x", "no builtin model 'x'")]
)
def test_a_target_that_is_not_there(ft_serve, target, says):
    code, _, err = ft_serve(target, "--port", free_port("127.0.0.1"))
    assert code == 2
    assert says in err


def test_a_dataset_cannot_be_served(ft_serve, tiny_dataset):
    code, _, err = ft_serve(tiny_dataset.path, "--port", free_port("127.0.0.1"))
    assert code == 2
    assert "is a dataset folder; a run or a release can be served" in err


def test_status_logs_and_stop_without_a_server(ft_serve):
    assert json.loads(ft_serve("status", "--json")[1]) == {"servers": []}
    assert ft_serve("status")[1] == "no server is running\n"
    for command in ("logs", "stop"):
        code, _, err = ft_serve(command, "--port", "8000")
        assert code == 2
        assert "on port 8000" in err
        assert "no server was started here" in ft_serve(command)[2]
    assert ft_serve("logs", "-f", "--json")[0] == 2


def test_logs_shows_the_end(ft_serve, tmp_path):
    folder = tmp_path / "cache" / "serve"
    folder.mkdir(parents=True)
    (folder / "8009.log").write_text("".join(f"line {i} [x]\n" for i in range(9)))
    assert ft_serve("logs", "--port", 8009, "--lines", 2)[1] == "line 7 [x]\nline 8 [x]\n"
    found = json.loads(ft_serve("logs", "--port", 8009, "--lines", 1, "--json")[1])
    assert (found["port"], found["lines"]) == (8009, ["line 8 [x]"])


def record_of(folder, process, **about):
    folder.mkdir(parents=True, exist_ok=True)
    started = psutil.Process(process.pid).create_time()
    state = {"pid": process.pid, "pid_started": started, "port": 8009, "url": "http://127.0.0.1:9/v1", "model": "m",
             "target": "t", "started": "now", "state": "serving", "instance": "i", "server_pid": process.pid,
             "checked": time.time(), "log": "l", "restarts": 0, **about}  # fmt: skip
    (folder / "8009.json").write_text(json.dumps(state))


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def test_stop_ends_a_known_server(ft_serve, tmp_path, sleeper):
    record_of(tmp_path / "cache" / "serve", sleeper)
    code, out, _ = ft_serve("status", "--json")
    (server,) = json.loads(out)["servers"]
    assert (code, server["alive"], server["healthy"], server["state"]) == (4, True, False, "hung")
    answer = json.loads(ft_serve("stop", "--port", "8009", "--json")[1])
    assert (answer["stopped"], answer["killed"]) == (8009, False)
    assert sleeper.wait(10) == -signal.SIGTERM
    assert not (tmp_path / "cache" / "serve" / "8009.json").exists()


def test_a_process_that_took_over_the_number_of_a_dead_server_is_left_alone(ft_serve, tmp_path, sleeper):
    record_of(tmp_path / "cache" / "serve", sleeper, pid_started=time.time() - 9999)
    code, out, _ = ft_serve("status", "--json")
    assert (code, json.loads(out)["servers"][0]["state"]) == (4, "dead")
    assert ft_serve("stop")[0] == 0
    assert sleeper.poll() is None


@pytest.mark.parametrize("state", ["starting", "restarting", "draining"])
def test_what_a_supervisor_says_it_is_doing(ft_serve, tmp_path, sleeper, state):
    record_of(tmp_path / "cache" / "serve", sleeper, state=state, detail="why [x]")
    code, out, _ = ft_serve("status")
    assert code == 0
    assert state in out
    assert "port 8009: why [x]; log: l" in out


def test_several_servers_need_a_port(ft_serve, tmp_path, sleeper):
    folder = tmp_path / "cache" / "serve"
    record_of(folder, sleeper)
    other = json.loads((folder / "8009.json").read_text())
    (folder / "8010.json").write_text(json.dumps({**other, "port": 8010}))
    (folder / "8011.json").write_text("{half")
    code, _, err = ft_serve("stop")
    assert code == 2
    assert "several servers run: --port 8009, 8010" in err
    assert sleeper.poll() is None
    (folder / "8010.json").write_text(json.dumps({**other, "port": 8010, "pid_started": 1.0}))
    assert ft_serve("stop")[1].startswith("stopped the server on port 8009"), "the only one that is alive"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tls-cert", "c.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-cert", "/no/c.pem", "--tls-key", "/no/k.pem"), "/no/c.pem: no such file"),
        (("--api-key-file", "/no/key"), "/no/key: no such key file"),
    ],
)
def test_files_that_are_not_there(ft_serve, tiny_model, options, says):
    code, _, err = ft_serve(tiny_model, "--port", free_port("127.0.0.1"), *options)
    assert code == 2
    assert says in err


def test_a_server_that_ignores_sigterm_is_killed_with_its_children():
    script = (
        "import signal, subprocess, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)'])\n"
        "time.sleep(0.2); print(c.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    with process:
        child = max(int(process.stdout.readline()), int(process.stdout.readline()))
        stop(
            Child(process, subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)),
            grace_s=0.3,
        )
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and os.path.exists(f"/proc/{child}") and "Z" not in state_of(child):  # noqa: PTH110
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{child}") or state_of(child) == "Z"  # noqa: PTH110


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as stream:  # noqa: PTH123
            return stream.read().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


def test_dry_run_prints_a_command_and_starts_nothing(ft_serve, tiny_model, taken, monkeypatch):
    monkeypatch.setenv("TUNEGATE_API_KEY", "very-secret")
    code, out, err = ft_serve(tiny_model, "--port", taken, "--dry-run", "--json", "--", "--dtype", "half")
    answer = json.loads(out)
    assert code == 0
    assert answer["models"] == ["tiny"]
    assert answer["command"][1:3] == ["-m", "vllm.entrypoints.launchers.api_server.entry"]
    assert answer["command"][-2:] == ["--dtype", "half"]
    assert "--enforce-eager" in answer["command"]
    assert "start: fast" in err
    assert "very-secret" not in out + err
    code, out, _ = ft_serve(tiny_model, "--print-command", "--start", "compiled")
    assert code == 0
    assert out.count("\n") == 1
    assert "--enforce-eager" not in out
    assert "VLLM_TARGET_DEVICE=cpu" in out


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_a_release_with_one_other_byte_is_not_served(ft_serve, tiny_model, tmp_path, name):
    folder = shutil.copytree(tiny_model, tmp_path / "release")
    facts = {"base": str(tiny_model), "quantization": "none", "template_digest": "0" * 64}
    manifest.write(folder, "release", inputs=[], config={}, facts=facts)
    assert ft_serve(folder, "--dry-run", "--port", 1)[0] == 0
    content = bytearray((folder / name).read_bytes())
    content[-1] = content[-1] ^ 1 if name == "model.safetensors" else ord(" ")
    (folder / name).write_bytes(content)
    code, out, err = ft_serve(folder, "--dry-run", "--port", 1)
    assert (code, out) == (2, "")
    said = f"error: {folder}: the release is not as it was written: {name}: content changed (ft verify {folder})"
    assert err.splitlines()[-1] == said
    adapter = ft_serve(tiny_model, "--adapter", f"a={folder}", "--dry-run", "--port", 1)
    assert f"{name}: content changed" in adapter[2]
    (folder / "manifest.json").unlink()  # a model folder then, which nobody judged
    assert ft_serve(folder, "--dry-run", "--port", 1)[0] == 0


@pytest.mark.parametrize("text", ["x", "=y", "x="])
def test_an_adapter_is_a_name_and_a_folder(ft_serve, tiny_model, text):
    code, _, err = ft_serve(tiny_model, "--adapter", text, "--dry-run")
    assert code == 2
    assert "is not NAME=RUN" in err
    assert "a model folder is no adapter" in ft_serve(tiny_model, "--adapter", f"a={tiny_model}", "--dry-run")[2]


def test_what_is_wrong_is_said_before_anything_is_detached(ft_serve, tiny_model, tmp_path):
    code, _, err = ft_serve(tiny_model, "--port", free_port("127.0.0.1"), "--detach", "--", "--host", "0.0.0.0")
    assert code == 2
    assert "--host is not passed on to vLLM" in err
    assert list((tmp_path / "cache").rglob("*.log")) == []


@pytest.mark.parametrize("state", ["starting", "restarting", "serving"])
def test_a_port_whose_server_somebody_looks_after_is_refused(
    ft_serve, tiny_model, tmp_path, sleeper, state, monkeypatch
):
    """It may be importing and not listen yet; two supervisors would write one record and one log."""
    for start in ("_detach", "_supervised"):
        monkeypatch.setattr(cli, start, lambda *_, **__: None)
    folder = tmp_path / "cache" / "serve"
    record_of(folder, sleeper, state=state)
    before = (folder / "8009.json").read_bytes()
    for options in (("--detach",), ()):
        code, out, err = ft_serve(tiny_model, "--port", 8009, *options)
        assert (code, out) == (4, "")
        assert err.splitlines() == [
            f"error: --port: a server was started on port 8009 and is {state} (process {sleeper.pid}) "
            "(ft serve stop --port 8009, or choose another --port)"
        ]
    assert [p.name for p in folder.iterdir()] == ["8009.json"]
    assert (folder / "8009.json").read_bytes() == before
    record_of(folder, sleeper, pid_started=time.time() - 9999)
    assert ft_serve(tiny_model, "--port", 8009)[0] == 0, "its supervisor is gone"


@pytest.mark.parametrize(
    ("code", "ends"), [(2, 2), (4, 4), (70, 70), (130, 130), (0, 4), (1, 4), (3, 4), (-9, 4), (-15, 4)]
)
def test_what_ends_in_the_background_ends_with_its_own_code(ft_serve, tiny_model, monkeypatch, tmp_path, code, ends):
    script = tmp_path / "ft"
    end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"os._exit({code})"
    script.write_text(f"#!{sys.executable}\nimport os\nprint('error: why [x]', flush=True)\n{end}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script), "serve"])
    found, out, err = ft_serve(tiny_model, "--port", free_port("127.0.0.1"), "--detach")
    assert (found, out) == (ends, "")
    assert err.endswith("interrupted\n" if code == 130 else "error: why [x]\n")
