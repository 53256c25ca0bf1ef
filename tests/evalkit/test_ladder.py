"""The ladder on a stand-in endpoint: a drop is given to the step that made it; interrupted, it goes on; the page says the same."""

import json
import re
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import GgufExport, Release, Run
from tunegate.core.commands import run
from tunegate.core.errors import InfrastructureError, UserError
from tunegate.core.manifest import Input
from tunegate.core.model_source import resolve
from tunegate.core.statistics import mcnemar_better_p
from tunegate.evalkit import evaluate as evaluating
from tunegate.evalkit import ladder as ladders
from tunegate.evalkit.ladder_cli import app
from tunegate.evalkit.system import Target
from tunegate.evalkit.task import load_task


def made(cls, folder, inputs, **facts):
    folder.mkdir()
    (folder / "weights").write_text(folder.name)
    manifest.write(
        folder,
        cls.kind,
        inputs=inputs,
        config={},
        facts={"base": "base", "method": "lora", "template_digest": "t", **facts},
    )
    return cls.open(folder)


@pytest.fixture
def chain(echo):
    """base -> run -> release -> awq (and a GGUF of the release), each a folder in the working directory."""
    (echo / "base").mkdir()
    (echo / "base" / "config.json").write_text("{}")
    base = replace(resolve("./base").as_input(), path="./base")
    data = Input(role="dataset", kind="dataset", path="data", digest="d" * 64)
    trained = made(Run, echo / "run", [data, base])
    release = made(Release, echo / "release", [replace(trained.as_input("run"), path="run")], quantization="none")
    awq = made(Release, echo / "awq", [replace(release.as_input("release"), path="release")], quantization="awq")
    gguf = made(GgufExport, echo / "gguf", [release.as_input("release")], quantization="gguf q4_k_m", file="weights")
    return {"run": trained, "release": release, "awq": awq, "gguf": gguf}


@pytest.fixture
def answers(standin, monkeypatch):
    """`right[step]`: how many of the 60 items that step answers right. A step in `broken` does not start."""
    right, broken, served = {"base": 10, "run": 50, "release": 49, "awq": 25, "gguf": 48}, set(), []

    @contextmanager
    def pretend(system, *, key, log, tools):
        name = system.spec.rstrip("/").rpartition("/")[2]
        served.append(name)
        if name in broken:
            raise InfrastructureError("the engine did not start")
        standin.answer = lambda question, _: (200, question if int(question[1:]) < right[name] else "no")
        yield Target(base_url=standin.url, model="m", facts={"template_digest": "t"})

    monkeypatch.setattr(evaluating, "served", pretend)

    @contextmanager
    def llama(export):
        yield f"http://there/{export.path.name}"

    monkeypatch.setattr("tunegate.train.release.llama_cpp.serving", llama)
    return {"right": right, "broken": broken, "served": served}


