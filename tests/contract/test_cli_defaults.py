"""What `--help` says of defaults is what docs/cli.md says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints the help of every command, each under a line with its path.
ALL_HELP = """
import sys, typer
sys.path.insert(0, "docs")
import cli_reference as reference
for name, app in (("ft", reference.ft), ("ftadvise", reference.ftadvise)):
    for path, command in reference.commands(typer.main.get_command(app), name):
        print("=====", path)
        try:
            command.main(["--help"], prog_name=path, standalone_mode=False)
        except SystemExit:
            pass
"""


@pytest.fixture(scope="module")
def shown():
    """{command: its help, without line breaks and frames}."""
    wide = {**os.environ, "TERMINAL_WIDTH": "1000", "COLUMNS": "1000", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run([sys.executable, "-c", ALL_HELP], cwd=ROOT, env=wide, capture_output=True, text=True, check=True)  # fmt: skip
    parts = done.stdout.split("===== ")[1:]
    return {part.partition("\n")[0]: " ".join(part.partition("\n")[2].replace("│", " ").split()) for part in parts}


def defaults(text):
    return sorted(re.findall(r"\[default: (.*?)\]", text))


def test_every_default_in_help_stands_in_cli_md_and_back(shown):
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^#+ (ft(?:advise)?[a-z -]*)\n(.*?)(?=^#+ ft|\Z)", page, re.MULTILINE | re.DOTALL))
    assert set(sections) == set(shown)
    for path in set(shown):
        assert defaults(shown[path]) == defaults(sections[path]), path
    assert sum(len(defaults(text)) for text in shown.values()) > 150


def test_the_help_of_training_shows_what_its_settings_are(shown):
    for words in (
        "LoRA rank r. [default: 16, by the preset]",
        "Peak learning rate. [default: 2e-4, by the preset; full: 2e-5]",
        "Passes over the training rows. [default: 3.0]",
        "AdamW weight decay. [default: 0.0]",
        "Seed of initialisation, order and dropout. [default: 0]",
        "attention as plain matrix products. [default: fast-cpu]",
    ):
        assert words in shown["ft train"]


def test_the_page_says_a_flag_by_its_name_and_zero_and_one_too():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert "| `--preflight/--no-preflight` | Refuse what is predicted not to fit the device's memory. [default: preflight] |" in page  # fmt: skip
    assert "| `--restart <int range>` | Start it again so often when it dies or hangs. [default: 0] |" in page
    assert "| `--gpus <int range>` | How many. [default: 1] |" in page
