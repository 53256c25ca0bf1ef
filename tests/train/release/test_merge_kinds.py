"""Every kind of adapter, merged tensor by tensor, answers as PEFT does on the base; what cannot be merged is named."""

import json
import warnings

import pytest

from tunegate.core.artifacts import Release
from tunegate.core.errors import InfrastructureError, TunegateError, UsageError, UserError
from tunegate.core.model_source import resolve
from tunegate.core.weight_files import indexed
from tunegate.serve import served_model
from tunegate.train.release import merge_adapter, merge_base, tensor_files
from tunegate.train.release.merge import MergeConfig, merge
from tunegate.train.release.tensor_files import TensorFiles

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]


def merged(run, tmp_path, *, dataset=None, **config):
    return merge(
        run, resolve(run.base), tmp_path / "release", force=False, dataset=dataset, config=MergeConfig(**config)
    )


def peft_logits(run, ids):
    """fp32 arithmetic on the base in bf16, as trained."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(run.base, dtype=torch.bfloat16).float()
    with torch.no_grad():
        return PeftModel.from_pretrained(base, run.path).eval()(torch.tensor([ids])).logits[0]


def reloaded_logits(release, ids):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(release.path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"layers.0.self_attn.q_proj": 3}},
    "attention only": {"target_modules": ["q_proj", "v_proj"]},
    "lm_head by lora": {"target_modules": ["lm_head", "q_proj"]},
    "embedding by lora": {"target_modules": ["embed_tokens", "q_proj"]},
    "lm_head saved": {"modules_to_save": ["lm_head"]},
    "embedding saved": {"modules_to_save": ["embed_tokens"]},
    "both saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "tied and saved": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_r2_each_kind_answers_as_peft_does(adapter_run, tmp_path, kind):
    """R2: with tied embeddings, an adapter on one of the two; the release reloaded by transformers, logits compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = adapter_run("run", **KINDS[kind])
        release = merged(run, tmp_path)
        ids = list(range(3, 40))
        expected, found = peft_logits(run, ids), reloaded_logits(release, ids)
    assert float((expected - found).abs().mean()) < 0.02 * float(expected.std())
    proof = release.manifest.facts["merge"]
    assert proof["unrounded_difference"] < 1e-5
    config = json.loads((release.path / "config.json").read_text())
    apart = kind in ("lm_head by lora", "embedding by lora", "lm_head saved", "embedding saved", "both saved")
    assert config["tie_word_embeddings"] is not apart
    assert ("lm_head.weight" in TensorFiles(release.path).specs) is apart
    assert (release.path / "generation_config.json").read_text() == (
        (resolve(run.base).path / "generation_config.json").read_text()
    )


def test_r2_added_tokens_are_kept(adapter_run, tmp_path):
    """Rows that training added to the embedding (saved whole by PEFT) stand in the release, and its config says how many."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = adapter_run(
            "run", prepare=lambda model: model.resize_token_embeddings(320), modules_to_save=["embed_tokens"]
        )
        release = merged(run, tmp_path)
    assert json.loads((release.path / "config.json").read_text())["vocab_size"] == 320
    assert TensorFiles(release.path).specs["model.embed_tokens.weight"].shape == (320, 64)


def test_r3_what_rounding_loses_is_measured_and_said(adapter_run, tmp_path, capsys):
    """R3: an update a hundred times smaller than the weights' last bit leaves most of them as they were."""
    small = merged(adapter_run("small", size=1e-5), tmp_path / "a").manifest.facts["merge"]
    said = capsys.readouterr().err
    large = merged(adapter_run("large", size=0.1), tmp_path / "b").manifest.facts["merge"]
    assert small["unchanged_share"] > 0.5 > 0.2 > large["unchanged_share"]
    assert small["update_error"] > large["update_error"]
    assert f"rounding left {small['unchanged_share']:.1%} of the adapted weights as they were" in said
    assert "--keep-adapter serves base and adapter instead" in said


