"""What the server tokenizes is compared with what training rendered, special-token text in contents included."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.chat_template import probe_digest, render, render_ids
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.serve.template_check import check_template, first_difference

PROMPTS = ([{"role": "user", "content": "What is 2 plus 2?"}], [{"role": "user", "content": "Paris"}])


@pytest.fixture
def trained(makers, tmp_path):
    tokenizer = makers.tokenizer()
    folder = tmp_path / "run"
    tokenizer.save_pretrained(folder)
    prompts = [{"messages": m, "tools": None, "ids": render_ids(tokenizer, m, generate=True)} for m in PROMPTS]
    (folder / "probe.json").write_text(json.dumps({"prompts": prompts}))
    manifest.write(folder, "run", inputs=[], config={}, facts={"probe_digest": probe_digest(tokenizer)})
    return Run.open(folder)


@pytest.fixture
def serve():
    """A server whose /tokenize is the given function of the request; its root URL, and the requests it got."""
    running = []

    def start(tokenize):
        got = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                got.append((self.path, self.headers.get("Authorization"), request))
                answer = tokenize(request)
                self.send_response(200 if answer is not None else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"tokens": answer} if answer is not None else {"error": "no"}).encode())

            def log_message(self, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}", got

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def by(tokenizer, change=lambda ids: ids):
    return lambda request: change(render_ids(tokenizer, request["messages"], generate=request["add_generation_prompt"]))


def test_an_equal_server_passes_and_says_how_much_was_compared(trained, serve, makers, capsys):
    root, got = serve(by(makers.tokenizer()))
    assert check_template(trained, root, "m", key="k") == 3
    assert "3 prompts compared" in capsys.readouterr().err
    assert {(path, key) for path, key, _ in got} == {("/tokenize", "Bearer k")}
    assert all(request["model"] == "m" and request["add_special_tokens"] is False for _, _, request in got)
    assert any("<|im_end|>" in turn["content"] for _, _, request in got for turn in request["messages"])


def test_a_second_bos_is_told_by_its_position(trained, serve, makers):
    root, _ = serve(by(makers.tokenizer(), lambda ids: [ids[0], *ids]))
    with pytest.raises(
        UserError, match=r"prompt 0 of .*probe.json differently from training: first at token 1"
    ) as caught:
        check_template(trained, root, "m", key=None)
    assert "ft verify" in caught.value.hint


def test_a_space_more_after_the_role_is_told(trained, serve, makers):
    template = makers.tokenizer().chat_template.replace("<|im_start|>assistant\\n", "<|im_start|>assistant \\n")
    template = template.replace("<|im_start|>assistant\n", "<|im_start|>assistant \n")
    root, _ = serve(by(makers.tokenizer(template=template)))
    wanted = json.loads((trained.path / "probe.json").read_text())["prompts"][0]["ids"]
    with pytest.raises(UserError, match=f"first at token {len(wanted) - 1}"):
        check_template(trained, root, "m", key=None)


def test_special_token_text_that_the_server_splits_is_told(trained, serve, makers):
    """A tokenizer that reads `<|im_end|>` in a content as plain text: the probe rows agree, the probe does not."""
    tokenizer = makers.tokenizer()

    def tokenize(request):
        ids = render_ids(tokenizer, request["messages"], generate=request["add_generation_prompt"])
        return ids if request["add_generation_prompt"] else [*ids[:40], 7, *ids[41:]]

    root, _ = serve(tokenize)
    with pytest.raises(
        UserError, match="special-token text in its contents differently from training: first at token 40"
    ):
        check_template(trained, root, "m", key=None)


def test_a_server_that_does_not_tokenize_is_no_fault_of_the_run(trained, serve):
    root, _ = serve(lambda request: None)
    with pytest.raises(InfrastructureError, match="does not tokenize"):
        check_template(trained, root, "m", key=None)


def test_a_run_without_probes_compares_nothing(trained, tmp_path, makers):
    folder = tmp_path / "bare"
    folder.mkdir()
    manifest.write(folder, "run", inputs=[], config={}, facts={"method": "full"})
    assert check_template(Run.open(folder), "http://127.0.0.1:9", "m", key=None) == 0


@pytest.mark.parametrize(
    ("a", "b", "position"),
    [([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1, 2], [1], 1), ([], [], None)],
)
def test_the_first_difference(a, b, position):
    assert first_difference(a, b) == position


DATED = "{{ strftime_now('%d %b %Y') }}\n"


def test_a_template_that_writes_the_date_is_served_on_another_day(makers, serve, tmp_path, capsys):
    """Llama 3.2's does: what training rendered is no longer what any server makes of the same messages."""
    template = DATED + makers.tokenizer().chat_template
    tokenizer = makers.tokenizer(template=template)
    folder = tmp_path / "run"
    tokenizer.save_pretrained(folder)
    then = {"strftime_now": lambda form: "26 Jul 2024"}
    ids = [tokenizer(render(tokenizer, m, generate=True, **then))["input_ids"] for m in PROMPTS]
    assert ids[0] != render_ids(tokenizer, PROMPTS[0], generate=True)
    prompts = [{"messages": m, "tools": None, "ids": found} for m, found in zip(PROMPTS, ids, strict=True)]
    (folder / "probe.json").write_text(json.dumps({"prompts": prompts}))
    manifest.write(folder, "run", inputs=[], config={}, facts={"probe_digest": probe_digest(tokenizer)})
    root, _ = serve(by(tokenizer))
    assert check_template(Run.open(folder), root, "m", key=None) == 3
    assert "3 prompts compared, with today's date" in " ".join(capsys.readouterr().err.split())
    other, _ = serve(by(makers.tokenizer(template=template.replace("\n{{ m", " \n{{ m"))))
    with pytest.raises(UserError, match="differently from training"):
        check_template(Run.open(folder), other, "m", key=None)


def test_a_template_that_refuses_a_system_turn_is_checked_without(makers, serve, tmp_path):
    """Gemma 2's: its run could not even be saved."""
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer = makers.tokenizer(template=refuses + makers.tokenizer().chat_template)
    folder = tmp_path / "run"
    tokenizer.save_pretrained(folder)
    manifest.write(
        folder, "run", inputs=[], config={}, facts={"probe_digest": probe_digest(tokenizer), "method": "full"}
    )

    def tokenize(request):
        try:
            return by(tokenizer)(request)
        except UserError:
            return None

    root, got = serve(tokenize)
    assert check_template(Run.open(folder), root, "m", key=None) == 1
    assert [turn["role"] for turn in got[-1][2]["messages"]] == ["user", "assistant"]
    other, _ = serve(by(makers.tokenizer()))
    with pytest.raises(UserError, match="the probe with special-token text"):
        check_template(Run.open(folder), other, "m", key=None)
