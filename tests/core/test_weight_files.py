"""The header of a weight file, read without torch: whole, cut, overwritten, missing, and an index that is none."""

import json

import pytest

from tunegate.core.errors import UserError
from tunegate.core.weight_files import INDEX, indexed, read_header


def weights(path, *, data=b"\0" * 8, header=None):
    tensors = {"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    text = json.dumps(tensors).encode() if header is None else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_a_whole_file(tmp_path):
    found = read_header(weights(tmp_path / "a.safetensors"))
    assert set(found.tensors) == {"a"}
    assert found.start == (tmp_path / "a.safetensors").stat().st_size - 8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": b"\0" * 7}, "its header says"),
        ({"data": b"\0" * 9}, "cut off or overwritten"),
        ({"header": b"{]"}, "is damaged"),
        ({"header": b"[1]"}, "is damaged"),
        ({"header": b'{"a": {"data_offsets": []}}'}, "is damaged"),
        ({"header": b""}, "no header"),
        ({"header": b'{"a":' * 100_000}, "is damaged"),
        ({"header": b'{"a": {"data_offsets": [0, 1e999]}}'}, "is damaged"),
    ],
)
def test_what_is_not_whole_is_named_with_the_callers_hint(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read_header(weights(tmp_path / "a.safetensors", **content), hint="mend it")
    assert (caught.value.where, caught.value.hint) == (str(tmp_path / "a.safetensors"), "mend it")


def test_a_missing_file_and_a_header_longer_than_the_file(tmp_path):
    with pytest.raises(UserError, match=r"b\.safetensors is missing"):
        read_header(tmp_path / "b.safetensors")
    (tmp_path / "c").write_bytes(b"\xff" * 100)
    with pytest.raises(UserError, match="no header"):
        read_header(tmp_path / "c")


def test_the_files_of_an_index(tmp_path):
    assert indexed(tmp_path) == []
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "2", "y": "1", "z": "2"}}))
    assert indexed(tmp_path) == ["1", "2"]
    for damaged in ("[]", '{"weight_map": {"x": "../../etc/passwd"}}', '{"weight_map": {"x": 7}}', "[" * 100_000):
        (tmp_path / INDEX).write_text(damaged)
        with pytest.raises(UserError, match="not an index of weight files"):
            indexed(tmp_path)
