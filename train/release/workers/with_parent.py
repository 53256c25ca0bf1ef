"""Runs a script that ends when whoever started it does, however they end: then the pipe on standard input closes.

Usage: python with_parent.py SCRIPT [ARGUMENTS]. What the script started, in the same process group, ends too.
"""

import os
import runpy
import signal
import sys
import threading


def watch() -> None:
    """Wait until standard input closes, then end everything of this group."""
    while os.read(0, 1024):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    del sys.argv[0]
    threading.Thread(target=watch, daemon=True).start()
    runpy.run_path(sys.argv[0], run_name="__main__")
