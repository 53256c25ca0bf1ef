"""How long a thread that has finished its part of a step spins before it sleeps."""

import os

# libgomp's default is about 300,000 turns where threads do not outnumber processors (its manual, GOMP_SPINCOUNT). Beside one
# other busy process, two threads then share a core, and each spins away the other's time: docs/training.md has the measurement.
SPIN_COUNT = 5_000


def keep_short() -> None:
    """Let OpenMP's threads sleep sooner than by default, unless the environment says how they wait.

    To be called before torch is imported: the library reads its environment once, when it is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT))
