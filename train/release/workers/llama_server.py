"""One GGUF file behind the parts of OpenAI's API that an evaluation asks for, on llama.cpp and the template in the file.

python llama_server.py MODEL PORT NAME CONTEXT THREADS; runs in llama.cpp's environment and imports nothing of ours.
GET /health, /v1/models; POST /v1/chat/completions (whole, not streamed), /tokenize. One request at a time.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Engine:
    """The model, its template, and a lock around both."""

    def __init__(self, model, name, context, threads):
        from llama_cpp import Llama
        from llama_cpp.llama_chat_format import Jinja2ChatFormatter

        self.name, self.lock = name, threading.Lock()
        self.model = Llama(model, n_ctx=context, n_threads=threads, verbose=False)
        texts = {key: self.model.detokenize([token], special=True).decode("utf-8", "replace") if token >= 0 else ""
                 for key, token in (("bos_token", self.model.token_bos()), ("eos_token", self.model.token_eos()))}  # fmt: skip
        template = self.model.metadata["tokenizer.chat_template"]
        self.format = Jinja2ChatFormatter(template=template, add_generation_prompt=True, **texts)

    def tokens(self, body):
        """The prompt's token ids: the embedded template, no special tokens added."""
        prompt = self.format(messages=[_turn(turn) for turn in body["messages"]], tools=body.get("tools")).prompt
        return self.model.tokenize(prompt.encode("utf-8"), add_bos=False, special=True)

    def complete(self, body):
        """A chat completion of OpenAI's shape."""
        ids = self.tokens(body)
        if len(ids) + 1 > self.model.n_ctx():
            raise ValueError(f"the prompt has {len(ids)} tokens, the context {self.model.n_ctx()}")
        stop = body.get("stop") or []
        done = self.model.create_completion(
            ids,
            max_tokens=min(int(body.get("max_tokens") or 256), self.model.n_ctx() - len(ids)),
            temperature=float(body.get("temperature") or 0.0),
            top_p=float(body.get("top_p") or 1.0),
            seed=int(body.get("seed") or 0),
            stop=[stop] if isinstance(stop, str) else stop,
        )
        choice = done["choices"][0]
        message = {"role": "assistant", "content": choice["text"]}
        return {"object": "chat.completion", "model": self.name, "usage": done["usage"],
                "choices": [{"index": 0, "message": message, "finish_reason": choice["finish_reason"]}]}  # fmt: skip


def _turn(turn):
    """A turn as templates take it: arguments of its calls as objects, no content as ""."""
    calls = [{**call, "function": {**call["function"]}} for call in turn.get("tool_calls") or []]
    for call in calls:
        if isinstance(call["function"].get("arguments"), str):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"] or "{}")
    return {**turn, "content": turn.get("content") or "", **({"tool_calls": calls} if calls else {})}


def handler(engine):
    """The request handler over one engine."""

    class Handler(BaseHTTPRequestHandler):
        """Answers in JSON."""

        protocol_version = "HTTP/1.1"

        def do_GET(self):
            """Health and the model's name."""
            self._send(200, {"data": [{"id": engine.name}]} if self.path == "/v1/models" else {"status": "ok"})

        def do_POST(self):
            """A completion or token ids."""
            try:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                with engine.lock:
                    found = {"tokens": engine.tokens(body)} if self.path == "/tokenize" else engine.complete(body)
                self._send(200, found)
            except (ValueError, KeyError, TypeError) as error:
                self._send(400, {"error": {"message": str(error)}})

        def _send(self, status, document):
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Nothing on standard error."""

    return Handler


if __name__ == "__main__":
    model, port, name, context, threads = sys.argv[1:6]
    made = handler(Engine(str(Path(model)), name, int(context), int(threads)))
    ThreadingHTTPServer(("127.0.0.1", int(port)), made).serve_forever()
