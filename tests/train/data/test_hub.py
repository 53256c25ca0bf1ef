"""Data sets of the `datasets` package: what it keeps comes back unchanged, what it changed is refused by name."""

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from tunegate.core.errors import UserError
from tunegate.core.rows import Row
from tunegate.train.data.lines import Fault
from tunegate.train.data.read import Reading, read, sources

USER, ANSWER = {"role": "user", "content": "q\u2028"}, {"role": "assistant", "content": "007"}
CHAT = {"messages": [USER, ANSWER]}


def items(name: str) -> list[Row | Fault]:
    return list(read([name], Reading()))


def plain(name: str) -> list[dict[str, Any]]:
    rows = items(name)
    assert all(isinstance(row, Row) for row in rows)
    return [{k: v for k, v in row.to_json().items() if k != "id"} for row in rows if isinstance(row, Row)]


def test_a_saved_folder_gives_the_rows_that_went_in(tmp_path: Path) -> None:
    records = [{**CHAT, "when": "2024-01-01", "n": 2**60 + i, "share": 0.5} for i in range(2500)]
    datasets.Dataset.from_list(records).save_to_disk(tmp_path / "d", num_shards=2)
    assert plain(str(tmp_path / "d")) == records
    assert len(sources([str(tmp_path / "d")])) == 2


def test_a_saved_dictionary_gives_all_its_splits(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_list([{**CHAT, "side": name}]) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "d")
    assert [row["side"] for row in plain(str(tmp_path / "d"))] == ["train", "test"]


def test_the_json_type_of_datasets_is_parsed(tmp_path: Path) -> None:
    tools = [[{"name": "f", "a": {"b": None}}], [{"name": "g", "c": [1, "x"]}]]
    features = datasets.Features(
        {
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
            "tools": datasets.Json(),
        }
    )
    records = [{**CHAT, "tools": tool} for tool in tools]
    datasets.Dataset.from_list(records, features=features).save_to_disk(tmp_path / "d")
    assert plain(str(tmp_path / "d")) == records


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_nulls_that_arrow_fills_in_are_refused(tmp_path: Path, kind: str) -> None:
    """D1: `from_list` adds `"b": null` to the tools of other rows; whether it was there cannot be told any more."""
    records = [{**CHAT, "tools": [{"name": "f", "parameters": {key: 1}}]} for key in ("a", "b")]
    name = str(tmp_path / "d")
    if kind == "saved":
        datasets.Dataset.from_list(records).save_to_disk(name)
    else:
        name += ".parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), name)
    faults = items(name)
    assert len(faults) == 2
    for fault, key in zip(faults, ("b", "a"), strict=True):
        assert isinstance(fault, Fault)
        assert str(fault.error.where).endswith(f" /tools/0/parameters/{key}")
        assert fault.error.hint == "store the column as JSON text"


def test_dates_and_floats_that_lost_digits_are_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_list([{**CHAT, "when": datetime.date(2024, 1, 1)}]).save_to_disk(tmp_path / "a")
    with pytest.raises(UserError, match=r"column 'when' has type date32"):
        items(str(tmp_path / "a"))
    datasets.Dataset.from_list([{**CHAT, "n": 1e23}, {**CHAT, "n": 0.5}]).save_to_disk(tmp_path / "b")
    bad, good = items(str(tmp_path / "b"))
    assert isinstance(bad, Fault)
    assert str(bad.error.where).endswith(":1 /n")
    assert isinstance(good, Row)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set that `load_dataset` knows how to load without a network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps({**CHAT, "side": split}) + "\n")
    return f"hf:{folder}"


def test_a_split_by_name(hub: str) -> None:
    assert plain(f"{hub}:test") == [{**CHAT, "side": "test"}]
    with pytest.raises(UserError, match="has several splits") as caught:
        items(hub)
    assert f"{hub}:train, {hub}:test" in (caught.value.hint or "")
    with pytest.raises(UserError, match="no split 'tset'") as caught:
        items(f"{hub}:tset")
    assert '"test"' in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["hf:", "hf:no-such-user/no-such-set", "hf:/no/such/folder:train"])
def test_a_data_set_that_cannot_be_had(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(UserError) as caught:
        items(name)
    assert caught.value.where == name


def test_a_damaged_arrow_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.arrow").write_bytes(b"ARROW?" * 20)
    with pytest.raises(UserError, match="not a readable Arrow file") as caught:
        items(str(tmp_path / "a.arrow"))
    assert "\n" not in caught.value.line()
