"""What calibrates is not what judges: rows that the run held out are refused, and what is not known is said."""

import shutil

import pytest

from tunegate.core import manifest
from tunegate.core.artifacts import Release
from tunegate.core.errors import UserError
from tunegate.train.release import quantize, quantize_plan
from tunegate.train.release.quantize import calibration_rows
from tunegate.train.release.quantize_plan import QuantizeConfig
from tunegate.train.release.quantize_rows import held_out_of

CONFIG = QuantizeConfig()


@pytest.fixture
def own(makers, tmp_path):
    rows = makers.rows(32)
    return makers.dataset(tmp_path / "own", rows[:24], rows[24:])


@pytest.fixture
def release(own, tmp_path):
    folder = tmp_path / "release"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    manifest.write(folder, "release", inputs=[own.as_input("dataset")], config={}, facts={"quantization": "none"})
    return Release.open(folder)


def test_calibration_on_rows_that_the_run_held_out_is_refused(own, release, makers, tmp_path, monkeypatch):
    rows = makers.rows(32)
    other = makers.dataset(tmp_path / "other", rows[8:], rows[:8])
    with pytest.raises(UserError, match="8 of 24 calibration rows are held out in") as caught:
        held_out_of(release, other, calibration_rows(other, CONFIG))
    assert caught.value.where == str(other.train_path)
    renamed = [{**row, "id": f"x{row['id']}"} for row in rows]
    again = makers.dataset(tmp_path / "renamed", renamed[8:], renamed[:8])
    with pytest.raises(UserError, match="are held out in"):
        held_out_of(release, again, calibration_rows(again, CONFIG))
    monkeypatch.setattr(quantize_plan, "check_release", lambda *_: ({}, 32))
    monkeypatch.setattr(quantize, "load_tokenizer", lambda _: pytest.fail("work was begun"))
    with pytest.raises(UserError, match="are held out in"):
        quantize.quantize(release, other, CONFIG, tmp_path / "out", force=False)


def test_the_proof_is_on_rows_that_were_not_trained_on(own, release, makers, tmp_path):
    """The other dataset holds out what the run was trained on."""
    rows = makers.rows(32)
    other = makers.dataset(tmp_path / "other", makers.rows(24, 500), rows[:8])
    assert held_out_of(release, other, calibration_rows(other, CONFIG)).path == own.path
    assert held_out_of(release, own, calibration_rows(own, CONFIG)).path == own.path
    ids = [{**row, "id": f"r{24 + n}"} for n, row in enumerate(makers.rows(8, 900))]
    known = makers.dataset(tmp_path / "known", ids, rows[:8])
    assert held_out_of(release, known, calibration_rows(known, CONFIG)).path == own.path, "an id alone is no row"


def test_where_it_cannot_be_checked_it_is_said(own, release, makers, tmp_path, capsys):
    other = makers.dataset(tmp_path / "other", makers.rows(24, 500), makers.rows(8, 600))
    shutil.rmtree(own.path)
    assert held_out_of(release, other, calibration_rows(other, CONFIG)) is other
    assert (
        "was not checked: the dataset the model was trained on is not where it was"
        in capsys.readouterr().err.replace("\n", " ")
    )
