"""`ft data`: keys of --json, exit codes, and help whose examples work."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunegate.core.commands import run
from tunegate.train.data import options
from tunegate.train.data.cli import app
from tunegate.train.data.options import configured

COMMANDS = ("prepare", "split", "inspect", "check", "clean", "dedup", "leakage", "convert")


def record(text: str, answer: str = "a") -> str:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}) + "\n"


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "my.jsonl"
    texts = [f"question {chr(97 + i % 26)}{chr(97 + i // 26)} about something" for i in range(200)]
    path.write_text("".join(record(t) for t in [*texts, texts[0], texts[1].upper()]) + record(texts[2] + "?", "b"))
    return str(path)


def ft(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert run(app, prog="ft data", argv=list(argv)) == code
    return capsys.readouterr().out


def asked(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    return dict(json.loads(ft(capsys, *argv, "--json", code=code)))


def test_prepare(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    found = asked(capsys, "prepare", source, "--out", str(tmp_path / "d"), "--min-eval", "20")
    assert found["rows_in"] == 203 == found["train"] + found["eval"] + sum(found["rejected"].values())
    assert set(found["rejected"]) <= {"duplicate_exact", "duplicate_normalized", "duplicate_near", "leaks_eval"}
    assert found["detectable_drop"]["discordance_0.05"] > 0
    again = ft(capsys, "prepare", source, "--out", str(tmp_path / "d"), "--force", "--min-eval", "20")
    for part in ("train", "eval", "held out for evaluation before any cleaning", "can show a drop of", "Dataset:"):
        assert part in again


def test_what_the_hold_out_can_show_is_what_ft_eval_power_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of copies of a question one counts, whatever they answer; one share is told, of the rows read."""
    from tunegate.evalkit.commands import power_of

    source = tmp_path / "s.jsonl"
    source.write_text("".join(record(f"question {n % 18}", answer=f"answer {n}") for n in range(108)))
    options = ("prepare", str(source), "--out", str(tmp_path / "d"), "--no-near", "--force")
    found = asked(capsys, *options)
    assert (found["eval"], found["eval_duplicates"]) == (36, 30)
    shown = power_of(6, None, discordance=0.05, margin=0.02, alpha=0.05, power=0.8)["detectable_margin"]
    assert found["detectable_drop"]["discordance_0.05"] == round(shown, 4)
    assert json.loads((tmp_path / "d/manifest.json").read_text())["facts"]["eval_duplicates"] == 30
    text = ft(capsys, *options)
    assert f"36 rows, 6 distinct questions, can show a drop of {100 * shown:.1f} points" in text
    assert "36 rows held out for evaluation before any cleaning (33.3% of the rows read)." in text
    assert "That is more than --eval-fraction asks for (--min-eval 100 is over a third)." in text
    source.write_text("".join(record(f"question {n}") for n in range(108)))
    assert asked(capsys, *options)["eval_duplicates"] == 0
    assert "distinct questions" not in ft(capsys, *options)


def test_a_default_on_the_command_line_is_the_default_of_the_settings() -> None:
    settings = configured({})
    known = {**vars(settings.split), **vars(settings.dedup), **vars(settings.clean), **vars(settings)}
    groups = (options.SPLIT, options.NEAR, options.LEAKS, options.CLEAN, options.FAULTS, options.SURE)
    shown = {name: default for group in groups for name, _, default in group}
    assert shown == {name: known[name] for name in shown}


def test_an_output_that_exists_is_refused_first(
    capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "mine.txt").write_text("x")
    found = asked(capsys, "prepare", source, "--out", str(tmp_path / "d"), code=2)
    assert found["error"]["kind"] == "bad_input"
    assert (tmp_path / "d" / "mine.txt").read_text() == "x"


