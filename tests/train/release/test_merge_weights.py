"""The merge reads the weights that training read, in the precision that training had."""

import json
import multiprocessing
import shutil
import time

import pytest

from tests.train.release.conftest import make_run
from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.errors import UserError
from tunegate.core.model_source import ModelSource, resolve
from tunegate.train.release import environments, llama_cpp, merge_adapter, merge_base, tensor_files
from tunegate.train.release.merge import merge
from tunegate.train.release.tensor_files import TensorFiles

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::UserWarning:peft")]
NORM = "model.layers.0.input_layernorm.weight"


def other_weights(base, name):
    """The base's tensors, each other than it was, in a file of another name beside them."""
    from safetensors.torch import load_file, save_file

    tensors = {key: value + 1 for key, value in load_file(base / "model.safetensors").items()}
    save_file(tensors, base / name, metadata={"format": "pt"})
    return tensors


def index(base, tensors, name):
    places = dict.fromkeys(tensors, name)
    (base / tensor_files.INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def is_loaded(base):
    """Whether our reader gives what transformers loads from there."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(base).state_dict()[NORM]
    return torch.equal(TensorFiles(base).read(NORM), loaded)


def test_a_second_set_of_weights_beside_the_models_is_not_read(own_base, tmp_path):
    """An EMA copy beside `model.safetensors` won, being the last by name; so did an index of older shards."""
    import torch

    other_weights(own_base, "model_ema.safetensors")
    assert is_loaded(own_base)
    index(own_base, other_weights(own_base, "model-00001-of-00001.safetensors"), "model-00001-of-00001.safetensors")
    assert is_loaded(own_base)
    run = make_run(own_base, tmp_path / "run", target_modules=["q_proj"])
    release = merge(run, resolve(str(own_base)), tmp_path / "release", force=False)
    assert torch.equal(TensorFiles(release.path).read(NORM), TensorFiles(own_base).read(NORM).bfloat16())
    (own_base / "model.safetensors").unlink()
    assert is_loaded(own_base), "now it is the index's"
    (own_base / tensor_files.INDEX).unlink()
    with pytest.raises(UserError, match=r"no index: model-00001-of-00001\.safetensors, model_ema\.safetensors"):
        TensorFiles(own_base)
    (own_base / "model_ema.safetensors").unlink()
    assert NORM in TensorFiles(own_base).specs, "the only one"


@pytest.mark.parametrize("shape", ["whole", "shards", "own name"])
def test_of_a_hub_id_the_same_weights_are_fetched(own_base, tmp_path, monkeypatch, shape):
    """The hub's client itself is stood in for: it copies what the patterns ask for."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    if shape != "own name":
        tensors = other_weights(own_base, "model-00001-of-00001.safetensors")
        index(own_base, tensors, "model-00001-of-00001.safetensors")
        other_weights(own_base, "model_ema.safetensors")
    if shape == "shards":
        (own_base / "model.safetensors").unlink()
    elif shape == "own name":
        (own_base / "model.safetensors").rename(own_base / "weights.safetensors")
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(name, *, revision, allow_patterns):
        for file in filter_repo_objects([p.name for p in own_base.iterdir()], allow_patterns=allow_patterns):
            shutil.copy(own_base / file, cache / file)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    place = merge_base.folder_of(ModelSource("owner/name", "hub", "owner/name", "owner/name", None, "1"))
    found = sorted(path.name for path in place.glob("*.safetensors"))
    file = {"whole": "model", "shards": "model-00001-of-00001", "own name": "weights"}[shape]
    assert found == [f"{file}.safetensors"]
    assert NORM in TensorFiles(place).specs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_was_trained_in_fp32_is_rounded_once(tiny_model, tmp_path, dtype):
    """The base was rounded before the update was added, and after."""
    import torch

    made = make_run(tiny_model, tmp_path / "run", size=0.01, target_modules=["q_proj"])
    (made.path / "manifest.json").unlink()
    manifest.write(
        made.path, "run", inputs=list(made.manifest.inputs), config={"dtype": dtype}, facts=made.manifest.facts
    )
    release = merge(Run.open(made.path), resolve(str(tiny_model)), tmp_path / "release", force=False)
    name = "model.layers.0.self_attn.q_proj.weight"
    files = TensorFiles(tiny_model)
    weight = files.read(name)
    assert weight.dtype == torch.float32
    adapter = merge_adapter.read(made.path, files.specs)
    before = weight if dtype == "float32" else weight.bfloat16()
    assert torch.equal(TensorFiles(release.path).read(name), adapter.apply(name, before).bfloat16())
    assert not torch.equal(adapter.apply(name, weight).bfloat16(), adapter.apply(name, weight.bfloat16()).bfloat16())
    assert release.manifest.facts["merge"]["unchanged_share"] < 0.9


def test_dora_on_an_embedding_is_refused_for_what_it_is(adapter_run, tmp_path):
    run = adapter_run("run", use_dora=True, target_modules=["embed_tokens", "q_proj"])
    with pytest.raises(UserError, match=r"uses DoRA on the embedding model\.embed_tokens, which is not merged"):
        merge(run, resolve(run.base), tmp_path / "release", force=False)
    assert not (tmp_path / "release").exists()


def _ensure(cache, number, results):
    """A process that needs llama.cpp in its environment; uv and the compiler are stood in for, and say who worked."""
    import os

    os.environ["TUNEGATE_CACHE"] = str(cache)

    def uv(arguments, links=""):
        place = environments.folder("gguf")
        if arguments[0] == "venv":
            (place / "bin").mkdir(parents=True)
            (place / "bin" / "python").write_text(str(number))
        else:
            time.sleep(0.5)
            (place / "lib").mkdir()
            (place / "lib" / str(number)).write_text("")

    def wheel(_python):
        time.sleep(0.3)
        (cache / "wheel" / "converter").mkdir(parents=True)
        return cache / "wheel" / "llama.whl"

    environments._uv, llama_cpp._uv, llama_cpp._wheel = uv, lambda *_: None, wheel
    python = llama_cpp.ensure().python
    results.put((python.read_text(), sorted(p.name for p in (python.parents[1] / "lib").iterdir())))


def test_two_processes_make_one_environment(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_ensure, args=(tmp_path, number, results)) for number in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert all(one == found[0] for one in found)
    assert found[0][1] == [found[0][0]], "made by one of them alone"
