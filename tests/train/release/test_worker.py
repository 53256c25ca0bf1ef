"""A worker in its own process dies with us, however we end, and takes along what it started."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tunegate.train.release import environments, worker

# A worker that is at work, and a process that it started; both are told by number.
LONG = """
    import subprocess, sys, time
    from pathlib import Path
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
    Path(sys.argv[1]).with_name("pids").write_text(f"{__import__('os').getpid()} {child.pid}")
    time.sleep(120)
"""
PARENT = """
    import sys
    from pathlib import Path
    from tunegate.train.release import environments, worker
    environments.WORKERS = Path(sys.argv[1])
    worker.run(Path(sys.executable), "long.py", Path(sys.argv[1]) / "job.json", lambda line: None)
"""


def alive(pid):
    """Whether the process runs (a zombie, which waits to be collected, does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks processes up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_killed_for_real_no_worker_is_left(tmp_path, how):
    (tmp_path / "long.py").write_text(textwrap.dedent(LONG))
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(PARENT), str(tmp_path)], stderr=subprocess.DEVNULL)
    try:
        assert until((tmp_path / "pids").is_file)
        assert until(lambda: len((tmp_path / "pids").read_text().split()) == 2)
        pids = [int(word) for word in (tmp_path / "pids").read_text().split()]
        assert all(map(alive, pids))
        parent.send_signal(how)
        parent.wait(60)
        assert until(lambda: not any(map(alive, pids)), 30), "the worker, or what it started, outlived us"
    finally:
        parent.kill()
        parent.wait()


def test_lines_and_exit_code_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "WORKERS", tmp_path)
    (tmp_path / "short.py").write_text(
        "import sys\nfor i in range(100): print('line', i, file=sys.stderr)\nassert sys.argv[1:] == ['job']\nraise SystemExit(3)"
    )
    heard = []
    code, lines = worker.run(Path(sys.executable), "short.py", Path("job"), heard.append)
    assert (code, len(heard), len(lines), lines[-1]) == (3, 100, worker.LAST_LINES, "line 99")


def test_a_worker_that_someone_stops_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "WORKERS", tmp_path)
    (tmp_path / "long.py").write_text(textwrap.dedent(LONG))
    process = worker.start(Path(sys.executable), "long.py", [str(tmp_path / "job.json")], subprocess.DEVNULL)
    assert until((tmp_path / "pids").is_file)
    worker.stop(process)
    worker.stop(process)
    assert process.returncode == -signal.SIGKILL


def test_every_worker_is_started_so():
    """No other place of this stage starts a process that it does not wait for."""
    folder = Path(worker.__file__).parent
    assert [path.name for path in folder.glob("*.py") if "Popen(" in path.read_text()] == ["worker.py"]
    assert os.access(worker.LAUNCHER, os.R_OK)
