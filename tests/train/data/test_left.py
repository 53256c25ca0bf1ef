"""What is asked once, and what is refused when nothing is left."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tunegate.core import console
from tunegate.core.commands import run
from tunegate.core.rows import parse_row
from tunegate.train.data.cli import app
from tunegate.train.data.judge import Judge, judge
from tunegate.train.data.twins import near_step

LONG = "please book a table at the italian restaurant near the station for two people on friday evening"


def test_the_letters_of_a_pair_are_asked_about_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[tuple[str, str]] = Counter()
    real = Judge.sure

    def sure(self: Judge, pair: tuple[str, str, float]) -> bool:
        asked[pair[0], pair[1]] += 1
        return real(self, pair)

    monkeypatch.setattr(Judge, "sure", sure)
    texts = (LONG, LONG.replace("restaurant", "restaurants"), LONG.replace("friday evening", "friday afternoon"))
    made = [
        {"id": str(at), "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "a"}]}
        for at, text in enumerate(texts)
    ]
    step = near_step([parse_row(row, "f.jsonl", at) for at, row in enumerate(made)], judge())
    assert [(pair.a.id, pair.b.id, pair.spelling) for pair in step.twins] == [("0", "1", True), ("0", "2", False)]
    assert set(asked.values()) == {1}


@pytest.fixture
def long_rows(tmp_path: Path) -> str:
    rows: list[dict[str, Any]] = [
        {
            "messages": [
                {"role": "user", "content": f"question {at} " + "word " * 40},
                {"role": "assistant", "content": f"answer {at}"},
            ]
        }
        for at in range(30)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "a.jsonl")


@pytest.mark.parametrize("step", ["prepare", "clean"])
def test_no_dataset_without_rows(step: str, long_rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [step, long_rows, "--out", str(tmp_path / "out"), "--max-length", "5", "--drop-long", "--yes"]
    assert run(app, prog="ft data", argv=argv) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"error: {long_rows}: nothing is left to train on, every row was removed: too_long ")
    assert "--max-length" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spelt", ["{folder}/./a.jsonl", "{folder}/link.jsonl", "{folder}"])
def test_a_file_by_two_names_is_given_twice(
    spelt: str, long_rows: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "link" in spelt:
        (tmp_path / "link.jsonl").symlink_to(long_rows)
    argv = ["check", long_rows, spelt.format(folder=tmp_path)]
    assert run(app, prog="ft data", argv=argv) == 2
    assert "given twice" in capsys.readouterr().err


LONG_PHASES = (
    (["inspect", "IN"], {"rows profiled"}),
    (["check", "IN"], {"rows checked"}),
    (["prepare", "IN", "--out", "OUT", "--eval-fraction", "0.2"], {"rows read", "rows checked", "rows profiled"}),
    (["clean", "IN", "--out", "OUT"], {"rows read"}),
    (["dedup", "IN", "--out", "OUT"], {"rows read", "near duplicates: rows hashed"}),
    (["convert", "IN", "--to", "trl", "--out", "OUT"], {"rows converted"}),
    (["leakage", "--train", "IN", "--eval", "IN"], {"rows read"}),
)


@pytest.mark.parametrize(
    ("words", "phases"), LONG_PHASES, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_every_long_phase_says_how_far_it_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    phases: set[str],
) -> None:
    source = tmp_path / "in.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": f"{LONG} {n}"}, {"role": "assistant", "content": "a"}]}
        for n in range(9)
    ]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = [{"IN": str(source), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    monkeypatch.setattr(console._PlainTicker.__init__, "__defaults__", (0.0,))
    assert run(app, prog="ft data", argv=argv) == 0
    assert phases <= {found[1] for found in re.finditer(r"(?m)^(.*): \d+ after \d+ s$", capsys.readouterr().err)}
