"""A batch on two threads gives the loss and the gradients of the batch, the same each time."""

import copy
import itertools

import pytest

from tests.train.test_fast_decoder import batch, loss_and_gradients, model_of
from tunegate.core import machine
from tunegate.train import fast_decoder, halves
from tunegate.train.config import resolve
from tunegate.train.loss import answer_loss
from tunegate.train.packing import label_count

pytestmark = pytest.mark.usefixtures("one_thread")


def by_halves(model, items, dtype):
    import torch

    def loss_of(half):
        return answer_loss(model, half, torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16))[0] / items

    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    loss = halves.loss(batch(), list(trained.values()), loss_of)
    loss.backward()
    return float(loss.detach()), {n: p.grad.clone() for n, p in trained.items()}


def test_rows_go_to_two_halves_of_about_as_many_tokens():
    whole = batch()
    first, second = halves.split(whole)
    sizes = [half["input_ids"].shape[1] for half in (first, second)]
    assert sum(sizes) == whole["input_ids"].shape[1]
    assert abs(sizes[0] - sizes[1]) <= 8
    assert label_count(first) + label_count(second) == label_count(whole)
    found = []
    for half in (first, second):
        bounds = half["cu_seq_lens_q"].tolist()
        assert bounds[-1] == half["input_ids"].shape[1]
        for a, b in itertools.pairwise(bounds):
            assert half["position_ids"][0, a:b].tolist() == list(range(b - a))
            found.append((half["input_ids"][0, a:b].tolist(), half["labels"][0, a:b].tolist()))
    bounds = whole["cu_seq_lens_q"].tolist()
    rows = itertools.pairwise(bounds)
    assert sorted(found) == sorted(
        (whole["input_ids"][0, a:b].tolist(), whole["labels"][0, a:b].tolist()) for a, b in rows
    )


def test_a_batch_with_one_long_row_stays_whole(monkeypatch):
    whole = batch()
    alone = {**whole, "cu_seq_lens_q": whole["cu_seq_lens_q"][[0, -1]]}
    beside = {**whole, "cu_seq_lens_q": whole["cu_seq_lens_q"].new_tensor([0, 56, 64])}
    monkeypatch.setattr(halves, "_pool", None)
    for given in (alone, beside):
        assert given["cu_seq_lens_q"][-1] == 64 == given["input_ids"].shape[1]
        assert halves.split(given) == [given]
        assert halves.loss(given, [], lambda half: half) is given


@pytest.mark.parametrize("patched", [True, False])
def test_loss_and_gradients_are_those_of_the_whole_batch(patched):
    import torch

    model = model_of("llama", torch.float32)
    assert not patched or fast_decoder.speed_up(model, None)
    expected, before = loss_and_gradients(model, torch.float32)
    model.zero_grad()
    found, after = by_halves(model, label_count(batch()), torch.float32)
    assert found == pytest.approx(expected, rel=1e-6)
    assert set(after) == set(before)
    for name, gradient in before.items():
        torch.testing.assert_close(after[name], gradient, rtol=1e-4, atol=1e-6)


def test_gradients_of_several_batches_add_up_to_the_same_bits_each_time():
    import torch

    model = model_of("llama", torch.bfloat16)
    assert fast_decoder.speed_up(model, None)
    runs = []
    for _ in range(5):
        model.zero_grad()
        one = by_halves(model, 10, torch.bfloat16)[1]
        runs.append((one, by_halves(model, 10, torch.bfloat16)[1]))
    for one, two in runs:
        assert all(torch.equal(one[n], runs[0][0][n]) and torch.equal(two[n], runs[0][1][n]) for n in one)
        assert all(torch.equal(two[n], one[n] * 2) for n in one)


def test_an_error_in_a_half_is_the_error_of_the_batch():
    import torch

    model = model_of("llama", torch.float32)

    def broken(half):
        raise ArithmeticError(f"{half['input_ids'].shape[1]} tokens")

    with pytest.raises(ArithmeticError, match="tokens"):
        halves.loss(batch(), list(model.parameters()), broken)


@pytest.mark.parametrize(
    ("settings", "flags", "threads", "expected"),
    [
        ({"method": "lora"}, {"amx_bf16"}, 2, True),
        ({"method": "lora"}, {"avx512_bf16"}, 2, False),
        ({"method": "lora"}, {"amx_bf16"}, 1, False),
        ({"method": "lora", "dtype": "float32"}, {"amx_bf16"}, 2, False),
        ({"method": "qlora"}, {"amx_bf16"}, 2, False),
        ({"method": "full"}, {"amx_bf16"}, 2, False),
    ],
)
def test_where_halves_are_taken(monkeypatch, settings, flags, threads, expected):
    import torch

    monkeypatch.setattr(halves, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert halves.pay(resolve([("test", settings)])[0]) is expected
    assert machine.cpu_flags is not halves.cpu_flags


def test_a_run_on_two_threads_gives_the_same_weights_each_time(monkeypatch, tmp_path, tiny_model, tiny_dataset):
    from safetensors.torch import load_file

    from tunegate.core.model_source import resolve as source_of
    from tunegate.train import sft

    seen = []
    real = halves.loss
    monkeypatch.setattr(halves, "loss", lambda *given: seen.append(1) or real(*given))
    found = {}
    for name, pays in (("one", True), ("two", True), ("whole", False)):
        monkeypatch.setattr(halves, "pay", lambda _, pays=pays: pays)
        config = resolve([("test", {"model": str(tiny_model), "rank": 4, "max_steps": 4, "gradient_accumulation_steps": 2,
                                    "per_device_train_batch_size": 2, "validation_share": 0.0, "seed": 0})])[0]  # fmt: skip
        source = source_of(str(tiny_model))
        run = sft.train(tiny_dataset, source, config, tmp_path / name, resume=False, force=False)
        found[name] = load_file(run.path / "adapter_model.safetensors")
        assert len(seen) == (8 if name == "one" else 16)
    assert all(bool((found["two"][n] == w).all()) for n, w in found["one"].items())
    assert all(bool((found["whole"][n] - w).abs().max() < 1e-3) for n, w in found["one"].items())


def test_what_is_trained_is_what_is_multiplied_after_an_update():
    import torch

    made = model_of("llama", torch.float32).unload()
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    fast = copy.deepcopy(made)
    assert fast_decoder.speed_up(fast, torch.bfloat16)
    losses = []
    for model in (made, fast):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
        for _ in range(3):
            loss_and_gradients(model, torch.bfloat16)
            optimizer.step()
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(3.0)
        losses.append(loss_and_gradients(model, torch.bfloat16)[0])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[0] < 0.8 * loss_and_gradients(model_of("llama", torch.float32), torch.bfloat16)[0]
