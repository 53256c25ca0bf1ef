"""From the end of a log to a cause and a remedy."""

import os
import time

import pytest

from tunegate.core.errors import InfrastructureError, UserError
from tunegate.serve import vllm_process
from tunegate.serve.vllm_failures import explain

SNIPPETS = {
    "the port is taken": "ERROR: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8000): Address already in use",
    "the KV cache is too small for one request": "ValueError: To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed, which is larger than the available KV cache memory (3.10 GiB).",
    "the GPU's memory is not enough": "ValueError: Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 GiB).",
    "the machine's memory is not enough": "RuntimeError: Not enough allocatable memory for KV cache: DefaultCPUAllocator: can't allocate memory",
    "a weight file is missing or damaged": "safetensors_rust.SafetensorError: Error while deserializing header: MetadataIncompleteBuffer",
    "the quantization asked for is not the one in the model's config (compressed-tensors)": "ValueError: Quantization method specified in the model config (compressed-tensors) does not match the quantization method specified in the `quantization` argument (awq).",
    "vLLM does not know this quantization here": "ValueError: Unknown quantization method: awq2. Must be one of ['awq', 'fp8'].",
    "the adapter's rank is above --max-lora-rank (64)": "ValueError: LoRA rank 64 is greater than max_lora_rank 16.",
    "the chat template is not valid": "jinja2.exceptions.TemplateSyntaxError: Encountered unknown tag 'endfo'.",
    "--max-model-len is longer than the model's context (32768)": "ValueError: User-specified max_model_len (32768) is greater than the derived max_model_len (max_position_embeddings=8192).",
    "vLLM does not know this architecture ('FooForCausalLM')": "ValueError: Model architectures ['FooForCausalLM'] are not supported for now. Supported architectures: dict_keys([...])",
    "vLLM does not know a flag that was passed on (--max-modle-len 5)": "api_server.py: error: unrecognized arguments: --max-modle-len 5",
    "vLLM refuses a flag that was passed on (argument --block-size: invalid int value: 'abc')": "usage: entry.py [-h] [--headless]\n                [model_tag]\nentry.py: error: argument --block-size: invalid int value: 'abc'",
    "a key is required here and there is none": "ERROR:    TUNEGATE_API_KEY is empty, and TUNEGATE_KEY_REQUIRED says that there is no server without a key",
    "the weight files do not hold all the model's weights (model.layers.5.input_layernorm.weight)": "(EngineCore pid=27317) ERROR 11-24 10:19:59 [core.py:1510] ValueError: Following weights were not initialized from checkpoint: {'model.layers.5.input_layernorm.weight', 'model.layers.5.post_attention_layernorm.weight'}",
    "the tokenizer is missing or damaged": "ValueError: Couldn't instantiate the backend tokenizer from one of: ",
    "the model cannot be split over so many devices (attention heads (9) must be divisible by tensor parallel size (2))": "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, Total number of attention heads (9) must be divisible by tensor parallel size (2). [type=value_error]",
    "a Python module that it needs is missing (torchvision)": "(APIServer pid=7) ERROR 11-24 10:19:59 [registry.py:810] Error in inspecting model architecture 'LlavaForConditionalGeneration'\n(APIServer pid=7) ERROR 11-24 10:19:59 [registry.py:810]     import torchvision\n(APIServer pid=7) ERROR 11-24 10:19:59 [registry.py:810] ModuleNotFoundError: No module named 'torchvision'\n  Value error, Model architectures ['LlavaForConditionalGeneration'] failed to be inspected. Please check the logs for more details.",
    "a Python module that it needs is missing (einops.layers)": "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'einops.layers'",
    "there is no such model": "OSError: /nowhere is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'",
}  # fmt: skip
# A part of each that the user mends: an option, a name or a file that was given.
OF_THE_USER = (
    "quantization asked for",
    "--max-lora-rank",
    "chat template",
    "--max-model-len is",
    "a flag that",
    "refuses a flag",
    "a key is required",
    "be split",
    "no such",
)
BEFORE = "INFO 11-23 10:00:00 [__init__.py:253] Automatically detected platform cpu.\nINFO 11-23 10:00:09 [api_server.py:80] vLLM API server version 0.32.0\n"
AFTER = "\nTraceback (most recent call last):\nRuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"


