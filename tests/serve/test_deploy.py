"""Deployments: what is written for each platform, what is refused, and (slow) that the platforms' own tools agree."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from tunegate.advisor.gpus import find_gpu
from tunegate.core import manifest
from tunegate.core.artifacts import Deployment, Release
from tunegate.core.commands import run
from tunegate.core.errors import UsageError, UserError
from tunegate.serve.cli import app
from tunegate.serve.deploy import checks, kubernetes
from tunegate.serve.deploy.guard import GUARD_FILES, guard_text
from tunegate.serve.deploy.plan import DeployOptions, dns_label, make_plan
from tunegate.serve.deploy.ray import ray_service, serve_config
from tunegate.serve.deploy.sky import service as sky_service
from tunegate.serve.deploy.write import PLATFORMS, deploy

SECRET = "sk-never-in-a-file-12345678"


@pytest.fixture(scope="module")
def release(tmp_path_factory, tiny_model):
    """A release folder of the tiny model."""
    import shutil

    folder = tmp_path_factory.mktemp("releases") / "Support_Bot.v2"
    shutil.copytree(tiny_model, folder)
    facts = {"base": "tiny", "quantization": "none", "template_digest": None, "bytes": 1}
    manifest.write(folder, Release.kind, inputs=[], config={}, facts=facts)
    return Release.open(folder)


def plan_of(release, *extra, gpu="L4", **about):
    return make_plan(release, DeployOptions(gpu=find_gpu(gpu), max_model_len=256, extra=extra, **about))


def objects(plan):
    return {d["kind"]: d for d in kubernetes.manifests(plan)}


def test_kubernetes_asks_for_what_the_advisor_says_and_keeps_secrets_out(release, monkeypatch):
    monkeypatch.setenv("TUNEGATE_API_KEY", SECRET)
    found = objects(plan_of(release, queue=5, max_replicas=4))
    pod = found["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "vllm/vllm-openai:v0.32.0"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    key = next(e for e in container["env"] if e["name"] == "TUNEGATE_API_KEY")
    assert key["valueFrom"] == {"secretKeyRef": {"name": "support-bot-v2-438e9f-api-key", "key": "api-key"}}
    assert SECRET not in yaml.safe_dump_all(found.values())
    startup, readiness = container["startupProbe"], container["readinessProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 900
    assert startup["httpGet"]["path"] == readiness["httpGet"]["path"] == "/health"
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    drain = float(next(e["value"] for e in container["env"] if e["name"] == "TUNEGATE_DRAIN_S"))
    assert pod["terminationGracePeriodSeconds"] > pause + drain
    hpa = found["HorizontalPodAutoscaler"]["spec"]
    assert (hpa["minReplicas"], hpa["maxReplicas"]) == (1, 4)
    assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == "5"
    args = container["args"]
    assert args[args.index("--middleware") + 1] == "tunegate.serve.middleware.Guard"
    assert args[args.index("--model") + 1] == "/models/support-bot-v2-438e9f"
    assert found["ServiceMonitor"]["spec"]["endpoints"][0]["authorization"]["credentials"]["key"] == "api-key"


def test_the_context_is_the_models_own_at_most_as_for_a_server_here(release, capsys):
    """vLLM ends at a --max-model-len above it."""
    gpu = find_gpu("L4")
    flags = make_plan(release, DeployOptions(gpu=gpu, max_model_len=2048)).flags
    assert flags[flags.index("--max-model-len") + 1] == "512"
    assert capsys.readouterr().err.count("the model's own context is 512 tokens") == 1
    passed = make_plan(release, DeployOptions(gpu=gpu, extra=("--max-model-len", "4096"))).flags
    assert {passed[i + 1] for i, word in enumerate(passed) if word == "--max-model-len"} == {"4096"}


def test_the_guard_runs_from_the_files_that_are_shipped(tmp_path):
    """The ConfigMap's modules alone are enough: nothing else of ours is imported."""
    for name in GUARD_FILES:
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(guard_text(name))
    code = "import sys; from tunegate.serve.middleware import Guard; print(sys.modules['tunegate.serve.middleware'].__file__)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path))


def test_a_model_that_is_too_large_takes_more_gpus_or_is_refused(release, monkeypatch):
    from tunegate.core.architecture import from_config
    from tunegate.serve.machine_plan import Need

    shape = from_config(json.loads((release.path / "config.json").read_text()) | {"num_attention_heads": 4})

    def need(gb):
        return lambda target, tokens, sequences: Need(
            architecture=shape, weights_gb=gb, tokens=tokens, sequences=sequences
        )

    monkeypatch.setattr("tunegate.serve.deploy.plan.need_of", need(30.0))
    plan = plan_of(release)
    assert plan.gpus == 2
    assert plan.flags[plan.flags.index("--tensor-parallel-size") + 1] == "2"
    monkeypatch.setattr("tunegate.serve.deploy.plan.need_of", need(900.0))
    with pytest.raises(UserError, match="short"):
        plan_of(release)


