"""Adapters on one base: which are served together, under which names, and which are refused."""

import json
import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Release, Run
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.serve import vllm_flags
from tunegate.serve.served_model import Adapter, template_digest
from tunegate.serve.vllm_flags import ServeOptions, build


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(vllm_flags, "gpus", lambda: ())


@pytest.fixture
def make(tiny_model, tmp_path):
    """A run (or release) that holds an adapter of this rank on this base, with a template digest."""

    def make(name, *, rank=8, base=None, digest="d", kind="run", **config):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"r": rank, **config}))
        (folder / "chat_template.jinja").write_text("x")
        facts = {"method": "lora", "base": str(base or tiny_model), "template_digest": digest, "quantization": "none"}
        manifest.write(folder, kind, inputs=[], config={}, facts=facts)
        return (Run if kind == "run" else Release).open(folder)

    return make


def values(launch, flag):
    """The words after a flag, up to the next flag."""
    words = launch.arguments[launch.arguments.index(flag) + 1 :]
    return words[: next((i for i, w in enumerate(words) if w.startswith("--")), len(words))]


def launch_of(target, *adapters):
    return build(target, ServeOptions(adapters=tuple(Adapter(name=n, artifact=a) for n, a in adapters)))


def test_several_adapters_on_the_base_of_a_run(make):
    one, two = make("one", rank=8), make("two", rank=40)
    launch = launch_of(one, ("b", two))
    assert values(launch, "--lora-modules") == [f"one={one.path.resolve()}", f"b={two.path.resolve()}"]
    assert values(launch, "--served-model-name") == ["one-base"]
    assert values(launch, "--max-loras") == ["2"]
    assert values(launch, "--max-lora-rank") == ["64"], "the largest, rounded up to a kernel's"
    assert (launch.model, launch.adapters) == ("one", ("b",))
    assert values(launch, "--max-num-batched-tokens") == ["256"], "short steps: adapters are slow on a CPU"
    own = build(one, ServeOptions(extra=("--max-num-batched-tokens", "512")))
    assert values(own, "--max-num-batched-tokens") == ["512"]


def test_adapters_on_a_plain_model_that_is_served_under_its_own_name(make, tiny_model):
    model = resolve(str(tiny_model))
    run = make("one", digest=template_digest(model))
    launch = launch_of(model, ("support", run))
    assert values(launch, "--served-model-name") == ["tiny"]
    assert values(launch, "--lora-modules") == [f"support={run.path.resolve()}"]
    assert (launch.model, launch.adapters) == ("tiny", ("support",))


def test_a_release_that_keeps_its_adapter_is_served_as_base_and_adapter(make, tiny_model):
    release = make("kept", kind="release")
    launch = launch_of(release)
    assert values(launch, "--model") == [str(tiny_model.resolve())]
    assert values(launch, "--lora-modules") == [f"kept={release.path.resolve()}"]
    assert values(launch, "--chat-template") == [str(release.path.resolve() / "chat_template.jinja")]
    assert launch.model == "kept"


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ({"digest": "other"}, "was trained with another chat template"),
        ({"use_dora": True}, "does not serve adapters with DoRA"),
        ({"rank": 600}, "up to rank 512, this one has 600"),
        ({"rank_pattern": {"q_proj": 700}}, "up to rank 512, this one has 700"),
        ({"modules_to_save": ["embed_tokens"]}, "modules_to_save"),
    ],
)
def test_an_adapter_that_cannot_be_served_here(make, second, says):
    one, two = make("one"), make("two", **second)
    with pytest.raises(UserError, match=says) as caught:
        launch_of(one, ("two", two))
    assert str(two.path.resolve()) in caught.value.where
    assert "merge" in caught.value.hint


def test_an_adapter_of_another_base_is_refused_unless_it_is_the_same_bytes(make, makers, tiny_model, tmp_path):
    other = makers.model(tmp_path / "other", seed=1)
    one, two = make("one"), make("two", base=other)
    with pytest.raises(UserError, match=r"was made on .*other, not on what run one") as caught:
        launch_of(one, ("two", two))
    assert caught.value.hint.startswith(f"ft serve {other} --adapter two=")
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    assert launch_of(one, ("three", make("three", base=copy))).adapters == ("three",)


def test_a_rank_passed_on_that_is_too_small(make):
    one = make("one", rank=16)
    with pytest.raises(UserError, match="--max-lora-rank 8, but the adapters need 16"):
        build(one, ServeOptions(extra=("--max-lora-rank", "8")))
    build(one, ServeOptions(extra=("--max-lora-rank", "64")))


def test_names_are_unique_and_an_adapter_is_one(make, tiny_model, tmp_path):
    one, two = make("one"), make("two")
    with pytest.raises(UserError, match="two models are called 'one'"):
        launch_of(one, ("one", two))
    with pytest.raises(UserError, match="two models are called 'x'"):
        launch_of(one, ("x", two), ("x", two))
    (two.path / "adapter_config.json").unlink()
    with pytest.raises(UserError, match="not an adapter"):
        launch_of(one, ("two", two))
