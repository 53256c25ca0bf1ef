"""Templates that write today's date: a run's rows have one date, that of its first start, on whatever day it is resumed."""

import datetime
import json
import shutil
import signal
from types import SimpleNamespace

import pytest

from tunegate.core.commands import run
from tunegate.train import work
from tunegate.train.cli import app

pytestmark = pytest.mark.usefixtures("one_thread")

DATED = (
    "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|im_start|>system\nToday: {{ date_string }}<|im_end|>\n"
)
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def on(monkeypatch):
    """Make it another day, for us and for transformers."""
    from transformers.utils import chat_template_utils

    def call(day):
        moment = datetime.datetime.fromisoformat(f"{day}T10:00:00")
        monkeypatch.setattr(work, "now", lambda: moment.isoformat())
        monkeypatch.setattr(chat_template_utils, "datetime", SimpleNamespace(now=lambda: moment))

    return call


@pytest.fixture
def ft(tiny_model, tiny_dataset, tmp_path, capsys):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    template = model / "chat_template.jinja"
    template.write_text(DATED + template.read_text())

    def call(out, *more):
        capsys.readouterr()
        argv = [tiny_dataset.path, "--out", out, "--model", model, "--max-steps", 6, "--save-steps", 2, "--rank", 4,
                "--per-device-train-batch-size", 2, "--gradient-accumulation-steps", 1, "--dtype", "float32", *more]  # fmt: skip
        return run(app, prog="ft train", argv=[str(word) for word in argv]), " ".join(capsys.readouterr().err.split())

    return call


def test_a_run_that_is_resumed_on_another_day_sees_the_same_tokens(ft, on, stopped, tmp_path):
    on("2026-12-01")
    code, said = ft(tmp_path / "whole")
    assert code == 0
    assert "writes today's date into prompts: all rows are trained with that of 2026-12-01" in said
    stopped(signal.SIGINT)
    assert ft(tmp_path / "broken")[0] == 130
    on("2026-12-13")
    code, said = ft(tmp_path / "broken", "--resume")
    assert (code, "trained with that of 2026-12-01" in said) == (0, True), said
    assert (tmp_path / "whole" / WEIGHTS).read_bytes() == (tmp_path / "broken" / WEIGHTS).read_bytes()
    facts = [json.loads((tmp_path / name / "manifest.json").read_text())["facts"] for name in ("whole", "broken")]
    assert facts[0]["mask"] == facts[1]["mask"]
    assert facts[0]["rendered_on"] == facts[1]["rendered_on"] == "2026-12-01"
    assert ft(tmp_path / "new", "--dry-run")[1].count("2026-12-13") == 1


def test_a_date_that_is_set_is_no_date_of_today(ft, tmp_path):
    code, said = ft(tmp_path / "run", "--template-defaults", "date_string=26 Jul 2024", "--dry-run")
    assert (code, "today's date" in said) == (0, False)


@pytest.mark.parametrize("note", ["[]", "{}", '{"begun": 3}', '{"begun": "x"}', "{"])
def test_a_note_that_names_no_day_is_today(on, tmp_path, note):
    on("2026-12-01")
    (tmp_path / work.MARKER).write_text(note)
    assert work.began(tmp_path) == "2026-12-01T10:00:00"
