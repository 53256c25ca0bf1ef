"""Architectures on the CPU: those whose rows stand side by side compute what the library does with each row alone; for all others
`--fast-cpu` changes nothing."""

import pytest

from tunegate.core.model_source import resolve
from tunegate.train import cpu_attention, sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.examples import Example
from tunegate.train.packing import NOT_FOR_THE_MODEL, collate

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts_per_tok": 2,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
    "sliding_window": None, "attention_dropout": 0.0, "attn_pdrop": 0.0,
}  # fmt: skip
OWN = {
    "exaone4": {"sliding_window_pattern": None, "layer_types": ["full_attention"] * 2},
    "hunyuan_v1_moe": {"moe_topk": [2, 2]},
    "granitemoe": {"intermediate_size": 16},
    "granitemoeshared": {"intermediate_size": 16, "shared_intermediate_size": 16},
}


def both(name):
    """The model with our attention and with the library's, of the same weights, large enough that each token tells."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    cpu_attention.register()
    torch.manual_seed(0)
    kinds = (cpu_attention.NAME, "eager")
    configs = [AutoConfig.for_model(name, **{**SHAPE, **OWN.get(name, {})}) for _ in kinds]
    assert cpu_attention.supported(configs[0])
    ours, eager = (
        AutoModelForCausalLM.from_config(config, attn_implementation=kind).eval()
        for config, kind in zip(configs, kinds, strict=True)
    )
    with torch.no_grad():
        for weight in ours.parameters():
            weight.mul_(8) if weight.dim() > 1 else weight.add_(0.1 * torch.randn_like(weight))
    eager.load_state_dict(ours.state_dict())
    return ours, eager


@pytest.mark.parametrize("name", sorted(cpu_attention.FAMILIES))
def test_rows_side_by_side_are_rows_alone(name):
    """Several families' rows read the rows before them, or the tokens after, and nothing said so."""
    import torch

    ours, eager = both(name)
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 128, (size,), generator=draw).tolist() for size in (13, 22, 9)]

    def logits(rows):
        batch = collate([Example(id="", input_ids=row, labels=row) for row in rows], pad=0, side_by_side=True)
        found = ours(**{k: v for k, v in batch.items() if k not in NOT_FOR_THE_MODEL}, use_cache=False).logits[0]
        return [found[start : start + len(row)] for start, row in zip(batch["cu_seq_lens_q"], rows, strict=False)]

    with torch.no_grad():
        found = logits(rows)
        for row, side_by_side in zip(rows, found, strict=True):
            alone = eager(torch.tensor([row]), use_cache=False).logits[0]
            assert torch.allclose(side_by_side, alone, atol=1e-4 * float(alone.abs().max()))
        first, *others = logits([[*rows[0][:6], *rows[0][:5:-1]], *rows[1:]])
    assert torch.equal(first[:6], found[0][:6]), "no token sees a later one"
    assert not torch.allclose(first[6:], found[0][6:])
    assert all(torch.equal(a, b) for a, b in zip(others, found[1:], strict=True)), "no row sees another"
    ours.train()
    logits(rows)  # no dropout of attention under a name of its own


OTHERS = {
    "bloom": {"n_head": 4, "n_layer": 2, "hidden_size": 64},
    "falcon": {"num_attention_heads": 4, "num_hidden_layers": 2, "hidden_size": 64},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 256},
    "stablelm": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_architectures_train_as_without_the_fast_path(makers, tiny_dataset, tmp_path, capsys, name):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = makers.tokenizer()
    torch.manual_seed(0)
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    shape = AutoConfig.for_model(name, vocab_size=len(tokenizer), initializer_range=0.2, **ids, **OTHERS[name])
    AutoModelForCausalLM.from_config(shape).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    losses = []
    for fast in (True, False):
        settings = {"model": str(tmp_path / "model"), "targets": "all-linear", "max_steps": 1, "save_steps": 0, "rank": 4,
                    "validation_share": 0.5, "dtype": "float32", "fast_cpu": fast}  # fmt: skip
        config = resolve_config([("test", settings)])[0]
        out = tmp_path / f"run-{fast}"
        run = sft.train(tiny_dataset, resolve(settings["model"]), config, out, resume=False, force=False)
        losses.append(run.manifest.facts["validation_loss"])
        said = " ".join(capsys.readouterr().err.split())
        assert ("fast CPU attention does not cover this architecture" in said) == fast
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
