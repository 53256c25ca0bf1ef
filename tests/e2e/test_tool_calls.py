"""Tool calls from data to verdict: OpenAI's form trained with Qwen3's template (which rewrites earlier turns, and gets a variable set),
read back by vLLM's parser, judged."""

import json
from importlib.resources import files
from pathlib import Path

import pytest

CITIES = ("Paris", "Rome", "Oslo")
TOOLS = [  # keys in no special order, no description, as data has them
    {
        "function": {"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}, "name": "weather"},
        "type": "function",
    }
]


def row(city: str, number: int) -> dict:
    call = {
        "id": f"c{number}",
        "type": "function",
        "function": {"name": "weather", "arguments": f'{{"city":"{city}"}}'},
    }
    return {
        "id": f"q{number}",
        "messages": [
            {"role": "user", "content": f"{city} now"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "rain"},
            {"role": "assistant", "content": "Rain."},
            {"role": "user", "content": f"{city}?"},
            {"role": "assistant", "tool_calls": [call]},
        ],
        "tools": TOOLS,
    }


@pytest.mark.slow
@pytest.mark.e2e
def test_calls_are_learnt_served_and_judged_as_calls(job, makers, tmp_path: Path):
    model = makers.model(tmp_path / "tiny", heads=2)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    template = files("trl") / "chat_templates" / "qwen3.jinja"
    (model / "chat_template.jinja").write_text(template.read_text(encoding="utf-8"), encoding="utf-8")
    rows = [row(city, number) for number, city in enumerate(CITIES)]
    makers.dataset(tmp_path / "data", rows, rows)
    task = tmp_path / "task.yaml"
    task.write_text(
        "name: calls\ndata: data/eval.jsonl\nvalidators: [{name: call, kind: tool_call}]\ngeneration: {max_tokens: 96}\n"
    )
    run = tmp_path / "run"
    job.run("ft", "train", str(tmp_path / "data"), "--model", str(model), "--method", "full", "--learning-rate", "3e-3",
            "--max-steps", "110", "--validation-share", "0", "--template-defaults", "enable_thinking=false", "--lr-scheduler-type", "constant", "--out", str(run)).ok()  # fmt: skip
    done = job.run("ft", "eval", str(run), "--task", str(task), "--out", str(tmp_path / "report"), "--json").ok()
    assert done.json()["metrics"]["call"]["value"] == 1.0, (tmp_path / "report" / "results.jsonl").read_text()
    kept = [json.loads(line) for line in (tmp_path / "report" / "results.jsonl").read_text().splitlines()]
    assert sorted(json.loads(one["tool_calls"][0]["function"]["arguments"])["city"] for one in kept) == sorted(CITIES)
    served = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "hermes" in json.dumps(served)
