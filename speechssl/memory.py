"""Keeps large freed blocks of memory for the next tensor instead of giving them back to the kernel.

By default glibc maps and unmaps every block above a threshold, so each large CPU tensor pays for page faults again:
half of the time of extracting filterbanks. Peak memory is unchanged; what was once used is kept.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of mallopt(3)."""
KEEP = 2**31 - 1  # bytes at the top of the heap


def keep_freed_memory() -> bool:
    """Sets the allocator so for this process; returns whether it could (Linux with glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, KEEP))
