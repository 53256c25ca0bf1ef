"""The prompt's tokens at the server are those that were trained on, and what is learnt ends a generation."""

import dataclasses
import json
import shutil

import pytest

from tunegate.core.chat_template import template_digest
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.model_source import of_folder, resolve
from tunegate.train import sft, template_check
from tunegate.train.cli import app
from tunegate.train.config import TrainConfig
from tunegate.train.model_loading import load_tokenizer


@pytest.fixture
def ready(tiny_model, tiny_dataset):
    return sft.prepare(tiny_dataset, resolve(str(tiny_model)), TrainConfig(model=str(tiny_model)))


def test_a_dry_run_says_what_was_found_equal(tiny_model, tiny_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [str(tiny_dataset.path), "--out", "run", "--model", str(tiny_model), "--dry-run", "--json"]
    assert run(app, prog="ft train", argv=argv) == 0
    found = json.loads(capsys.readouterr().out)["template"]
    assert (found["rows"], found["stops"], found["learnt"]) == (24, ["<|im_end|>"], ["<|im_end|>"])
    assert len(found["digest"]) == 64


def test_other_tokens_in_training_than_at_the_server_are_refused_with_the_row(ready, tiny_model):
    first = ready.kept[0]
    shifted = dataclasses.replace(first, input_ids=[7, *first.input_ids], labels=[-100, *first.labels])
    changed = dataclasses.replace(ready, training=[shifted, *ready.kept[1:]])
    with pytest.raises(UserError, match=f"row {first.id}: the server would make other tokens") as caught:
        template_check.check(changed, resolve(str(tiny_model)))
    assert caught.value.where.endswith("train.jsonl:1")


def test_a_tokenizer_that_changes_when_it_is_saved_is_refused(ready, tiny_model, monkeypatch):
    load = template_check.load_tokenizer

    def other(source):
        found = load(source)
        found.chat_template = found.chat_template.replace("assistant", "model")
        return found

    monkeypatch.setattr(template_check, "load_tokenizer", other)
    with pytest.raises(UserError, match="another one after the tokenizer is saved"):
        template_check.check(ready, resolve(str(tiny_model)))


def test_an_answer_that_ends_with_no_stop_token_is_refused(ready, tiny_model):
    first = ready.kept[0]
    cut = dataclasses.replace(first, labels=[*first.labels[:-2], -100, -100])
    with pytest.raises(UserError, match="stops no generation"):
        template_check.check(dataclasses.replace(ready, training=[cut, *ready.kept[1:]]), resolve(str(tiny_model)))


def test_a_base_with_several_templates_is_trained_on_its_default(tiny_model, tiny_dataset, tmp_path, capsys):
    """transformers makes a dict of them, which was refused as no template."""
    model = shutil.copytree(tiny_model, tmp_path / "m")
    text = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").unlink()
    settings = json.loads((model / "tokenizer_config.json").read_text())
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": text}]
    (model / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": named}))
    tokenizer = load_tokenizer(of_folder(model))
    assert tokenizer.chat_template == text
    assert template_digest(tokenizer) == template_digest(load_tokenizer(of_folder(tiny_model)))
    words = [tiny_dataset.path, "--model", model, "--out", tmp_path / "run", "--dry-run", "--json"]
    assert run(app, prog="ft train", argv=[str(word) for word in words]) == 0
    assert json.loads(capsys.readouterr().out)["mask"]["rows"] == 23
