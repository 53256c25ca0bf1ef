"""Stands in for vLLM's server where its supervisor is tested: the real guard and uvicorn, an engine that is a sleep.

`python -m standin_vllm --host H --port P ...`; what a request asks for as its model says how it is answered. The file
named by STANDIN_MODE changes it while it runs: "hang" (no token comes any more), "fail" (it does not start), "flag" (it
does not know one of its flags), "import" (it is importing still).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import uvicorn

from tunegate.serve.middleware import Guard

MODE = Path(os.environ.get("STANDIN_MODE", "/nonexistent"))


def mode():
    return MODE.read_text().strip() if MODE.is_file() else ""


async def answer(send, status, body, kind=b"application/json"):
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": body})


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    if scope["path"] in ("/health", "/metrics"):
        await answer(send, 200, b"")
        return
    request = json.loads((await receive())["body"] or b"{}")
    while mode() == "hang":
        await asyncio.sleep(0.1)
    if scope["path"] == "/tokenize":
        await answer(send, 200, json.dumps({"tokens": [1, 2, 3]}).encode())
    elif not request.get("stream"):
        await answer(send, 200, json.dumps({"choices": [{"finish_reason": "stop"}]}).encode())
    else:
        head = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
        await send(head)
        for n in range(request["max_tokens"]):
            await send({"type": "http.response.body", "body": b"data: %d\n\n" % n, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


def main():
    if mode() == "fail":
        print("ValueError: No available memory for the cache blocks", flush=True)
        sys.exit(1)
    if mode() == "flag":
        print("entry.py: error: unrecognized arguments: --no-such 1", flush=True)
        sys.exit(2)
    while mode() == "import":
        time.sleep(0.05)
    print("INFO Initializing a V1 LLM engine\nINFO Starting to load model", flush=True)
    engine = [
        sys.executable,
        "-c",
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)",
    ]
    child = subprocess.Popen(engine)
    arguments = dict(zip(sys.argv[1:], sys.argv[2:], strict=False))
    tls = {"ssl_certfile": arguments.get("--ssl-certfile"), "ssl_keyfile": arguments.get("--ssl-keyfile")}
    guarded = Guard(app)

    async def with_server(scope, receive, send):
        await guarded({**scope, "app": SimpleNamespace(state=SimpleNamespace(server=server))}, receive, send)

    config = uvicorn.Config(with_server, host=arguments["--host"], port=int(arguments["--port"]), **tls)
    server = uvicorn.Server(config)
    server.run()
    child.send_signal(signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    main()
