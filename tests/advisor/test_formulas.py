import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunegate.advisor import queueing, serving_speed, training_memory, training_time
from tunegate.advisor.gpus import find_gpu, known_gpus, parse_hardware
from tunegate.advisor.models import find, find_or_typical, known_models, typical
from tunegate.advisor.prices import find_offer, live, snapshot, stale_note
from tunegate.core.errors import UserError

MODELS = st.sampled_from(sorted(known_models()))
GPUS = st.sampled_from(sorted(known_gpus()))
QUICK = settings(max_examples=60, deadline=None)


def memory_of(model="Llama-3.1-8B", **changes):
    a = find(model).architecture
    values = {
        "method": "lora",
        "micro_batch": 1,
        "seq_len": 1024,
        "checkpointing": True,
        "trainable": a.lora_params(16),
    }
    return training_memory.TrainingMemory(architecture=a, **{**values, **changes})


def serving_of(model="Llama-3.1-8B", gpu="H100", **changes):
    values = {"input_tokens": 1000, "output_tokens": 200, **changes}
    return serving_speed.ServingSetup(architecture=find(model).architecture, gpu=find_gpu(gpu), **values)


def test_full_tuning_of_peft_holds_eight_bytes_a_parameter():
    """PEFT's Llama-3.2-3B full tuning allocates 26.06 GB between steps."""
    setup = memory_of("Llama-3.2-3B", method="full", state="pure_bf16", trainable=0)
    assert training_memory.static_gb(setup) + training_memory.BETWEEN_STEPS_GB == pytest.approx(26.06, rel=0.01)


def test_embeddings_stay_in_16_bits():
    """So N / 2 bytes is wrong for a large vocabulary."""
    a = find("Llama-3.1-8B").architecture
    assert training_memory.weights_gb(a, "nf4") > a.params * 0.5 / 1e9 * 1.2
    assert training_memory.weights_gb(a, "bf16") == pytest.approx(2 * a.params / 1e9)


def test_logits_of_a_chunked_loss():
    """torchtune's chunked loss saved 8.1 GiB at 8,192 tokens with V = 128,256: 8.3 bytes per entry."""
    eager = training_memory.logits_gb(memory_of(seq_len=8192))
    chunked = training_memory.logits_gb(memory_of(seq_len=8192, software="torchtune"))
    assert eager - chunked > 8.1 * 1.0737


@QUICK
@given(
    model=MODELS,
    method=st.sampled_from(["lora", "qlora", "full"]),
    batch=st.integers(1, 64),
    seq=st.integers(1, 65_536),
    recompute=st.booleans(),
)
def test_memory_grows_with_batch_and_length(model, method, batch, seq, recompute):
    quantization = "nf4-dq" if method == "qlora" else "bf16"
    settings_ = {"method": method, "quantization": quantization, "checkpointing": recompute}
    small = training_memory.peak_gb(memory_of(model, micro_batch=batch, seq_len=seq, **settings_))
    assert math.isfinite(small)
    assert small > 0
    assert training_memory.peak_gb(memory_of(model, micro_batch=batch + 1, seq_len=seq, **settings_)) >= small
    assert training_memory.peak_gb(memory_of(model, micro_batch=batch, seq_len=seq + 1, **settings_)) >= small


@QUICK
@given(
    model=MODELS, gpu=GPUS, concurrency=st.floats(1, 2000), inputs=st.floats(1, 100_000), outputs=st.floats(1, 10_000)
)
def test_speeds_are_positive_and_finite(model, gpu, concurrency, inputs, outputs):
    times = serving_speed.curve(serving_of(model, gpu, input_tokens=inputs, output_tokens=outputs))
    for value in (times.tpot_s(concurrency), times.ttft_s(concurrency), times.prefill_s, times.decode_s(concurrency)):
        assert math.isfinite(value)
        assert value > 0
    assert times.decode_s(concurrency + 1) >= times.decode_s(concurrency)


@QUICK
@given(
    model=MODELS,
    gpu=GPUS,
    tokens=st.floats(1, 1e6),
    seq=st.floats(1, 1e5),
    method=st.sampled_from(["lora", "qlora", "full"]),
)
def test_training_speed_is_positive(model, gpu, tokens, seq, method):
    step = training_time.TrainingStep(
        architecture=find(model).architecture,
        gpu=find_gpu(gpu),
        method=method,
        tokens=tokens,
        seq_len=seq,
        checkpointing=True,
    )
    longer = training_time.TrainingStep(**{**vars(step), "tokens": 2 * tokens})
    assert 0 < training_time.micro_step_s(step) <= training_time.micro_step_s(longer) < math.inf


