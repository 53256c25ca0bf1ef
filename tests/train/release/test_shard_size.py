"""The largest weight file as a number that an option takes."""

import json

from tunegate.core.commands import run
from tunegate.train.release.cli import merge_app


def test_an_infinite_size_is_refused_before_any_work(adapter_run, tmp_path, capsys):
    """It was a bug of ours, after the proof."""
    made = adapter_run("run")
    argv = [str(made.path), "--out", str(tmp_path / "release"), "--max-shard-size", "inf", "--json"]
    assert run(merge_app, prog="ft merge", argv=argv) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["message"] == "--max-shard-size must be a number of GB, not infinite"
    assert "reading held-out answers" not in err