def test_r1_a_qlora_run_is_merged_both_ways_and_both_losses_told(adapter_run, tiny_dataset, tmp_path, capsys):
    """R1: onto the dequantised NF4 base and onto the original; the better one by held-out loss is kept."""
    run = adapter_run("run", method="qlora")
    proof = merged(run, tmp_path / "auto", dataset=tiny_dataset).manifest.facts["merge"]
    losses = proof["onto_losses"]
    assert set(losses) == {"dequantized", "original"}
    assert losses["dequantized"] != losses["original"]
    assert proof["onto"] == min(losses, key=losses.get)
    assert "merged onto: dequantized" in capsys.readouterr().err
    other = {"dequantized": "original", "original": "dequantized"}[proof["onto"]]
    forced = merged(run, tmp_path / "forced", dataset=tiny_dataset, onto=other)
    assert forced.manifest.facts["merge"]["onto"] == other
    assert forced.digest != Release.open(tmp_path / "auto" / "release").digest
    lone = merged(run, tmp_path / "lone").manifest.facts["merge"]
    assert (lone["onto"], lone["onto_losses"]) == ("dequantized", {})
    with pytest.raises(UsageError, match="is for runs of the method qlora"):
        merged(adapter_run("lora"), tmp_path / "no", onto="original")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dequantised_base_is_what_training_had(tiny_model, dtype):
    """Our NF4 round trip, tensor by tensor, against bitsandbytes' model as `ft train` loads it."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    from tunegate.train.config import TrainConfig
    from tunegate.train.model_loading import load_base

    model = load_base(
        resolve(str(tiny_model)), TrainConfig(method="qlora", model=str(tiny_model), dtype=dtype), "cpu", "sdpa"
    )
    read = merge_base.dequantized(TensorFiles(tiny_model), tiny_model, dtype)
    weight = model.model.layers[1].mlp.down_proj.weight
    theirs = dequantize_4bit(weight.data, quant_state=weight.quant_state)
    ours = read("model.layers.1.mlp.down_proj.weight")
    assert ours.dtype == getattr(torch, dtype)
    assert torch.equal(theirs.reshape(ours.shape).to(ours.dtype), ours)
    embedding = read("model.embed_tokens.weight")
    assert torch.equal(embedding, model.model.embed_tokens.weight.to(embedding.dtype)), "no linear layer"


FAULTS = {
    "twice the scale": lambda self, name, weight, apply: 2 * apply(self, name, weight) - weight.float(),
    "no adapter": lambda self, name, weight, apply: weight.float(),
    "a layer forgotten": lambda self, name, weight, apply: (
        weight.float() if ".layers.1." in name else apply(self, name, weight)
    ),
    "not a number": lambda self, name, weight, apply: apply(self, name, weight) * float("nan"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused_and_nothing_written(adapter_run, tmp_path, monkeypatch, fault):
    apply = merge_adapter.Adapter.apply
    monkeypatch.setattr(merge_adapter.Adapter, "apply", lambda s, n, w: FAULTS[fault](s, n, w, apply))
    run = adapter_run("run")
    (tmp_path / "out").mkdir()
    with pytest.raises(TunegateError, match="does not answer as the adapter on its base does"):
        merged(run, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_fault_between_making_and_disk_is_refused(adapter_run, tmp_path, monkeypatch):
    write = tensor_files.write

    def damaged(folder, specs, make, **options):
        return write(folder, specs, lambda n: make(n) * 3 if n.endswith("o_proj.weight") else make(n), **options)

    monkeypatch.setattr(tensor_files, "write", damaged)
    with pytest.raises(TunegateError, match="nothing was written"):
        merged(adapter_run("run"), tmp_path)
    assert not (tmp_path / "release").exists()


def test_shards_keep_their_size_and_load(adapter_run, tmp_path):
    run = adapter_run("run")
    release = merged(run, tmp_path, max_shard_gb=40_000 / 1e9)
    shards = sorted(release.path.glob("*.safetensors"))
    assert len(shards) > 3
    assert all(shard.stat().st_size < 45_000 for shard in shards)
    assert sorted(indexed(release.path)) == [s.name for s in shards]
    whole = merged(run, tmp_path / "whole")
    ids = list(range(3, 30))
    assert reloaded_logits(release, ids).equal(reloaded_logits(whole, ids))
    assert not [p for p in release.path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")], "R15: no pickle"


def test_keep_adapter_makes_a_release_that_the_server_understands(adapter_run, tmp_path):
    """R3, R4: base and adapter served together; a kind vLLM refuses is refused here."""
    release = merged(adapter_run("run"), tmp_path, keep_adapter=True)
    assert release.manifest.facts["adapter"] is True
    assert not (release.path / "config.json").exists()
    assert served_model.has_adapter(release)
    flags, name = served_model.model_flags(release, served_model.adapters_of(release, ()))
    assert "--enable-lora" in flags
    assert f"{name}={release.path.resolve()}" in flags
    with pytest.raises(UserError, match="vLLM does not serve adapters with DoRA"):
        merged(adapter_run("dora", use_dora=True), tmp_path / "no", keep_adapter=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, "began from pissa, which changes the base's own weights"),
        ({"peft_type": "LOHA"}, "of kind LOHA"),
        ({"target_parameters": ["experts.w1"]}, "uses target_parameters, which is not merged"),
        ({"fan_in_fan_out": True}, "uses fan_in_fan_out"),
    ],
)
def test_kinds_that_are_not_merged_are_named_before_any_work(adapter_run, tiny_model, change, message):
    folder = adapter_run("run").path
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        merge_adapter.read(folder, TensorFiles(tiny_model).specs)


def test_an_adapter_of_another_base_or_without_its_files_is_refused(adapter_run, makers, tmp_path):
    folder = adapter_run("run").path
    specs = TensorFiles(makers.model(tmp_path / "model")).specs
    narrower = {n: tensor_files.Spec(dtype=s.dtype, shape=tuple(d // 2 for d in s.shape)) for n, s in specs.items()}
    with pytest.raises(UserError, match="is for a shape of"):
        merge_adapter.read(folder, narrower)
    fewer = {n: s for n, s in specs.items() if "layers.1." not in n}
    with pytest.raises(UserError, match="which the base's files do not have under that name") as caught:
        merge_adapter.read(folder, fewer)
    assert "--keep-adapter" in caught.value.hint
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors: an adapter in another format \(a pickle\)"):
        merge_adapter.read(folder, specs)


def test_damaged_weight_files_of_the_base_are_named(own_base):
    path = own_base / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(UserError, match=r"its header says"):
        TensorFiles(own_base)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="the weight file is damaged"):
        TensorFiles(own_base)
    path.unlink()
    with pytest.raises(UserError, match="no safetensors file"):
        TensorFiles(own_base)
    (own_base / tensor_files.INDEX).write_text(json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors is missing"):
        TensorFiles(own_base)


def test_too_little_disk_or_memory_is_said_before(adapter_run, tmp_path, monkeypatch):
    import shutil

    from tunegate.train.release import prove_model

    run = adapter_run("run")
    monkeypatch.setattr(prove_model, "memory_limits", lambda: (1e4, 1e4))
    with pytest.raises(InfrastructureError, match="GB of memory are needed for the largest tensor"):
        merged(run, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InfrastructureError, match=r"0\.00 GB are free"):
        merged(run, tmp_path)
    assert not (tmp_path / "release").exists()