@pytest.fixture
def ft(capsys):
    def call(*arguments):
        capsys.readouterr()
        code = run(app, prog="ft ladder", argv=[str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(code), json.loads(out) if "--json" in arguments else out, err

    return call


def test_each_change_has_its_cause_its_interval_and_its_test(chain, answers, ft, echo):
    code, found, err = ft("awq", "--task", "task.yaml", "--out", "ladder", "--gguf", "gguf", "--json")
    assert code == 0, err
    assert [(s["name"], round(s["value"] * 60)) for s in found["steps"]] == [
        ("base", 10),
        ("adapter", 50),
        ("merged", 49),
        ("quantized", 25),
        ("gguf", 48),
    ]
    changes = {c["cause"]: c for c in found["changes"]}
    assert list(changes) == ["training", "merge", "quantization", "GGUF and llama.cpp"]
    assert {cause: (c["fixed"], c["broken"], c["verdict"]) for cause, c in changes.items()} == {
        "training": (40, 0, "gain"), "merge": (0, 1, "none shown"), "quantization": (0, 24, "drop"), "GGUF and llama.cpp": (0, 1, "none shown"),
    }  # fmt: skip
    quantization = changes["quantization"]
    assert quantization["difference"] == pytest.approx(-24 / 60)
    assert quantization["low"] < -24 / 60 < quantization["high"] < 0
    assert quantization["mcnemar_p"] == pytest.approx(2 * mcnemar_better_p(24, 0))
    assert quantization["p_holm"] == pytest.approx(3 * quantization["mcnemar_p"])
    assert (changes["GGUF and llama.cpp"]["from"], found["largest_drop"]) == ("merged", "quantization")
    assert (found["total"]["from"], found["total"]["to"], found["total"]["fixed"]) == ("base", "quantized", 15)
    assert [f["id"] for f in quantization["flips"]][:2] == ["i25", "i26"]
    assert answers["served"] == ["base", "run", "release", "awq", "gguf"]
    assert manifest.verify(echo / "ladder") == []
    assert manifest.inner_artifacts(echo / "ladder") == ["1-base", "2-adapter", "3-merged", "4-quantized", "5-gguf"]
    inputs = {i.role: i.digest for i in manifest.read(echo / "ladder").inputs}
    assert inputs["quantized"] == chain["awq"].digest


def test_the_table_and_the_page(chain, answers, ft, echo):
    code, text, _ = ft("awq", "--task", "task.yaml", "--out", "ladder")
    assert code == 0
    assert "largest drop that is shown: quantization" in text
    assert re.search(r"60 items show a drop of about 0\.\d\d or more", text)
    assert re.search(r"quantized\s*│ 0\.417 .*-0\.400 .* 0/24 │ .* drop │ quantization", text)
    page = (echo / "ladder" / "ladder.html").read_text()
    assert page.count("<circle") == 4
    assert "due to <strong class=drop>quantization</strong>" in page
    assert "http" not in page.replace("http-equiv", ""), "nothing is loaded from elsewhere"
    code, _, err = ft("awq", "--task", "task.yaml", "--out", "ladder")
    assert (code, "a finished ladder stands here" in err) == (2, True)


def test_an_interrupted_ladder_goes_on_where_it_stopped(chain, answers, ft, echo, standin):
    answers["broken"].add("awq")
    code, _, err = ft("awq", "--task", "task.yaml", "--out", "ladder")
    assert (code, "the engine did not start" in err) == (4, True)
    assert not (echo / "ladder" / "manifest.json").exists()
    assert sum(standin.asked.values()) == 180
    answers["broken"].clear()
    code, found, err = ft("awq", "--task", "task.yaml", "--out", "ladder", "--json")
    assert code == 0
    assert sum(standin.asked.values()) == 240, "only the step that was missing is asked"
    assert err.count("stands already") == 3
    assert found["largest_drop"] == "quantization"


def test_a_step_of_another_task_or_other_bytes_is_judged_again(chain, answers, ft, echo):
    assert ft("release", "--task", "task.yaml", "--out", "ladder", "--limit", "20")[0] == 0
    (echo / "ladder" / "manifest.json").unlink()
    code, found, err = ft("release", "--task", "task.yaml", "--out", "ladder", "--json")
    assert (code, found["task"]["n"], err.count("judged again")) == (0, 60, 3)
    assert answers["served"] == ["base", "run", "release"] * 2


def test_what_is_gone_is_left_out_and_said(chain, answers, ft, echo):
    (echo / "run").rename(echo / "elsewhere")
    code, found, err = ft("awq", "--task", "task.yaml", "--out", "ladder", "--json")
    assert code == 0
    assert "left out: the run run" in err
    assert [(c["from"], c["to"]) for c in found["changes"]] == [("base", "merged"), ("merged", "quantized")]
    (echo / "base" / "config.json").write_text("{ }")
    (echo / "release").rename(echo / "elsewhere-too")
    code, _, err = ft("awq", "--task", "task.yaml", "--out", "other")
    assert code == 2
    assert "no step before this release is left" in err
    assert not (echo / "other").exists()


def test_full_tuning_and_a_foreign_gguf(chain, echo):
    base = chain["run"].manifest.inputs[1]
    full = made(Run, echo / "full", [base], method="full")
    release = made(Release, echo / "full-release", [replace(full.as_input("run"), path="full")], quantization="none")
    assert [s.name for s in ladders.steps_of(release, None)] == ["base", "trained", "merged"]
    with pytest.raises(UserError, match="not made from this release's merged weights"):
        ladders.steps_of(release, chain["gguf"])


def test_other_prompt_tokens_are_named_and_not_refused(chain, answers, ft, echo):
    assert ft("release", "--task", "task.yaml", "--out", "ladder")[0] == 0
    task = load_task(echo / "task.yaml")
    steps = ladders.steps_of(Release.open(echo / "release"), None)
    readings = ladders.climb(steps, task, echo / "ladder", options=evaluating.RunOptions())
    told = [
        (step, replace(reading, report={**reading.report, "prompt_ids_digest": digest}))
        for (step, reading), digest in zip(readings, "aab", strict=True)
    ]
    document = ladders.result_of(told, task)
    assert [c["same_prompt_tokens"] for c in document["changes"]] == [True, False]
    from tunegate.evalkit.render import ladder_page

    assert "DIFFER" in ladder_page.render(document)
    hostile = {**document, "task": {**document["task"], "name": "<script>alert(1)</script>"}}
    assert "<script>" not in ladder_page.render(hostile)


def test_a_step_without_any_answer_ends_it_and_is_asked_again(chain, answers, standin, ft, echo, monkeypatch):
    pretend = evaluating.served

    @contextmanager
    def deaf(system, *, key, log, tools):
        with pretend(system, key=key, log=log, tools=tools) as target:
            if system.spec.endswith("awq"):
                standin.answer = lambda question, _: (400, "")
            yield target

    monkeypatch.setattr(evaluating, "served", deaf)
    code, _, err = ft("awq", "--task", "task.yaml", "--out", "ladder")
    assert (code, "step quantized: no item was answered" in err) == (4, True), err
    monkeypatch.setattr(evaluating, "served", pretend)
    code, found, err = ft("awq", "--task", "task.yaml", "--out", "ladder", "--json")
    assert (code, found["steps"][-1]["value"]) == (0, pytest.approx(25 / 60)), err


def test_steps_of_other_prompts_are_judged_again(chain, answers, ft, echo):
    shot = {"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]}
    (echo / "shots.jsonl").write_text(json.dumps(shot))
    (echo / "task.yaml").write_text((echo / "task.yaml").read_text() + "few_shot: {file: shots.jsonl}\n")
    assert ft("release", "--task", "task.yaml", "--out", "ladder")[0] == 0
    assert ft("release", "--task", "task.yaml", "--out", "ladder", "--force")[0] == 0
    assert answers["served"] == ["base", "run", "release"]
    (echo / "shots.jsonl").write_text(json.dumps(shot).replace("two", "three"))  # the same path
    assert ft("release", "--task", "task.yaml", "--out", "ladder", "--force")[0] == 0
    assert answers["served"] == ["base", "run", "release"] * 2


def test_a_base_of_the_hub_whose_card_changed_is_still_a_step(chain, echo, monkeypatch, capsys):
    snapshots = echo / "hub" / "models--team--base" / "snapshots"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(echo / "hub"))
    for revision in "ab":
        (snapshots / (revision * 40)).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (snapshots / (revision * 40) / name).write_text('{"model_type": "llama"}')
    refs = echo / "hub" / "models--team--base" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    base = resolve("team/base", offline=True).as_input()
    release = made(Release, echo / "of-the-hub", [base], quantization="none")
    (refs / "main").write_text("b" * 40)

    def revision():
        return ladders.steps_of(release, None)[0].system.source.revision[0]

    assert revision() == "b", "the same files"
    (snapshots / ("b" * 40) / "model.safetensors").unlink()
    assert revision() == "a", "of those of `main` nothing is known"
    (snapshots / ("b" * 40) / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(UserError, match="no step before this release is left"):
        ladders.steps_of(release, None)
    assert "left out: the base model team/base is not the one" in capsys.readouterr().err
