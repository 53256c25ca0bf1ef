"""A run's adapter folded into the tiny model: the release answers as adapter-on-base did, and says from what it is made."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tunegate.core import manifest
from tunegate.core.artifacts import Dataset, Release, Run
from tunegate.core.errors import InfrastructureError, TunegateError, UserError
from tunegate.core.model_source import resolve
from tunegate.train import sft
from tunegate.train.config import resolve as resolve_config
from tunegate.train.examples import Example
from tunegate.train.release import card, export_gguf, merge_proof, prove, quantize, quantize_worker, tensor_files
from tunegate.train.release.merge import merge

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Made:
    """A base of its own, a dataset of its own, and the run made from them."""

    base: Path
    dataset: Dataset
    run: Run


def train(base, dataset, out, **changes):
    settings = {"model": str(base), "max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1,
                "save_steps": 0, "learning_rate": 5e-3, "rank": 4, "alpha": 8, **changes}  # fmt: skip
    config = resolve_config([("test", settings)])[0]
    return sft.train(dataset, resolve(str(base)), config, out, resume=False, force=False)


@pytest.fixture(scope="module")
def made(tiny_model, tiny_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("merge")
    base = shutil.copytree(tiny_model, folder / "base")
    dataset = Dataset.open(shutil.copytree(tiny_dataset.path, folder / "data"))
    return Made(base, dataset, train(base, dataset, folder / "run"))


@pytest.fixture(scope="module")
def release(made, tmp_path_factory):
    return merge(made.run, resolve(str(made.base)), tmp_path_factory.mktemp("release") / "release", force=False)


def logits(model, ids):
    import torch

    with torch.no_grad():
        return model.float().eval()(torch.tensor([ids])).logits[0]


def test_the_release_answers_as_the_adapter_on_its_base(made, release):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = release.manifest.facts
    assert facts["merge"]["mean_logit_difference"] < 0.02
    assert facts["merge"]["prompts"] == 4
    base = AutoModelForCausalLM.from_pretrained(made.base)
    ids = AutoTokenizer.from_pretrained(release.path)("What is 7 plus 7?")["input_ids"]
    plain = logits(base, ids).clone()
    adapted = logits(PeftModel.from_pretrained(base, made.run.path), ids)
    merged = logits(AutoModelForCausalLM.from_pretrained(release.path), ids)
    assert float((adapted - merged).abs().max()) < 0.05
    assert float((adapted - plain).abs().max()) > 0.1, "the adapter does something"


def test_what_stands_in_the_release(made, release):
    import torch
    from safetensors.torch import load_file

    assert manifest.verify(release.path) == []
    names = {p.name for p in release.path.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "chat_template.jinja",
        "release.yaml",
        "README.md",
    } <= names
    assert not [n for n in names if n.startswith("adapter")]
    weights = load_file(release.path / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in weights, "tied to the embedding, as in the base"
    document = yaml.safe_load((release.path / "release.yaml").read_text())
    assert document["run_digest"] == made.run.digest
    assert document["quantization"] == "none"
    kinds = [row["kind"] for row in manifest.lineage(release.manifest.inputs)]
    assert kinds == ["run", "dataset", "model"]
    assert (release.path / "chat_template.jinja").read_text() == (made.base / "chat_template.jinja").read_text()


def front(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def test_r16_the_cards_fields_are_the_manifests(made, release, tmp_path):
    """R16: no placeholder, no misspelt key, no base that only this machine has."""
    facts = release.manifest.facts
    found = front(release.path)
    assert "base_model" not in found, "a local folder is no model of the hub"
    assert "license" not in found, "none is known"
    assert found["tags"] == ["tunegate", "lora"]
    assert str(made.base) not in (release.path / "README.md").read_text()
    folder = tmp_path / "card"
    folder.mkdir()
    known = {**facts, "base_name": "meta-llama/Llama-3.2-1B", "license": "llama3.2"}
    card.write(folder, known, name="Llama-slots")
    assert front(folder) == {
        "base_model": "meta-llama/Llama-3.2-1B", "base_model_relation": "finetune", "license": "llama3.2",
        "library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["tunegate", "lora"],
    }  # fmt: skip
    assert "Built with Llama." in (folder / "README.md").read_text()
    assert "Llama 3.2 is licensed under" in (folder / "NOTICE").read_text()
    for more, relation, library in (
        ({"quantization": "awq", "group_size": 64}, "quantized", "transformers"),
        ({"adapter": True}, "adapter", "peft"),
    ):
        card.write(folder, {**known, **more}, name="x")
        assert (front(folder)["base_model_relation"], front(folder)["library_name"]) == (relation, library)


def test_the_licences_files_go_along(tiny_model, tiny_dataset, tmp_path):
    base = shutil.copytree(tiny_model, tmp_path / "base")
    for name in (names := ("LICENSE.txt", "USE_POLICY.md", "preprocessor_config.json", "processor_config.json")):
        (base / name).write_text(f"{name} of the base")
    release = merge(train(base, tiny_dataset, tmp_path / "run"), resolve(str(base)), tmp_path / "release", force=False)
    for name in names:  # an engine that is given images asks for the last two
        assert (release.path / name).read_text() == f"{name} of the base"
    assert manifest.verify(release.path) == []


def test_memory_and_disk_are_said_and_looked_at_before_any_work(made, tmp_path, monkeypatch, capsys):
    def begun(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(merge_proof, "reference", begun)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InfrastructureError, match=r"the merged model takes 0\.00 GB, 0\.00 GB are free") as caught:
        merge(made.run, resolve(str(made.base)), tmp_path / "out", force=False)
    assert caught.value.where == str(tmp_path), "not the temporary name of what is being made"
    monkeypatch.undo()
    monkeypatch.setattr(merge_proof, "reference", begun)
    capsys.readouterr()
    with pytest.raises(AssertionError, match="work was begun"):
        merge(made.run, resolve(str(made.base)), tmp_path / "out", force=False)
    assert "GB to write; the proof takes about" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_answers_given_exactly_are_those_a_greedy_decoder_gives(made, release):
    """The score beside perplexity, counted without decoding, against transformers' own greedy decoding."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(release.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(release.path)
    ids = tokenizer("What is 7 plus 7?")["input_ids"]
    with torch.no_grad():
        greedy = model.generate(
            torch.tensor([ids]), max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    answer = greedy[0, len(ids) :].tolist()
    other = [*answer[:2], (answer[2] + 1) % len(tokenizer), *answer[3:]]
    rows = [
        Example(id=str(n), input_ids=ids + end, labels=[-100] * len(ids) + end) for n, end in enumerate((answer, other))
    ]
    said = prove.listen(model, rows, "test", pad=0)
    assert prove.exact(said) == [True, False]
    assert prove.answers(said, said[::-1]) == {"rows": 2, "before": 1, "after": 1, "fixed": 1, "broken": 1}
    score = release.manifest.facts["merge"].get("exact_answers", {"rows": 0})
    assert score["rows"] == release.manifest.facts["merge"]["held_out_rows"]


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_the_other_methods(tiny_model, tiny_dataset, tmp_path, method):
    run = train(tiny_model, tiny_dataset, tmp_path / "run", method=method)
    release = merge(run, resolve(str(tiny_model)), tmp_path / "release", force=False)
    assert release.manifest.facts["method"] == method
    assert "quantization_config" not in (release.path / "config.json").read_text()
    if method == "qlora":
        assert release.manifest.facts["merge"]["mean_logit_difference"] < 0.02


def test_a_base_that_changed_is_refused(made, tmp_path):
    other = shutil.copytree(made.base, tmp_path / "base")
    config = other / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="has changed since the run was trained on it"):
        merge(made.run, resolve(str(other)), tmp_path / "out", force=False)
    assert not (tmp_path / "out").exists()


