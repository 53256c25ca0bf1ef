"""The language of the user turns, named only where it is plain."""

import json
from pathlib import Path

import pytest

from tunegate.core.commands import run
from tunegate.core.rows import Row, parse_row
from tunegate.train.data.cli import app
from tunegate.train.data.language import language


def row(text: str) -> Row:
    system = {"role": "system", "content": "Antworte auf Deutsch und nur mit einem Wort, bitte."}
    turns = [system, {"role": "user", "content": text}, {"role": "assistant", "content": "ja"}]
    return parse_row({"messages": turns}, "f", 1)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("where do I find the PIN of my new card?", "en"),
        ("Wo kann ich die PIN meiner neuen Karte finden?", "de"),
        ("où puis-je trouver le code de ma nouvelle carte", "fr"),
        ("カードの暗証番号はどこですか", "ja"),
        ("我的卡在哪里", "zh"),
        ("ok", "unsure"),
        ('{"a": 1}', "unsure"),
        ("1234 5678 + 9", "unsure"),
        ("", "unsure"),
    ],
)
def test_languages(text: str, code: str) -> None:
    assert language(row(text)) == code


def test_the_profile_counts_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, page = tmp_path / "a.jsonl", tmp_path / "p.html"
    texts = ["where do I find the PIN of my new card?"] * 3 + ["Wo kann ich die PIN meiner neuen Karte finden?"]
    path.write_text("".join(json.dumps(row(text).to_json()) + "\n" for text in texts))
    assert run(app, prog="ft data", argv=["inspect", str(path), "--html", str(page), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["languages"] == {"en": 3, "de": 1}
    assert "Language of the user turns" in page.read_text()
    assert run(app, prog="ft data", argv=["inspect", str(path)]) == 0
    assert "language" in capsys.readouterr().out
