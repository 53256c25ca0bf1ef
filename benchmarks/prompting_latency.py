"""What applying a prompt adds to a request: the middleware of `ft serve` around an app that answers at once.

    python benchmarks/prompting_latency.py [--short] [--train build/demo/data/train.jsonl]

Each request passes the middleware as vLLM calls it; the difference to the bare app is what a user waits longer before the
engine sees the request. 1 and 16 requests at once; median and 95th percentile in ms.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

from tunegate.core.artifacts import Dataset
from tunegate.core.machine import cpu_name
from tunegate.core.manifest import write
from tunegate.core.model_source import resolve as resolve_model
from tunegate.core.rows import read_rows
from tunegate.serve.prompting.middleware import CONTEXT, FOLDERS, PATH, PromptApp
from tunegate.train.arms.build import build
from tunegate.train.config import resolve

METHODS = {"prompt": {}, "few_shot": {"k": 3, "selection": "nearest"}, "rag": {"k": 4}}


async def answer(scope, receive, send):
    """Reads the body and answers with an empty one."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def one(app, raw: bytes) -> float:
    """Milliseconds of one request."""
    scope = {"type": "http", "method": "POST", "path": PATH, "headers": []}

    async def receive():
        return {"type": "http.request", "body": raw}

    async def send(message):
        pass

    start = time.perf_counter()
    await app(scope, receive, send)
    return 1000 * (time.perf_counter() - start)


async def many(app, bodies: list[bytes], at_once: int) -> list[float]:
    """Latencies of all bodies, so many at once."""
    gate = asyncio.Semaphore(at_once)

    async def guarded(raw):
        async with gate:
            return await one(app, raw)

    return await asyncio.gather(*map(guarded, bodies))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, default=Path("build/demo/data/train.jsonl"))
    parser.add_argument("--short", action="store_true")
    options = parser.parse_args()
    if not options.train.is_file():
        raise SystemExit(f"no {options.train}: make it with  ft data prepare builtin:bfcl --out build/demo/data")
    rows = list(read_rows(options.train))
    count = 100 if options.short else 600
    bodies = [
        json.dumps({"model": "arm", "messages": list(rows[i % len(rows)].prompt), "max_tokens": 128}).encode()
        for i in range(count)
    ]
    print(f"{cpu_name()}, {len(rows)} training rows, {count} requests\n")
    print("| arm | at once | median ms | p95 ms |\n|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "data"
        folder.mkdir()
        (folder / "train.jsonl").write_text(options.train.read_text(encoding="utf-8"), encoding="utf-8")
        write(folder, "dataset", inputs=[], config={}, facts={})
        source = resolve_model("builtin:smollm2-135m")
        apps = {"bare": answer}
        for method, more in METHODS.items():
            config = resolve([("benchmark", {"method": method, "model": source.spec, **more})])[0]
            run = build(Dataset.open(folder), source, config, Path(scratch) / method, force=False)
            os.environ[FOLDERS], os.environ[CONTEXT] = json.dumps({"arm": str(run.path)}), "2048"
            apps[method] = PromptApp(answer)
        alone = {}
        for name, app in apps.items():
            for at_once in (1, 16):
                took = asyncio.run(many(app, bodies, at_once))
                p95 = statistics.quantiles(took, n=20)[-1]
                alone.setdefault(name, statistics.median(took))
                print(f"| {name} | {at_once} | {statistics.median(took):.2f} | {p95:.2f} |")
    said = ", ".join(f"{ms:.1f} ({name})" for name, ms in alone.items() if name != "bare")
    print(f"\nheadline | what a prompt arm adds to a request, ms | {said} | {alone['bare']:.1f}: the bare app")


if __name__ == "__main__":
    main()
