"""What the platforms make of the files, and what only shows there: Ray's names and types, replicas beside an autoscaler, keys."""

import json
import re
import subprocess
from dataclasses import replace

import pytest
import yaml

from tunegate.advisor.gpus import find_gpu
from tunegate.core.commands import run
from tunegate.core.errors import UsageError, UserError
from tunegate.core.model_source import resolve
from tunegate.serve.cli import app
from tunegate.serve.deploy import checks, kubernetes
from tunegate.serve.deploy.passed_on import check_passed_on
from tunegate.serve.deploy.plan import DeployOptions, engine_kwargs, make_plan
from tunegate.serve.deploy.ray import RAY_NAMES, serve_config
from tunegate.serve.deploy.readme import readme
from tunegate.serve.deploy.write import deploy

# As NVIDIA's driver calls them.
DRIVER_NAMES = {
    "T4": "Tesla T4", "L4": "NVIDIA L4", "A10G": "NVIDIA A10G", "L40S": "NVIDIA L40S", "A100-40GB": "NVIDIA A100-SXM4-40GB",
    "A100-80GB": "NVIDIA A100-SXM4-80GB", "A100-PCIe-80GB": "NVIDIA A100 80GB PCIe", "H100-SXM": "NVIDIA H100 80GB HBM3",
    "H100-PCIe": "NVIDIA H100 PCIe", "H200": "NVIDIA H200", "B200": "NVIDIA B200",
}  # fmt: skip
DETECTS = (
    "import json, sys\n"
    "from ray._private.accelerators.amd_gpu import amd_product_dict\n"
    "from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager as N\n"
    "found = [N._gpu_name_to_accelerator_type(name) for name in json.loads(sys.argv[1])]\n"
    "print(json.dumps([found, list(amd_product_dict.values())]))"
)


@pytest.fixture
def plan_of(tiny_model):
    """plan_of(*flags, **options): a deployment of the tiny model on an L4."""

    def make(*extra, gpu="L4", **about):
        return make_plan(
            resolve(str(tiny_model)), DeployOptions(gpu=find_gpu(gpu), max_model_len=256, extra=extra, **about)
        )

    return make


@pytest.fixture
def no_vllm(tmp_path, monkeypatch):
    """An interpreter without vLLM."""
    place = tmp_path / "without" / "vllm"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'vllm'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(place.parent))


@pytest.mark.parametrize("gpu", ["A100-40GB", "A100-80GB"])
def test_ray_asks_for_the_name_that_a_node_gives_itself(plan_of, gpu):
    (llm,) = serve_config(plan_of(gpu=gpu))["applications"][0]["args"]["llm_configs"]
    assert llm["accelerator_type"] == "A100"


@pytest.mark.slow
def test_every_name_for_ray_is_one_that_ray_detects_by_itself():
    done = checks._tool(checks.RAY, ["python", "-c", DETECTS, json.dumps(list(DRIVER_NAMES.values()))])
    found, amds = json.loads(done.stdout.splitlines()[-1])
    nvidias = dict(zip(DRIVER_NAMES, found, strict=True))
    assert {gpu: name for gpu, name in RAY_NAMES.items() if name not in amds} == nvidias


def test_our_own_flags_get_their_types_without_vllm(plan_of):
    plan = replace(plan_of(), flags=("--revision", "1.0", "--max-model-len", "64", "--enable-auto-tool-choice"))
    assert engine_kwargs(plan) == {"revision": "1.0", "max_model_len": 64, "enable_auto_tool_choice": True}


@pytest.mark.parametrize("check", [True, False])
def test_flags_that_only_vllm_can_read_are_not_guessed_for_ray(plan_of, no_vllm, tmp_path, check):
    with pytest.raises(UserError, match="only vLLM's own parser knows the types") as caught:
        deploy(plan_of("--max-model-len", "8k"), "ray", tmp_path / "d", inputs=[], force=False, check=check)
    assert "engine_kwargs" in caught.value.hint
    assert not (tmp_path / "d").exists()
    deploy(plan_of(), "ray", tmp_path / "d", inputs=[], force=False, check=False)


@pytest.mark.slow
def test_vllms_parser_types_what_is_passed_on_to_ray(plan_of, tmp_path):
    flags = ("--max-num-batched-tokens", "8k", "--enforce-eager", "-O2", "--tokenizer-revision", "1.0", "-tp", "2", "-dp", "1", "-cc.mode", "3",
             "--no-enable-prefix-caching", "--speculative-config", '{"method": "ngram"}')  # fmt: skip
    plan = plan_of(*flags, gpus=2)
    written, done = deploy(plan, "ray", tmp_path / "d", inputs=[], force=False, check=False)
    assert done == []
    config = yaml.safe_load((written.path / "serve_config.yaml").read_text())
    engine = config["applications"][0]["args"]["llm_configs"][0]["engine_kwargs"]
    assert engine == {
        "max_model_len": 256, "max_num_seqs": 64, "generation_config": "vllm", "gpu_memory_utilization": 0.9,
        "max_num_batched_tokens": 8000, "enforce_eager": True, "optimization_level": "2", "tokenizer_revision": "1.0",
        "tensor_parallel_size": 2, "data_parallel_size": 1, "compilation_config": {"mode": 3}, "enable_prefix_caching": False,
        "speculative_config": {"method": "ngram"},
    }  # fmt: skip


@pytest.mark.parametrize("to", ["ray", "kuberay"])
def test_several_copies_in_one_of_rays_replicas_are_refused(plan_of, tmp_path, to):
    plan = plan_of(gpus=4, image="r/ray-llm:2.60.0")
    with pytest.raises(UserError, match="4 x L4 would be 4 copies in one replica") as caught:
        deploy(plan, to, tmp_path / "d", inputs=[], force=False, check=False)
    assert caught.value.hint == "--gpu L4:1 --replicas 4 --max-replicas 12"
    assert "data_parallel_size" not in engine_kwargs(plan_of(gpus=1, replicas=4, max_replicas=12))


