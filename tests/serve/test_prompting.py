"""Requests are prompted inside the server: instructions, the nearest or fixed examples, passages; budgets are kept."""

import asyncio
import json
import shutil

import pytest

from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve as resolve_model
from tunegate.serve.prompting.index import ABOUT, PASSAGES, VECTORS, Index, Passage
from tunegate.serve.prompting.middleware import CONTEXT, FOLDERS, LARGEST_HEADER, PATH, PromptApp, _header
from tunegate.serve.prompting.prompting import EXAMPLES, NAME, Prompting, Settings
from tunegate.serve.vllm_flags import ServeOptions, build
from tunegate.train.arms.build import build as build_run
from tunegate.train.config import resolve

TEXTS = {
    "fr": "The capital of France is Paris.",
    "py": "Python is a programming language made by Guido van Rossum.",
    "milk": "Milk is kept in the fridge at 5 degrees.",
    "zq": "The part ZQ-7741 is stored in hall nine.",
}


def words(texts):
    return sum(len(text.split()) for text in texts)


@pytest.fixture(scope="module")
def index():
    return Index.build([Passage(id=k, text=v) for k, v in TEXTS.items()], embedder="builtin:minilm")


def prompting(index=None, examples=None, **settings):
    return Prompting(Settings(**settings), words, examples or {}, index)


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("What is the French capital?", "fr"),  # by meaning
        ("Where do I find ZQ-7741?", "zq"),  # by the word alone: no encoder knows it
        ("who invented python", "py"),
    ],
)
def test_meaning_and_words_both_find(index, question, best):
    assert list(TEXTS)[index.search([question], 1)[0][0]] == best


@pytest.mark.parametrize("question", ["", "???", "\U0001f642 zzzzzz", "x" * 20_000])
def test_any_question_can_be_searched(index, question):
    (found,) = index.search([question], 3)
    assert len(found) <= 3


def test_an_index_comes_back_as_it_was_and_refuses_another_encoder(index, tmp_path):
    index.save(tmp_path)
    again = Index.load(tmp_path)
    assert again.search(["French capital"], 4) == index.search(["French capital"], 4)
    about = json.loads((tmp_path / ABOUT).read_text())
    (tmp_path / ABOUT).write_text(json.dumps({**about, "embedder_digest": "0" * 64}))
    with pytest.raises(UserError, match="other weights of builtin:minilm"):
        Index.load(tmp_path)


def test_nothing_to_index_is_an_error():
    with pytest.raises(UserError, match="nothing to index"):
        Index.build([], embedder="builtin:minilm")


def test_instructions_join_the_system_turn_or_open_the_first_user_turn():
    p = prompting(method="prompt", system="Be brief.")
    assert p.apply([{"role": "system", "content": "S"}, user("q")], room=100).messages == [
        {"role": "system", "content": "S\n\nBe brief."},
        user("q"),
    ]
    none = prompting(method="prompt", system="Be brief.", system_role=False)
    assert none.apply([user("q")], room=100).messages == [user("Be brief.\n\nq")]


