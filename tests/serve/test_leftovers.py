"""What a second audit found: routes past the prompting, parts that were lost, schemes in capitals, names, certificates."""

import asyncio
import io
import json
import os
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from tunegate.core import console
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.serve.chat_stream import ChatStream, EndpointError
from tunegate.serve.cli import app
from tunegate.serve.client import ChatClient
from tunegate.serve.engine_watch import one_token
from tunegate.serve.http_errors import said_in
from tunegate.serve.loadtest_cli import app as loadtest
from tunegate.serve.middleware import INSTANCE_VARIABLE, KEY_VARIABLE, Guard
from tunegate.serve.prompting.middleware import CONTEXT, FOLDERS, PATH, PromptApp
from tunegate.serve.prompting.prompting import NAME, Prompting, Settings
from tunegate.serve.vllm_flags import ServeOptions, build
from tunegate.train.arms.build import build as build_run
from tunegate.train.config import resolve

PASSWORD = "hunter2-never-shown"


def words(texts):
    return sum(len(text.split()) for text in texts)


def user(content):
    return {"role": "user", "content": content}


# Routes of a prompted model


class Inner:
    """What is behind the prompting: keeps the bodies it was sent, and answers 200."""

    def __init__(self):
        self.bodies = []

    async def __call__(self, scope, receive, send):
        self.bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def prompted(tmp_path, monkeypatch, tiny_model):
    """prompted(): the middleware around an `Inner`, for a prompted model called "few"."""
    folder = tmp_path / "few"
    folder.mkdir()
    Prompting(Settings(method="prompt", system="Be brief."), words, {}).save(folder)
    (folder / "tokenizer.json").write_bytes((tiny_model / "tokenizer.json").read_bytes())
    assert (folder / NAME).is_file()

    def make(**environment):
        monkeypatch.setenv(FOLDERS, json.dumps({"few": str(folder)}))
        monkeypatch.setenv(CONTEXT, "512")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return PromptApp(Inner())

    return make


