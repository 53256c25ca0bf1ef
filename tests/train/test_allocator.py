"""Blocks that are freed and asked for again are the same pages: the kernel clears none a second time."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from tunegate.train.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def step():
    held = [libc.malloc(4_000_000) for _ in range(50)]
    for block in held:
        ctypes.memset(block, 1, 4_000_000)
    for block in held:
        libc.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(3):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_memory_is_kept():
    faults = {}
    for how in ("keep", "plain"):
        done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        faults[how] = int(done.stdout)
    assert faults["keep"] < 100
    assert faults["plain"] > 1000  # else the C library keeps them by itself, and our setting is of no use
