"""What would fail in vLLM after its imports is refused in milliseconds, each broken for real in a copy of a model."""

import json
import resource
import shutil
import time

import pytest

from tunegate.core.errors import UsageError, UserError
from tunegate.core.model_source import resolve
from tunegate.serve import preflight, vllm_flags
from tunegate.serve.preflight import check_flags, check_memory, flag, memory_limits
from tunegate.serve.served_model import weights_bytes
from tunegate.serve.vllm_flags import ServeOptions, build


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(vllm_flags, "gpus", lambda: ())
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def refused(folder, *extra, **options):
    """The error of a start, which must come quickly."""
    source = resolve(str(folder))
    started = time.monotonic()
    with pytest.raises(UserError) as caught:
        build(source, ServeOptions(extra=extra, **options))
    assert time.monotonic() - started < 10  # before an engine could have started
    assert len(caught.value.line().splitlines()) == 1
    assert caught.value.hint
    return caught.value


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_model_that_is_whole_passes(model):
    assert build(resolve(str(model)), ServeOptions()).model == "model"


def test_weights_that_lie_there_twice_are_counted_once(model):
    """Mistral's consolidated.safetensors beside the shards of its index."""
    size = (model / "model.safetensors").stat().st_size
    shutil.copy(model / "model.safetensors", model / "consolidated.safetensors")
    assert weights_bytes(resolve(str(model))) == size
    for name in ("a", "b"):
        shutil.copy(model / "model.safetensors", model / f"{name}.safetensors")
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}})
    )
    assert weights_bytes(resolve(str(model))) == 2 * size
    (model / "model.safetensors.index.json").unlink()
    (model / "model.safetensors").unlink()
    assert weights_bytes(resolve(str(model))) == 3 * size


def test_no_weights_at_all(model):
    (model / "model.safetensors").unlink()
    error = refused(model)
    assert error.message == "there is no weight file (*.safetensors)"
    assert error.where == str(model)


def test_a_shard_is_missing(model):
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(model).message == "the weight file model-00002-of-00002.safetensors is missing"
    (model / "model.safetensors.index.json").write_text("[]")
    assert refused(model).message == "is not an index of weight files"


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_shard_that_is_cut_off(model, length):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    error = refused(model)
    assert "damaged" in error.message or "cut off or overwritten" in error.message
    assert error.where == str(path)


def test_a_shard_that_is_something_else(model):
    (model / "model.safetensors").write_bytes(b"<html>not found</html>" * 100)
    assert "damaged" in refused(model).message


def flags_of(monkeypatch, text):
    monkeypatch.setattr("tunegate.core.machine.cpu_flags", lambda: frozenset(text.split()))


def test_4_bit_weights_are_refused_where_the_engine_has_no_product_for_them(model, monkeypatch):
    flags_of(monkeypatch, "sse2 avx2")
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    set_config(model, quantization_config={"quant_method": "compressed-tensors", "config_groups": groups})
    error = refused(model)
    assert error.message == "vLLM serves 4-bit weights on processors with AVX-512 only, and this one has none"
    assert "--scheme w8a8" in error.hint
    for able in ("sse2 avx512f avx512_bf16", "asimd bf16"):
        flags_of(monkeypatch, able)
        build(resolve(str(model)), ServeOptions())


def test_without_bfloat16_in_the_processor_it_computes_in_float32_where_that_fits(model, monkeypatch, capsys):
    def dtype(*extra):
        arguments = build(resolve(str(model)), ServeOptions(extra=extra)).arguments
        return arguments[arguments.index("--dtype") + 1] if "--dtype" in arguments else None

    flags_of(monkeypatch, "sse2 avx2")
    assert dtype() == "float32"
    assert "no bfloat16" in capsys.readouterr().err
    assert dtype("--dtype", "bfloat16") == "bfloat16"
    size = weights_bytes(resolve(str(model)))
    monkeypatch.setattr(preflight, "memory_limits", lambda: (8e9, 3.9 * size + 0.0))
    monkeypatch.setattr(preflight, "check_memory", lambda *_, **__: None)
    assert dtype() is None
    monkeypatch.undo()
    flags_of(monkeypatch, "sse2 avx512f avx512_bf16")
    assert dtype() is None


def test_fp8_weights_are_refused_where_neither_gpu_nor_cpu_computes_with_them(model, monkeypatch):
    flags_of(monkeypatch, "avx512f amx_tile amx_bf16")
    assert refused(model, "--quantization", "fp8").message.startswith("fp8 weights are for GPUs")
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    set_config(
        model,
        quantization_config={
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "config_groups": groups,
        },
    )
    error = refused(model)
    assert error.message.startswith("fp8 weights are for GPUs")
    assert "--scheme w8a8" in error.hint
    flags_of(monkeypatch, "avx512f amx_tile amx_bf16 amx_fp8")
    assert build(resolve(str(model)), ServeOptions()).model == "model"
    flags_of(monkeypatch, "")
    weights["type"] = "int"
    set_config(
        model,
        quantization_config={"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": groups},
    )
    assert build(resolve(str(model)), ServeOptions()).model == "model"


def test_a_pointer_of_git_lfs_is_told(model):
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 9\n")
    assert "damaged" in refused(model).message


@pytest.mark.parametrize("asked", ["awq", "gptq", "compressed-tensors"])
def test_a_quantization_that_is_not_the_models(model, asked):
    assert "not quantized" in refused(model, "--quantization", asked).message
    set_config(model, quantization_config={"quant_method": "fp8"})
    error = refused(model, f"--quantization={asked}")
    assert error.message == f"--quantization {asked}, but the model's weights are fp8"
    assert error.where == str(model / "config.json")