def example(question, answer, system=None):
    turns = [user(question), {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": system}, *turns] if system else turns


def test_the_nearest_example_stands_next_to_the_question(index):
    examples = {key: example(text, key.upper()) for key, text in TEXTS.items()}
    p = prompting(index, examples, method="few_shot", k=2)
    found = p.apply([user("French capital city")], room=1000)
    assert found.used[0] == "fr"
    assert len(found.used) == 2
    assert [m["content"] for m in found.messages[-3:]] == [TEXTS["fr"], "FR", "French capital city"]


def test_fixed_examples_are_the_same_for_every_request():
    examples = {"a": example("qa", "aa"), "b": example("qb", "ab")}
    p = prompting(None, examples, method="few_shot", k=2, selection="fixed")
    assert p.apply([user("x")], room=1000).used == p.apply([user("y")], room=1000).used == ["a", "b"]


def test_an_examples_own_system_text_is_kept_where_it_differs():
    examples = {"a": example("qa", "aa", "other functions"), "b": example("qb", "ab", "S")}
    p = prompting(None, examples, method="few_shot", k=2, selection="fixed")
    turns = p.apply([{"role": "system", "content": "S"}, user("x")], room=1000).messages
    assert [m["role"] for m in turns].count("system") == 1
    assert user("other functions\n\nqa") in turns
    assert user("qb") in turns


def test_what_does_not_fit_is_dropped_and_counted(index):
    p = prompting(index, method="rag", k=3)
    whole = p.apply([user("French capital")], room=1000)
    assert (len(whole.used), whole.dropped) == (3, 0)
    tight = p.apply([user("French capital")], room=70)
    assert 0 < len(tight.used) < 3
    assert tight.dropped == 3 - len(tight.used)
    none = p.apply([user("French capital")], room=5)
    assert none.used == []
    assert none.messages == [user("French capital")]


def test_requests_looked_up_together_get_what_each_gets_alone(index):
    p = prompting(index, method="rag", k=2)
    asked = ["French capital", "Where do I find ZQ-7741?", "", "who invented python " * 40, "two\nlines"]
    requests = [[{"role": "system", "content": "S"}, user(text)] for text in asked]
    together = p.apply_all(requests, room=1000)
    assert together == [p.apply(request, room=1000) for request in requests]
    assert len({tuple(found.used) for found in together}) > 1
    assert p.apply_all([], room=1000) == []


def test_content_in_parts_and_tool_calls_pass(index):
    p = prompting(index, method="rag", k=1)
    parts = {"role": "user", "content": [{"type": "text", "text": "French capital"}]}
    calls = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    found = p.apply([parts, calls, {"role": "tool", "content": "1"}], room=1000)
    assert found.used == ["fr"]
    assert found.messages[1:] == [parts, calls, {"role": "tool", "content": "1"}]


@pytest.fixture(scope="module")
def few_shot_run(tmp_path_factory, tiny_model, tiny_dataset):
    config, _, _ = resolve([("t", {"method": "few_shot", "model": str(tiny_model), "k": 2, "max_length": 512})])
    return build_run(
        tiny_dataset, resolve_model(str(tiny_model)), config, tmp_path_factory.mktemp("r") / "few", force=False
    )


async def send(app, body, path=PATH, pieces=1):
    """(what the inner app was sent, response headers)."""
    seen, sent = {}, []
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = -(-len(raw) // pieces) or 1
    chunks = [raw[i : i + size] for i in range(0, len(raw), size)] or [b""]

    async def inner(scope, receive, send):
        got = b""
        while True:
            message = await receive()
            got += message.get("body", b"")
            if not message.get("more_body"):
                break
        seen["body"], seen["headers"] = got, dict(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def receive():
        piece = chunks.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(chunks)}

    async def out(message):
        sent.append(message)

    app.app = inner
    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", str(len(raw)).encode())]}
    await app(scope, receive, out)
    return seen, sent


@pytest.fixture
def app(few_shot_run, monkeypatch):
    monkeypatch.setenv(FOLDERS, json.dumps({"few": str(few_shot_run.path)}))
    monkeypatch.setenv(CONTEXT, "512")
    return PromptApp(None)


@pytest.mark.parametrize("pieces", [1, 7])
def test_the_middleware_rewrites_the_request_and_leaves_the_stream_alone(app, pieces):
    body = {"model": "few", "messages": [user("What is 3 plus 3?")], "max_tokens": 8, "stream": True}
    seen, sent = asyncio.run(send(app, body, pieces=pieces))
    inner = json.loads(seen["body"])
    assert inner["messages"][-1] == user("What is 3 plus 3?")
    assert {"role": "assistant", "content": '{"sum": 6}'} in inner["messages"]
    assert seen["headers"][b"content-length"] == str(len(seen["body"])).encode()
    assert inner["max_tokens"] == 8
    used = json.loads(dict(sent[0]["headers"])[b"x-tunegate-context"])
    assert used["ids"][0] == "r3"
    assert [m.get("body") for m in sent[1:]] == [b"data: 1\n\n", b"data: [DONE]\n\n"]


@pytest.mark.parametrize(
    "body",
    [
        b"{not json",
        b"",
        b"[]",
        b'{"model": "few"}',
        b'{"model": "few", "messages": [1]}',
        b'{"model": "few", "messages": 3}',
        b'{"model": ["few"], "messages": []}',
        b'{"model": "base", "messages": [{"role": "user", "content": "x"}]}',
    ],
)
def test_what_is_no_request_for_a_prompted_model_goes_on_untouched(app, body):
    seen, sent = asyncio.run(send(app, body))
    assert seen["body"] == body
    assert len(sent[0]["headers"]) == 1


def test_other_routes_are_not_read(app):
    body = json.dumps({"model": "few", "messages": [user("x")]}).encode()
    seen, _ = asyncio.run(send(app, body, path="/tokenize"))
    assert seen["body"] == body


def test_a_long_header_is_cut_and_says_so():
    value = _header([f"a-rather-long-identifier-{i}" for i in range(400)], 3)
    assert len(value) <= LARGEST_HEADER
    document = json.loads(value)
    assert document["more"] == 400 - len(document["ids"]) > 0
    assert document["dropped"] == 3


def test_flags_put_the_guard_outside_the_prompting(few_shot_run, monkeypatch):
    monkeypatch.setattr("tunegate.serve.vllm_flags.gpus", lambda: ())
    launch = build(few_shot_run, ServeOptions())
    order = [launch.arguments[i + 1] for i, a in enumerate(launch.arguments) if a == "--middleware"]
    assert [name.rpartition(".")[2] for name in order] == ["PromptApp", "Guard"]  # the last one named is the outermost
    assert json.loads(launch.environment[FOLDERS]) == {"few": str(few_shot_run.path.resolve())}
    assert launch.environment[CONTEXT] == "512"
    assert "--lora-modules" not in launch.arguments


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"schema_version": 2, "method": "prompt"}, "another version"),
        ({"schema_version": 1, "method": "prompt", "sytem": "x"}, "unknown key 'sytem'"),
        ({"schema_version": 1}, "missing required field `method`"),
        ({"schema_version": 1, "method": "lora"}, "no such method: 'lora'"),
        ({"schema_version": 1, "method": "few_shot", "k": "3"}, r"Expected `int`, got `str` - at `\$\.k`"),
        ([], "another version"),
    ],
)
def test_a_prompting_of_another_kind_is_refused(few_shot_run, tmp_path, document, words):
    folder = shutil.copytree(few_shot_run.path, tmp_path / "copy")
    (folder / NAME).write_text(json.dumps(document))
    with pytest.raises(UserError, match=words):
        Prompting.load(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        (EXAMPLES, b'{"id": 3, "messages": []}\n', "damaged: Expected `str`"),
        (EXAMPLES, b'{"id": "other", "messages": []}\n', "no example is called"),
        (PASSAGES, b'{"id": "a"}\n', "damaged: Object missing"),
        (VECTORS, b"\x93NUMPY\x01\x00v\x00{", "no vectors"),
        (VECTORS, b"", "no vectors"),
        (ABOUT, b'{"embedder": 4}', "damaged"),
        (ABOUT, None, "nothing to look up in"),
        ("tokenizer.json", b"{}", "no tokenizer"),
    ],
)
def test_a_damaged_part_is_named(few_shot_run, tmp_path, file, content, words):
    folder = shutil.copytree(few_shot_run.path, tmp_path / "copy")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=words):
        Prompting.load(folder)
