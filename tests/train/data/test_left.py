"""What is asked once, and what is refused when nothing is left."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

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
