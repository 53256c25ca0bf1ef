"""Edges that an audit of `ft train` and `ft merge` found: each of these went wrong once."""

import json
import shutil

import pytest

from tunegate.core import commands, registry
from tunegate.core import manifest as manifests
from tunegate.core.artifacts import Run
from tunegate.core.errors import UserError
from tunegate.core.model_source import resolve
from tunegate.train import adapters, card, sft
from tunegate.train.cli import app as train_app
from tunegate.train.config import resolve as resolve_config
from tunegate.train.release.cli import merge_app
from tunegate.train.release.promote import Promotion, rollback_target
from tunegate.train.work import working_folder

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = {"max_steps": 3, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "validation_share": 0.0,
         "save_steps": 0, "rank": 4, "alpha": 8, "seed": 3}  # fmt: skip
FLAGS = ("--max-steps", "2", "--per-device-train-batch-size", "2", "--rank", "4", "--alpha", "8")
WEIGHTS = "adapter_model.safetensors"


def train(model, dataset, out, *, resume=False, force=False, **changes):
    config = resolve_config([("test", {"model": str(model), **SHORT, **changes})])[0]
    return sft.train(dataset, resolve(str(model)), config, out, resume=resume, force=force)


def lines(run):
    return [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def ft(capsys):
    """`ft train` or `ft merge`: (exit code, the JSON object or the text, standard error)."""

    def call(command, *arguments):
        capsys.readouterr()
        app = {"train": train_app, "merge": merge_app}[command]
        code = commands.run(app, prog=f"ft {command}", argv=[str(a) for a in arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in arguments else out, err

    return call


@pytest.fixture(scope="module")
def adapter(tiny_model, tiny_dataset, tmp_path_factory):
    """A small LoRA run. Read-only: copy it to change it."""
    return train(tiny_model, tiny_dataset, tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("more", [(), ("--logging-steps", "2")])
def test_resuming_a_finished_run_says_so(ft, tiny_model, tiny_dataset, tmp_path, more):
    """The run's own settings name the dtype that `auto` became: they never equalled those of the command."""
    command = ("train", tiny_dataset.path, "--out", tmp_path / "run", "--model", tiny_model, *FLAGS, "--json")
    assert (done := ft(*command))[0] == 0
    code, found, err = ft(*command, "--resume", *more)
    assert (code, found["digest"]) == (0, done[1]["digest"])
    assert "nothing left to resume" in err
    code, refused, _ = ft(*command, "--resume", "--seed", "5")
    assert (code, refused["error"]["hint"]) == (2, "choose another --out")
    assert refused["error"]["message"] == "the run is finished with other settings: seed 0, not 5"


def test_a_run_that_ends_before_its_first_line_of_metrics_has_one(tiny_model, tiny_dataset, tmp_path):
    """Without validation rows there was no `metrics.jsonl`, and the trained weights were lost over it."""
    assert [line["step"] for line in lines(train(tiny_model, tiny_dataset, tmp_path / "a", logging_steps=50))] == [3]
    one = lines(train(tiny_model, tiny_dataset, tmp_path / "b", logging_steps=2))
    each = lines(train(tiny_model, tiny_dataset, tmp_path / "c"))
    assert [line["step"] for line in one] == [2, 3]
    assert one[-1]["loss"] == each[-1]["loss"]
    assert one[-1]["tokens"] == each[-1]["tokens"]


def test_no_row_left_to_train_on_is_said(ft, tiny_model, tiny_dataset, tmp_path):
    command = ("train", tiny_dataset.path, "--out", tmp_path / "run", "--model", tiny_model, *FLAGS, "--json")
    code, found, _ = ft(*command, "--validation-share", "1")
    assert (code, found["error"]["kind"], found["error"]["where"]) == (2, "bad_input", "validation_share")


def test_a_run_that_took_all_its_steps_was_not_stopped_early(tiny_model, tiny_dataset, tmp_path):
    """The last evaluation may be the one that patience ends at: nothing was left out for it."""
    patient = {"validation_share": 0.2, "eval_steps": 1, "learning_rate": 1e-12, "keep_best": False}
    last = train(tiny_model, tiny_dataset, tmp_path / "last", early_stopping_patience=2, **patient).manifest.facts
    early = train(tiny_model, tiny_dataset, tmp_path / "early", early_stopping_patience=1, **patient).manifest.facts
    assert (last["steps"], last["stopped_early"]) == (3, False)
    assert (early["steps"], early["stopped_early"]) == (2, True)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"config": 1, "dataset": "", "base": "", "files": [], "versions": {}}']
)
def test_a_damaged_note_of_an_unfinished_run_is_one_line(tiny_model, tiny_dataset, tmp_path, content):
    work = working_folder(tmp_path / "run")
    work.mkdir()
    (work / "training.json").write_text(content)
    with pytest.raises(UserError, match="damaged") as refused:
        train(tiny_model, tiny_dataset, tmp_path / "run", resume=True)
    assert "--force" in str(refused.value.hint)


@pytest.mark.parametrize("inside", ["", "part"])
def test_force_does_not_replace_what_is_read(ft, tiny_model, tiny_dataset, tmp_path, inside):
    """The dataset was gone afterwards, and the run's lineage led to itself."""
    shutil.copytree(tiny_dataset.path, tmp_path / "data")
    if inside:
        shutil.copytree(tiny_dataset.path, tmp_path / "data" / inside)
    command = (
        "train",
        tmp_path / "data" / inside,
        "--out",
        tmp_path / "data",
        "--model",
        tiny_model,
        *FLAGS,
        "--force",
    )
    code, _, err = ft(*command)
    assert (code, "would be replaced" in err) == (2, True)
    assert (tmp_path / "data" / "train.jsonl").is_file()


def test_force_does_not_replace_the_run_that_is_merged_or_gone_on_from(ft, tiny_model, tiny_dataset, adapter, tmp_path):
    run = shutil.copytree(adapter.path, tmp_path / "run")
    assert ft("merge", run, "--out", run, "--force")[0] == 2
    again = ("train", tiny_dataset.path, "--out", run, "--model", tiny_model, "--adapter", run, "--force")
    assert ft(*again)[0] == 2
    assert Run.open(run).digest == adapter.digest


def test_a_changed_run_is_not_merged(ft, adapter, tmp_path):
    """Its release would say that it was made of bytes which it was not made of."""
    run = shutil.copytree(adapter.path, tmp_path / "run")
    content = bytearray((run / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (run / WEIGHTS).write_bytes(content)
    code, found, _ = ft("merge", run, "--out", tmp_path / "release", "--json")
    assert (code, WEIGHTS in found["error"]["message"]) == (2, True)
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize(
    "content", ["[]", '{"peft_type": "LORA"}', '{"peft_type": "LORA", "r": 4, "lora_alpha": null}']
)
def test_a_damaged_adapter_config_is_one_line(tmp_path, content):
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged|not an adapter"):
        adapters.settings(tmp_path)


@pytest.mark.parametrize(("weights", "says"), [(None, "safe_serialization"), (b"junk", "does not fit|cannot be read")])
def test_an_adapter_without_whole_weights_is_one_line(tiny_model, tiny_dataset, adapter, tmp_path, weights, says):
    folder = tmp_path / "raw"
    folder.mkdir()
    shutil.copy(adapter.path / "adapter_config.json", folder)
    if weights is not None:
        (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(UserError) as refused:
        train(tiny_model, tiny_dataset, tmp_path / "run", adapter=str(folder))
    assert any(word in refused.value.line() for word in says.split("|"))


def test_an_option_that_the_adapter_decides_is_said_to_mean_nothing(ft, tiny_model, tiny_dataset, adapter, tmp_path):
    command = ("train", tiny_dataset.path, "--out", tmp_path / "run", "--model", tiny_model, "--adapter", adapter.path)
    code, _, err = ft(*command, "--rank", "16", "--alpha", "8", "--use-dora", "--dry-run")
    assert code == 0
    assert "warning: rank 16 means nothing here: the adapter has 4" in err
    assert "warning: use_dora True means nothing here: the adapter has False" in err
    assert "alpha 8 means nothing" not in err


def test_changed_rows_are_not_trained_on(ft, tiny_model, tiny_dataset, tmp_path):
    """An edit that keeps the size passed for the data that the manifest names, in a resumed run too."""
    data = shutil.copytree(tiny_dataset.path, tmp_path / "data")
    rows = (data / "train.jsonl").read_text()
    (data / "train.jsonl").write_text(rows.replace("What", "Whut", 1))
    for method in ("lora", "few_shot"):
        command = ("train", data, "--out", tmp_path / "run", "--model", tiny_model, "--method", method, "--json")
        code, found, _ = ft(*command)
        assert (code, found["error"]["where"]) == (2, str(data / "train.jsonl"))


def test_best_weights_that_no_checkpoint_kept_are_said(tiny_model, tiny_dataset, tmp_path, capsys):
    rising = {"validation_share": 0.2, "eval_steps": 1, "learning_rate": 1e-12, "save_steps": 0}
    facts = train(tiny_model, tiny_dataset, tmp_path / "run", **rising).manifest.facts
    assert facts["weights_of_step"] == 3
    assert "the best validation loss was at step 1" in (said := capsys.readouterr().err)
    assert "--save-steps" in said


def test_another_output_s_unfinished_folder_is_left_alone(tiny_model, tiny_dataset, tmp_path):
    """`run` took what `run.v2` was just writing for a rest of its own."""
    other, own = tmp_path / ".run.v2.0123abcd.partial", tmp_path / ".run.0123abcd.partial"
    other.mkdir()
    own.mkdir()
    train(tiny_model, tiny_dataset, tmp_path / "run")
    assert (other.is_dir(), own.exists()) == (True, False)


def test_promoting_again_mends_damaged_bytes_in_the_registry(tiny_dataset, tmp_path):
    """The good folder was there, yet the name went on meaning the damaged copy of it."""
    stored = registry.store(tiny_dataset, "champion", place=tmp_path)
    (stored / "train.jsonl").write_text("damaged")
    assert registry.store(tiny_dataset, "champion", place=tmp_path) == stored
    assert manifests.verify(stored) == []


@pytest.mark.parametrize("to", ["", "a"])
def test_a_rollback_to_more_than_one_thing_is_refused(to):
    """An empty variable of a script, `--to "$DIGEST"`, went back to whatever stood before."""
    history = [
        Promotion(action="promote", digest=d, kind="release", path="", at="", by="", from_path="")
        for d in ("ab1", "ab1", "ac2", "ad3")
    ]
    with pytest.raises(UserError, match=r"more than one|no digest"):
        rollback_target("champion", history, to)
    assert rollback_target("champion", history, "ab")[1].digest == "ab1"


@pytest.mark.parametrize(
    ("front", "licence"),
    [("license:\n- mit", "mit"), ("license: [mit]", "mit"), ("license: # none yet\nname: x", None), ('a: "b --- c"\nlicense: mit', "mit"), ("license: 'mit'", "mit"),
     ("license: other\nlicense_name: qwen-research", "qwen-research"), ("license: [Other]\nlicense_name: llama3", "llama3"),
     ("license: other", None), ("license: other\nlicense_name: 3", None),
     ("license: [mit, gpl-3.0]", None), ("license: {", None), ("- license: mit", None)],
)  # fmt: skip
def test_the_licence_of_a_base_s_card_is_read_as_yaml(tiny_model, tmp_path, front, licence):
    """A list of one was read as the licence `-`, and stood so in the cards of run and release."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    (base / "README.md").write_text(f"---\n{front}\n---\n# A model\n")
    assert card.base_license(resolve(str(base))) == licence


def test_rows_beyond_the_model_s_context_are_said(ft, makers, tiny_model, tmp_path):
    """Training took 600 tokens of a model that has positions for 512; no server gives it so many."""
    rows = makers.rows(4)
    rows[2]["messages"][0]["content"] = "a" * 600
    data = makers.dataset(tmp_path / "data", rows, []).path
    code, _, err = ft("train", data, "--out", tmp_path / "run", "--model", tiny_model, "--dry-run")
    assert code == 0
    assert "warning: the longest row:" in err
    assert "more than the model's context of 512" in err
    assert "context" not in ft("train", data, "--out", tmp_path / "run", "--model", tiny_model, "--dry-run",
                               "--max-length", "512", "--max-left-out-share", "0.5")[2]  # fmt: skip
