"""The real server of the shared release: what it refuses, what it counts, what is seen of it."""

import http.client
import json
import re
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tunegate.serve.metrics import parse, snapshot
from tunegate.serve.plain_http import call

pytestmark = pytest.mark.e2e
DASHBOARDS = Path(__file__).parents[2] / "serve" / "dashboards"
MODEL = "release-quantized"


@pytest.fixture
def ask(server, key):
    """POST to a route of the server with the key: (status, answer)."""

    def ask(route, body):
        reply = call(server.removesuffix("/v1") + route, body=body, key=key, timeout_s=60)
        return reply.status, reply.json()

    return ask


def chat(text="Hello", **fields):
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": 4,
        "temperature": 0,
        **fields,
    }


def scrape(server, key):
    return call(server.removesuffix("/v1") + "/metrics", key=key).body.decode()


@pytest.mark.parametrize(
    "route", ["//v1/models", "/health/../metrics", "/health/", "/HEALTH", "/docs", "/ping", "/v1/health"]
)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
def test_no_spelling_goes_round_the_key(server, route, method):
    place = urlsplit(server)
    for sent in ({}, {"Authorization": "Bearer wrong"}):
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
        connection.request(method, route, headers=sent)
        response = connection.getresponse()
        assert response.status == 401
        response.read()
        connection.close()


def test_every_route_the_server_names_asks_for_the_key(server, key):
    root = server.removesuffix("/v1")
    named = call(f"{root}/openapi.json", key=key).json()["paths"]
    assert {"/tokenize", "/invocations", "/v1/chat/completions"} <= set(named)
    place = urlsplit(server)
    for path in set(named) - {"/health"}:
        for method in named[path]:
            for sent in ({}, {"Authorization": "Bearer wrong"}):
                connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
                connection.request(method.upper(), path.replace("{", "").replace("}", ""), headers=sent)
                assert connection.getresponse().status == 401, (method, path)
                connection.close()


TEMPLATE = {"chat_template": "{{ 1 }}"}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/chat/completions", chat(**TEMPLATE)),
        ("/v1/chat/completions", chat(chat_template_kwargs=TEMPLATE)),
        ("/tokenize", {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **TEMPLATE}),
        ("/v1/messages", {**chat(), "chat_template_kwargs": TEMPLATE}),
        ("/v1/responses", {"model": MODEL, "input": "x", "max_output_tokens": 4, "chat_template_kwargs": TEMPLATE}),
    ],
)
def test_a_template_in_a_request_is_refused(ask, route, body):
    status, answer = ask(route, body)
    assert status == 400
    assert "untrusted chat template" in json.dumps(answer)


def test_requests_that_are_wrong_are_told_so(ask, server, key):
    status, answer = ask("/v1/chat/completions", chat("word " * 5000))
    assert status == 400
    assert "maximum context length is 1536" in answer["error"]["message"]
    assert ask("/v1/chat/completions", {**chat(), "model": "other"})[0] == 404
    status, answer = ask("/v1/chat/completions", chat("x" * 5_000_000))
    assert (status, answer["error"]["code"]) == (413, "request_too_large")
    place = urlsplit(server)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", '{"model": ', headers)
    assert connection.getresponse().status == 400
    connection.close()


def test_a_client_that_leaves_leaves_no_request_behind(server, key):
    place = urlsplit(server)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=20)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = chat(stream=True, ignore_eos=True) | {"max_tokens": 1200}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    response.readline()
    assert snapshot(scrape(server, key), 0.0).running == 1
    response.close()
    connection.close()
    deadline = time.monotonic() + 2
    while snapshot(scrape(server, key), 0.0).running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert snapshot(scrape(server, key), 0.0).running == 0


def test_a_prefix_that_comes_again_is_not_computed_again(server, key, ask):
    text = " ".join(f"fact {n} is known." for n in range(120))
    before = snapshot(scrape(server, key), 0.0)
    for _ in range(2):
        assert ask("/v1/chat/completions", chat(text))[0] == 200
    after = snapshot(scrape(server, key), 1.0)
    assert after.cache_hits - before.cache_hits > 256


def test_every_metric_of_the_dashboard_and_the_alerts_is_there(server, key):
    names = {sample.name for sample in parse(scrape(server, key))}
    asked = set()
    for file in ("grafana.json", "alerts.yaml"):
        asked |= set(re.findall(r"vllm:\w+", (DASHBOARDS / file).read_text()))
    assert len(asked) > 12
    assert asked <= names


def test_top_and_status_see_the_server(job, server, key):
    seen = (
        job.run("ft", "serve", "top", server, "--once", "--interval", "0.3", "--json", TUNEGATE_API_KEY=key).ok().json()
    )
    assert seen["url"] == server
    assert seen["finished"]["length"] >= 1
    wrong = job.run("ft", "serve", "top", server, "--once", TUNEGATE_API_KEY="wrong")
    assert wrong.code == 4
    (state,) = [s for s in job.run("ft", "serve", "status", "--json").ok().json()["servers"] if s["url"] == server]
    assert (state["state"], state["detail"], state["restarts"]) == ("serving", None, 0)
    assert state["start_s"] > 5
