"""A chat endpoint whose timing is known: it answers by a schedule, and writes down when it did what.

`python load_standin.py --log FILE [--ttft-ms 200 ...]` prints its port. Raw asyncio and hand-made HTTP, so that it is
quick and each event can be cut in two. The log has one JSON object a request: seconds of the machine's monotonic clock
at which it was received, its first content was sent, and it ended; what was done with it; and the latest that the
server's own loop had been until then. That is the truth the load testers are held against.
"""

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path


def options():
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", required=True)
    parser.add_argument("--ttft-ms", type=float, default=200.0, help="from the request to the first content")
    parser.add_argument("--chunk-ms", type=float, default=30.0, help="between chunks")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--tokens-per-chunk", type=int, default=3)
    parser.add_argument("--reasoning", help="the first half of the chunks are what the model thinks, under this key")
    parser.add_argument("--split", action="store_true", help="send each event in two writes, the second 2 ms later")
    parser.add_argument("--fail-every", type=int, default=0, help="of each N requests the first 3 get a 500")
    parser.add_argument("--die-every", type=int, default=0, help="each Nth stream dies after three chunks")
    parser.add_argument("--engine-error-every", type=int, default=0, help="each Nth stream says error, then [DONE]")
    parser.add_argument("--stall-at", type=float, default=0.0, help="seconds after the first request")
    parser.add_argument("--stall-s", type=float, default=0.0, help="nothing is sent for so long")
    parser.add_argument("--slow-first-ms", type=float, default=0.0, help="added to the very first request")
    return parser.parse_args()


class Server:
    def __init__(self, given):
        self.given = given
        self.count = 0
        self.started = None
        self.lag = 0.0
        self.log = Path(given.log).open("w", buffering=1)  # noqa: SIM115

    async def gate(self):
        """Wait while the server stalls."""
        begin = self.started + self.given.stall_at
        now = time.perf_counter()
        if begin <= now < begin + self.given.stall_s:
            await asyncio.sleep(begin + self.given.stall_s - now)

    async def beat(self):
        """Keep the seconds that this process was late at most: a request is late to be received where the machine is busy."""
        while True:
            due = time.perf_counter() + 0.005
            await asyncio.sleep(0.005)
            self.lag = max(self.lag, time.perf_counter() - due)

    async def connection(self, reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = next(
                    (int(line[15:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0
                )
                body = await reader.readexactly(length)
                path = head.split(" ")[1]
                if path.endswith("/chat/completions"):
                    if not await self.chat(writer, json.loads(body)):
                        break
                elif path.endswith("/models"):
                    reply(writer, 200, json.dumps({"data": [{"id": "standin"}]}))
                elif path.endswith("/metrics"):
                    hits = f'vllm:prefix_cache_queries_total{{engine="0"}} {100 * self.count}.0\n'
                    reply(writer, 200, hits + f'vllm:prefix_cache_hits_total{{engine="0"}} {25 * self.count}.0\n')
                else:
                    reply(writer, 200, "{}")
        writer.close()

    async def chat(self, writer, request):
        received = time.perf_counter()
        self.started = self.started or received
        number = self.count
        self.count += 1
        given = self.given
        kind = self.kind(number)
        entry = {"number": number, "received": received, "kind": kind, "first": None, "ended": None}
        if kind == "http_500":
            await self.gate()
            reply(writer, 500, json.dumps({"error": {"message": "broken on purpose"}}))
            self.done(entry)
            return True
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        await self.event(writer, {"delta": {"role": "assistant", "content": ""}})
        slow = given.slow_first_ms if number == 0 else 0.0
        due = received + (given.ttft_ms + slow) / 1000
        for index in range(given.chunks):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self.gate()
            if kind == "cut_off" and index == 3:
                self.done(entry)
                writer.transport.abort() if number % 2 else writer.close()
                return False
            if kind == "engine" and index == 3:
                self.raw(writer, b'data: {"error": {"message": "EngineCore died"}}\n\ndata: [DONE]\n\n')
                writer.write(b"0\r\n\r\n")
                self.done(entry)
                return True
            last = index == given.chunks - 1
            text = "tok " * given.tokens_per_chunk
            key = given.reasoning if given.reasoning and index < given.chunks // 2 else "content"
            await self.event(writer, {"delta": {key: text}, "finish_reason": "stop" if last else None})
            entry["first"] = entry["first"] or time.perf_counter()
            due += given.chunk_ms / 1000
        tokens = given.chunks * given.tokens_per_chunk
        usage = {"prompt_tokens": 7, "completion_tokens": tokens, "total_tokens": tokens + 7}
        self.raw(writer, b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\ndata: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        self.done(entry)
        return True

    def kind(self, number):
        given = self.given
        if given.fail_every and number % given.fail_every < 3:
            return "http_500"
        if given.die_every and number % given.die_every == 1:
            return "cut_off"
        if given.engine_error_every and number % given.engine_error_every == 2:
            return "engine"
        return "ok"

    async def event(self, writer, choice):
        data = (
            b"data: "
            + json.dumps({"id": "x", "model": "standin", "choices": [{"index": 0, **choice}]}).encode()
            + b"\n\n"
        )
        if self.given.split:
            middle = len(data) // 2
            self.raw(writer, data[:middle])
            await asyncio.sleep(0.002)
            data = data[middle:]
        self.raw(writer, data)

    def raw(self, writer, data):
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    def done(self, entry):
        entry["ended"] = time.perf_counter()
        entry["lag"] = self.lag
        self.log.write(json.dumps(entry) + "\n")


def reply(writer, status, text):
    body = text.encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def main():
    server = Server(options())
    listening = await asyncio.start_server(server.connection, "127.0.0.1", 0, backlog=1024)
    print(listening.sockets[0].getsockname()[1], flush=True)
    beat = asyncio.create_task(server.beat())
    async with listening:
        await listening.serve_forever()
    beat.cancel()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main())
    sys.exit(0)
