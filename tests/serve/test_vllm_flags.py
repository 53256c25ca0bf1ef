"""From a release, run or model to vLLM's command line; what vLLM would refuse late is refused now."""

import json
import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Release, Run
from tunegate.core.errors import UserError
from tunegate.core.machine import Gpu
from tunegate.core.model_source import resolve
from tunegate.serve import vllm_flags
from tunegate.serve.served_model import describe
from tunegate.serve.vllm_flags import ServeOptions, build


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(vllm_flags, "gpus", lambda: ())
    monkeypatch.setattr(vllm_flags, "cores", lambda: 2)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)


@pytest.fixture
def make_run(tiny_model, tmp_path):
    def make(method="lora", **adapter):
        folder = tmp_path / "my-run"
        folder.mkdir()
        if method == "full":
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                shutil.copy(tiny_model / file, folder)
        else:
            (folder / "adapter_config.json").write_text(json.dumps({"r": 16, **adapter}))
        (folder / "chat_template.jinja").write_text("x")
        manifest.write(folder, "run", inputs=[], config={}, facts={"method": method, "base": str(tiny_model)})
        return Run.open(folder)

    return make


@pytest.fixture
def release(tiny_model, tmp_path):
    folder = shutil.copytree(tiny_model, tmp_path / "my-release")
    manifest.write(folder, "release", inputs=[], config={}, facts={"quantization": "awq"})
    return Release.open(folder)


def value(launch, flag):
    assert launch.arguments.count(flag) == 1, flag
    return launch.arguments[launch.arguments.index(flag) + 1]


def test_a_release(release):
    launch = build(release, ServeOptions(port=8001))
    assert launch.model == value(launch, "--served-model-name") == "my-release"
    assert value(launch, "--model") == str(release.path.resolve())
    assert (value(launch, "--host"), value(launch, "--port")) == ("127.0.0.1", "8001")
    assert value(launch, "--middleware") == "tunegate.serve.middleware.Guard"
    assert value(launch, "--generation-config") == "vllm"
    assert "--enable-prefix-caching" in launch.arguments
    assert "--enable-lora" not in launch.arguments
    assert "awq" in describe(release)


def test_a_name_of_its_own_stays_when_another_release_is_served(release, make_run):
    """A promoted release lies in a folder called after its digest: clients that name the model would break with every promotion."""
    launch = build(release, ServeOptions(name="champion"))
    assert launch.model == value(launch, "--served-model-name") == "champion"
    run = make_run()
    launch = build(run, ServeOptions(name="champion"))
    assert launch.model == "champion"
    assert value(launch, "--served-model-name") == "champion-base"
    assert value(launch, "--lora-modules") == f"champion={run.path.resolve()}"


def test_a_model(tiny_model):
    source = resolve(str(tiny_model))
    launch = build(source, ServeOptions())
    assert value(launch, "--model") == str(tiny_model.resolve())
    assert launch.model == "tiny"
    assert "--revision" not in launch.arguments


def test_an_adapter_run_serves_its_base_with_the_adapter(make_run, tiny_model):
    run = make_run()
    launch = build(run, ServeOptions())
    folder = str(run.path.resolve())
    assert launch.model == "my-run"
    assert value(launch, "--model") == str(tiny_model.resolve())
    assert value(launch, "--served-model-name") == "my-run-base"
    assert value(launch, "--lora-modules") == f"my-run={folder}"
    assert value(launch, "--tokenizer") == folder
    assert value(launch, "--chat-template") == f"{folder}/chat_template.jinja"
    assert "--enable-lora" in launch.arguments


def test_a_full_run_is_served_by_itself(make_run):
    launch = build(make_run("full"), ServeOptions())
    assert launch.model == "my-run"
    assert "--enable-lora" not in launch.arguments


