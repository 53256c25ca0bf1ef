"""Freed memory is kept for the next step instead of being given back to the system and asked for again."""

import ctypes
import sys

# glibc's names for mallopt(3), from its malloc.h; the threshold may be 32 MiB at most on 64 bits.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
LARGEST, NEVER = 32 * 1024 * 1024, -1


def keep_freed_memory() -> bool:
    """Let the C library's allocator keep blocks of up to 32 MiB that are freed; False where it is not glibc's.

    By default what is freed at the top of the heap goes back to the system beyond twice the largest block, at most 64 MiB:
    the activations of a step do, and the kernel clears their pages at first touch, again in every step. Threads share one
    heap: the C library gives back a further thread's own whatever is set.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return all(mallopt(*o) for o in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, NEVER), (M_ARENA_MAX, 1)))
