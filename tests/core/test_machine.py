"""What a process is told about its own machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tunegate.core import machine


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="ru_maxrss is all that other systems have")
def test_the_peak_of_a_small_child_is_its_own():
    """ru_maxrss outlives an exec: a child of a process of 400 MB would be told 400 MB (it failed a merge's bound so)."""
    held = bytearray(os.urandom(1) * 400_000_000)
    child = "from tunegate.core import machine; print(machine.peak_resident_gb())"
    done = subprocess.run([sys.executable, "-c", child], check=True, capture_output=True, text=True)
    assert 0.005 < float(done.stdout) < 0.2
    assert machine.peak_resident_gb() > len(held) / 1e9


def test_the_peak_stays_after_the_memory_is_gone():
    def touched() -> int:
        return len(bytearray(os.urandom(1) * 300_000_000))

    before = machine.peak_resident_gb()
    grown = before + touched() / 1e9
    assert machine.peak_resident_gb() >= min(grown, 0.3)


def test_a_gpu_without_memory_of_its_own_has_the_machines(tmp_path, monkeypatch):
    """Boards with one memory for all: the driver says [N/A], and every command that writes a manifest asks it."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GB10, [N/A]'\necho 'NVIDIA L4, 23034'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    machine.gpus.cache_clear()
    try:
        found = machine.gpus()
    finally:
        machine.gpus.cache_clear()
    assert [(gpu.name, round(gpu.memory_gb, 1)) for gpu in found] == [
        ("NVIDIA GB10", round(machine.memory_gb(), 1)), ("NVIDIA L4", 24.2)
    ]  # fmt: skip
