"""Edges that an audit found: odd streams, keys that are none, damaged records, names with a dollar sign."""

import asyncio
import json
import shutil
import xml.etree.ElementTree as ET
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tunegate.advisor.gpus import find_gpu
from tunegate.core.commands import run
from tunegate.core.errors import UsageError, UserError
from tunegate.core.model_source import resolve
from tunegate.serve import preflight, servers
from tunegate.serve.chat_stream import ChatStream, EndpointError
from tunegate.serve.cli import app
from tunegate.serve.client import ChatClient, api_key
from tunegate.serve.deploy.compose import compose
from tunegate.serve.deploy.kubernetes import manifests
from tunegate.serve.deploy.plan import DeployOptions, make_plan
from tunegate.serve.load_figures import throughput
from tunegate.serve.load_plan import LoadOptions, Stage, read_prompts
from tunegate.serve.load_plot import svg
from tunegate.serve.load_report import About, knee_line, make_report
from tunegate.serve.load_test import Record, StageRun
from tunegate.serve.loadtest_cli import app as loadtest
from tunegate.serve.plain_http import call
from tunegate.serve.prompting.middleware import PromptApp
from tunegate.serve.prompting.prompting import Prompting, Settings


def chunk(content=None, finish=None, **delta):
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish}]}


def sse(*events):
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


def read(raw, size=1_000_000):
    """What a stream in pieces of `size` bytes comes to."""
    stream = ChatStream("there")
    for start in range(0, len(raw), size):
        stream.feed(raw[start : start + size], 0.1)
    stream.end(0.2)
    return stream.completion(1.0, 1, None)


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_a_byte_order_mark_costs_no_text(size):
    assert read(b"\xef\xbb\xbf" + sse(chunk("first"), chunk(" second", "stop")), size).text == "first second"


def test_tool_calls_without_an_index_are_put_together():
    first = {"index": None, "id": "a", "function": {"name": "f", "arguments": '{"x"'}}
    rest, other = {"function": {"arguments": ": 1}"}}, {"id": "b", "function": {"name": "g", "arguments": "{}"}}
    found = read(sse(*(chunk(tool_calls=[c]) for c in (first, rest, other)), chunk(finish="tool_calls"))).tool_calls
    assert [(c["id"], c["function"]["arguments"]) for c in found] == [("a", '{"x": 1}'), ("b", "{}")]


def test_an_error_without_a_message_is_told_as_it_is():
    with pytest.raises(EndpointError, match=r"mid-stream: .*'code': 507"):
        read(sse({"error": {"code": 507}}))


class _Answers(BaseHTTPRequestHandler):
    """A stream whose type is written in capitals; notes the key it was sent."""

    def do_GET(self):
        if self.command == "POST":
            self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Authorization"])
        body = sse(chunk("x", "stop"))
        self.send_response(200)
        self.send_header("Content-Type", "Text/Event-Stream")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), _Answers) as found:
        found.keys, found.url = [], f"http://127.0.0.1:{found.server_port}/v1"
        thread = Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def test_a_content_type_is_read_in_any_case(server):
    async def go():
        async with ChatClient(server.url, "m", retries=0) as client:
            return await client.complete([{"role": "user", "content": "x"}], generation={})

    assert asyncio.run(go()).text == "x"