def test_lora_work_against_full():
    """Megatron-Bridge counts 4N for LoRA and 6N for full tuning: a ratio near 0.64 at 70B."""
    a = find("Llama-3.1-70B").architecture
    ratio = training_time.flops_per_token(a, "lora", 4096, checkpointing=False) / training_time.flops_per_token(
        a, "full", 4096, checkpointing=False
    )
    assert ratio == pytest.approx(0.67, abs=0.03)


def test_qlora_adds_per_step_and_not_a_factor():
    def share(tokens):
        step = {
            "architecture": find("Qwen-7B").architecture,
            "gpu": find_gpu("A100-80GB"),
            "tokens": tokens,
            "seq_len": tokens,
            "checkpointing": True,
        }
        plain = training_time.micro_step_s(training_time.TrainingStep(method="lora", **step))
        return (
            training_time.micro_step_s(training_time.TrainingStep(method="qlora", quantization="nf4", **step)) / plain
        )

    assert share(2048) > share(8192) > 1.0
    assert share(8192) < 1.1


def test_decode_intercept_of_vllm_on_h100():
    """vLLM's blog: inter-token latency 6.44 + 4.37e-5 * context ms for Llama-3.1-8B on one H100."""
    at = {n: 1e3 * serving_speed.curve(serving_of(input_tokens=n, output_tokens=2)).decode_s(1) for n in (1, 8193)}
    assert at[1] == pytest.approx(6.44, rel=0.10)
    assert (at[8193] - at[1]) / 8192 == pytest.approx(4.37e-5, rel=0.10)


def test_cache_cap_of_a_70b_on_two_h100():
    """NVIDIA's NIM table saturates between 50 and 100 sequences of 5000/500 tokens (FP8 weights and cache)."""
    assert (
        50
        <= serving_speed.max_concurrency(
            serving_of("Llama-3.1-70B", gpus=2, quantization="fp8", kv_bytes=1.0, input_tokens=5000, output_tokens=500)
        )
        <= 100
    )


def test_erlang_c_known_value():
    assert queueing.erlang_c(1, 0.5) == pytest.approx(0.5)
    assert queueing.erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert queueing.erlang_c(5, 5.0) == 1.0


def _simulate_waits(servers, arrivals, service, calls, seed):
    rng = random.Random(seed)
    free = [0.0] * servers
    now, waits = 0.0, []
    for _ in range(calls):
        now += rng.expovariate(arrivals)
        first = min(range(servers), key=free.__getitem__)
        start = max(now, free[first])
        free[first] = start + rng.expovariate(1.0 / service)
        waits.append(start - now)
    return sorted(waits[calls // 10 :])


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (4, 0.85), (16, 0.9)])
def test_wait_agrees_with_a_discrete_event_simulation(servers, load):
    waits = _simulate_waits(servers, servers * load / 2.0, 2.0, 120_000, seed=1)
    expected = queueing.wait_quantile(servers, servers * load / 2.0, 2.0)
    assert waits[int(0.95 * len(waits))] == pytest.approx(expected, rel=0.12)


def _simulate_engine(arrivals, service_at, calls, seed):
    """Mean sequences in an engine whose calls all slow down together: each has one unit of work, done at 1/S(B)."""
    rng = random.Random(seed)
    left: list[float] = []
    now, area, arrived, upcoming = 0.0, 0.0, 0, rng.expovariate(arrivals)
    while arrived < calls:
        rate = 1.0 / service_at(max(1.0, len(left)))
        finish = now + min(left) / rate if left else math.inf
        step = min(upcoming, finish)
        area += len(left) * (step - now)
        left = [w - (step - now) * rate for w in left]
        now = step
        if step == upcoming:
            left.append(1.0)
            arrived += 1
            upcoming = now + rng.expovariate(arrivals)
        else:
            left = [w for w in left if w > 1e-12]
    return area / now


def test_engine_load_agrees_with_a_discrete_event_simulation():
    times = serving_speed.curve(serving_of(gpu="L4", quantization="awq"))
    arrivals = 0.5 * 64 / times.service_s(64)
    expected = queueing.load(arrivals, times.service_s, 256)
    assert expected is not None
    # The fixed point leaves out the spread of the load, and lies up to 15 % low: MAX_UTILISATION leaves room for that.
    assert _simulate_engine(arrivals, times.service_s, 4000, seed=2) == pytest.approx(expected, rel=0.15)


