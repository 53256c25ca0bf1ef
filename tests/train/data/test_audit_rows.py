"""What an audit of `ft data` found: outputs that replaced the user's files, hold-outs too large, rows read or counted wrong."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from tunegate.core import manifest
from tunegate.core.commands import run
from tunegate.core.errors import UserError
from tunegate.core.rows import Row, parse_row
from tunegate.train.data.cli import app
from tunegate.train.data.dedup import DedupConfig, deduplicate
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, read
from tunegate.train.data.split import SplitConfig, split

QUIET = ("--no-near",)


def record(text: str, answer: str = "a", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], **more}


def write(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


def words(n: int, name: str = "question") -> list[dict[str, Any]]:
    return [record(f"{name} {chr(97 + i // 26 % 26)}{chr(97 + i % 26)}") for i in range(n)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def ft(capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*argv: Any) -> tuple[int, dict[str, Any]]:
        code = run(app, prog="ft data", argv=[*map(str, argv), "--json"])
        return code, json.loads(capsys.readouterr().out)

    return call


def says(found: tuple[int, dict[str, Any]]) -> str:
    code, document = found
    assert code == 2
    error = document["error"]
    return f"{error['where']}: {error['message']} ({error['hint']})"


# 2, 3, 16, 27, 30: what is written where


@pytest.mark.parametrize("command", ["prepare", "split", "clean", "dedup"])
def test_force_deletes_no_file_of_the_user(ft: Any, tmp_path: Path, command: str) -> None:
    source = write(tmp_path / "proj" / "my.jsonl", words(30))
    (tmp_path / "proj" / "notes.txt").write_text("mine")
    before = source.read_bytes()
    for out in (source.parent, source, tmp_path):
        says(ft(command, source, "--out", out, "--force"))
    assert source.read_bytes() == before
    assert (tmp_path / "proj" / "notes.txt").read_text() == "mine"


def test_a_folder_of_ours_that_holds_the_input_is_kept(ft: Any, tmp_path: Path) -> None:
    out = tmp_path / "data"
    assert ft("prepare", write(tmp_path / "a.jsonl", words(30)), "--out", out, *QUIET)[0] == 0
    for source in (out, out / "train.jsonl"):
        assert "would replace the input" in says(ft("prepare", source, "--out", out, "--force", *QUIET))
        assert "would replace the input" in says(ft("dedup", source, "--out", out, "--force", *QUIET))
    kept = ("--keep-eval", out)
    assert "would replace the input" in says(
        ft("prepare", tmp_path / "a.jsonl", "--out", out, "--force", *kept, *QUIET)
    )
    assert manifest.verify(out) == []
    assert ft("prepare", tmp_path / "a.jsonl", "--out", out, "--force", *QUIET)[0] == 0


def test_a_conversion_does_not_replace_its_input(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", words(3))
    assert "would replace the input" in says(ft("convert", source, "--to", "trl", "--out", source, "--force"))
    assert "is a folder" in says(ft("convert", source, "--to", "trl", "--out", tmp_path, "--force"))


def test_clean_and_html_replace_no_file(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", words(3))
    before = source.read_bytes()
    sides = ("--train", source, "--eval", source, "--near-model", "lexical")
    assert "choose another name" in says(ft("leakage", *sides, "--clean", source))
    assert "choose another name" in says(ft("inspect", source, "--html", source))
    assert source.read_bytes() == before
    deep = tmp_path / "no" / "such"
    assert ft("leakage", *sides, "--clean", deep / "x.jsonl")[0] == 0
    assert ft("inspect", source, "--html", deep / "x.html")[0] == 0
    assert sorted(p.name for p in deep.iterdir()) == ["x.html", "x.jsonl"]
    assert ".partial" not in says(ft("inspect", source, "--html", source / "x.html"))


def test_names_that_are_none(ft: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", words(3))
    assert "an empty name" in says(ft("prepare", "", "--out", "kq"))
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "a new folder is needed here" in says(ft("prepare", "../a.jsonl", "--out", "."))


# 7, 8: over half of a source


def test_the_rows_of_a_source_are_counted_whatever_side_they_went_to(ft: Any, tmp_path: Path) -> None:
    """Nearly all of b is held out, its few train rows are copies: 7 of 47, not 7 of 7."""
    held = write(tmp_path / "b.jsonl", words(40, "held"))
    source = write(tmp_path / "c.jsonl", [*words(40, "held"), *words(7)])
    train = write(tmp_path / "a.jsonl", words(100))
    options = ("--keep-eval", held, "--eval-fraction", 0, *QUIET)
    code, found = ft("prepare", train, source, "--out", tmp_path / "d", *options)
    assert code == 0
    assert found["rejected"] == {"duplicate_exact": 7}


@pytest.mark.parametrize("command", ["prepare", "split", "clean", "dedup"])
def test_many_lines_that_are_no_rows_are_warned_of(
    ft: Any, tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("tunegate.train.data.dedup.warn", said.append)
    source = write(tmp_path / "a.jsonl", [*words(20), *["{"] * 80])
    options = ("--on-error", "reject", "--out", tmp_path / "d", *(QUIET if command in ("prepare", "dedup") else ()))
    assert ft(command, source, *options)[0] == 0
    assert said == [f"{source}: 80 of 100 lines are no rows (ft data check says why)"]


def test_ids_that_stand_twice_count_as_lost(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{**r, "id": f"i{at % 20}"} for at, r in enumerate(words(60))])
    options = ("--on-error", "reject", "--out", tmp_path / "d", *QUIET)
    assert "cleaning would remove 40 of 60 rows (duplicate_id 40)" in says(ft("prepare", source, *options))


# 9, 10, 23: the hold-out


@pytest.mark.parametrize("seed", range(20))
def test_a_group_of_most_rows_stays_in_train(seed: int) -> None:
    groups = ["giant"] * 90 + [f"g{i}" for i in range(10)]
    chosen = split(groups, [None] * 100, SplitConfig(seed=seed))
    assert not any(chosen.held_out[:90])
    assert chosen.n == 10
    assert chosen.too_large == ["giant"]


@pytest.mark.parametrize("seed", range(20))
def test_large_groups_end_at_a_third(seed: int) -> None:
    groups = [f"g{i % 8}" for i in range(80)]
    chosen = split(groups, [f"l{i % 8}" for i in range(80)], SplitConfig(seed=seed, eval_fraction=0.3))
    assert 0 < chosen.n <= 26


def test_small_groups_stay_where_their_hash_puts_them() -> None:
    """At a fraction of a third the hash alone may pass a third: cutting there would move rows when others are added."""
    groups = [f"g{i}" for i in range(3000)]
    passed = 0
    for seed in range(8):
        config = SplitConfig(seed=seed, eval_fraction=1 / 3)
        before = split(groups, [None] * 3000, config)
        more = [*groups, *(f"n{i}" for i in range(300))]
        assert split(more, [None] * 3300, config).held_out[:3000] == before.held_out
        passed += before.n > 1000
    assert passed


@pytest.mark.parametrize(("rows", "held"), [(1, 0), (2, 0), (3, 1), (4, 1)])
def test_the_smallest_sets_are_split_alike_for_every_seed(rows: int, held: int) -> None:
    groups = [f"g{i}" for i in range(rows)]
    assert {split(groups, [None] * rows, SplitConfig(seed=seed)).n for seed in range(300)} == {held}


def test_what_the_hold_out_is_short_of_is_said(ft: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "a.jsonl", [*(record(f"q {i}", group="giant") for i in range(90)), *words(10)])
    _, found = ft("prepare", source, "--out", tmp_path / "d", *QUIET)
    assert found["eval"] == 10
    assert any("'giant' stays in train: it holds 90 of the 100 rows" in note for note in found["notes"])
    _, found = ft("prepare", write(tmp_path / "b.jsonl", words(2)), "--out", tmp_path / "e", *QUIET)
    assert (found["train"], found["eval"]) == (2, 0)
    assert any("eval.jsonl is empty" in note for note in found["notes"])
    run(app, prog="ft data", argv=["split", str(write(tmp_path / "c.jsonl", words(60))), "--out", str(tmp_path / "f")])
    said = capsys.readouterr().out
    assert "to reach 100 rows" not in said
    assert "(--min-eval 100 is over a third)" in said


def test_a_larger_minimum_for_labels_pins_no_fewer(ft: Any, tmp_path: Path) -> None:
    groups = [f"g{i}" for i in range(28)]
    labels = ["a", "b"] * 14
    held = []
    for least in (1, 4, 5, 14):
        chosen = split(groups, labels, SplitConfig(eval_fraction=0.001, min_eval=0, min_per_label=least))
        counts = [sum(f and name == label for f, label in zip(chosen.held_out, labels, strict=True)) for name in "ab"]
        held.append(counts)
        assert chosen.short == (dict.fromkeys("ab", 4) if least > 4 else {})
    assert held == [[1, 1], [4, 4], [4, 4], [4, 4]]
    source = write(tmp_path / "a.jsonl", [{**r, "label": "xy"[at % 2]} for at, r in enumerate(words(28))])
    options = ("--min-per-label", 5, "--min-eval", 0, "--out", tmp_path / "d", *QUIET)
    _, found = ft("prepare", source, *options)
    assert any("2 labels have fewer groups held out than --min-per-label 5" in note for note in found["notes"])


def test_kept_rows_found_by_their_text_are_not_called_gone(ft: Any, tmp_path: Path) -> None:
    old = write(tmp_path / "old.jsonl", [{**r, "id": f"old{at}"} for at, r in enumerate([*words(20), record("gone")])])
    source = write(tmp_path / "new.jsonl", words(90))
    _, found = ft("prepare", source, "--keep-eval", old, "--out", tmp_path / "d", *QUIET)
    assert found["kept_eval"] == 20
    assert [n for n in found["notes"] if "any more" in n] == [
        f"1 of the 21 rows of {old} are not in the sources any more."
    ]


# 11, 12, 17, 31, 32, 33: which rows are one


def test_rows_on_one_line_are_counted_each(ft: Any, tmp_path: Path) -> None:
    rows = [record(f"write to a{chr(97 + i)}@firm.de") for i in range(9)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    _, found = ft("prepare", tmp_path / "a.json", "--out", tmp_path / "d", *QUIET)
    assert found["findings"]["personal_data"] == 9


@pytest.mark.parametrize(("scores", "stays"), [((1, 3, 2), 3), ((0.5, 10**400, 7), 10**400)], ids=["small", "huge"])
def test_the_best_of_copies_without_ids_stays(ft: Any, tmp_path: Path, scores: tuple[float, ...], stays: float) -> None:
    copies = [record("same", score=score) for score in scores]
    source = write(tmp_path / "a.jsonl", [*copies, *({**r, "score": 1} for r in words(30))])
    for command in ("prepare", "dedup"):
        out = tmp_path / command
        assert ft(command, source, "--keep", "best:score", "--out", out, *QUIET)[0] == 0
        kept = [json.loads(line) for name in ("train", "eval", "rows") for line in _text(out / f"{name}.jsonl")]
        assert [r["score"] for r in kept if r["messages"][0]["content"] == "same"] == [stays]
        assert sorted(r["row"]["score"] for r in lines(out / "rejected.jsonl")) == sorted(set(scores) - {stays})


def _text(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def rows(*records: dict[str, Any]) -> list[Row]:
    return [parse_row(r, "f", line) for line, r in enumerate(records, 1)]


def agent(one: str, two: str, *, swapped: bool = False) -> dict[str, Any]:
    """Two calls in one turn and their answers, under the ids given."""

    def call(name: str, city: str) -> dict[str, Any]:
        return {
            "id": name,
            "type": "function",
            "function": {"name": "weather", "arguments": json.dumps({"city": city})},
        }

    messages = [
        {"role": "user", "content": "weather in Rome and in Oslo?"},
        {"role": "assistant", "content": None, "tool_calls": [call(one, "Rome"), call(two, "Oslo")]},
        {"role": "tool", "content": "sun", "tool_call_id": two if swapped else one},
        {"role": "tool", "content": "rain", "tool_call_id": one if swapped else two},
        {"role": "assistant", "content": "sun and rain"},
    ]
    return {"messages": messages}


@pytest.mark.parametrize("near", [False, True])
def test_ids_of_tool_calls_make_no_other_row(near: bool) -> None:
    config = DedupConfig(near=near, normalized=not near, near_model="lexical")
    assert len(deduplicate(rows(agent("call_1", "call_2"), agent("x", "y")), config).rejected) == 1
    other = deduplicate(rows(agent("call_1", "call_2"), agent("x", "y", swapped=True)), config)
    assert len(other.kept) == 2, "the answers belong to the other calls"


def test_admissible_outputs_of_a_copy_are_not_lost(ft: Any, tmp_path: Path) -> None:
    copies = [record("same", accept=["a"]), record("same", accept=["a", "b"]), record("same", accept=["c"])]
    source = write(tmp_path / "a.jsonl", [*copies, *words(30)])
    for command in ("prepare", "dedup"):
        out = tmp_path / command
        assert ft(command, source, "--out", out, *QUIET)[0] == 0
        kept = [json.loads(line) for name in ("train", "eval", "rows") for line in _text(out / f"{name}.jsonl")]
        assert [r["accept"] for r in kept if "accept" in r] == [["a", "b", "c"]]


@pytest.mark.parametrize("near", [False, True])
def test_another_reasoning_or_accept_is_another_answer(near: bool) -> None:
    def thought(text: str, why: str) -> dict[str, Any]:
        row = record(text)
        row["messages"][-1]["reasoning_content"] = why
        return row

    config = DedupConfig(near=near, near_model="lexical")
    found = deduplicate(rows(thought("Same?", "because"), thought("same", "since")), config)
    assert (len(found.kept), len(found.conflicts)) == (2, 1)
    found = deduplicate(rows(record("Same?", accept=["a"]), record("same", accept=["b"])), config)
    assert (len(found.kept), len(found.conflicts)) == (2, 1)


@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("price -5", "price 5", False),
        ("1.5 litres", "1 5 litres", False),
        ("pay 1,50 now", "pay 1 50 now", False),
        ("(-5) degrees", "(5) degrees", False),
        ("Price 5!", "price 5", True),
        ("covid-19", "Covid 19", True),
        ("1.5 litres.", "1.5 LITRES", True),
    ],
)
def test_signs_and_decimal_points_count(near: bool, a: str, b: str, same: bool) -> None:
    config = DedupConfig(near=near, near_model="lexical")
    assert len(deduplicate(rows(record(a), record(b)), config).rejected) == same
    assert len(deduplicate(rows(record(a), record(b, "other")), config).conflicts) == same


# 14, 15, 24, 25, 26: reading


def test_an_empty_completion_is_no_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "hidden answer"}]
    source = write(tmp_path / "a.jsonl", [{"prompt": turns, "completion": []}])
    (found,) = read([str(source)], Reading())
    assert isinstance(found, Fault)
    assert found.error.line() == f"{source}:1 /completion: completion is empty"


@pytest.mark.parametrize("tags", [["x"], 5, "x", []])
def test_tags_that_are_no_object_are_named(ft: Any, tmp_path: Path, tags: Any) -> None:
    source = write(tmp_path / "a.jsonl", [record("q", tags=tags, label="l")])
    assert '"tags" must not be' in says(ft("prepare", source, "--tag", "label", "--out", tmp_path / "d"))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_cell_of_tags_that_is_no_object_is_named(ft: Any, tmp_path: Path, name: str) -> None:
    comma = "," if name == "a.csv" else "\t"
    source = write(
        tmp_path / name, [comma.join(cells) for cells in (("prompt", "completion", "tags", "label"), "qa5l")]
    )
    assert '"tags" must not be a number' in says(ft("prepare", source, "--tag", "label", "--out", tmp_path / "d"))


def test_json_lines_in_a_json_file_have_their_line(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.json", ['{"messages": [', *words(5)])
    assert says(ft("prepare", source, "--out", tmp_path / "d")).startswith(f"{source}:1: not valid JSON")
    code, found = ft("prepare", source, "--out", tmp_path / "d", "--on-error", "reject", *QUIET)
    assert (code, found["rejected"]) == (0, {"malformed": 1})
    pretty = tmp_path / "b.json"
    pretty.write_text(json.dumps({"data": words(3)}, indent=1))
    assert "one JSON object, not a list" in says(ft("prepare", pretty, "--out", tmp_path / "e"))


BROKEN = b'prompt,completion\nq1,a1\n"q2"x,a2\nq3,"a\nb"\nq\xff4,a4\nq5,a5\n'


def test_a_bad_line_of_csv_does_not_end_the_file(ft: Any, tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes(BROKEN)
    assert f"{source}:3: not valid CSV" in says(ft("prepare", source, "--out", tmp_path / "d"))
    found = list(read([str(source)], Reading()))
    assert [(f.line, isinstance(f, Row)) for f in found] == [(2, True), (3, False), (4, True), (6, False), (7, True)]
    faults = [f for f in found if isinstance(f, Fault)]
    assert [f.error.line() for f in faults] == [
        f"{source}:3: not valid CSV: ',' expected after '\"'",
        f"{source}:6: not UTF-8 (save the file as UTF-8)",
    ]
    assert [f.text for f in faults] == ['"q2"x,a2\n', "q\\xff4,a4"]
    code, done = ft("prepare", source, "--out", tmp_path / "d", "--on-error", "reject", *QUIET)
    assert (code, done["rejected"]) == (0, {"malformed": 2})


@pytest.mark.parametrize(
    ("raw", "says_", "line"),
    [
        (b"prompt,compl\xffetion\nq,a\n", "not UTF-8", 1),
        (b'prompt,completion\nq,a\nq2,"a2\nq3,a3\n', "not valid CSV: unexpected end of data", 3),
    ],
)
def test_what_spoils_a_whole_csv_file_stops(tmp_path: Path, raw: bytes, says_: str, line: int) -> None:
    source = tmp_path / "a.csv"
    source.write_bytes(raw)
    with pytest.raises(UserError, match=says_) as caught:
        list(read([str(source)], Reading()))
    assert caught.value.where == f"{source}:{line}"


def test_both_forms_of_arrow_and_a_skippable_frame(tmp_path: Path) -> None:
    table = pyarrow.table({"prompt": ["q1", "q2"], "completion": ["a1", "a2"]})
    with pyarrow.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
        writer.write_table(table.slice(0, 1))
    with pyarrow.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    found = [[r.expected for r in read([str(tmp_path / n)], Reading())] for n in ("file.arrow", "stream.arrow")]  # type: ignore[union-attr]
    assert found == [["a1", "a2", "a1"], ["a1", "a2"]]
    packed = pyarrow.compress(json.dumps(record("q")).encode(), codec="zstd", asbytes=True)
    (tmp_path / "a.jsonl.zst").write_bytes(struct.pack("<II", 0x184D2A53, 4) + b"skip" + packed)
    assert [type(r) for r in read([str(tmp_path / "a.jsonl.zst")], Reading())] == [Row]


# 21, 28, 29: folders of ours, and names that are misspelt


def test_what_clean_and_dedup_write_is_read_again(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*words(30), *words(5)])
    for command in ("clean", "dedup"):
        folder = tmp_path / command
        assert ft(command, source, "--out", folder, *(QUIET if command == "dedup" else ()))[0] == 0
        kept = len(lines(folder / "rows.jsonl"))
        assert ft("check", folder)[1]["rows"] == kept
        sides = ("--train", folder, "--eval", folder, "--near-model", "lexical")
        assert ft("leakage", *sides)[1]["n"] == kept
    assert ft("prepare", tmp_path / "dedup", "--out", tmp_path / "d", *QUIET)[1]["rows_in"] == 30


def test_a_key_that_groups_nothing_is_explained(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{**r, "aa": {"x": 1}} for r in words(9)])
    said = says(ft("prepare", source, "--group", "aa", "--out", tmp_path / "d"))
    assert said.startswith("--group: 'aa' holds an object, text or a number is needed here")
    assert "did you mean" not in says(ft("prepare", source, "--group", "id", "--out", tmp_path / "d"))
    assert "did you mean" in says(ft("prepare", source, "--group", "a", "--out", tmp_path / "d"))


def test_a_key_to_drop_that_no_row_has_is_an_error(ft: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{**r, "source": "x"} for r in words(3)])
    out = tmp_path / "b.jsonl"
    said = says(ft("convert", source, "--to", "trl", "--drop", "sorce", "--out", out))
    assert "no row has 'sorce'" in said
    assert "source" in said
    assert not out.exists()
    assert ft("convert", source, "--to", "trl", "--drop", "source", "--drop", "tags", "--out", out)[0] == 0