def test_our_own_servers_are_asked_without_a_proxy(server, monkeypatch):
    """A proxy would get the key; and every server would be hung where it cannot reach this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert call(server.url, key="sk-é").status == 200
    assert server.keys[0].encode("latin-1").decode() == "Bearer sk-é"


def test_a_key_with_a_line_end_is_cleaned_or_refused_and_never_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEGATE_API_KEY", "sk-secret\n")
    assert api_key() == "sk-secret"
    monkeypatch.setenv("TUNEGATE_API_KEY", "sk-secret\nX-More: y")
    assert run(app, prog="ft serve", argv=["top", "http://127.0.0.1:9/v1", "--once"]) == 2
    said = capsys.readouterr()
    assert "TUNEGATE_API_KEY: the key is not one line of text" in said.err
    assert "secret" not in said.err + said.out
    file = tmp_path / "key"
    for raw, words in ((b"\xff\xfes\x00", "not one line of text"), (b"a\nb\n", "not one line"), (b" \n", "no key in")):
        file.write_bytes(raw)
        with pytest.raises(UserError, match=words) as caught:
            api_key(file)
        assert caught.value.where == str(file)
    file.write_bytes(b"\xef\xbb\xbfsk-1\r\n")
    assert api_key(file) == "sk-1"


def test_a_password_in_a_url_would_stand_in_reports():
    with pytest.raises(UserError, match="user or password") as caught:
        ChatClient("http://me:pass@word@host:1/v1", "m")
    assert "pass" not in caught.value.line().replace("user or password", "")
    assert ChatClient("http://host/a@b/v1/", "m").base_url == "http://host/a@b/v1"


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http://u:secret@host:99999/v1", "http://[::1/v1", f"http://{'a' * 70}.x/v1",
        "http://host/v1?k=secret", "http://host/v1#f",
    ],
)  # fmt: skip
def test_a_url_that_leads_nowhere_is_wrong_use(url):
    """A path behind a query is lost; a host that cannot be asked was called a web page."""
    with pytest.raises(UserError, match="URL") as caught:
        ChatClient(url, "m")
    assert "secret" not in caught.value.line()
    for fine in ("http://[::1]:8000/v1", "https://host/a/v1", "http://xn--/v1", "http://bücher.example/v1"):
        assert ChatClient(fine, "m").base_url == fine


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"port": "x"}', '{"port": 1, "pid": null, "pid_started": 0, "state": "serving"}', "[" * 50_000],
)
def test_a_damaged_record_is_left_out(text, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))  # apart from servers that other tests have started
    (servers.folder() / "8000.json").write_text(text)
    assert servers.records() == []
    assert run(app, prog="ft serve", argv=["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"servers": []}


def uncounted(level):
    """A stage of answers of an endpoint that reports no usage."""
    records = [
        Record(number=i, warm_up=False, prompt="p", repeated=False, due_s=i, started_s=i, ended_s=i + 0.5, ttft_ms=9.0,
               e2e_ms=500.0, finish_reason="stop")
        for i in range(20)
    ]  # fmt: skip
    stage = Stage(kind="closed", level=level, requests=20, duration_s=None, warm_up=0)
    return StageRun(stage=stage, records=records, lags_ms=[0.1] * 100)


def test_an_endpoint_that_reports_no_usage_has_no_token_rate():
    found = throughput(uncounted(1).records)
    assert found["output_tokens_per_s"] is None
    assert found["span_output_tokens_per_s"] is None
    assert found["requests_per_s"] > 0
    about = About(target="t", endpoint="e", model="m", prompts={}, engine={}, inputs=[])
    runs = [uncounted(level) for level in (1, 2, 4)]
    options = LoadOptions(stages=tuple(r.stage for r in runs), generation={})
    report = make_report(runs, options, about, max_error_rate=0.01)
    assert "not measured" in "".join(ET.fromstring(svg(report)).itertext())
    assert knee_line(report) == "knee of the throughput curve: 1 at once"


def test_prompts_in_another_encoding_are_named(tmp_path):
    (tmp_path / "p.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match="not UTF-8 at byte 3"):
        read_prompts(tmp_path / "p.txt")


@pytest.mark.parametrize("option", ["--temperature", "--timeout", "--duration", "--slo-e2e-ms"])
def test_a_load_test_takes_no_infinity(option, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("x\n")
    words = ["http://127.0.0.1:9/v1", "--out", str(tmp_path / "o"), "--prompts", str(tmp_path / "p.txt"), option, "inf"]
    assert run(loadtest, prog="ft loadtest", argv=words) == 2
    assert f"error: {option}: inf is no number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-request-mb", "inf"], "--max-request-mb: inf is no number"),
        (["--start-timeout", "nan"], "--start-timeout: nan is no number"),
        (["--drain", "inf"], "--drain: inf is no number"),
        (["another"], "'another' is no flag (one TARGET; vLLM's flags come after --)"),
    ],
)
def test_what_no_server_can_be_started_with_is_refused(words, says, tiny_model, capsys):
    assert run(app, prog="ft serve", argv=[str(tiny_model), "--dry-run", *words]) == 2
    assert says in capsys.readouterr().err


def test_a_variable_of_the_guard_that_is_no_number_is_refused(tiny_model, monkeypatch, capsys):
    monkeypatch.setenv("TUNEGATE_BODY_S", "soon")
    assert run(app, prog="ft serve", argv=[str(tiny_model), "--dry-run"]) == 2
    assert "is no number: could not convert string to float: 'soon'" in capsys.readouterr().err


def test_flags_with_one_dash_are_found():
    assert preflight.flag(("-q", "fp8"), "-q") == "fp8"
    assert preflight.flag(("-tp=2",), "-tp") == "2"


@pytest.mark.parametrize("spec", ["no-such-folder/", "owner/name@v1"])
def test_what_can_be_no_hub_id_is_wrong_use(spec):
    with pytest.raises(UserError, match="not a folder, and not a hub id"):
        resolve(spec, offline=True)


def plan_of(folder, *extra, gpus=None):
    return make_plan(resolve(str(folder)), DeployOptions(gpu=find_gpu("L4"), gpus=gpus, max_model_len=256, extra=extra))


def test_a_dollar_sign_is_no_variable_of_the_platform(tiny_model, tmp_path):
    folder = tmp_path / "my$HOME$(HOME)"
    shutil.copytree(tiny_model, folder)
    plan = plan_of(folder)
    service = compose(plan)["services"]["vllm"]
    pod = next(d for d in manifests(plan) if d["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]
    shown = "my$$HOME$$(HOME)"
    assert service["command"][service["command"].index("--served-model-name") + 1] == shown
    assert service["environment"]["TUNEGATE_PROBE_MODEL"] == shown
    assert pod["args"][pod["args"].index("--served-model-name") + 1] == shown
    assert {"name": "TUNEGATE_PROBE_MODEL", "value": shown} in pod["env"]


def test_a_copy_gets_the_gpus_that_its_flags_take(tiny_model):
    with pytest.raises(UsageError, match="take 2 GPUs a copy, the files would reserve 1") as caught:
        plan_of(tiny_model, "--tensor-parallel-size", "2")
    assert "--gpu L4:2" in caught.value.hint
    with pytest.raises(UsageError, match="take 4 GPUs a copy"):
        plan_of(tiny_model, "-tp", "4")
    assert plan_of(tiny_model, "--tensor-parallel-size=2", "--data-parallel-size", "1", gpus=2).gpus == 2


@pytest.mark.parametrize(
    "raw", [b"[" * 100_000, b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}']
)
def test_a_request_that_cannot_be_read_is_the_engines_to_refuse(raw):
    """Half of a surrogate pair is text to JSON, and to no tokenizer."""
    prompted = PromptApp.__new__(PromptApp)
    prompted.context = 100
    prompting = Prompting(Settings(method="prompt", system="s"), lambda texts: len("".join(texts).encode()), {})
    prompted.promptings = {"m": prompting}
    assert asyncio.run(prompted._prompted(raw)) == (raw, None)