@QUICK
@given(arrivals=st.floats(1e-6, 1e3), base=st.floats(1e-3, 1e3), slope=st.floats(0, 10), limit=st.floats(1, 512))
def test_load_is_a_fixed_point_or_unstable(arrivals, base, slope, limit):
    def service(running):
        return base + slope * running

    found = queueing.load(arrivals, service, limit)
    if found is None:
        assert arrivals * service(limit) > limit
    else:
        assert 0 < found <= limit * 1.001
        if found > 1.0:
            assert arrivals * service(found) == pytest.approx(found, rel=0.02)


def test_example_prices_of_one_thousand_calls():
    """1000 tokens in, 200 out: gpt-4o-mini $0.27, gpt-5-mini $0.65, claude-haiku-4-5 $2.00, Groq's Llama-3.1-8B $0.066."""
    expected = {
        "openai/gpt-4o-mini": 0.27,
        "openai/gpt-5-mini": 0.65,
        "anthropic/claude-haiku-4-5": 2.00,
        "groq/llama-3.1-8b-instant": 0.066,
    }
    for name, usd in expected.items():
        assert 1000 * find_offer(name).per_call(1000, 200) == pytest.approx(usd, rel=0.01)


def test_snapshot_is_what_the_package_says():
    for offer in snapshot():
        now = live(offer.model, offer.provider)
        assert now is not None, offer.name
        assert (now.input_usd_mtok, now.output_usd_mtok) == pytest.approx(
            (offer.input_usd_mtok, offer.output_usd_mtok), rel=1e-4
        )


@QUICK
@given(model=MODELS, gpu=st.sampled_from(["T4", "L4", "A100-80GB", "H200"]), more=st.floats(1, 8))
def test_more_memory_never_makes_a_fit_a_misfit(model, gpu, more):
    card = find_gpu(gpu)
    larger = type(card)(**{**vars(card), "memory_gb": card.memory_gb * more})
    a = find(model).architecture
    fits = [
        serving_speed.max_concurrency(
            serving_speed.ServingSetup(architecture=a, gpu=g, input_tokens=100, output_tokens=10)
        )
        for g in (card, larger)
    ]
    assert fits[1] >= fits[0]


def test_names():
    assert find("meta-llama/Llama-3.1-8B-Instruct").name == "Llama-3.1-8B"
    assert find("builtin:smollm2-135m").spec == "builtin:smollm2-135m"
    assert find("Llama 2", params_b=13.0).name == "Llama-2-13B"
    assert not find_or_typical("Nobody-9B", 9.0).architecture.exact
    assert typical(9.0).params / 1e9 == pytest.approx(9.0, rel=0.1)
    assert parse_hardware("h100:2")[1] == 2
    with pytest.raises(UserError, match="Lama") as error:
        find("Lama-3.1-8B")
    assert "Llama-3.1-8B" in str(error.value.hint)
    with pytest.raises(UserError) as error:
        find_gpu("H10")
    assert "H100" in str(error.value.hint)
    for bad in ("L4:0", "L4:x", "L4:-1", "L4:"):
        with pytest.raises(UserError):
            parse_hardware(bad)


def test_stale_prices_are_flagged():
    assert stale_note("2020-01-01")
    assert stale_note("sometime") == "undated price"
    assert not stale_note("2999-01")


def test_without_checkpointing_the_dequantized_weights_stand_beside_the_four_bit_ones():
    """bitsandbytes keeps its transient copies until the backward pass: TRANSIENT_BYTES a linear parameter."""
    linear = find("Llama-3.1-8B").architecture.linear_params
    setups = [memory_of(method="qlora", quantization=q, checkpointing=False) for q in ("nf4", "bf16")]
    four, sixteen = ([training_memory.peak_gb(s), training_memory.static_gb(s)] for s in setups)
    assert (four[0] - four[1]) - (sixteen[0] - sixteen[1]) == pytest.approx(0.3 * linear / 1e9)


def test_activations_and_gradients_of_full_tuning_do_not_peak_together():
    short, long = (memory_of("Llama-3.2-3B", method="full", trainable=0, seq_len=n) for n in (64, 65_536))
    moving = training_memory.activations_gb(long) + training_memory.logits_gb(long)
    gradients = 2 * long.architecture.params / 1e9
    assert moving > gradients
    assert training_memory.peak_gb(long) - training_memory.peak_gb(short) == pytest.approx(moving - gradients)