@pytest.mark.parametrize(("autoscale", "replicas"), [("hpa", None), ("keda", None), ("none", 2)])
def test_the_number_of_copies_is_the_autoscalers_where_there_is_one(plan_of, autoscale, replicas):
    """`kubectl apply` would cut a deployment that has grown."""
    plan = plan_of(autoscale=autoscale, replicas=2)
    assert kubernetes.deployment(plan)["spec"].get("replicas") == replicas


def test_keda_shrinks_as_slowly_as_the_hpa(plan_of):
    """Its own cooldownPeriod is for the way to no copy at all."""
    scaled = kubernetes.keda(plan_of())["spec"]
    assert "cooldownPeriod" not in scaled
    behavior = scaled["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior == kubernetes.hpa(plan_of())["spec"]["behavior"]


@pytest.mark.parametrize("to", ["kubernetes", "compose"])
def test_the_key_is_kept_without_the_end_of_its_line(plan_of, to, tmp_path):
    """Prometheus puts the secret into a header as it is. The README's own command, run."""
    (tmp_path / "FILE").write_text("abc123\n")
    (line,) = re.findall(r"The key.*?`(.*?)`", readme(plan_of(), to, "f.yaml"))
    made = line.partition(" | kubectl")[0] + " > api-key" if to == "kubernetes" else line
    subprocess.run(["/bin/sh", "-c", made], cwd=tmp_path, check=True, timeout=30)
    kept = (tmp_path / "api-key").read_bytes()
    assert kept == (b"abc123" if to == "kubernetes" else kept.strip())
    assert kept
    if to == "kubernetes":
        assert line.endswith("--from-file=api-key=/dev/stdin")


def test_the_readme_says_that_any_gpu_is_taken(plan_of):
    for to in ("kubernetes", "kuberay"):
        said = readme(plan_of(), to, "f.yaml")
        assert "sized for L4" in said
        assert "nodeSelector: {nvidia.com/gpu.product: NAME}" in said


@pytest.mark.parametrize("to", ["kubernetes", "ray", "compose"])
def test_a_gpu_below_what_vllm_is_built_for_is_refused(plan_of, tmp_path, to):
    with pytest.raises(UserError, match=r"V100 has compute capability 7\.0"):
        deploy(plan_of(gpu="V100"), to, tmp_path / "d", inputs=[], force=False, check=False)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    "flags",
    [("--chat-template", "my.jinja"), ("--chat-template=./my.jinja",), ("--tokenizer", "./hermes"), ("--tokenizer", "{here}/hermes"),
     ("--speculative-config", '{{"model": "./hermes"}}'), ("--enforce-eager", "--tool-parser-plugin", "plugin.py")],
)  # fmt: skip
def test_a_path_of_this_machine_is_not_passed_on(plan_of, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hermes").mkdir()
    for name in ("my.jinja", "plugin.py"):
        (tmp_path / name).write_text("")
    with pytest.raises(UsageError, match="a path of this machine") as caught:
        plan_of(*(flag.format(here=tmp_path) for flag in flags))
    assert caught.value.hint.startswith("put it into the release's folder and name it there: /models/")


def test_words_and_paths_of_the_container_are_passed_on(plan_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hermes").mkdir()
    for flags in (
        ("--chat-template", "/models/bot/my.jinja"), ("--chat_template=/models/bot/my.jinja", "--seed", "1"),
        ("--tool-call-parser", "hermes", "--enable-auto-tool-choice"), ("--download-dir", str(tmp_path)),
        ("--speculative-config", '{"method": "ngram", "x": "' + "y/" * 3000 + '"}'),
    ):  # fmt: skip
        assert plan_of(*flags).flags[-len(flags) :] == flags
    with pytest.raises(UsageError, match="not passed on"):
        plan_of("--chat-template", "/models/bot/my.jinja", "--host", "::")


def test_a_path_in_the_releases_folder_is_the_containers_though_it_is_here_too(tmp_path):
    """As the hint names it, on a machine that keeps its releases under the same path."""
    (tmp_path / "my.jinja").write_text("")
    check_passed_on(("--tool-parser-plugin", f"{tmp_path}/my.jinja", "--tokenizer", str(tmp_path)), str(tmp_path))
    for words in (("--lora-modules", f"a={tmp_path}"), ("--hf-overrides", json.dumps({"a=b": str(tmp_path)}))):
        with pytest.raises(UsageError, match="a path of this machine"):
            check_passed_on(words, "/models/bot")


def test_nothing_is_put_beside_a_model_of_the_hub(tmp_path):
    with pytest.raises(UsageError, match="a path of this machine") as caught:
        check_passed_on(("--chat-template", str(tmp_path)), None)
    assert caught.value.hint == "name a file of the container's image, or a hub id"


def test_the_readme_claims_no_check_that_was_not_made(plan_of):
    said = readme(plan_of(), "ray", "f.yaml")
    assert "read by vLLM's own parser" not in said
    assert "`manifest.json` under `checks`; where that is empty, nothing was" in said


def test_the_command_says_what_the_deployment_is_called(tiny_model, tmp_path, capsys):
    words = ["deploy", str(tiny_model), "--to", "compose", "--name", "slots_v1", "--out", str(tmp_path / "d")]
    assert run(app, prog="ft serve", argv=[*words, "--no-check"]) == 0
    assert re.search(r"called slots-v1-[0-9a-f]{6}; 1 x L4", capsys.readouterr().err)
