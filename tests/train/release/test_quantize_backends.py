"""The quantizers at work on the tiny model, in their own environments: what they write is what we read back and score."""

import json
import subprocess
import textwrap
from importlib.resources import files

import pytest

from tunegate.core.artifacts import Release
from tunegate.core.errors import TunegateError
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.release import environments, quantize, quantize_formats
from tunegate.train.release.merge import merge
from tunegate.train.release.quantize_plan import QuantizeConfig
from tunegate.train.release.tensor_files import TensorFiles

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def wider_model(tiny, folder):
    """As the tiny model, its layers' outputs multiples of 64."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config = AutoConfig.from_pretrained(tiny)
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def release(tiny_model, tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backends")
    base = wider_model(tiny_model, folder / "base")
    settings = {"model": str(base), "max_steps": 30, "per_device_train_batch_size": 4, "save_steps": 0,
                "gradient_accumulation_steps": 1, "learning_rate": 1e-2, "method": "full"}  # fmt: skip
    config = resolve_config([("test", settings)])[0]
    run = sft.train(tiny_dataset, resolve(str(base)), config, folder / "run", resume=False, force=False)
    return merge(run, resolve(str(base)), folder / "release", force=False)


@pytest.mark.parametrize(
    ("choice", "method", "error"),
    [
        ({"rounding": "nearest"}, "compressed-tensors", 0.15),
        ({"symmetric": True}, "compressed-tensors", 0.15),
        ({"scheme": "w8a8"}, "compressed-tensors", 0.02),
        ({"scheme": "fp8"}, "compressed-tensors", 0.05),
        ({"backend": "autoawq"}, "awq", 0.15),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_r8_r9_what_a_backend_writes(release, tiny_dataset, tmp_path, capsys, choice, method, error):
    """R8: nothing is saved twice. R9: calibration rows are the rows asked for, whatever their length."""
    config = QuantizeConfig(rows=12, **choice)
    made = quantize.quantize(release, tiny_dataset, config, tmp_path / "out", force=False)
    facts = made.manifest.facts
    assert facts["calibration_rows"] == 12
    assert facts["quantize"]["held_out_rows"] == 8
    before, after = facts["quantize"]["held_out_loss"].values()
    assert abs(after - before) < 10 * error
    assert "perplexity of 8 held-out answers" in capsys.readouterr().err
    document = json.loads((made.path / "config.json").read_text())
    assert document["quantization_config"]["quant_method"] == method
    assert document["rope_parameters"], "the config stays as the release's"
    files = TensorFiles(made.path)
    assert "lm_head.weight" not in files.specs, "tied: written once"
    read, original = quantize_formats.dequantized(made.path), TensorFiles(release.path)
    # o_proj is followed by no norm that a scale could move into here: its weights stand for the release's, rounded
    name = "model.layers.0.self_attn.o_proj.weight"
    exact = original.read(name).float()
    assert float((read(name) - exact).norm() / exact.norm()) < error
    assert not list(made.path.glob("*.bin"))


def test_rows_of_several_answers_calibrate_a_template_that_rewrites_earlier_ones(tiny_model, makers, tmp_path):
    """Qwen3's template gives a line for each answer: more lines than rows."""
    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(tiny_model)
    config.hidden_size, config.intermediate_size, config.head_dim = 128, 256, 32
    tokenizer = makers.tokenizer((files("trl") / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8"))
    config.vocab_size, config.eos_token_id = len(tokenizer), tokenizer.eos_token_id
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    rows = makers.rows(24)
    for row in rows:
        row["messages"] += [{"role": "user", "content": "and of Italy?"}, {"role": "assistant", "content": "Rome."}]
    data = makers.dataset(tmp_path / "data", rows[:16], rows[16:])
    settings = {"model": str(tmp_path / "base"), "max_steps": 2, "save_steps": 0, "method": "full", "max_length": 512}
    base = resolve(str(tmp_path / "base"))
    run = sft.train(data, base, resolve_config([("test", settings)])[0], tmp_path / "run", resume=False, force=False)
    made = merge(run, base, tmp_path / "release", force=False)
    config = QuantizeConfig(rows=8, rounding="nearest")
    facts = quantize.quantize(made, data, config, tmp_path / "out", force=False).manifest.facts
    assert facts["calibration_rows"] == 8


def test_a_quantized_model_that_is_broken_is_not_kept(release, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize, "LARGEST_LOSS_INCREASE", -1.0)
    with pytest.raises(TunegateError, match="nothing was written"):
        quantize.quantize(
            release, tiny_dataset, QuantizeConfig(rows=4, rounding="nearest"), tmp_path / "out", force=False
        )
    assert list(tmp_path.iterdir()) == []
    assert Release.open(release.path)


ROUND = """
    import sys, time
    sys.path.insert(0, sys.argv[1])
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.utils.impl_backend import ImplBackend
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight
    import llmcompressor_awq as worker
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(512, 192) @ torch.randn(192, 192)
    gram = (x.T @ x / 512)[None]
    weight = torch.randn(1, 320, 192)
    for symmetric in (True, False):
        for strategy, bits, groups in (("group", 4, 6), ("channel", 8, 1)):
            size = {"group_size": 32} if strategy == "group" else {}
            args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, **size)
            w = weight.reshape(1, 320, groups, -1)
            scale = ((w.amax(-1) - w.amin(-1)) / (2**bits - 1)).to(torch.bfloat16)
            zero = torch.zeros_like(scale) if symmetric else (-(w.amin(-1) / scale) - 2 ** (bits - 1)).round()
            call = lambda: quantize_weight(weight.clone(), gram.clone(), scale, zero, None, args)
            began = time.monotonic()
            theirs = call()
            between = time.monotonic()
            ImplBackend._fn_registry.pop("round_block", None)
            worker.faster_rounding()
            ours = call()
            ended = time.monotonic()
            ImplBackend._backends["gptq_block_update"].pop()
            print(float((ours[0] - theirs[0]).ne(0).float().mean()), float(ours[1] / theirs[1]), (ended - between) / (between - began))
"""


def test_our_block_of_gptq_is_llm_compressors_arithmetic(tmp_path):
    """Equal weights but where a tie in fp32's last bit falls the other way."""
    python = environments.ensure("llmcompressor")
    command = [str(python), "-c", textwrap.dedent(ROUND), str(environments.WORKERS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [[float(x) for x in line.split()] for line in done.stdout.splitlines()[-4:]]
    assert len(lines) == 4
    assert all(differing < 0.01 and abs(loss - 1) < 0.01 for differing, loss, _ in lines)


SEARCH = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams
    import llmcompressor_awq as worker
    torch.manual_seed(0)
    x = torch.randn(400, 192) * torch.rand(192) ** 4 * 20
    layers = [torch.randn(96, 192) * torch.rand(192), torch.randn(64, 192)]
    mean, grid = x.abs().mean(0), 20
    w_mean = torch.cat(layers).abs().mean(0)
    for symmetric in (True, False):
        args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=32)
        errors = []
        for step in range(grid):
            s = (mean.pow(step / grid) / (w_mean.pow(1 - step / grid) + 1e-4)).clamp(min=1e-4)
            s = s / (s.max() * s.min()).sqrt()
            error = 0.0
            for w in layers:
                groups = (w * s).view(len(w), -1, 32)
                scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
                rounded = fake_quantize(w * s, scale, zero, args)
                error += float(((x / s) @ rounded.T - x @ w.T).square().sum())
            errors.append((error, s))
        ours = worker.best_scales(layers, x.T @ x, mean, w_mean, grid, args)
        least, best = min(errors, key=lambda pair: pair[0])
        same = next(error for error, s in errors if torch.allclose(s, ours))
        print(same / least, max(error for error, _ in errors) / least)
"""


def test_the_search_finds_what_running_every_candidate_on_the_tokens_finds():
    """Against compressed-tensors' own rounding and the layers' outputs, token by token: 1 % of error for bf16 factors."""
    python = environments.ensure("llmcompressor")
    command = [str(python), "-c", textwrap.dedent(SEARCH), str(environments.WORKERS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [[float(x) for x in line.split()] for line in done.stdout.splitlines()[-2:]]
    assert len(lines) == 2
    assert all(ours < 1.01 and worst > 1.2 for ours, worst in lines), lines