def say(tmp_path, text, code=1):
    log = tmp_path / "vllm.log"
    log.write_text(text)
    error = explain(log, code)
    assert isinstance(error, InfrastructureError | UserError)
    assert str(log) in error.hint
    return error


@pytest.mark.parametrize("cause", SNIPPETS)
def test_each_cause_is_told_with_its_remedy(tmp_path, cause):
    error = say(tmp_path, BEFORE + SNIPPETS[cause] + AFTER)
    assert error.message == f"vLLM did not start: {cause}"
    assert len(error.hint.split(";")[0]) > 10
    assert error.exit_code == (2 if any(words in cause for words in OF_THE_USER) else 4)


def test_a_module_that_vllm_does_without_is_no_cause(tmp_path):
    text = BEFORE + "WARNING 11-24 10:19:59 [x.py:1] ModuleNotFoundError: No module named 'triton'\n"
    text += "ValueError: Model architectures ['FooForCausalLM'] are not supported for now.\n"
    assert "does not know this architecture" in say(tmp_path, text).message


def test_a_compilers_error_is_not_the_users(tmp_path):
    text = BEFORE + "main.cpp:3:5: error: expected ';'\nRuntimeError: C++ compile error\n"
    assert isinstance(say(tmp_path, text), InfrastructureError)


def test_a_log_of_a_good_start_is_taken_for_no_cause(tmp_path):
    error = say(tmp_path, BEFORE, None)
    assert error.message == "vLLM was not ready in time"
    assert "--start-timeout" in error.hint


@pytest.mark.parametrize("code", [-9, 137])
def test_a_killed_server(tmp_path, code):
    error = say(tmp_path, BEFORE, code)
    assert "killed while it started, probably for memory" in error.message


def test_an_unknown_cause_shows_the_last_error_line(tmp_path):
    error = say(tmp_path, BEFORE + "(EngineCore_0 pid=7) ValueError: something new: x\n", 1)
    assert error.message == "vLLM did not start (exit code 1): ValueError: something new: x"
    assert say(tmp_path, "", 3).message == "vLLM did not start (exit code 3): no message"


def test_the_root_error_is_shown_and_not_what_it_led_to(tmp_path):
    text = BEFORE + "(EngineCore pid=7) ERROR 11-24 10:19:59 [core.py:1510] RuntimeError: something new: x" + AFTER
    assert say(tmp_path, text).message == "vLLM did not start (exit code 1): RuntimeError: something new: x"
    nested = "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n  Value error, a new rule [type=value_error]\n"
    assert (
        say(tmp_path, nested).message == "vLLM did not start (exit code 1): Value error, a new rule [type=value_error]"
    )


def test_a_missing_log_is_no_second_failure(tmp_path):
    assert "no message" in explain(tmp_path / "none.log", 1).message


@pytest.mark.parametrize("named", [True, False])
def test_a_kernel_that_a_killed_compiler_left_empty_is_removed_before_a_start(tmp_path, monkeypatch, named):
    """Torch takes it for finished: each engine that asked for it died, until somebody emptied the folder."""
    folder = tmp_path / "torchinductor_me"
    if named:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    else:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (folder / "ql").mkdir(parents=True)
    cut, whole, young = (folder / "ql" / f"{name}.main.so" for name in ("cut", "whole", "young"))
    for file in (cut, whole, young):
        file.write_bytes(b"ELF" if file == whole else b"")
    before = time.time() - vllm_process.YOUNG_S - 1
    for file in (cut, whole):
        os.utime(file, (before, before))
    vllm_process.drop_cut_kernels()
    assert [cut.exists(), whole.exists(), young.exists()] == [False, True, True]
