import json

import pytest

from tunegate.advisor import calibrate
from tunegate.advisor.cli import app
from tunegate.core.commands import run


@pytest.fixture
def advise(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("TUNEGATE_CACHE", str(tmp_path / "cache"))
    calibrate._factors.cache_clear()

    def call(*arguments):
        code = run(app, prog="ftadvise", argv=[str(a) for a in arguments])
        captured = capsys.readouterr()
        document = json.loads(captured.out) if "--json" in arguments and captured.out else None
        return code, document, captured

    yield call
    calibrate._factors.cache_clear()
