"""Threads that wait for each other sleep soon, so that one busy neighbour does not stop a training."""

import subprocess
import sys

import pytest

from tunegate.train import thread_waits


@pytest.mark.parametrize(
    ("set_by_user", "then"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_what_the_environment_says_wins(monkeypatch, set_by_user, then):
    environment = dict(set_by_user)
    monkeypatch.setattr(thread_waits.os, "environ", environment)
    thread_waits.keep_short()
    assert environment.get("GOMP_SPINCOUNT") == then


@pytest.mark.skipif(sys.platform != "linux", reason="GCC's OpenMP is that of torch on Linux")
def test_ft_train_sets_it_before_torch_is_there_and_the_library_reads_it(tmp_path):
    code = (
        "import sys\n"
        "from tunegate.core.ft import main\n"
        "sys.argv = ['ft', 'train', 'no-such-dataset', '--out', 'run']\n"
        "try:\n    main()\nexcept SystemExit as ended:\n    assert ended.code == 2\n"
        "assert 'torch' not in sys.modules\n"
        "import torch\n"
    )
    environment = {"OMP_DISPLAY_ENV": "VERBOSE", "PATH": "", "HOME": str(tmp_path)}
    shown = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "GOMP_SPINCOUNT = '5000'" in shown.stderr
