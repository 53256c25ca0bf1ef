"""`ft train`: settings are told with their origin, a dry run trains nothing, what is wrong is refused before any work."""

import json
import re

import pytest

from tunegate.core.commands import run
from tunegate.train.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def ft_train(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*argv):
        code = run(app, prog="ft train", argv=[str(a) for a in argv])
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def test_a_dry_run_shows_everything_and_trains_nothing(ft_train, tiny_model, tiny_dataset, tmp_path):
    (tmp_path / "c.yaml").write_text("preset: conservative\nmax_seq_length: 128\n")
    arguments = (
        tiny_dataset.path,
        "--out",
        "run",
        "--model",
        tiny_model,
        "--config",
        "c.yaml",
        "--seed",
        "7",
        "--dry-run",
    )
    code, out, err = ft_train(*arguments, "--json")
    assert code == 0
    document = json.loads(out)
    assert document["config"] | {"seed": 7, "rank": 4, "max_length": 128} == document["config"]
    assert document["mask"]["rows"] == 23, "one is set aside for the validation loss"
    told = dict(re.findall(r"^  (\w+) +.*\((.*)\)$", err, re.MULTILINE))
    assert (told["seed"], told["preset"], told["rank"]) == ("flag", "c.yaml", "preset conservative")
    assert (told["max_length"], told["dropout"]) == ("c.yaml", "default")
    assert "warning: c.yaml: max_seq_length is called max_length here" in err
    code, out, _ = ft_train(*arguments)
    assert code == 0
    assert "What is" in out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]


def test_without_colour_what_is_learnt_is_marked(ft_train, tiny_model, tiny_dataset, monkeypatch):
    """Dimming alone is nothing in a pipe or a CI log. Internals that are 0 for this set are no lines of the table."""
    command = (tiny_dataset.path, "--out", "run", "--model", tiny_model, "--dry-run")
    code, out, _ = ft_train(*command)
    assert code == 0
    assert out.count(": [[ ]] is learnt ") == 3
    learnt = re.findall(r"assistant\n\[\[(.*?)\]\]", out, re.DOTALL)
    assert len(learnt) == 3
    assert all(text.endswith("<|im_end|>") for text in learnt)
    assert not [word for word in ("by_answer", "examples", "too_long", "label_tokens", "left out") if word in out]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = ft_train(*command)[1]
    assert "dim is not learnt" in coloured
    assert "\x1b[2m" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert ": [[ ]] is learnt " in ft_train(*command)[1]


def test_a_dry_run_shows_ids_and_rows_as_they_are(ft_train, tiny_model, makers, tmp_path):
    """What a terminal would obey in an id is a sign; no markup and no name of an emoji is read."""
    rows = makers.rows(24)
    for n, row in enumerate(rows):
        row["id"] = f"a\x1b[31m:x:[b] {n}"
        row["messages"][0]["content"] = f"hello :x: [b] {n}"
    odd = makers.dataset(tmp_path / "odd", rows, makers.rows(8, 100))
    code, out, err = ft_train(odd.path, "--out", "run", "--model", tiny_model, "--dry-run")
    assert code == 0, err
    assert "\x1b" not in out
    assert "row a\u241b[31m:x:[b] " in out
    assert "hello :x: [b] " in out


def test_a_dry_run_says_where_the_run_itself_would_be_refused(ft_train, tiny_model, tiny_dataset, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine").write_text("x")
    command = (tiny_dataset.path, "--model", tiny_model, "--dry-run")
    for folder in (tiny_dataset.path, "taken"):
        code, _, err = ft_train(*command, "--out", folder)
        assert code == 0
        assert "warning: the run itself will be refused" in err
    assert "will be refused" not in ft_train(*command, "--out", "run")[2]


def test_a_run_prints_its_facts(ft_train, tiny_model, tiny_dataset, tmp_path):
    short = ("--max-steps", 2, "--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 1, "--rank", 2)
    code, out, _ = ft_train(tiny_dataset.path, "--out", "run", "--model", tiny_model, *short, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["run"], document["steps"], document["method"]) == ("run", 2, "lora")
    code, out, err = ft_train(tiny_dataset.path, "--out", "run", "--model", tiny_model, *short)
    assert (code, out) == (2, "")
    assert "the output exists already" in err
    assert ft_train(tiny_dataset.path, "--out", "run", "--model", tiny_model, *short, "--force")[0] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--config", "c.yaml", "--from", "c.yaml"], "--config and --from exclude each other"),
        (["--config", "none.yaml"], "none.yaml: no such file"),
        (["--method", "lorra"], "unknown method 'lorra'"),
        (["--learning-rate", "-1"], "learning_rate must be above 0"),
        (["--rnak", "4"], "No such option"),
        (["--model", "builtin:smollm3"], "no builtin model 'smollm3'"),
        (["--resume", "--max-steps", "1"], "there is nothing to resume"),
    ],
)
def test_what_is_wrong_is_refused_and_nothing_is_left(ft_train, tiny_model, tiny_dataset, tmp_path, argv, says):
    (tmp_path / "c.yaml").write_text("rank: 4\n")
    model = [] if "--model" in argv else ["--model", tiny_model]
    code, out, err = ft_train(tiny_dataset.path, "--out", "run", *model, *argv)
    assert (code, out) == (2, "")
    assert says in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml"]


def test_a_run_is_no_dataset(ft_train, tiny_model, tmp_path):
    code, _, err = ft_train(tiny_model, "--out", "run", "--model", tiny_model)
    assert code == 2
    assert "no manifest.json" in err
