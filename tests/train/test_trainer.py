"""The parts of the trainer against plain references: batches, the answer-only loss, the validation loss, attention."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest

from tunegate.train import cpu_attention
from tunegate.train.examples import Example
from tunegate.train.loss import answer_loss, validation_loss
from tunegate.train.packing import NOT_FOR_THE_MODEL, collate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tiny_model):
    """The tiny model in fp32 with our attention; `eager` is the same with transformers' own."""
    import torch
    from transformers import AutoModelForCausalLM

    cpu_attention.register()
    ours = AutoModelForCausalLM.from_pretrained(
        tiny_model, dtype=torch.float32, attn_implementation=cpu_attention.NAME
    ).eval()
    eager = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager").eval()
    return SimpleNamespace(ours=ours, eager=eager)


def example(name, length, prompt, seed):
    import random

    ids = random.Random(seed).choices(range(2, 290), k=length)
    return Example(id=name, input_ids=ids, labels=[-100] * prompt + ids[prompt:])


@pytest.fixture(scope="module")
def rows():
    return [example(f"e{i}", 9 + 5 * i, 4 + 2 * i, i) for i in range(9)]


def reference_loss(model, example):
    """(sum of cross entropies, label tokens) from the full logits of one row."""
    import torch

    logits = model(torch.tensor([example.input_ids])).logits[0]
    labels = torch.tensor(example.labels)
    loss = torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100, reduction="sum")
    return float(loss), int((labels[1:] != -100).sum())


@pytest.mark.parametrize("side_by_side", [True, False])
def test_answer_loss_is_the_full_logits_loss(model, rows, side_by_side):
    import torch

    with torch.no_grad():
        wanted = [reference_loss(model.eager, row) for row in rows]
        batch = collate(rows, pad=1, side_by_side=side_by_side)
        network = model.ours if side_by_side else model.eager
        loss, count = answer_loss(network, batch, contextlib.nullcontext())
    assert int(count) == sum(n for _, n in wanted)
    assert float(loss) == pytest.approx(sum(value for value, _ in wanted), rel=1e-5)


def test_a_label_on_a_first_token_does_not_reach_into_the_row_before(model, rows):
    import torch

    learnt_from_the_start = [Example(id=r.id, input_ids=r.input_ids, labels=list(r.input_ids)) for r in rows[:3]]
    with torch.no_grad():
        wanted = [reference_loss(model.eager, row) for row in learnt_from_the_start]
        batch = collate(learnt_from_the_start, pad=1, side_by_side=True)
        loss, count = answer_loss(model.ours, batch, contextlib.nullcontext())
    assert int(count) == sum(n for _, n in wanted)
    assert float(loss) == pytest.approx(sum(value for value, _ in wanted), rel=1e-5)


@pytest.mark.parametrize("side_by_side", [True, False])
def test_validation_loss_does_not_depend_on_the_batch_size(model, rows, side_by_side):
    import torch

    accelerator = SimpleNamespace(device=torch.device("cpu"), autocast=contextlib.nullcontext)
    network = model.ours if side_by_side else model.eager
    network.train()
    found = [
        validation_loss(network, rows, accelerator, pad=1, side_by_side=side_by_side, batch_size=size)
        for size in (1, 2, 9)
    ]
    assert network.training, "the mode is put back"
    network.eval()
    with torch.no_grad():
        sums = [reference_loss(model.eager, row) for row in rows]
    assert found == pytest.approx([sum(v for v, _ in sums) / sum(n for _, n in sums)] * 3, rel=1e-5)


def plain_attention(query, key, value):
    """Causal attention of one row by definition, key-value heads repeated: (H, S, D), (K, S, D) -> (S, H, D)."""
    import torch

    per = query.shape[0] // key.shape[0]
    key, value = key.repeat_interleave(per, 0), value.repeat_interleave(per, 0)
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    future = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).triu(1)
    return (torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ value).transpose(0, 1)


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (6, 1), (9, 3)])
@pytest.mark.parametrize("longest_dense", [1024, 6])
def test_attention_is_the_plain_one_row_by_row(monkeypatch, heads, shared, longest_dense):
    import torch

    monkeypatch.setattr(cpu_attention, "LONGEST_DENSE", longest_dense)
    generator = torch.Generator().manual_seed(heads)
    bounds = [0, 5, 6, 17, 24]
    query = torch.randn(1, heads, 24, 8, generator=generator)
    key, value = (torch.randn(1, shared, 24, 8, generator=generator) for _ in range(2))
    found, weights = cpu_attention.attend(None, query, key, value, None, cu_seq_lens_q=torch.tensor(bounds))
    assert weights is None
    assert found.shape == (1, 24, heads, 8)
    for a, b in itertools.pairwise(bounds):
        wanted = plain_attention(query[0, :, a:b], key[0, :, a:b], value[0, :, a:b])
        assert torch.allclose(found[0, a:b], wanted, atol=1e-5)


def test_attention_refuses_what_it_would_compute_wrongly():
    import torch

    one, two = torch.zeros(1, 2, 4, 8), torch.zeros(2, 2, 4, 8)
    for query, options in ((two, {}), (one, {"attention_mask": torch.ones(1)}), (one, {"dropout": 0.1})):
        with pytest.raises(ValueError, match="side by side"):
            cpu_attention.attend(None, query, query, query, **{"attention_mask": None, **options})


@pytest.mark.parametrize("longest_dense", [1024, 12])
def test_rows_side_by_side_have_the_logits_they_have_alone(model, rows, monkeypatch, longest_dense):
    import torch

    monkeypatch.setattr(cpu_attention, "LONGEST_DENSE", longest_dense)
    batch = collate(rows[:4], pad=1, side_by_side=True)
    inputs = {k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL}
    with torch.no_grad():
        packed = model.ours(**inputs, use_cache=False).logits[0]
        for row, start in zip(rows[:4], batch["cu_seq_lens_q"].tolist(), strict=False):
            alone = model.eager(torch.tensor([row.input_ids])).logits[0]
            assert torch.allclose(packed[start : start + len(row.input_ids)], alone, atol=1e-4)


def test_a_row_does_not_see_its_neighbours(model, rows):
    import torch

    changed = [Example(id="x", input_ids=rows[0].input_ids[::-1], labels=rows[0].labels), *rows[1:3]]
    with torch.no_grad():
        found = []
        for group in (rows[:3], changed):
            inputs = {k: v for k, v in collate(group, pad=1, side_by_side=True).items() if k not in NOT_FOR_THE_MODEL}
            found.append(model.ours(**inputs, use_cache=False).logits[0])
    own = len(rows[0].input_ids)
    assert not torch.allclose(found[0][:own], found[1][:own])
    second = inputs["cu_seq_lens_q"][1]
    assert torch.equal(found[0][second:], found[1][second:])


@pytest.mark.parametrize(
    ("config", "supported"),
    [
        ({}, True),
        ({"sliding_window": 4096}, False),
        ({"sliding_window": 4096, "use_sliding_window": False}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"attn_logit_softcapping": 50.0}, False),
        ({"attention_chunk_size": 8192}, False),
        ({"q_lora_rank": 1536}, False),
        ({"use_bidirectional_attention": True}, False),
        ({"model_type": "bloom"}, False),
        ({"model_type": None}, False),
    ],
)
def test_only_plain_causal_attention_takes_the_fast_path(config, supported):
    assert cpu_attention.supported(SimpleNamespace(**{"model_type": "llama", **config})) == supported
