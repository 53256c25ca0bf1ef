"""An output file is never one of the inputs, nor among them."""

from pathlib import Path

import pytest

from tunegate.core.errors import UserError
from tunegate.core.files import refuse_input_file


def test_a_file_among_the_inputs_is_refused(tmp_path: Path) -> None:
    folder, file = tmp_path / "in", tmp_path / "in" / "a.jsonl"
    folder.mkdir()
    file.touch()
    (tmp_path / "link.jsonl").symlink_to(file)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    for out in (file, folder / "b.jsonl", tmp_path / "link.jsonl", folder / "out"):
        with pytest.raises(UserError, match="would be read as input") as caught:
            refuse_input_file(out, folder, called="--clean")
        assert (caught.value.where, caught.value.hint) == (str(out), "choose another --clean")
    with pytest.raises(UserError, match="would replace the input"):
        refuse_input_file(tmp_path / "link.jsonl", file)
    for out in (folder / "sub" / "b.jsonl", tmp_path / "b.jsonl"):
        refuse_input_file(out, folder, file, "no/such-name", "")
    refuse_input_file(folder / "b.jsonl", file)
