"""Code in a model's folder never runs, and nobody is asked whether it may: a `yes |` before the command would say so."""

import io
import json
import shutil

import pytest

from tunegate.core import embedding
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.model_source import of_folder
from tunegate.train.cli import app
from tunegate.train.config import TrainConfig
from tunegate.train.model_loading import load_base, load_tokenizer
from tunegate.train.sft import _attention

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
Path(__file__).with_name("ran").touch()
Path({mark!r}).touch()
class Config(LlamaConfig): model_type = "own"
class Model(LlamaForCausalLM): config_class = Config
class Words(PreTrainedTokenizerFast): pass
"""


@pytest.fixture
def own_code(tiny_model, tmp_path, monkeypatch):
    """A model folder that wants to run code, and standard input that agrees: (folder, the file that the code would make)."""
    folder, mark = shutil.copytree(tiny_model, tmp_path / "own"), tmp_path / "ran"
    (folder / "code.py").write_text(CODE.format(mark=str(mark)))
    shape = json.loads((folder / "config.json").read_text())
    autos = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model", "AutoModel": "code.Model"}
    (folder / "config.json").write_text(json.dumps({**shape, "model_type": "own", "auto_map": autos}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    words = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": [None, "code.Words"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **words}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    return folder, mark


def test_code_of_a_model_folder_is_never_asked_about_nor_run(own_code, tiny_dataset, tmp_path, capsys):
    folder, mark = own_code
    source, config = of_folder(folder), TrainConfig(model=str(folder), device="cpu")
    for load in (
        lambda: load_tokenizer(source),
        lambda: load_base(source, config, "cpu"),
        lambda: _attention(source, config, "cpu"),
        lambda: embedding.load(str(folder)),
    ):
        with pytest.raises(UserError, match="custom code") as caught:
            load()
        assert "never run" in caught.value.hint or "needs no network" in caught.value.hint
        assert "\n" not in caught.value.message
    arguments = [tiny_dataset.path, "--model", folder, "--out", tmp_path / "run", "--max-steps", 1]
    assert run(app, prog="ft train", argv=[str(word) for word in arguments]) == 2
    said = "".join(capsys.readouterr())
    assert "y/N" not in said
    assert not mark.exists()
    assert not (tmp_path / "run").exists()