@pytest.mark.parametrize(
    ("rank", "kernel"), [(1, "1"), (4, "8"), (8, "8"), (9, "16"), (16, "16"), (64, "64"), (100, "128"), (512, "512")]
)
def test_the_adapters_rank_is_rounded_up_to_a_kernels(make_run, rank, kernel):
    assert value(build(make_run(r=rank), ServeOptions()), "--max-lora-rank") == kernel


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"use_dora": True}, "does not serve adapters with DoRA"),
        ({"modules_to_save": ["lm_head"]}, "adapters with modules_to_save"),
        ({"lora_bias": True}, "adapters with LoRA bias"),
        ({"r": 513}, "up to rank 512, this one has 513"),
    ],
)
def test_an_adapter_that_vllm_does_not_serve_is_refused_with_the_way_out(make_run, adapter, says):
    with pytest.raises(UserError, match=says) as caught:
        build(make_run(**adapter), ServeOptions())
    assert "ft merge" in caught.value.hint


def test_the_length_is_clipped_to_the_models_own(release, make_run):
    assert value(build(release, ServeOptions(max_model_len=4096)), "--max-model-len") == "512"
    assert value(build(release, ServeOptions(max_model_len=100)), "--max-model-len") == "100"
    assert "--max-model-len" not in build(release, ServeOptions(max_model_len=None)).arguments
    assert value(build(make_run(), ServeOptions()), "--max-model-len") == "512", "the base's, for an adapter"


def test_a_length_behind_two_dashes_is_what_cache_and_memory_are_planned_for(release):
    def extra(length):
        return ServeOptions(max_model_len=100, extra=("--max_model_len", length))

    assert build(release, extra("300")).arguments.count("300") == 2, "ours says the same"
    with pytest.raises(UserError, match="for one request of 100000000000 tokens"):
        build(release, extra("100000000000"))
    assert value(build(release, extra("auto")), "--max-model-len") == "100", "vLLM's own word is left to it"


def test_flags_behind_two_dashes_come_last_as_they_are(release):
    extra = ("--max-num-batched-tokens", "4096", "--no-enable-prefix-caching")
    assert build(release, ServeOptions(extra=extra)).arguments[-3:] == list(extra)


def test_eager_and_compiled_and_the_cpu(release, monkeypatch):
    eager, compiled = build(release, ServeOptions()), build(release, ServeOptions(eager=False))
    assert "--enforce-eager" in eager.arguments
    assert "--enforce-eager" not in compiled.arguments
    assert eager.environment["VLLM_NO_USAGE_STATS"] == "1"
    assert (eager.environment["TORCHDYNAMO_DISABLE"], "TORCHDYNAMO_DISABLE" in compiled.environment) == ("1", False)
    assert eager.environment["VLLM_CPU_KVCACHE_SPACE"] == "1", "whole GiB, and enough for the tiny model"
    assert compiled.environment["VLLM_CPU_NUM_OF_RESERVED_CPU"] == "0", "both of two cores"
    monkeypatch.setenv("VLLM_CPU_NUM_OF_RESERVED_CPU", "1")
    assert "VLLM_CPU_NUM_OF_RESERVED_CPU" not in build(release, ServeOptions(eager=False)).environment
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert build(release, ServeOptions()).environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


def test_on_gpus_the_plan_is_passed_on_unless_the_user_has_one(release, monkeypatch, capsys):
    monkeypatch.setattr(vllm_flags, "gpus", lambda: (Gpu("A100", 85.5), Gpu("A100", 85.5)))
    launch = build(release, ServeOptions())
    assert value(launch, "--data-parallel-size") == "2"
    assert value(launch, "--gpu-memory-utilization") == "0.90"
    assert not {"VLLM_CPU_KVCACHE_SPACE", "VLLM_TARGET_DEVICE"} & set(launch.environment)
    assert "2 of 2 GPU: 2 copies over 1 each" in capsys.readouterr().err
    own = build(release, ServeOptions(extra=("--tensor_parallel_size=2",)))
    assert "--data-parallel-size" not in own.arguments
    share = build(release, ServeOptions(extra=("--gpu-memory-utilization", "0.5")))
    assert value(share, "--gpu-memory-utilization") == "0.5"
    assert value(share, "--data-parallel-size") == "2"


def test_no_key_is_ever_on_the_command_line(release, monkeypatch):
    monkeypatch.setenv("TUNEGATE_API_KEY", "very-secret")
    assert "very-secret" not in " ".join(build(release, ServeOptions()).arguments)