def test_a_marlin_kernel_of_the_models_own_quantization_is_not_refused(model):
    set_config(model, quantization_config={"quant_method": "awq"})
    build(resolve(str(model)), ServeOptions(extra=("--quantization", "awq_marlin")))


def test_no_tokenizer(model):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink(missing_ok=True)
    assert refused(model).message == "there is no tokenizer (tokenizer.json)"


def test_a_template_that_is_not_valid_is_told_with_its_line(model):
    (model / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m }\n{% endfor %}")
    error = refused(model)
    assert error.message.startswith("the chat template is not valid: ")
    assert error.where == f"{model / 'chat_template.jinja'}:2"
    (model / "chat_template.jinja").write_text("{{" + "(" * 50_000 + "}}")
    assert refused(model).message == "the chat template is nested too deeply"
    (model / "chat_template.jinja").write_text("{% generation %}{{ 1 }}{% endgeneration %}{% break %}")
    build(resolve(str(model)), ServeOptions())


def test_a_template_file_that_is_passed_on(model, tmp_path):
    assert refused(model, "--chat-template", str(tmp_path / "none.jinja")).message == "no such chat template"
    (tmp_path / "bad.jinja").write_text("{% if %}")
    assert refused(model, "--chat-template", str(tmp_path / "bad.jinja")).where == f"{tmp_path / 'bad.jinja'}:1"


def test_a_cache_below_one_sequence(model, monkeypatch):
    flags_of(monkeypatch, "sse2 avx512f avx512_bf16")
    """2 x 64 layers x 64 heads x 128 x 2 bytes = 2 MiB a token: 512 tokens fill 1 GiB."""
    set_config(model, num_hidden_layers=64, num_key_value_heads=64, num_attention_heads=64, head_dim=128,
               max_position_embeddings=4096)  # fmt: skip
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    error = refused(model, max_model_len=513)
    assert error.message == "the KV cache of 1 GiB is too small for one request of 513 tokens (1.0 GiB)"
    assert error.hint.startswith("--max-model-len 512 at most")
    build(resolve(str(model)), ServeOptions(max_model_len=512))
    for wrong in ("0", "x", "1.5"):
        monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", wrong)
        assert "whole GiB" in refused(model).hint


def test_cache_by_flag_is_the_flags_and_blocks_are_counted(model, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    launch = build(resolve(str(model)), ServeOptions(extra=("--kv-cache-memory-bytes", "500000000")))
    assert "VLLM_CPU_KVCACHE_SPACE" not in launch.environment
    assert "too small for one request of 512 tokens" in refused(model, "--kv-cache-memory-bytes=9999").message
    error = refused(model, "--num-gpu-blocks-override", "4", "--block-size", "32")
    assert error.message == "4 cache blocks of 32 tokens do not hold one request of 512 tokens"
    build(resolve(str(model)), ServeOptions(extra=("--num-gpu-blocks-override", "16", "--block-size", "32")))


def test_memory_that_is_not_enough(model, capsys):
    source = resolve(str(model))
    with pytest.raises(UserError, match=r"do not fit the memory allowed here, 1\.0 GB"):
        check_memory(source, 4, 2e9, 1e9)
    check_memory(source, 4, 2e9, 99e9)
    assert "may be killed for memory" in capsys.readouterr().err
    check_memory(source, 4, 98e9, 99e9)
    assert capsys.readouterr().err == ""


def test_a_ulimit_is_a_limit(model, monkeypatch):
    real = resource.getrlimit
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (5 * 10**8, -1) if kind == resource.RLIMIT_AS else real(kind)
    )
    assert memory_limits()[1] == 5e8
    assert "do not fit the memory allowed here, 0.5 GB" in refused(model).message


@pytest.mark.parametrize("word", ["--dtype=fp8", "--dtype"])
def test_a_type_that_is_none(model, word):
    extra = (word,) if "=" in word else (word, "fp8")
    assert refused(model, *extra).message == "--dtype fp8: no such type"


@pytest.mark.parametrize(
    "extra",
    [("--host", "0.0.0.0"), ("--host=0.0.0.0",), ("--hos", "::"), ("--port=1",), ("--api-key", "x"), ("--api_key=x",),
     ("--uds", "/s"), ("--config", "f.yaml"), ("--ssl-keyfile=k",), ("--served-model-name", "x"), ("--model=x",),
     ("--ssl-certfile", "c"), ("--lora-modules", "a=b"), ("--root-path", "/x")],
)  # fmt: skip
def test_flags_that_would_go_round_the_key_are_refused_in_any_spelling(extra):
    with pytest.raises(UsageError, match="is not passed on to vLLM"):
        check_flags(extra)


def test_other_flags_pass_and_remote_code_is_warned_of(capsys):
    check_flags(
        ("--max-num-batched-tokens", "4096", "--no-enable-prefix-caching", "--max-model-len=9", "--dtype", "half")
    )
    assert capsys.readouterr().err == ""
    check_flags(("--trust_remote_code",))
    assert "runs Python code" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "value"),
    [(("--a-b", "1"), "1"), (("--a_b=2",), "2"), (("--a-b", "--c"), ""), (("--a-b",), ""), (("--x", "--a-bc"), None)],
)
def test_a_flag_and_its_value(extra, value):
    assert flag(extra, "--a-b") == value
