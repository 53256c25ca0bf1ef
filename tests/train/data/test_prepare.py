"""The whole preparation: no row is lost, twins never straddle, and the same input gives the same bytes."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunegate.core.artifacts import Dataset
from tunegate.core.errors import UserError
from tunegate.core.manifest import verify
from tunegate.core.rows import read_rows, read_unique_rows
from tunegate.train.data.clean import CleanConfig
from tunegate.train.data.dedup import DedupConfig
from tunegate.train.data.normalize import normalized, user_text
from tunegate.train.data.prepare import PrepareConfig, Report, prepare
from tunegate.train.data.read import Reading
from tunegate.train.data.split import SplitConfig

WORDS = [
    "card",
    "bank",
    "money",
    "transfer",
    "account",
    "late",
    "fee",
    "open",
    "close",
    "lost",
    "found",
    "travel",
    "ticket",
    "hotel",
    "rain",
    "music",
    "light",
    "door",
]


def record(text: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}], **more}


def made(n: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [record(" ".join(draw.choices(WORDS, k=9)) + f" {seed}x{i}", f"label{i % 5}") for i in range(n)]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def run(tmp_path: Path, records: list[dict[str, Any]], name: str = "out", **options: Any) -> tuple[Dataset, Report]:
    source = write(tmp_path / f"{name}.jsonl", records)
    return prepare([source], tmp_path / name, PrepareConfig(**options))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_planted_rows_end_where_the_rules_say(tmp_path: Path) -> None:
    base = made(600)
    texts = [r["messages"][0]["content"] for r in base]
    twins = [
        record(text.upper() + "!", r["messages"][1]["content"]) for text, r in zip(texts[:60], base[:60], strict=True)
    ]
    copies = base[60:100]
    conflicts = [record(text + "?", "another") for text in texts[100:120]]
    dataset, report = run(tmp_path, [*base, *twins, *copies, *conflicts])
    assert report.rows_in == 720 == report.train + report.eval + sum(report.rejected.values())
    assert report.rejected["duplicate_exact"] == 40
    train, held_out = (list(read_rows(p)) for p in (dataset.train_path, dataset.eval_path))
    sides = [{normalized(user_text(row)) for row in side} for side in (train, held_out)]
    assert not sides[0] & sides[1]
    assert all(normalized(text) in sides[0] | sides[1] for text in texts)
    held_twins = sum(normalized(t) in sides[1] for t in texts[:60])
    assert report.rejected["duplicate_normalized"] == 60 - held_twins
    held_conflicts = sum(normalized(t) in sides[1] for t in texts[100:120])
    assert report.conflicts == 20 - held_conflicts
    rejected = lines(dataset.path / "rejected.jsonl")
    ids = {row.id for row in [*train, *held_out]}
    assert all(r["kept"] in ids and r["file"].endswith("out.jsonl") and r["line"] > 600 and r["rule"] for r in rejected)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    records = made(300) + made(30)
    first, _ = run(tmp_path, records)
    source = str(tmp_path / "out.jsonl")
    again, _ = prepare([source], tmp_path / "again", PrepareConfig())
    other, _ = prepare([source], tmp_path / "other", PrepareConfig(split=SplitConfig(seed=1)))
    assert first.digest == again.digest != other.digest
    for item in first.manifest.outputs:
        assert (first.path / item["path"]).read_bytes() == (again.path / item["path"]).read_bytes()


def test_the_folder_is_a_dataset_that_verifies(tmp_path: Path) -> None:
    dataset, report = run(tmp_path, made(400))
    assert verify(dataset.path) == []
    assert dataset.manifest.kind == "dataset"
    assert [i.role for i in dataset.manifest.inputs] == ["source"]
    assert dataset.manifest.facts["train"] == report.train
    assert dataset.manifest.seeds == {"split": 0}
    profile = json.loads((dataset.path / "profile.json").read_text())
    assert profile == json.loads(json.dumps(report.profile.to_json()))
    assert profile["rows"] == report.train
    assert profile["label_source"] == "answer"
    assert len(read_unique_rows(dataset.eval_path)) == report.eval == 100


def test_a_given_group_never_straddles(tmp_path: Path) -> None:
    records = [{**r, "talk": f"c{i // 7}"} for i, r in enumerate(made(700))]
    dataset, _ = run(tmp_path, records, group="talk")
    sides = [{row.extra["talk"] for row in read_rows(p)} for p in (dataset.train_path, dataset.eval_path)]
    assert not sides[0] & sides[1]


def test_train_rows_that_leak_eval_go_unless_kept(tmp_path: Path) -> None:
    """Twins under different groups would straddle: the train side of each is removed, and says whose text it has."""
    base = [{**r, "group": f"a{i}"} for i, r in enumerate(made(400))]
    twins = [record(r["messages"][0]["content"] + " !", "b", group=f"b{i}") for i, r in enumerate(base)]
    dataset, report = run(tmp_path, base + twins)
    leaks = [r for r in lines(dataset.path / "rejected.jsonl") if r["reason"] == "leaks_eval"]
    assert len(leaks) == report.rejected["leaks_eval"] > 20
    eval_ids = {row.id for row in read_rows(dataset.eval_path)}
    assert all(leak["kept"] in eval_ids for leak in leaks)
    _, kept = prepare([str(tmp_path / "out.jsonl")], tmp_path / "kept", PrepareConfig(keep_leaks=True))
    assert "leaks_eval" not in kept.rejected
    assert kept.eval == report.eval


def test_eval_is_chosen_before_cleaning(tmp_path: Path) -> None:
    """Turning every cleaning rule off changes no eval row."""
    records = made(400) + [record(r["messages"][0]["content"] + "s", "x") for r in made(200)]
    first, _ = run(tmp_path, records)
    off = PrepareConfig(dedup=DedupConfig(exact=False, normalized=False, near=False), keep_leaks=True)
    second, _ = prepare([str(tmp_path / "out.jsonl")], tmp_path / "raw", off)
    assert first.eval_path.read_bytes() == second.eval_path.read_bytes()


def test_old_eval_rows_stay_when_rows_come(tmp_path: Path) -> None:
    old, _ = run(tmp_path, made(300), "old")
    before = {row.id for row in read_rows(old.eval_path)}
    new, report = run(tmp_path, made(300) + made(900, seed=5), "new", keep_eval=old.path)
    after = {row.id for row in read_rows(new.eval_path)}
    assert before <= after
    assert report.split.kept == len(before)
    assert "kept_eval" in [i.role for i in new.manifest.inputs]
    without, _ = run(tmp_path, made(300)[:250] + made(900, seed=5), "fewer", keep_eval=old.path)
    assert any("not in the sources" in note for note in without.manifest.facts["notes"])


def test_malformed_lines_stop_or_are_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, made(50))
    with path.open("a") as stream:
        stream.write('{"messages": 1}\n{"oops\n')
    with pytest.raises(UserError) as caught:
        prepare([str(path)], tmp_path / "out", PrepareConfig())
    assert caught.value.where == f"{path}:51"
    assert not (tmp_path / "out").exists()
    dataset, report = prepare([str(path)], tmp_path / "out", PrepareConfig(on_error="reject"))
    assert report.rejected == {"malformed": 2}
    assert report.rows_in == 52
    found = lines(dataset.path / "rejected.jsonl")
    assert [(r["line"], r["reason"]) for r in found] == [(51, "malformed"), (52, "malformed")]
    assert found[1]["text"] == '{"oops\n'
    assert "not valid JSON" in found[1]["message"]


def test_one_id_for_two_rows(tmp_path: Path) -> None:
    records = [*made(30), record("x", "y", id="same"), record("x", "y", id="same"), record("z", "y", id="same")]
    with pytest.raises(UserError, match="with other content") as caught:
        run(tmp_path, records)
    assert caught.value.where == f"{tmp_path / 'out.jsonl'}:33 /id"
    _, report = run(tmp_path, records, on_error="reject")
    assert report.rejected == {"duplicate_exact": 1, "duplicate_id": 1}


def test_copies_of_a_row_that_goes_are_exact_duplicates(tmp_path: Path) -> None:
    """Of three equal rows after a variant of theirs, two, whatever the first goes for; a row rule takes all."""
    records = [record(text, "a") for text in ("play x now", *["Play x now."] * 3)]
    dataset, report = run(tmp_path, records, **everything_off())
    assert report.rejected == {"duplicate_exact": 2, "duplicate_normalized": 1}
    (kept,) = read_rows(dataset.train_path)
    assert {r["kept"] for r in lines(dataset.path / "rejected.jsonl")} == {kept.id}


def test_losing_half_a_source_needs_a_yes(tmp_path: Path) -> None:
    records = made(10) + [record(f"the same text, whatever{'!' * i}", "a") for i in range(40)]
    with pytest.raises(UserError, match="would remove"):
        run(tmp_path, records, split=SplitConfig(eval_fraction=0))
    assert not (tmp_path / "out").exists()
    _, report = run(tmp_path, records, yes=True, split=SplitConfig(eval_fraction=0))
    assert report.rows_in == report.train + report.eval + sum(report.rejected.values())


def test_small_sets(tmp_path: Path) -> None:
    _, report = run(tmp_path, made(3), "three")
    assert (report.train, report.eval) == (2, 1)
    _, report = run(tmp_path, made(1), "one")
    assert (report.train, report.eval) == (1, 0)


def test_files_are_mixed_and_each_row_says_which(tmp_path: Path) -> None:
    csv = tmp_path / "b.csv"
    csv.write_text("prompt,completion\n" + "".join(f"question number {i},label\n" for i in range(40)))
    dataset, report = prepare(
        [write(tmp_path / "a.jsonl", made(40)), str(csv)],
        tmp_path / "out",
        PrepareConfig(split=SplitConfig(min_eval=0)),
    )
    assert report.rows_in == 80
    assert [Path(i.path).name for i in dataset.manifest.inputs] == ["a.jsonl", "b.csv"]


def test_tags_and_labels(tmp_path: Path) -> None:
    records = [{**r, "kind": "rare" if i < 4 else "common"} for i, r in enumerate(made(400))]
    options = {
        "reading": Reading(tag_keys=("kind",)),
        "label": "kind",
        "split": SplitConfig(eval_fraction=0.02, min_eval=0),
    }
    dataset, report = run(tmp_path, records, **options)
    assert report.label_source == "kind"
    assert Counter(row.tags["kind"] for row in read_rows(dataset.eval_path))["rare"] >= 1
    with pytest.raises(UserError, match="no row has 'knd'"):
        prepare([str(tmp_path / "out.jsonl")], tmp_path / "x", PrepareConfig(label="knd"))


def test_builtin_holds_out_a_hundred_rows(tmp_path: Path) -> None:
    dataset, report = prepare(["builtin:bfcl"], tmp_path / "out", PrepareConfig())
    assert (report.rows_in, report.eval, report.rejected) == (858, 100, {})
    assert all(i.path.startswith("builtin:bfcl/") for i in dataset.manifest.inputs)
    assert len(dataset.manifest.inputs) == 6
    assert {row.tags["category"] for row in read_rows(dataset.eval_path)} == {
        "simple_python",
        "multiple",
        "live_simple",
    }


def everything_off(**more: Any) -> dict[str, Any]:
    return {"split": SplitConfig(eval_fraction=0, min_eval=0), "yes": True, **more}


def test_every_removed_row_names_a_row_that_stays(tmp_path: Path) -> None:
    """A twin that the row rules remove takes no row with it: its near duplicate stays, its copies go for its reason."""
    text = "please book a table at the italian restaurant near the station for two people on friday evening"
    refusal = "I cannot help with that"
    records = [
        record(text, refusal, id="r1"),
        record(text, refusal, id="r1"),
        record(text + "!", "yes", id="r2"),
        record(text + "s", "yes", id="r3"),
        record(text + "s", "yes", id="r4"),
        record("where is the bank", "yes", id="r5"),
        record("where is the bank", "yes", id="r5"),
    ]
    dataset, _ = run(tmp_path, records, **everything_off(clean=CleanConfig(drop_refusals=True)))
    rejected = lines(dataset.path / "rejected.jsonl")
    assert [(r["line"], r["reason"], r.get("kept")) for r in sorted(rejected, key=lambda r: r["line"])] == [
        (1, "refusal", None),
        (2, "refusal", None),
        (4, "duplicate_near", "r2"),
        (5, "duplicate_exact", "r2"),
        (7, "duplicate_exact", "r5"),
    ]
    assert [row.id for row in read_rows(dataset.train_path)] == ["r2", "r5"]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "s", "!", " at 2", " mail a@b.org"]),
            st.sampled_from(["yes", "I cannot help with that", "no", "w " * 40]),
            st.sampled_from(["", "translate", "answer"]),
            st.sampled_from([None, "g1", "g2", "g3"]),
        ),
        min_size=2,
        max_size=14,
    ),
    st.sampled_from(["flag", "mask", "remove"]),
)
def test_the_accounts_close_whatever_the_rules_remove(
    tmp_path: Path, rows: list[tuple[str, str, str, str | None]], secrets: str
) -> None:
    text = "please book a table at the italian restaurant near the station for two people on friday evening"
    records = []
    for suffix, answer, system, group in rows:
        value = record(text + suffix, answer)
        value["messages"][:0] = [{"role": "system", "content": system}] if system else []
        records.append(value | ({"group": group} if group else {}))
    source = write(tmp_path / "in.jsonl", records)
    rules = CleanConfig(max_length=50, drop_long=True, drop_refusals=True, secrets=secrets)
    config = PrepareConfig(split=SplitConfig(eval_fraction=0.3, min_eval=1), clean=rules, yes=True)
    try:
        dataset, report = prepare([source], tmp_path / "out", config, force=True)
    except UserError as error:
        if "nothing is left to train on" not in error.message:
            raise
        return
    assert report.rows_in == len(records) == report.train + report.eval + sum(report.rejected.values())
    train, held_out = ({row["id"] for row in lines(p)} for p in (dataset.train_path, dataset.eval_path))
    for item in lines(dataset.path / "rejected.jsonl"):
        if "kept" in item:
            assert item["kept"] in (held_out if item["reason"] == "leaks_eval" else train | held_out)
    for pair in lines(dataset.path / "pairs.jsonl"):
        if pair["kind"] in ("conflict", "contrast"):
            assert {pair["a"]["id"], pair["b"]["id"]} <= train


def test_the_same_user_text_under_another_prompt_is_listed_and_kept(tmp_path: Path) -> None:
    base = [{**r, "group": f"a{i}"} for i, r in enumerate(made(300))]
    other = []
    for i, r in enumerate(base):
        value = record(r["messages"][0]["content"].upper(), "b", group=f"b{i}")
        value["messages"].insert(0, {"role": "system", "content": "another task"})
        other.append(value)
    dataset, report = run(tmp_path, base + other)
    assert "leaks_eval" not in report.rejected
    found = [p for p in lines(dataset.path / "pairs.jsonl") if p["kind"] == "same_user_text"]
    assert len(found) == report.same_user_text > 20
    assert {p["a"]["id"] for p in found} <= {row.id for row in read_rows(dataset.eval_path)}
    assert {p["b"]["id"] for p in found} <= {row.id for row in read_rows(dataset.train_path)}


def test_losing_half_a_source_to_copies_or_length_needs_a_yes(tmp_path: Path) -> None:
    for name, records, rules in (
        ("copies", made(5) * 9, CleanConfig()),
        ("length", made(40), CleanConfig(max_length=5, drop_long=True)),
    ):
        with pytest.raises(UserError, match="would remove"):
            run(tmp_path, records, name, clean=rules, split=SplitConfig(eval_fraction=0, min_eval=0))
