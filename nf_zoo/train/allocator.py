"""Keeps freed memory in the process while it trains or scores (glibc), instead of returning it after every batch."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

TRIM, MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of <malloc.h>
LIMITS = {TRIM: 64 << 20, MMAP: 32 << 20}  # to which glibc's own thresholds grow
_entered = 0  # how often, at this moment


@contextmanager
def keep_freed() -> Iterator[None]:
    """Keep freed memory in the process while entered (glibc), and return it to the system at the end.

    Otherwise glibc may return the memory of the activations after every batch and fetch it again, page by page and
    zeroed. That is 7,000 to 27,000 page faults for a step of EUNNet-20 with 128 images, and 4 to 8 % of its time. To
    score EUNNet-50 on 3,925 images, 256 at a time, it is 70 million page faults and half of the time. With another C
    library this does nothing, nor where it is entered already.
    """
    global _entered
    try:
        libc = ctypes.CDLL(None)
        mallopt, trim = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        yield
        return
    if not _entered:
        mallopt(TRIM, -1)
        mallopt(MMAP, 1 << 30)
    _entered += 1
    try:
        yield
    finally:
        _entered -= 1
        if not _entered:
            for name, limit in LIMITS.items():
                mallopt(name, limit)
            trim(0)
