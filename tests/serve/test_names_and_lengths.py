"""Folder names that vLLM's command line takes for something else, and the context that a config really means."""

import json
import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Run
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.serve import vllm_flags
from tunegate.serve.served_model import Adapter, model_flags
from tunegate.serve.vllm_flags import ServeOptions, build, own_length


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr(vllm_flags, "gpus", lambda: ())


@pytest.fixture
def run_called(tiny_model, tmp_path):
    """run_called(name): an adapter run in a folder of that name."""

    def make(name):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(json.dumps({"r": 16}))
        manifest.write(folder, "run", inputs=[], config={}, facts={"method": "lora", "base": str(tiny_model)})
        return Run.open(folder)

    return make


def module_of(flags):
    return flags[flags.index("--lora-modules") + 1]


@pytest.mark.parametrize("name", ["lr=1e-4,r=16", "lr=1e-4", "a,b", "a,b/run"])
def test_an_adapter_whose_name_or_folder_has_a_sign_of_the_form_is_passed_as_json(run_called, name):
    """vLLM takes the first `=` for the end of the name, and a comma for JSON."""
    run = run_called(name)
    launch = build(run, ServeOptions())
    assert json.loads(module_of(launch.arguments)) == {"name": run.path.name, "path": str(run.path.resolve())}


def test_an_adapters_name_that_is_a_flag_is_passed_as_json(run_called):
    adapter = Adapter(name="-rel", artifact=run_called("plain"))
    assert json.loads(module_of(model_flags(adapter.artifact, (adapter,))[0]))["name"] == "-rel"


def test_a_folder_whose_name_is_a_flag_is_refused_unless_it_gets_another(run_called, tiny_model, tmp_path):
    for target in (run_called("-run"), resolve(str(shutil.copytree(tiny_model, tmp_path / "-rel")))):
        with pytest.raises(UserError, match=r"'-r\w+' cannot be a model's name") as caught:
            build(target, ServeOptions())
        assert "--name" in caught.value.hint
        assert build(target, ServeOptions(name="fine")).model == "fine"


SCALED = {"type": "linear", "factor": 4.0}


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({}, 2048),
        ({"rope_scaling": None}, 2048),
        ({"rope_scaling": SCALED}, 8192),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 4096),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 8192),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 2048),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding_attention": {"rope_type": "default"}}}, 16384),
        ({"rope_scaling": {"rope_type": "linear", "factor": None}}, 2048),
        *(({"rope_scaling": {"rope_type": kind, "factor": 4.0}}, 2048) for kind in ("llama3", "longrope", "su", "yarn", "deepseek_yarn", "deepseek_llama_scaling")),
        ({"model_type": "gemma3_text", "rope_scaling": SCALED}, 2048),
        ({"max_position_embeddings": None, "text_config": {"max_position_embeddings": 512, "rope_scaling": SCALED}}, 2048),
        ({"max_position_embeddings": None}, None),
    ],
)  # fmt: skip
def test_the_context_is_the_positions_times_the_factor_where_they_do_not_hold_it(config, length):
    assert own_length({"max_position_embeddings": 2048, **config}) == length


def test_a_scaled_model_is_served_at_its_scaled_length(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "linear")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "rope_scaling": SCALED}))
    arguments = build(resolve(str(model)), ServeOptions(max_model_len=2000)).arguments
    assert arguments[arguments.index("--max-model-len") + 1] == "2000", "the tiny model has 512 positions"


@pytest.mark.slow
def test_vllm_itself_takes_these_lengths(tiny_model, tmp_path):
    """vLLM's own rule, read from its code, on a real config of each kind."""
    from vllm.engine.arg_utils import EngineArgs

    config = json.loads((tiny_model / "config.json").read_text())
    for kind, factor in (("linear", 4.0), ("dynamic", 2.0), ("yarn", 4.0)):
        model = shutil.copytree(tiny_model, tmp_path / kind)
        scaled = {**config, "rope_parameters": {"rope_type": kind, "factor": factor, "rope_theta": 1e4,
                                                "original_max_position_embeddings": 512}}  # fmt: skip
        (model / "config.json").write_text(json.dumps(scaled))
        assert EngineArgs(model=str(model)).create_model_config().max_model_len == own_length(scaled), kind
