"""Keeps freed memory in the process while it trains (glibc), instead of returning it after every step."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
LIMITS = {TRIM: 64 << 20, MMAP: 32 << 20}  # to which glibc's own thresholds grow


@contextmanager
def keep_freed() -> Iterator[None]:
    """While entered, glibc keeps the memory that is freed; at the end it goes back to the system.

    Otherwise activations are given back and come again page by page, zeroed, at every step: 7,000 to 27,000 page faults
    a step of EUNNet-20 with 128 images, by chance, 4 to 8 % of its time. Other C libraries are left alone.
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
