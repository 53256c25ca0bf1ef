"""Logs that somebody has removed while a server ran: its supervisor goes on."""

import pytest

from tunegate.serve import cli, servers, supervisor, vllm_start
from tunegate.serve.vllm_flags import ServeOptions
from tunegate.serve.vllm_process import free_port


def test_a_server_is_started_again_though_its_log_is_gone(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(supervisor, "BACK_OFF_S", (0.0,))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    lives = iter(["the server died (signal 9)", "the server died (signal 9)", None])
    monkeypatch.setattr(supervisor, "_serve_once", lambda *_, **__: next(lives))
    port = free_port("127.0.0.1")
    record = servers.Record(port, target="x")
    servers.log_path(port).write_text("one life")
    supervisor.supervise(None, ServeOptions(port=port), key=None, restarts=5, record=record, ready=lambda _: None)
    assert record.content["restarts"] == 2
    assert servers.log_path(port).with_suffix(".log.1").read_text() == "one life"


def test_what_is_read_of_a_log_that_is_gone_is_nothing(tmp_path):
    log = tmp_path / "8000.log"
    assert vllm_start._read_on(log, 7) == ("", 7)
    assert cli._show_phases(log, 3) == 0
    assert "no message" in str(cli._as_it_ended(4, cli._printed(log)))
    log.write_text("starting vLLM: importing\nmore")
    assert vllm_start._read_on(log, 9) == ("vLLM: importing\nmore", 29)
    with pytest.raises(IsADirectoryError):
        vllm_start._read_on(tmp_path, 0)