def test_gpus_are_planned_for_a_length_behind_two_dashes(release):
    with pytest.raises(UserError, match="for one request of 100000000000 tokens"):
        plan_of(release, "--max-model-len=100000000000")


def test_compose_binds_loopback_and_reads_the_key_from_a_secret(release):
    (document,) = PLATFORMS["compose"].documents(plan_of(release))
    service = document["services"]["vllm"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]
    assert service["secrets"] == ["api-key"]
    assert "TUNEGATE_API_KEY" not in service["environment"]
    assert "./model:/models/support-bot-v2-438e9f:ro" in service["volumes"]
    assert service["deploy"]["resources"]["reservations"]["devices"][0]["count"] == 1


def test_ray_gets_the_flags_as_typed_engine_arguments(release):
    config = serve_config(plan_of(release, gpu="A100-80GB"))
    (llm,) = config["applications"][0]["args"]["llm_configs"]
    assert llm["model_loading_config"] == {
        "model_id": "Support_Bot.v2",
        "model_source": "/models/support-bot-v2-438e9f",
    }
    assert llm["accelerator_type"] == "A100"
    assert llm["engine_kwargs"] == {
        "max_model_len": 256, "max_num_seqs": 64, "generation_config": "vllm", "enable_prefix_caching": True, "gpu_memory_utilization": 0.9,
    }  # fmt: skip
    inner = yaml.safe_load(ray_service(plan_of(release, image="r/ray-llm:2.60.0"))["spec"]["serveConfigV2"])
    assert inner["applications"][0]["import_path"] == "ray.serve.llm:build_openai_app"


def test_sky_passes_the_key_as_a_secret_without_a_value(release):
    document = sky_service(plan_of(release))
    assert document["secrets"] == {"TUNEGATE_API_KEY": None}
    assert document["resources"]["accelerators"] == "L4:1"
    assert document["service"]["replica_policy"]["max_replicas"] == 3
    with pytest.raises(UserError, match="not rented"):
        sky_service(plan_of(release, gpu="V100"))


@pytest.mark.parametrize(
    ("text", "label"),
    [("slots-v1", "slots-v1"), ("slots_v1", "slots-v1-cb2adc"), ("slots.v1", "slots-v1-fa55f3"), ("org/slots-v1", "slots-v1-7ec4c9"),
     ("Name-7B", "name-7b-fcfd0a"), ("7b", "model-7b-925a7b"), ("-é-", "model-8daf8b"), ("x" * 47, "x" * 47), ("x" * 80, "x" * 40 + "-d929cd"),
     ("7" * 80, "model-" + "7" * 34 + "-ced2dd")],
)  # fmt: skip
def test_names_are_dns_labels_and_names_that_differ_stay_apart(text, label):
    assert dns_label(text) == label
    assert len(label) <= 47
    assert dns_label("acme-support-tickets-classifier-of-the-north-v1" + text) != dns_label(
        "acme-support-tickets-classifier-of-the-north-v2" + text
    )