def test_split_removes_nothing_but_copies(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    found = asked(capsys, "split", source, "--out", str(tmp_path / "d"), "--eval-fraction", "0.3")
    assert (found["rows_in"], found["rejected"]) == (203, {"duplicate_exact": 1})


def test_dedup(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    found = asked(capsys, "dedup", source, "--out", str(tmp_path / "d"))
    assert {k: found[k] for k in ("exact", "normalized", "near", "conflicts", "contrast_pairs")} == {
        "exact": 1,
        "normalized": 1,
        "near": found["near"],
        "conflicts": 1,
        "contrast_pairs": found["contrast_pairs"],
    }
    assert found["kept"] == 203 - found["exact"] - found["normalized"] - found["near"]
    assert [p["threshold"] for p in found["curve"]] == [0.99, 0.98, 0.95, 0.9, 0.85, 0.8]
    rows = (tmp_path / "d" / "rows.jsonl").read_text().splitlines()
    assert len(rows) == found["kept"]
    assert "nothing was written" in ft(capsys, "dedup", source)


def test_leakage(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    held_out = tmp_path / "eval.jsonl"
    held_out.write_text(record("QUESTION aa about something!") + record("quite another thing"))
    clean = tmp_path / "clean.jsonl"
    found = asked(capsys, "leakage", "--train", source, "--eval", str(held_out), "--clean", str(clean))
    assert {k: found[k] for k in ("exact", "normalized", "ngram", "near")} == {
        "exact": 0,
        "normalized": 1,
        "ngram": 0,
        "near": 0,
    }
    assert [(i["eval_line"], i["rule"]) for i in found["items"]] == [(1, "normalized")]
    assert len(clean.read_text().splitlines()) == 1


def test_leakage_of_a_dataset_folder_is_none(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "d")
    asked(capsys, "prepare", source, "--out", folder)
    assert asked(capsys, "leakage", "--train", folder, "--eval", folder)["normalized"] == 0


def test_columns_of_other_names_are_told_with_their_options_and_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "odd.csv").write_text("my question,reply\n" + "".join(f"{i} + {i}?,{2 * i}\n" for i in range(3)))
    assert run(app, prog="ft data", argv=["check", str(tmp_path / "odd.csv")]) == 2
    first, *others = capsys.readouterr().out.splitlines()[:3]
    assert first.endswith("--prompt-key 'my question' --completion-key reply)")
    assert all("no known format" in line and "--prompt-key" not in line for line in others)
    argv = ["check", str(tmp_path / "odd.csv"), "--prompt-key", "my question", "--completion-key", "reply"]
    assert run(app, prog="ft data", argv=argv) == 0


def test_check_exits_2_for_errors_and_0_for_doubts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(record("q", "As an AI model I will not") + record("", "b"))
    found = asked(capsys, "check", str(path))
    assert (found["rows"], found["errors"]) == (2, 0)
    assert found["findings"] == {"boilerplate": 1, "empty_turn": 1}
    assert found["items"][0]["where"] == f"{path}:1 /messages/1/content"
    path.write_text(path.read_text() + "{\n" + record("q", "x"))
    found = asked(capsys, "check", str(path), "--max-length", "12", code=2)
    assert (found["rows"], found["errors"]) == (3, 1)
    assert found["tokens_cut"] > 0
    assert f"error: {path}:3: not valid JSON" in ft(capsys, "check", str(path), code=2)


def test_inspect_and_its_page(capsys: pytest.CaptureFixture[str], source: str, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    found = asked(capsys, "inspect", source, "--html", str(page))
    assert found["rows"] == 203
    assert found["labels"] == {"a": 202, "b": 1}
    text = page.read_text()
    assert text.count("<svg") == 4
    assert not re.search(r"<script|https?://|src=", text)
    assert "median" in ft(capsys, "inspect", source)


def test_the_page_escapes_what_it_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path, page = tmp_path / "<script>a.jsonl", tmp_path / "p.html"
    rows = [json.loads(record(f"q{i}", "<script>alert(1)</script>" if i % 2 else "b")) for i in range(100)]
    path.write_text("".join(json.dumps({**row, "tags": {"<script>tag": "<script>"}}) + "\n" for row in rows))
    ft(capsys, "inspect", str(path), "--html", str(page))
    assert "<script>" not in page.read_text()
    assert "&lt;script&gt;" in page.read_text()


def test_clean(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(record(f"q{i}", "I cannot help with that" if i == 3 else "mail a@b.org") for i in range(9)))
    argv = ["clean", str(path), "--out", str(tmp_path / "c"), "--drop-refusals", "--secrets", "mask"]
    found = asked(capsys, *argv)
    assert (found["rows_in"], found["kept"], found["rejected"]) == (9, 8, {"refusal": 1})
    assert "[REDACTED:e-mail]" in (tmp_path / "c" / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("argv", "where"),
    [
        (["prepare", "x.jsonl", "--out", "o", "--on-error", "skip"], "--on-error"),
        (["prepare", "x.jsonl", "--out", "o", "--format", "sharegp"], "--format"),
        (["prepare", "x.jsonl", "--out", "o", "--prompt-key", "q"], "--prompt-key"),
        (["prepare", "x.jsonl", "--out", "o", "--eval-fraction", "0.9"], "--eval-fraction"),
        (["prepare", "x.jsonl", "--out", "o", "--drop-long"], "--drop-long"),
        (["prepare", "nosuch.jsonl", "--out", "o"], "nosuch.jsonl"),
        (["convert", "nosuch.jsonl", "--to", "trl", "--out", "o"], "nosuch.jsonl"),
    ],
)
def test_wrong_use_names_the_option(capsys: pytest.CaptureFixture[str], argv: list[str], where: str) -> None:
    assert asked(capsys, *argv, code=2)["error"]["where"] == where


@pytest.mark.parametrize("command", COMMANDS)
def test_help_ends_with_an_example_that_works(
    capsys: pytest.CaptureFixture[str],
    command: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for name, start in (("train", 0), ("eval", 90)):
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(record(f"q {i}") for i in range(start, start + 100)))
    text = " ".join(ft(capsys, command, "--help").split())
    example = text[text.rindex("Example: ft data ") :].removeprefix("Example: ft data ")
    assert run(app, prog="ft data", argv=shlex.split(example)) == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom tunegate.core.commands import run\nfrom tunegate.train.data.cli import app\n"
        "run(app, prog='ft data', argv=['prepare', '--help'])\n"
        "print([m for m in ('numpy', 'pyarrow', 'tokenizers', 'jsonschema', 'torch', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
