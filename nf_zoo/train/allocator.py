"""Keeps freed memory in the process while it trains (glibc), instead of returning it after every step."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
LIMITS = {TRIM: 64 << 20, MMAP: 32 << 20}  # to which glibc's own thresholds grow


@contextmanager
def keep_freed() -> Iterator[None]:
    """Keep freed memory in the process while entered (glibc), and return it to the system at the end.

    Otherwise glibc may return the memory of the activations after every step and fetch it again, page by page and
    zeroed. That is 7,000 to 27,000 page faults for a step of EUNNet-20 with 128 images, and 4 to 8 % of its time. With
    another C library this does nothing.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    mallopt(TRIM, -1)
    mallopt(MMAP, 1 << 30)
    try:
        yield
    finally:
        for name, limit in LIMITS.items():
            mallopt(name, limit)
        trim(0)
