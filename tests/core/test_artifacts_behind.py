"""The datasets behind a model, found through its lineage: one answer for all who ask."""

import shutil

from tunegate.core import manifest
from tunegate.core.artifacts import datasets_behind
from tunegate.core.manifest import Input


def through(*inputs):
    return (Input(role="run", kind="run", path="gone", digest="r" * 64, inputs=inputs),)


def test_the_nearest_first_without_what_only_calibrated(makers, tmp_path):
    own, first = (makers.dataset(tmp_path / name, makers.rows(2, n), []) for n, name in enumerate(("own", "first")))
    earlier = through(first.as_input("dataset"))[0]
    inputs = through(first.as_input("calibration"), own.as_input("dataset"), earlier)
    assert [(b.path, b.dataset.digest) for b in datasets_behind(inputs)] == [
        (own.path, own.digest),
        (first.path, first.digest),
    ]
    assert datasets_behind(through(own.as_input("calibration"))) == []


def test_what_is_gone_or_was_changed_is_none_and_says_which(makers, tmp_path):
    made = makers.dataset(tmp_path / "data", makers.rows(2), [])
    inputs = through(made.as_input("dataset"))
    copy = shutil.copytree(made.path, tmp_path / "copy")
    with made.train_path.open("a") as stream:
        stream.write("\n")
    changed = [(made.path, None, "has changed")]
    assert datasets_behind(inputs) == changed
    (made.path / manifest.NAME).unlink()
    manifest.write(made.path, "dataset", inputs=[], config={})
    assert datasets_behind(inputs) == changed, "made again with other rows"
    shutil.rmtree(made.path)
    assert datasets_behind(inputs) == [(made.path, None, "is not where it was")]
    elsewhere = manifest.read(copy).as_input("dataset", copy)
    found = datasets_behind((*inputs, elsewhere))
    assert [(b.path, b.why) for b in found] == [(copy, "")], "the same rows at another place"
