"""Deployments that an audit found wrong: the memory of hub models, AMD's GPUs, pinned revisions, names, the key."""

import json

import pytest
import yaml

from tunegate.advisor.gpus import find_gpu
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource
from tunegate.serve import served_model
from tunegate.serve.deploy import checks, kubernetes
from tunegate.serve.deploy.compose import compose
from tunegate.serve.deploy.plan import DeployOptions, make_plan
from tunegate.serve.deploy.ray import ray_service, serve_config
from tunegate.serve.deploy.sky import service
from tunegate.serve.deploy.write import deploy

REVISION = "6f6073b423013f6a7d4d9f39144961bfbfbc386b"
LLAMA_70B = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "intermediate_size": 28672,
             "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
             "max_position_embeddings": 8192, "head_dim": 128}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """hub(config): a hub model of which only its config is here; without one not even that."""

    def make(config=None):
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        monkeypatch.setattr(
            served_model, "hub_file_at_hand",
            lambda _, name, __: tmp_path / name if config and name == "config.json" else None,
        )  # fmt: skip
        name = "meta-llama/Llama-3.3-70B-Instruct"
        return ModelSource(name, "hub", name, name, None, REVISION)

    return make


def plan_of(model, *extra, gpu="H100-SXM", **about):
    return make_plan(model, DeployOptions(gpu=find_gpu(gpu), image="r/ray-llm:2.60.0", extra=extra, **about))


def test_the_hosts_memory_holds_the_weights_of_a_hub_model(hub, capsys):
    plan = plan_of(hub(LLAMA_70B))
    assert plan.memory_gb >= 1.2 * 140
    assert kubernetes.resources(plan)["limits"]["memory"] == f"{plan.memory_gb}G"
    assert "size is not known" not in capsys.readouterr().err
    assert plan_of(hub()).memory_gb == 6
    assert "warning: the model's size is not known here: the files give a copy 6 GB" in capsys.readouterr().err


def test_ray_loads_the_revision_that_was_pinned(hub):
    plan = plan_of(hub(LLAMA_70B))
    for config in (serve_config(plan), yaml.safe_load(ray_service(plan)["spec"]["serveConfigV2"])):
        (llm,) = config["applications"][0]["args"]["llm_configs"]
        assert llm["engine_kwargs"]["revision"] == REVISION


@pytest.mark.parametrize("to", ["kubernetes", "kuberay", "compose", "sky"])
@pytest.mark.parametrize("gpu", ["MI300X", "MI250"])
def test_amds_gpus_get_no_files_of_nvidias(hub, tmp_path, to, gpu):
    with pytest.raises(UserError, match=f"{gpu} is AMD's") as caught:
        deploy(plan_of(hub(LLAMA_70B), gpu=gpu), to, tmp_path / "d", inputs=[], force=False, check=False)
    assert "--to ray" in caught.value.hint
    assert not (tmp_path / "d").exists()


def test_ray_keeps_amds_gpus(hub, tmp_path):
    written, _ = deploy(
        plan_of(hub(LLAMA_70B), gpu="MI300X"), "ray", tmp_path / "d", inputs=[], force=False, check=False
    )
    assert "AMD-Instinct-MI300X" in (written.path / "serve_config.yaml").read_text()


def test_a_service_called_vllm_does_not_set_vllms_port(hub, tmp_path):
    plan = plan_of(hub(LLAMA_70B), name="vllm")
    service_of_ray = ray_service(plan)
    cluster = service_of_ray["spec"]["rayClusterConfig"]
    pods = [
        kubernetes.pod(plan),
        *(g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])),
    ]
    assert [pod["enableServiceLinks"] for pod in pods] == [False, False, False]
    assert checks.check_kubernetes([service_of_ray], tmp_path / "k.yaml")[0].ok


def test_a_ray_service_has_at_most_47_characters(hub, tmp_path):
    made = ray_service(plan_of(hub(LLAMA_70B), name="qwen2-5-coder-7b-instruct-support-tickets-merged-x-awq"))
    assert made["metadata"]["name"] == "qwen2-5-coder-7b-instruct-support-ticket-dd8492"
    assert checks.check_kubernetes([made], tmp_path / "k.yaml")[0].ok
    made["metadata"]["name"] += "d"
    with pytest.raises(UserError, match="RayService"):
        checks.check_kubernetes([made], tmp_path / "k.yaml")


def test_what_listens_on_all_interfaces_must_have_a_key(hub):
    plan = plan_of(hub(LLAMA_70B))
    assert {"name": "TUNEGATE_KEY_REQUIRED", "value": "1"} in kubernetes.environment(plan)
    assert compose(plan)["services"]["vllm"]["environment"]["TUNEGATE_KEY_REQUIRED"] == "1"
    assert service(plan)["envs"]["TUNEGATE_KEY_REQUIRED"] == "1"
