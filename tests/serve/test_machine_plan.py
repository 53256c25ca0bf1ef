"""GPUs and CPU memory are shared out by pure functions: every machine can be tried here."""

import dataclasses

import pytest

from tunegate.core.architecture import Architecture
from tunegate.core.errors import UserError
from tunegate.serve.machine_plan import Need, cache_gib, choose_start, cpu_processes, plan_gpus

# Llama-3.1-8B and 70B: config.json of meta-llama/Llama-3.1-8B and -70B.
LLAMA_8B = Architecture(layers=32, hidden=4096, ffn=14336, heads=32, kv_heads=8, head_dim=128, vocab=128256)
LLAMA_70B = Architecture(layers=80, hidden=8192, ffn=28672, heads=64, kv_heads=8, head_dim=128, vocab=128256)
SMALL = Need(architecture=LLAMA_8B, weights_gb=16.1, tokens=8192, sequences=32)
LARGE = Need(architecture=LLAMA_70B, weights_gb=141.1, tokens=8192, sequences=32)
A100, L4 = 85.5, 24.1


def test_the_cache_of_one_sequence_is_that_of_the_architecture():
    """2 (keys, values) x 32 layers x 8 heads x 128 x 2 bytes = 131072 bytes a token."""
    assert SMALL.cache_gb(1) == pytest.approx(131072 * 8192 / 1e9)
    assert SMALL.cache_gb(3) == pytest.approx(3 * SMALL.cache_gb(1))


@pytest.mark.parametrize(
    ("need", "memory", "count", "sizes"),
    [
        (SMALL, A100, 1, (1, 1, 1)),
        (SMALL, A100, 8, (1, 1, 8)),
        (SMALL, L4, 1, (1, 1, 1)),
        (LARGE, A100, 2, (2, 1, 1)),
        (LARGE, A100, 8, (2, 1, 4)),
        (LARGE, A100, 3, (2, 1, 1)),
        (LARGE, L4, 8, (8, 1, 1)),
    ],
)
def test_the_fewest_gpus_hold_a_copy_and_the_others_hold_more(need, memory, count, sizes):
    plan = plan_gpus(need, memory, count)
    assert (plan.tensor, plan.pipeline, plan.data) == sizes
    assert need.architecture.heads % plan.tensor == 0
    assert plan.tensor * plan.pipeline * plan.data <= count
    assert str(count) in plan.says


def test_the_share_grows_only_where_the_copy_would_not_fit_else():
    assert plan_gpus(SMALL, A100, 1).share == 0.9
    tight = dataclasses.replace(SMALL, weights_gb=19.4)
    assert plan_gpus(tight, L4, 1).share == 0.95
    assert plan_gpus(tight, L4, 1).flags() == ["--gpu-memory-utilization", "0.95"]


def test_heads_that_cannot_be_split_go_over_pipeline_stages():
    odd = dataclasses.replace(LARGE, architecture=dataclasses.replace(LLAMA_70B, heads=63, kv_heads=9))
    plan = plan_gpus(odd, A100, 2)
    assert (plan.tensor, plan.pipeline, plan.data) == (1, 2, 1)
    assert plan.flags()[:2] == ["--pipeline-parallel-size", "2"]
    assert (plan_gpus(LARGE, A100 * 0.64, 3).tensor, plan_gpus(LARGE, A100 * 0.64, 3).pipeline) == (1, 3)


def test_what_does_not_fit_is_refused_with_what_is_missing():
    with pytest.raises(
        UserError,
        match=r"141 GB for its weights and 2.7 GB for one request of 8192 tokens; 1 GPU of 86 GB are 65 GB short",
    ) as caught:
        plan_gpus(LARGE, A100, 1)
    assert "ft quantize" in caught.value.hint


def test_the_cpus_cache_holds_every_sequence_within_a_quarter_of_the_memory():
    assert cache_gib(SMALL, 1000) == 32, "32 sequences of exactly 1 GiB"
    assert cache_gib(SMALL, 25) == 5
    assert cache_gib(dataclasses.replace(SMALL, tokens=16), 25) == 1


@pytest.mark.parametrize(
    ("asked", "service", "on_gpu", "adapters", "compiled"),
    [
        ("fast", True, True, False, False),
        ("compiled", False, False, True, True),
        ("auto", True, False, False, True),
        ("auto", False, True, True, True),
        ("auto", False, False, False, False),
        ("auto", True, False, True, False),
    ],
)
def test_a_service_is_compiled_and_a_look_is_quick(asked, service, on_gpu, adapters, compiled):
    chosen, words = choose_start(asked, service=service, on_gpu=on_gpu, adapters=adapters)
    assert chosen == compiled
    assert words.startswith(f"start: {'compiled' if compiled else 'fast'}")


@pytest.mark.parametrize(
    ("compiled", "cores", "one_process", "both"),
    [
        (False, 1, True, False),
        (False, 2, True, False),
        (False, 4, False, True),
        (False, 64, False, False),
        (True, 2, False, True),
        (True, 64, False, False),
    ],
)
def test_a_fast_start_is_one_process_only_where_there_are_no_cores_to_lose(compiled, cores, one_process, both):
    flags, environment = cpu_processes(compiled=compiled, cores=cores)
    assert ("uni" in flags) == one_process == ("OMP_NUM_THREADS" in environment)
    assert ("VLLM_CPU_NUM_OF_RESERVED_CPU" in environment) == both
