"""The key as a secret holds it, and a server that must have one (as `ft serve deploy` writes) but was given none."""

import asyncio
import os
import subprocess
import sys

import pytest

from tunegate.serve.middleware import KEY_REQUIRED_VARIABLE, KEY_VARIABLE, Guard

# As vLLM does it: Starlette makes the middleware in the lifespan, which uvicorn passes over when it raises.
SERVER = """
import uvicorn
from starlette.applications import Starlette
from tunegate.serve.middleware import Guard
app = Starlette()
app.add_middleware(Guard)
uvicorn.run(app, port=0)
"""


def status_of(sent):
    """What the guard answers to a request with this Authorization header."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    messages = []

    async def send(message):
        messages.append(message)

    headers = [(b"authorization", sent)] if sent is not None else []
    asyncio.run(Guard(app)({"type": "http", "path": "/v1/models", "method": "GET", "headers": headers}, None, send))
    return messages[0]["status"]


@pytest.mark.parametrize("kept", ["abc123\n", "abc123\r\n", " abc123", "\ufeffabc123"])
def test_the_end_of_the_file_that_a_secret_was_made_from_is_no_part_of_the_key(monkeypatch, kept):
    """`kubectl create secret --from-file` keeps it, and every request was 401."""
    monkeypatch.setenv(KEY_VARIABLE, kept)
    assert (status_of(b"Bearer abc123"), status_of(b"Bearer abc"), status_of(None)) == (200, 401, 401)


@pytest.mark.parametrize("key", ["", "\n"])
def test_where_a_key_is_required_an_empty_one_opens_nothing(monkeypatch, key):
    monkeypatch.setenv(KEY_VARIABLE, key)
    assert status_of(None) == 200
    monkeypatch.setenv(KEY_REQUIRED_VARIABLE, "1")
    assert {status_of(sent) for sent in (None, b"Bearer ", b"Bearer", b"")} == {401}


@pytest.mark.parametrize("key", ["", "\n"])
def test_a_server_that_must_have_a_key_ends_without_one_and_says_so(key):
    environment = {**os.environ, KEY_REQUIRED_VARIABLE: "1", KEY_VARIABLE: key}
    done = subprocess.run(
        [sys.executable, "-c", SERVER], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "TUNEGATE_API_KEY is empty" in done.stderr
    assert "Uvicorn running" not in done.stderr