def post(made, path, body, **scope):
    """(status, answer) of one request to the middleware."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    pending, sent = [{"type": "http.request", "body": raw, "more_body": False}], []

    async def receive():
        return pending.pop()

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", str(len(raw)).encode())]
    asyncio.run(made({"type": "http", "method": "POST", "path": path, "headers": headers, **scope}, receive, send))
    return sent[0]["status"], json.loads(b"".join(m.get("body", b"") for m in sent[1:]))


@pytest.mark.parametrize(
    "path",
    [
        "/v1/completions", "/v1/responses", "/v1/messages", "/v1/chat/completions/batch", "/invocations",
        "/inference/v1/generate", "/cohere/v2/chat", "/generative_scoring", "/v1/systemone",
    ],
)  # fmt: skip
def test_a_route_that_would_answer_without_the_prompting_is_refused(prompted, path):
    made = prompted()
    body = {"model": "few", "prompt": "x", "messages": [user("x")]}
    status, answer = post(made, path, body)
    assert (status, made.app.bodies) == (400, [])
    error = answer["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "prompted_model")
    assert "use /v1/chat/completions" in error["message"]
    assert path in error["message"]
    assert "'few'" in error["message"]


def test_other_models_and_what_does_not_answer_go_on(prompted):
    made = prompted()
    for path, body in (
        ("/v1/completions", {"model": "base", "prompt": "x"}),
        ("/v1/completions", b"{not json"),
        ("/v1/completions", b'{"model": ["few"]}'),
        ("/v1/completions", {"prompt": "x"}),  # the base model's, where that is served first
        ("/tokenize", {"model": "few", "prompt": "x"}),
    ):
        assert post(made, path, body)[0] == 200
        assert made.app.bodies[-1] == (body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_request_without_a_model_means_the_run_that_is_served(prompted):
    """vLLM answers it with the first model: the prompted run itself, where that is the target."""
    made = prompted(TUNEGATE_PROMPTED_DEFAULT="few")
    for name in ({}, {"model": None}, {"model": ""}):
        assert post(made, PATH, {**name, "messages": [user("x")]})[0] == 200
        assert json.loads(made.app.bodies[-1])["messages"][0] == {"role": "system", "content": "Be brief."}
        assert post(made, "/v1/completions", {**name, "prompt": "x"})[0] == 400
    assert len(made.app.bodies) == 3


def test_the_target_is_the_default_and_a_run_beside_it_is_not(tmp_path, tiny_model, tiny_dataset, monkeypatch):
    from tunegate.core.model_source import resolve as resolve_model

    monkeypatch.setattr("tunegate.serve.vllm_flags.gpus", lambda: ())
    source = resolve_model(str(tiny_model))
    config, _, _ = resolve([("t", {"method": "prompt", "model": str(tiny_model), "max_length": 512})])
    made = build_run(tiny_dataset, source, config, tmp_path / "few", force=False)
    assert build(made, ServeOptions()).environment["TUNEGATE_PROMPTED_DEFAULT"] == "few"
    beside = build(source, ServeOptions(prompted=(("few", made.path),)))
    assert FOLDERS in beside.environment
    assert "TUNEGATE_PROMPTED_DEFAULT" not in beside.environment


def test_the_guards_own_probe_reaches_the_engine(prompted):
    """A probe that was refused would call a hung engine alive."""
    made = prompted()
    asyncio.run(one_token(made, {}, "few"))
    assert json.loads(made.app.bodies[0])["prompt"] == "a"


# Parts of a message


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}


def test_parts_are_kept_where_the_system_text_opens_the_first_user_turn():
    p = Prompting(Settings(method="prompt", system="Be brief.", system_role=False), words, {})
    parts = [{"type": "text", "text": "What is this?"}, IMAGE]
    (turn,) = p.apply([{"role": "system", "content": "S"}, user(parts)], room=100).messages
    assert turn["content"][1:] == parts
    assert turn["content"][0]["type"] == "text"
    # vLLM joins text parts with one line end: as with plain text, an empty line stands in between.
    texts = [part["text"] for part in turn["content"] if part["type"] == "text"]
    assert "\n".join(texts) == "S\n\nBe brief.\n\nWhat is this?"
    assert parts == [{"type": "text", "text": "What is this?"}, IMAGE], "the request's own list is not changed"


def test_parts_of_an_example_are_kept_where_its_own_system_text_opens_it():
    turns = [{"role": "system", "content": "own"}, user([IMAGE]), {"role": "assistant", "content": "a"}]
    settings = Settings(method="few_shot", k=1, selection="fixed")
    found = Prompting(settings, words, {"e": turns}).apply([user("q")], room=100).messages
    assert found[0] == user([{"type": "text", "text": "own\n"}, IMAGE])


# The key's scheme


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"bearer secret", 200), (b"BEARER secret", 200), (b"Bearer secret", 200), (b"bEaReR   secret", 200),
        (b"bearer SECRET", 401), (b"bearersecret", 401), (b"basic secret", 401), (b"bearer", 401), (b"bearer\tsecret", 401),
        (b"bearer secret bearer secret", 401),
    ],
)  # fmt: skip
def test_the_scheme_of_the_key_is_read_in_any_case(sent, status, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    monkeypatch.setenv(INSTANCE_VARIABLE, "i")
    guard = Guard(Inner())
    found, pending = [], [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive():
        return pending.pop()

    async def send(message):
        found.append(message)

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": [(b"authorization", sent)]}
    asyncio.run(guard(scope, receive, send))
    assert found[0]["status"] == status


# Logs on a terminal


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


LINE = "a\x1b]0;title\x07b \x1b[31mred\x1b[0m \x9b2J \u202etxt.exe c\td :smile:"


def logged(folder, text, port=8009):
    (folder / "serve").mkdir(parents=True, exist_ok=True)
    (folder / "serve" / f"{port}.log").write_bytes(text.encode())


def test_a_log_does_not_command_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    logged(tmp_path, LINE + "\n")
    screen = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr("sys.stdout", screen)
        assert run(app, prog="ft serve", argv=["logs", "--port", "8009"]) == 0
    shown = screen.getvalue()
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert "a␛]0;title␇b ␛[31mred␛[0m" in shown
    assert ":smile:" in shown
    assert run(app, prog="ft serve", argv=["logs", "--port", "8009"]) == 0
    assert capsys.readouterr().out == LINE + "\n", "a file gets what is there"


def test_what_is_followed_does_not_command_it_either(tmp_path, monkeypatch):
    from tunegate.serve import cli_manage

    log = tmp_path / "x.log"
    log.write_bytes(b"old\n")
    pieces = [b"new \x1b[2J\r", b"\nnext \xc3", b"\xa9 10%\r20%\n"]
    screen = Terminal()

    def wait(seconds):
        if not pieces:
            raise KeyboardInterrupt
        with log.open("ab") as stream:
            stream.write(pieces.pop(0))

    monkeypatch.setattr(cli_manage.time, "sleep", wait)
    monkeypatch.setattr("sys.stdout", screen)
    with pytest.raises(KeyboardInterrupt):
        cli_manage._follow(log, 4)
    assert [line.rstrip() for line in screen.getvalue().splitlines()] == ["new ␛[2J", "next é 10%", "20%"]


def test_every_control_character_is_shown_and_text_is_left_alone():
    controls = [chr(c) for c in (*range(0x20), *range(0x7F, 0xA0), 0x200E, 0x202E, 0x2066) if chr(c) not in "\t\n"]
    assert not set(console.visible("".join(controls))) & set(controls)
    text = "plain, naïve 東京 👩‍👧 \t[x]\n"
    assert console.visible(text) == text


# Addresses


class _Endpoint(BaseHTTPRequestHandler):
    """Serves the model "m", and refuses every completion in vLLM's old form."""

    def do_GET(self):
        self.answer(200, {"data": [{"id": "m"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(
            400, {"object": "error", "message": "max_tokens is too large", "type": "BadRequestError", "code": 400}
        )

    def answer(self, status, document):
        raw = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    with HTTPServer(("127.0.0.1", 0), _Endpoint) as found:
        thread = Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{found.server_port}/v1"
        found.shutdown()
        thread.join()


def load(url, tmp_path, capsys):
    """(exit code, what was said) of a load test of one request."""
    (tmp_path / "p.txt").write_text("x\n")
    words = [url, "--out", str(tmp_path / "load"), "--prompts", str(tmp_path / "p.txt"), "--concurrency", "1",
             "--requests", "1", "--warm-up", "0"]  # fmt: skip
    code = run(loadtest, prog="ft loadtest", argv=words)
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_scheme_is_read_in_any_case(endpoint, tmp_path, capsys):
    from tunegate.evalkit.system import classify

    code, said = load(f"HTTP://{endpoint}/", tmp_path, capsys)
    assert code == 4, said
    assert json.loads((tmp_path / "load" / "report.json").read_text())["endpoint"] == f"http://{endpoint}"
    assert ChatClient("HTTPS://Host/V1", "m").base_url == "https://Host/V1"
    upper, lower = classify("HTTP://host/v1/"), classify("http://host/v1")
    assert (upper.kind, upper.spec, upper.digest) == ("endpoint", "http://host/v1", lower.digest)


def test_a_judges_scheme_is_read_in_any_case(tmp_path):
    from tunegate.evalkit.validators.judge import Judge

    (tmp_path / "l.jsonl").write_text("")
    Judge(name="j", endpoint="HTTPS://host/v1", model="m", labelled=tmp_path / "l.jsonl")
    with pytest.raises(UserError, match="is a URL up to /v1"):
        Judge(name="j", endpoint="ftp://host/v1", model="m", labelled=tmp_path / "l.jsonl")


@pytest.mark.parametrize("url", ["ftp://host/v1", "file:///etc/hosts", "host:8000/v1"])
def test_what_is_no_http_url_is_no_endpoint(url, capsys):
    with pytest.raises(UserError, match="not the URL of an endpoint"):
        ChatClient(url, "m")
    assert run(app, prog="ft serve", argv=["top", url, "--once"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {url}: not the URL of an endpoint (http://host:port/v1)")


@pytest.mark.parametrize(
    "secret", [PASSWORD, f"{PASSWORD}/x", f"{PASSWORD}?x", f"{PASSWORD}#x", f"x@{PASSWORD}", f"/{PASSWORD}"]
)
@pytest.mark.parametrize("command", ["top", "load"])
def test_a_password_in_an_address_is_refused_and_never_shown(command, secret, endpoint, tmp_path, capsys):
    url = f"http://me:{secret}@{endpoint}"
    if command == "top":
        code = run(app, prog="ft serve", argv=["top", url, "--once", "--interval", "0.2"])
        found = capsys.readouterr()
        said = found.out + found.err
    else:
        code, said = load(url, tmp_path, capsys)
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith("error: http://...@127.0.0.1:")
    assert "TUNEGATE_API_KEY" in said
    assert PASSWORD not in said


# Names of a deployment


@pytest.mark.parametrize(
    ("to", "option", "name"),
    [
        ("kubernetes", "--secret", "My_Secret"), ("kubernetes", "--secret", "x; rm -rf ~"), ("kubernetes", "--secret", ""),
        ("kubernetes", "--secret", "a" * 254), ("kubernetes", "--secret", "-a"), ("kubernetes", "--secret", "a\n"),
        ("kubernetes", "--volume", "My Claim"), ("kubernetes", "--volume", "./model"), ("kubernetes", "--volume", ""),
        ("compose", "--volume", "./a:b"), ("compose", "--volume", "models"), ("compose", "--volume", "./a\nb"),
        ("sky", "--volume", ""), ("sky", "--volume", "s3://a\tb"),
        ("kubernetes", "--image", "Vllm OpenAI:v1"), ("kubernetes", "--image", "vllm/vllm-openai:v1\n"),
        ("compose", "--image", "vllm/vllm-openai:"), ("kubernetes", "--image", "vllm/vllm-openai@sha256:abc"),
    ],
)  # fmt: skip
def test_a_name_that_the_platform_cannot_have_is_refused_unchecked_too(to, option, name, tiny_model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["deploy", str(tiny_model), "--to", to, "--out", str(out), "--no-check", option, name]
    assert run(app, prog="ft serve", argv=argv) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"error: {option}: ")
    assert len([line for line in said if line.startswith("error")]) == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("to", "words"),
    [
        ("kubernetes", ["--secret", "team.keys-1", "--volume", "models-v2", "--image", "reg.example:5000/a/b_c:v1.2@sha256:" + "0" * 64]),
        ("compose", ["--volume", "/srv/my models", "--image", "localhost/vllm:x"]),
        ("compose", ["--volume", "${MODELS}/x"]),
        ("sky", ["--volume", "s3://bucket/models"]),
    ],
)  # fmt: skip
def test_names_that_it_can_have_are_taken(to, words, tiny_model, tmp_path, capsys):
    argv = ["deploy", str(tiny_model), "--to", to, "--out", str(tmp_path / "out"), "--no-check", *words]
    assert run(app, prog="ft serve", argv=argv) == 0, capsys.readouterr().err


# Streams


def chunk(content=None, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}]}


def read(raw, size=1_000_000):
    """(text, seconds to the first content) of a stream in pieces of `size` bytes, one a second."""
    stream = ChatStream("there")
    for number, start in enumerate(range(0, len(raw), size)):
        stream.feed(raw[start : start + size], float(number))
    stream.end(1e6)
    return stream.completion(1.0, 1, None).text, stream.ttft_s


WHOLE = b"".join(
    b"data: " + json.dumps(event).encode() + b"\n\n" for event in (chunk("first"), chunk(" second"), chunk(None, "stop"))
) + b"data: [DONE]\n\n"  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1_000_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("first", [b"", b"\xef\xbb\xbf", b": a comment\n\nevent: x\nid: 1\nretry: 5\ndata\n\n"])
def test_lines_end_in_three_ways(size, end, first):
    assert read((first + WHOLE).replace(b"\n", end), size)[0] == "first second"


@pytest.mark.parametrize("size", [1, 2, 1_000_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_an_event_may_have_several_data_lines(size, end):
    spread = json.dumps(chunk("one\ntwo", "stop"), indent=1).encode().replace(b"\n", b"\ndata:")
    raw = b"data:" + spread + b"\n: a comment in between\ndata: \n\ndata: [DONE]\n\n"
    assert read(raw.replace(b"\n", end), size)[0] == "one\ntwo"


def test_an_event_of_one_line_counts_when_its_line_is_there():
    """The empty line behind it may come with the next event, and the first token would seem as late."""
    events = WHOLE.split(b"\n\n")
    stream = ChatStream("there")
    stream.feed(events[0] + b"\n", 1.0)
    stream.feed(b"\n" + events[1] + b"\n\n" + events[2], 2.0)
    assert stream.ttft_s == 1.0
    stream.end(3.0)
    assert stream.completion(1.0, 1, None).text == "first second"


def test_events_without_an_empty_line_in_between_are_told_apart_still():
    assert read(WHOLE.replace(b"\n\n", b"\n"), 5)[0] == "first second"


@pytest.mark.parametrize(
    "raw", [b"data: {half\n\n", b"data: {half\ndata: more\n\n", b"data: {half", b"data: {half\ndata: [DONE]\n\n"]
)
def test_an_event_that_is_no_json_is_malformed(raw):
    with pytest.raises(EndpointError, match="not JSON") as caught:
        read(raw)
    assert caught.value.cause == "malformed"


# vLLM's old errors


def test_vllms_old_errors_are_told_by_their_message(endpoint):
    async def ask():
        async with ChatClient(f"http://{endpoint}", "m", retries=0) as client:
            await client.complete([user("x")], generation={})

    with pytest.raises(EndpointError) as caught:
        asyncio.run(ask())
    assert caught.value.message == "HTTP 400: max_tokens is too large"
    old = {"object": "error", "message": "the engine is gone", "type": "InternalServerError", "code": 500}
    with pytest.raises(EndpointError, match="failed in mid-stream: the engine is gone") as caught:
        read(b"data: " + json.dumps(old).encode() + b"\n\n")
    assert caught.value.cause == "engine"
    assert said_in(b'{"message": null, "x": 1}') == '{"message": null, "x": 1}'
    assert said_in(b'{"error": {"message": "new"}, "message": "old"}') == "new"


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """(certificate, key) for 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=x",
            "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]  # fmt: skip
    subprocess.run(make, check=True, capture_output=True, timeout=60)
    return cert, key


@pytest.fixture
def secure(certificate):
    """The URL of an https endpoint whose certificate nobody knows."""

    class Quiet(HTTPServer):
        def handle_error(self, *_):
            pass  # a client that hangs up in the handshake

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with Quiet(("127.0.0.1", 0), _Endpoint) as found:
        found.socket = context.wrap_socket(found.socket, server_side=True)
        thread = Thread(target=found.serve_forever, args=(0.05,))
        thread.start()
        yield f"https://127.0.0.1:{found.server_port}/v1"
        found.shutdown()
        thread.join()


def test_a_certificate_that_is_not_trusted_names_the_variable(secure, monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)

    async def ask(call):
        async with ChatClient(secure, "m", retries=3) as client:
            return await call(client)

    for call in (lambda c: c.models(), lambda c: c.complete([user("x")], generation={})):
        with pytest.raises(EndpointError, match="its certificate is not trusted: self-signed certificate") as caught:
            asyncio.run(ask(call))
        assert "SSL_CERT_FILE" in caught.value.hint
        assert caught.value.fatal
        assert "\n" not in caught.value.line()
    code, said = load(secure, tmp_path, capsys)
    assert (code, said.count("\n")) == (4, 1)
    assert "self-signed certificate (if you trust it: SSL_CERT_FILE=" in said
    assert run(app, prog="ft serve", argv=["top", secure, "--once"]) == 4
    assert "self-signed certificate (if you trust it: SSL_CERT_FILE=" in capsys.readouterr().err


def test_a_certificate_of_another_name_is_not_mended_by_trusting_it(secure, certificate):
    code = (
        "import asyncio, sys\nfrom tunegate.serve.client import ChatClient, EndpointError\n"
        "async def go():\n    async with ChatClient(sys.argv[1], 'm') as client:\n        return await client.models()\n"
        "try:\n    print(asyncio.run(go()))\nexcept EndpointError as error:\n    print(error.line())\n"
        "from tunegate.core.commands import run\nfrom tunegate.serve.cli import app\n"
        "print(run(app, prog='ft serve', argv=['top', sys.argv[1], '--once']))\n"
    )

    def ask(url):
        environment = {**os.environ, "SSL_CERT_FILE": str(certificate[0])}
        done = subprocess.run(
            [sys.executable, "-c", code, url], env=environment, capture_output=True, text=True, timeout=120, check=True
        )
        return done.stdout.splitlines(), done.stderr

    out, err = ask(secure)
    assert out[0] == "['m']", "the variable that the hint names is the one that both clients read"
    assert "certificate" not in err
    out, err = ask(secure.replace("127.0.0.1", "localhost"))
    for line in (out[0], err):
        assert "its certificate is not trusted: " in line
        assert "localhost" in line
        assert "SSL_CERT_FILE" not in line