def test_a_merge_that_does_not_answer_as_before_writes_nothing(made, tmp_path, monkeypatch):
    real = tensor_files.write
    swap = {
        f"model.layers.{a}.self_attn.o_proj.weight": f"model.layers.{1 - a}.self_attn.o_proj.weight" for a in (0, 1)
    }

    def misplaced(folder, specs, make, **options):
        return real(folder, specs, lambda name: make(swap.get(name, name)), **options)

    monkeypatch.setattr(tensor_files, "write", misplaced)
    with pytest.raises(TunegateError, match="does not answer as the adapter on its base does; nothing was written"):
        merge(made.run, resolve(str(made.base)), tmp_path / "out", force=False)
    assert list(tmp_path.iterdir()) == []


def test_rounding_that_moves_much_is_said(made, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(merge_proof, "MUCH_MEAN_SHARE", 1e-9)
    merge(made.run, resolve(str(made.base)), tmp_path / "out", force=False)
    assert "of their spread; the adapter itself moves them by" in capsys.readouterr().err


def test_the_dataset_is_found_through_the_lineage(made, release, tmp_path):
    assert prove.find_dataset(release).digest == made.dataset.digest
    path = made.dataset.path
    moved = path.rename(path.with_name("moved"))
    try:
        with pytest.raises(UserError, match="is not where it was") as caught:
            prove.find_dataset(release)
        assert "--calibration" in caught.value.hint
        shutil.copytree(moved, path)
        (path / "manifest.json").unlink()
        with (path / "train.jsonl").open("a") as stream:
            stream.write("\n")
        manifest.write(path, "dataset", inputs=[], config={})
        with pytest.raises(UserError, match="has changed since the model was trained on it"):
            prove.find_dataset(release)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        moved.rename(path)


@pytest.fixture
def no_work(monkeypatch):
    """Fails when an environment is made or a worker run."""

    def fail(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(quantize_worker, "run", fail)
    monkeypatch.setattr(quantize, "load_tokenizer", fail)


def changed(release, folder, *, config=lambda text: text, **facts):
    shutil.copytree(release.path, folder)
    (folder / "manifest.json").unlink()
    (folder / "config.json").write_text(config((folder / "config.json").read_text()))
    manifest.write(folder, "release", inputs=[], config={}, facts={**release.manifest.facts, **facts})
    return Release.open(folder)


@pytest.mark.usefixtures("no_work")
def test_what_cannot_be_quantized_is_refused_before_any_work(made, release, tmp_path):
    options = {"config": quantize.QuantizeConfig(), "out": tmp_path / "out", "force": False}
    again = changed(release, tmp_path / "awq", quantization="awq")
    with pytest.raises(UserError, match=r"quantized already \(awq\)"):
        quantize.quantize(again, made.dataset, **options)
    strange = changed(release, tmp_path / "strange", config=lambda t: t.replace("LlamaForCausalLM", "FooForCausalLM"))
    with pytest.raises(UserError, match="no layer mappings for FooForCausalLM"):
        quantize.quantize(strange, made.dataset, **options)
    odd = {**options, "config": quantize.QuantizeConfig(group_size=128)}
    with pytest.raises(UserError, match="group size 128 does not fit"):
        quantize.quantize(release, made.dataset, **odd)
    clipped = {**options, "config": quantize.QuantizeConfig(backend="autoawq")}
    with pytest.raises(UserError, match="layer outputs that are multiples of 64; k_proj has 32, v_proj has 32"):
        quantize.quantize(release, made.dataset, **clipped)
    damaged = shutil.copytree(release.path, tmp_path / "damaged")
    weights = next(damaged.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    fits = {**options, "config": quantize.QuantizeConfig(group_size=32)}
    with pytest.raises(UserError, match="not as it was written"):
        quantize.quantize(Release.open(damaged), made.dataset, **fits)
    with pytest.raises(UserError, match="not as it was written"):
        export_gguf.export(Release.open(damaged), export_gguf.ExportConfig(prompts=0), tmp_path / "out", force=False)
    other = shutil.copytree(made.dataset.path, tmp_path / "other")
    rows = (other / "train.jsonl").read_bytes()
    (other / "train.jsonl").write_bytes(rows.replace(b"7", b"8", 1))
    with pytest.raises(UserError, match="rows were changed"):
        quantize.quantize(release, Dataset.open(other), **fits)
    assert not (tmp_path / "out").exists()
