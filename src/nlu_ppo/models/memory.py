"""How the C library keeps memory, which on the CPU decides how fast tensors come and go."""

from __future__ import annotations

import contextlib
import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MOST = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc keep what tensors leave behind for the next ones; does nothing where there is another C library.

    A training step makes and drops thousands of tensors of some MiB. By default glibc gives memory of that size
    back to the system and asks for it again, and the system clears every page anew: a product of two MLP
    activations then takes ten times as long (`python -m benchmarks.profile` with and without). What a process holds
    at its peak stays as it is.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that it takes
        libc.mallopt(M_TRIM_THRESHOLD, MOST)
