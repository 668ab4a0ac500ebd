"""Memory of a training run."""

import platform
import resource
from pathlib import Path

import pytest
import torch

from nf_zoo.train import allocator

PAGES = (48 << 20) // resource.getpagesize()  # of a tensor above the size that glibc gives back at once


def faults() -> int:
    """Page faults of taking and freeing such a tensor four times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(PAGES * resource.getpagesize() // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path('/proc/self/statm').read_text().split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone is told to keep memory')
def test_freed_memory_serves_again_while_it_is_kept_and_then_goes_back() -> None:
    with allocator.keep_freed():
        faults()
        again, held = faults(), resident()
    assert held - resident() > PAGES / 2
    assert again < faults() / 4, 'afterwards all is as it was'


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: None) -> None:
        raise TypeError

    monkeypatch.setattr(allocator.ctypes, 'CDLL', none)
    with allocator.keep_freed():
        pass
