"""What goes to which stream, and progress that is readable in a CI log."""

import json

import pytest

from tunegate.core import console


def test_plain_progress_is_a_line_now_and_then_and_one_at_the_end(capsys, monkeypatch):
    clock = iter([0.0, 1.0, 5.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("training", 5) as tick:
        tick()
        tick(1, "loss 3")
        tick(1, "loss 2")
        tick(0, "loss 1")
        tick(2)
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.splitlines() == ["training: 3/5 after 11 s loss 2", "training: 5/5 after 30 s loss 1"]


def test_progress_of_unknown_length(capsys, monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("reading", None) as tick:
        tick(7)
    assert capsys.readouterr().err == "reading: 7 after 20 s\n"


def test_a_bar_on_a_terminal_and_nothing_on_standard_output(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with console.progress("training", 2) as tick:
        tick(1, "half")
        tick(1)
    found = capsys.readouterr()
    assert found.out == ""
    assert "training" in found.err


@pytest.mark.parametrize("terminal", [False, True])
def test_items_that_go_by_are_counted_where_they_take_long(capsys, monkeypatch, terminal):
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    assert list(console.ticked("abc", "rows read")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
    now = iter(range(0, 1000, 6))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    assert list(console.ticked("abc", "rows read", 10)) == ["a", "b", "c"]
    found = capsys.readouterr()
    assert found.out == ""
    assert ("30" if terminal else "rows read: 20 after 12 s\n") in found.err


def test_messages_go_to_standard_error_as_they_are(capsys):
    console.say("[red]text[/red] and a long line " + "x" * 300)
    console.warn("look [here]")
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == f"[red]text[/red] and a long line {'x' * 300}\nwarning: look [here]\n"


def test_json_is_one_object_and_never_nan(capsys):
    console.emit_json({"a": "ü", "b": [1.5, None]})
    found = capsys.readouterr()
    assert json.loads(found.out) == {"a": "ü", "b": [1.5, None]}
    assert found.err == ""
    with pytest.raises(ValueError, match="not JSON compliant"):
        console.emit_json({"a": float("inf")})
    assert capsys.readouterr().out == ""


def test_a_table_shows_cells_as_they_are(capsys):
    console.table("Title", ["name", "n"], [["[bold]a[/bold]", "1"]])
    assert "[bold]a[/bold]" in capsys.readouterr().out


def test_the_name_of_an_emoji_in_a_text_stays_as_it_is(capsys):
    """Rich makes a picture of `:x:` on its own; rows, file names and ids are shown as they are."""
    console.out().print("a:x:b", markup=False)
    console.table(":x:", [":heart:"], [[":100:"]])
    console.say("a:x:b")
    found = capsys.readouterr()
    assert found.err == "a:x:b\n"
    assert all(name in found.out for name in ("a:x:b", ":heart:", ":100:"))


def test_what_a_terminal_would_obey_is_shown_as_a_sign_wherever_text_is_printed(capsys):
    text = "model \x1b]0;x\x07\u202e end"
    shown = "model \u241b]0;x\u2407\ufffd end"
    console.out().print(text, markup=False)
    console.table(None, ["name"], [[text]])
    console.say(text)
    console.warn(text)
    found = capsys.readouterr()
    assert found.out.count(shown) == 2
    assert found.err == f"{shown}\nwarning: {shown}\n"


def test_text_that_hides_is_seen_in_the_terminal_and_in_a_summary():
    hidden = "pass\U000e0066\u00ad\ufeff\u2066"
    assert console.visible(hidden) == "pass\ufffd\ufffd\ufffd\ufffd"
    assert console.visible("\U0001f468\u200d\U0001f469 می\u200cروم") == "\U0001f468\u200d\U0001f469 می\u200cروم", (
        "joiners are letters' business"
    )