@pytest.mark.parametrize("kind", ["keda", "monitor"])
def test_a_typo_in_an_operators_object_is_refused(release, tmp_path, kind):
    document = {"keda": kubernetes.keda, "monitor": kubernetes.monitor}[kind](plan_of(release))
    (good,) = checks.check_kubernetes([document], tmp_path / "k.yaml")
    assert good.ok
    document["spec"]["triggerz" if kind == "keda" else "endpointz"] = []
    with pytest.raises(UserError, match="not a valid"):
        checks.check_kubernetes([document], tmp_path / "k.yaml")


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match="no schema for the kind 'ScaledJob'"):
        checks.check_kubernetes([{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledJob"}], tmp_path / "k.yaml")


def test_what_cannot_be_deployed_is_refused_and_nothing_is_written(release, tmp_path, capsys):
    def fails(*words):
        out = tmp_path / "out"
        code = run(app, prog="ft serve", argv=["deploy", str(release.path), "--out", str(out), *words])
        assert not out.exists()
        return code, capsys.readouterr().err.splitlines()[-1]

    assert fails("--to", "kuberay", "--no-check") == (2, "error: --image: KubeRay needs an image with Ray and vLLM (rayproject/ray-llm with Ray 2.60.0, by its full tag or digest)")  # fmt: skip
    assert fails("--to", "kubernetes", "--image", "vllm/vllm-openai", "--no-check")[0] == 2
    assert fails("--to", "kubernetes", "--gpu", "cpu")[0] == 2
    assert fails("--to", "kubernetes", "--gpu", "L4:x")[0] == 2
    assert fails("--to", "nowhere")[0] == 2
    code, line = fails("--to", "kubernetes", "--no-check", "--", "--host", "1.2.3.4")
    assert code == 2
    assert "not passed on" in line
    with pytest.raises(UsageError, match="below"):
        plan_of(release, replicas=5, max_replicas=2)


def test_a_folder_is_whole_and_says_what_was_not_checked(release, tmp_path, capsys):
    words = ["deploy", str(release.path), "--to", "compose", "--out", str(tmp_path / "d"), "--no-check", "--json"]
    assert run(app, prog="ft serve", argv=words) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["checks"] == []
    assert "nothing was checked" in captured.err
    written = Deployment.open(tmp_path / "d")
    names = {o["path"] for o in written.manifest.outputs}
    assert names == {"README.md", "compose.yaml", *(f"guard/{n}" for n in GUARD_FILES)}
    assert manifest.verify(written.path) == []
    assert written.manifest.inputs[0].digest == release.digest


def test_texts_of_several_lines_can_be_read_and_edited(release, tmp_path):
    plan = plan_of(release, image="rayproject/ray-llm:2.60.0-py312-cu130")
    for to, line in (("kuberay", "  serveConfigV2: |"), ("kubernetes", "  middleware.py: |")):
        written, _ = deploy(plan, to, tmp_path / to, inputs=[], force=False, check=False)
        file = written.path / PLATFORMS[to].file
        assert line in file.read_text().splitlines()
        assert list(yaml.safe_load_all(file.read_text())) == PLATFORMS[to].documents(plan)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["kubernetes", "compose", "sky", "ray", "kuberay"])
def test_the_platforms_own_tools_agree(release, tmp_path, to):
    """Real tools, in environments that uv makes; downloads them the first time."""
    image = "rayproject/ray-llm:2.60.0-py312-cu130" if to == "kuberay" else None
    written, done = deploy(plan_of(release, image=image), to, tmp_path / "d", inputs=[], force=False)
    assert [c.by for c in done if c.ok is not True] == [], [c.note for c in done]
    assert len(done) >= 2
    assert Deployment.open(written.path)


@pytest.mark.slow
def test_the_platforms_own_tools_refuse_a_typo(release, tmp_path):
    plan = plan_of(release)
    document = kubernetes.deployment(plan)
    document["spec"]["replica"] = 1
    with pytest.raises(UserError, match="kubernetes-validate"):
        checks.check_kubernetes([document], tmp_path / "k.yaml")
    (composed,) = PLATFORMS["compose"].documents(plan)
    composed["services"]["vllm"]["comand"] = []
    (tmp_path / "api-key").touch()
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(composed))
    with pytest.raises(UserError, match="docker compose"):
        checks.check_compose(tmp_path / "c.yaml")
    task = sky_service(plan)
    task["service"]["replica_polcy"] = task["service"].pop("replica_policy")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(task))
    with pytest.raises(UserError, match=r"sky\.Task"):
        checks.check_sky(tmp_path / "s.yaml")
    config = serve_config(plan)
    config["applications"][0]["import_pth"] = "x"
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=r"ray\.serve\.schema"):
        checks.check_ray(tmp_path / "r.yaml")


@pytest.mark.slow
def test_vllms_parser_refuses_an_unknown_flag_and_ray_an_unknown_engine_argument(release):
    assert checks.read_engine_flags(plan_of(release), for_ray=False)[0].ok
    with pytest.raises(UserError, match="max-model-length"):
        checks.read_engine_flags(plan_of(release, "--max-model-length", "4"), for_ray=False)
    tools = plan_of(release, "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    assert checks.read_engine_flags(tools, for_ray=True)[0].ok
    with pytest.raises(UserError, match=r"not an argument of vLLM's engine or front end: headless"):
        checks.read_engine_flags(plan_of(release, "--headless"), for_ray=True)


@pytest.mark.parametrize("address", ["prometheus:9090", "ftp://p", "http://", "http://user:secret@p:9090", "x\n: y"])
def test_an_address_of_prometheus_that_is_none_is_refused(release, tmp_path, capsys, address):
    words = ["deploy", str(release.path), "--to", "kubernetes", "--autoscale", "keda", "--prometheus", address]
    out = tmp_path / "out"
    assert run(app, prog="ft serve", argv=[*words, "--no-check", "--out", str(out)]) == 2
    assert "secret" not in capsys.readouterr().err
    assert not out.exists()
