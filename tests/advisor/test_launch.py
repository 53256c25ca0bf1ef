import dataclasses
import json
import os
import subprocess

import pytest
import yaml

from tunegate.advisor.constraints import from_mapping
from tunegate.advisor.launch import SKY_NAMES, task
from tunegate.advisor.recommend import recommend
from tunegate.core.errors import UserError

QUESTION = ("recommend", "--needs", "latency", "--examples", 5000)
SKYPILOT = "skypilot==0.14.1"


def test_sky_task(advise, tmp_path):
    out = tmp_path / "recommendation.yaml"
    assert advise(*QUESTION, "--out", out, "--launch", "sky")[0] == 0
    written = yaml.safe_load((tmp_path / "sky.yaml").read_text())
    name, count = written["resources"]["accelerators"].split(":")
    assert name in SKY_NAMES.values()
    assert int(count) >= 1
    assert written["resources"]["use_spot"] is True
    (kept,) = written["file_mounts"]
    # The script for real: the first time from the beginning, after a machine was taken away from the checkpoint.
    (tmp_path / "kept").mkdir()
    script = f"ft() {{ echo ft $@; }}\n{written['run']}".replace(kept, str(tmp_path / "kept"))
    first = f"ft train data/ --from recommendation.yaml --out {tmp_path}/kept/run"
    shell = ["bash", "-euo", "pipefail", "-c", script]
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout.strip() == first
    (tmp_path / "kept/.run.training").mkdir()
    assert subprocess.run(shell, capture_output=True, text=True, check=True).stdout.strip() == f"{first} --resume"
    advise(*QUESTION, "--out", out, "--launch", "sky:kubernetes")
    resources = yaml.safe_load((tmp_path / "sky.yaml").read_text())["resources"]
    assert (resources["infra"], resources["use_spot"]) == ("kubernetes", False)


@pytest.mark.parametrize(("method", "strategy"), [("full", "fsdp2"), ("qlora", "ddp")])
def test_several_gpus_are_one_process_each(method, strategy):
    answer = recommend(from_mapping({"examples": 5000, "needs": "format", "hardware": "L4"}))
    chosen = dataclasses.replace(
        answer.chosen, method=method, training=dataclasses.replace(answer.chosen.training, gpus=4)
    )
    run = task(dataclasses.replace(answer, chosen=chosen), "r.yaml")["run"]
    assert f"--launch accelerate --num-processes 4 --strategy {strategy} " in run


@pytest.mark.parametrize("kind", ["moon", "sky:", "sky:a b", "sky:-x", ""])
def test_a_launcher_that_is_none_writes_nothing(advise, tmp_path, kind):
    code, d, _ = advise(*QUESTION, "--out", tmp_path / "r.yaml", "--launch", kind, "--json")
    assert (code, d["error"]["where"]) == (2, "--launch")
    assert list(tmp_path.glob("*.yaml")) == []
    assert advise(*QUESTION, "--launch", "sky")[0] == 2


def test_nothing_to_launch_is_said():
    with pytest.raises(UserError, match="trains nothing"):
        task(recommend(from_mapping({})), "r.yaml")
    with pytest.raises(UserError, match="not rented"):
        task(recommend(from_mapping({"examples": 5000, "needs": "format", "hardware": "V100"})), "r.yaml")


PARSE = """
import json, sys, sky
found = []
for path in sys.argv[1:]:
    try:
        t = sky.Task.from_yaml(path)
        r = next(iter(t.resources))
        found.append({"accelerators": r.accelerators, "spot": r.use_spot, "run": t.run, "infra": r.infra.to_str(), "store": len(t.storage_mounts)})
    except Exception as error:
        found.append({"error": str(error)})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_skypilots_own_parser_takes_it(advise, tmp_path, tmp_path_factory):
    """In an environment of its own (uv, 0.3 GB); the parser also refuses what it should, so that it was asked at all."""
    from uv import find_uv_bin

    place = tmp_path_factory.mktemp("sky")
    env = {
        **os.environ,
        "VIRTUAL_ENV": str(place / "env"),
        "HOME": str(place),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }
    made = subprocess.run([find_uv_bin(), "venv", "-q", str(place / "env")], env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    done = subprocess.run([find_uv_bin(), "pip", "install", "-q", SKYPILOT], env=env, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"SkyPilot cannot be installed here: {done.stderr.splitlines()[-1]}")
    files = []
    for kind in ("sky", "sky:kubernetes", "sky:aws/us-east-1"):
        assert advise(*QUESTION, "--out", tmp_path / "recommendation.yaml", "--launch", kind)[0] == 0
        files.append(tmp_path / f"{len(files)}.yaml")
        (tmp_path / "sky.yaml").rename(files[-1])
    broken = tmp_path / "broken.yaml"
    broken.write_text(files[0].read_text().replace("accelerators", "acelerators"))
    answer = subprocess.run(
        [place / "env/bin/python", "-c", PARSE, *files, broken], env=env, capture_output=True, text=True, check=True
    )
    plain, cluster, cloud, refused = json.loads(answer.stdout.splitlines()[-1])
    ((name, count),) = plain["accelerators"].items()
    assert name in SKY_NAMES.values()
    assert count == 1
    assert "ft train data/ --from recommendation.yaml" in plain["run"]
    assert (plain["spot"], cluster["spot"], cloud["spot"]) == (True, False, True)
    assert "kubernetes" in str(cluster["infra"])
    assert "aws" in str(cloud["infra"])
    assert plain["store"] == 1
    assert "did you mean 'accelerators'" in refused["error"]
