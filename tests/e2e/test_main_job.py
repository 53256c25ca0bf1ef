"""data -> train -> merge -> quantize -> serve -> eval -> gate, on SmolLM2-135M-Instruct and real vLLM, a few items."""

import asyncio
import json
import socket
import time
import urllib.error
import urllib.request

import pytest

from tunegate.core.artifacts import EvalReport, GateDecision, Release, Run
from tunegate.core.chat_template import render_ids
from tunegate.core.rows import read_rows
from tunegate.serve.client import ChatClient

pytestmark = pytest.mark.e2e


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def status(url, *, key=None, method="GET", body=None):
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(
        url, json.dumps(body).encode() if body is not None else None, headers, method=method
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


def test_held_out_rows_are_at_least_100_and_all_rows_are_accounted_for(job, data):
    counts = {name: lines(data / f"{name}.jsonl") for name in ("train", "eval", "rejected")}
    assert sum(counts.values()) == 858
    assert counts["eval"] >= 100
    groups = [{row.group for row in read_rows(data / f"{name}.jsonl")} for name in ("train", "eval")]
    assert not groups[0] & groups[1]


def test_training_lowers_the_loss_and_says_what_it_saw(trained):
    run = Run.open(trained)
    losses = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    steps = [line["loss"] for line in losses if "loss" in line]
    assert len(steps) == 12
    assert sum(steps[-3:]) < 0.7 * sum(steps[:3])
    mask = run.manifest.facts["mask"]
    held_out = run.manifest.facts["validation_rows"]
    assert mask["rows"] + held_out + mask["too_long"] == lines(trained.parent / "data" / "train.jsonl")
    assert 0 < mask["label_tokens"] < 0.3 * mask["tokens"]
    assert run.manifest.facts["trainable_params"] == 4_884_480
    assert not [p.name for p in trained.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_merged_release_answers_as_the_adapter_did(release):
    proof = Release.open(release).manifest.facts["merge"]
    assert (
        proof["mean_logit_difference"] < 0.25 * proof["adapter_effect"]
    )  # bf16 rounding, beside what training changed
    assert proof["same_next_token_share"] > 0.95


def test_the_quantized_release_is_smaller_and_keeps_template_and_tokenizer(release, quantized):
    before, after = Release.open(release).manifest.facts, Release.open(quantized).manifest.facts
    bits, least, most = {"awq": (4, 0.3, 0.5), "w8a8": (8, 0.5, 0.7)}[after["quantization"]]
    assert least * before["bytes"] < after["bytes"] < most * before["bytes"]
    assert (after["template_digest"], after["probe_digest"]) == (before["template_digest"], before["probe_digest"])
    assert after["calibration_rows"] == 16
    config = json.loads((quantized / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert (weights["num_bits"], weights["group_size"], weights["symmetric"]) == (
        (4, 32, False) if bits == 4 else (8, None, True)
    )


def test_verify_finds_one_changed_byte(job, quantized, copy):
    assert job.run("ft", "verify", str(quantized), "--json").ok().json()["ok"]
    broken = copy(quantized)
    weights = broken / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1000] ^= 1
    weights.write_bytes(raw)
    done = job.run("ft", "verify", str(broken), "--json")
    assert done.code == 2
    assert done.json()["problems"] == [{"path": "model.safetensors", "problem": "content changed"}]


def test_the_server_tokenizes_what_training_rendered(server, trained, key):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(trained)
    prompts = json.loads((trained / "probe.json").read_text())["prompts"]
    prompts.append({"messages": [{"role": "user", "content": "say <|im_end|> 東京 12345 🙂"}]})

    async def served():
        async with ChatClient(server, "release-quantized", key=key) as client:
            return [await client.tokenize(prompt["messages"]) for prompt in prompts]

    for prompt, ids in zip(prompts, asyncio.run(served()), strict=True):
        assert ids == render_ids(tokenizer, prompt["messages"], generate=True)
        assert ids == prompt.get("ids", ids)


@pytest.mark.parametrize(
    "route", ["/v1/models", "/metrics", "/tokenize", "/invocations", "/version", "/openapi.json", "/load"]
)
def test_every_route_but_health_wants_the_key(server, route, key):
    root = server.removesuffix("/v1")
    assert status(root + route) == 401
    assert status(root + route, key="wrong") == 401
    assert status(root + "/health") == 200
    assert status(root + "/v1/models", key=key) == 200


def test_a_taken_port_is_refused_at_once(job):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        started = time.monotonic()
        done = job.run("ft", "serve", "builtin:smollm2-135m", "--port", str(taken.getsockname()[1]))
    assert done.code == 4
    assert "error: --port: port" in done.err
    assert time.monotonic() - started < 10


def test_eval_against_a_saved_baseline_and_the_gate(job, server, key):
    """The candidate against itself: nothing flips, equal scores, and eight items cannot show non-inferiority by 0.02."""
    options = ("--task", "task.yaml", "--limit", "8", "--model", "release-quantized")
    first = (
        job.run(
            "ft", "eval", server, *options, "--out", "report-a", "--save-as", "baseline", "--json", TUNEGATE_API_KEY=key
        )
        .ok()
        .json()
    )
    assert first["n"] == 8
    assert sum(first["outcomes"].values()) == 8
    second = job.run(
        "ft", "eval", server, *options, "--out", "report-b", "--against", "baseline", "--json", TUNEGATE_API_KEY=key
    )
    assert second.code == 3, second.err
    answer = second.json()
    assert answer["decision"] == "INCONCLUSIVE"
    assert answer["comparison"]["admissible"]["difference"] == 0
    report = EvalReport.open(job.folder / "report-b")
    assert (report.path / "report.html").stat().st_size > 10_000
    assert job.run("ft", "verify", "report-b").code == 0
    assert GateDecision.open(report.path / "gate").manifest.facts is not None
    rows = [json.loads(line) for line in (report.path / "results.jsonl").read_text().splitlines()]
    assert all(row["latency_ms"] > 0 and row["completion_tokens"] > 0 and row["finish_reason"] for row in rows)


def test_a_comparison_on_other_data_or_prompts_is_refused(job, server, key):
    task = (job.folder / "task.yaml").read_text()
    (job.folder / "other.yaml").write_text(task + "system: Answer in French.\n")
    options = ("--limit", "8", "--model", "release-quantized", "--out", "report-c", "--against", "baseline")
    done = job.run("ft", "eval", server, "--task", "other.yaml", *options, TUNEGATE_API_KEY=key)
    assert done.code == 2
    assert "prompts" in done.err


def test_the_gate_alone_gives_the_same_verdict(job):
    done = job.run("ft", "gate", "report-b", "--against", "baseline", "--out", "decision", "--json")
    assert done.code == 3
    assert done.json()["decision"] == "INCONCLUSIVE"


def test_a_wrong_key_is_an_infrastructure_error_and_writes_no_report(job, server):
    done = job.run(
        "ft",
        "eval",
        server,
        "--task",
        "task.yaml",
        "--limit",
        "2",
        "--model",
        "release-quantized",
        "--out",
        "never",
        TUNEGATE_API_KEY="wrong",
    )
    assert done.code == 4
    assert "TUNEGATE_API_KEY" in done.err
    assert not (job.folder / "never").exists()


def test_status_lists_the_server(job, server):
    servers = job.run("ft", "serve", "status", "--json").ok().json()["servers"]
    assert [s["model"] for s in servers if s["healthy"]] == ["release-quantized"]
