"""From a started process to a server that answers: phases in plain words, our own instance, one real completion."""

import re
import subprocess
import time
from pathlib import Path

from tunegate.core.console import say, warn
from tunegate.core.errors import InfrastructureError
from tunegate.serve.middleware import INSTANCE_HEADER
from tunegate.serve.plain_http import call
from tunegate.serve.vllm_failures import explain
from tunegate.serve.vllm_flags import ServeOptions

# What the log says when a phase begins, and the phase in plain words.
PHASES = (
    (r"Initializing a V1 LLM engine|Waiting for .*engine core", "engine starting"),
    (r"Starting to load model|Loading (safetensors|weights)", "loading weights"),
    (r"Loading weights took|Model loading took", "weights loaded, warming up"),
    (r"Dynamo bytecode transform|Compiling a graph", "compiling (kept for the next start)"),
    (r"Application startup complete|Starting vLLM server", "listening"),
)


def wait_ready(
    process: "subprocess.Popen[bytes]",
    root: str,
    instance: str,
    model: str,
    key: str | None,
    log: Path,
    options: ServeOptions,
) -> None:
    """Until *this* instance is healthy and has answered one real request; phases are told as they come.

    Raises InfrastructureError with cause and remedy when it ends or does not come up in options.start_timeout_s; UserError
    where its log tells of a cause that the user must mend.
    """
    deadline = time.monotonic() + options.start_timeout_s
    started, told, position = time.monotonic(), -1, 0
    say("starting vLLM: importing")
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise explain(log, process.returncode)
        fresh, position = _read_on(log, position)
        for index, (pattern, words) in enumerate(PHASES):
            if index > told and re.search(pattern, fresh):
                told = index
                say(f"starting vLLM: {words} ({time.monotonic() - started:.0f} s)")
        if _is_ours(root, instance, options.certificate):
            _first_answer(root, model, key, log, max(1.0, deadline - time.monotonic()), options.certificate)
            return
        time.sleep(0.2)
    raise explain(log, None)


def _read_on(log: Path, position: int) -> tuple[str, int]:
    """(what was added to the log since `position`, the position now); nothing where somebody has removed it."""
    try:
        with log.open("rb") as stream:
            stream.seek(position)
            return stream.read().decode("utf-8", "replace"), stream.tell()
    except FileNotFoundError:
        return "", position


def _is_ours(root: str, instance: str, certificate: Path | None) -> bool:
    try:
        reply = call(f"{root}/health", certificate=certificate)
    except OSError:
        return False
    return reply.status == 200 and reply.headers.get(INSTANCE_HEADER) == instance


def _first_answer(
    root: str, model: str, key: str | None, log: Path, timeout_s: float, certificate: Path | None
) -> None:
    """One token by chat; by completion where the model has no chat template, which is said."""
    messages, short = [{"role": "user", "content": "Hi"}], {"model": model, "max_tokens": 1, "temperature": 0}
    asked = (("chat/completions", {**short, "messages": messages}), ("completions", {**short, "prompt": "Hi"}))
    text = ""
    for path, body in asked:
        try:
            reply = call(f"{root}/v1/{path}", body=body, key=key, timeout_s=timeout_s, certificate=certificate)
            if reply.status == 200:
                reply.json()["choices"][0]
                if text:
                    warn("the model has no chat template: only /v1/completions answers")
                return
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise InfrastructureError(
                f"the server started but does not answer a first request: {error}", hint=f"log: {log}"
            ) from None
        text = f"HTTP {reply.status} {reply.body.decode('utf-8', 'replace')[:300]}"
        if "chat template" not in text:
            break
    raise InfrastructureError(f"the server started but refuses a first request: {text}", hint=f"log: {log}")
