"""Memory of a training run."""

import platform
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from nf_zoo.inference.scoring import score
from nf_zoo.train import allocator
from nf_zoo.train.evaluation import totals

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


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc alone is told to keep memory')
def test_scoring_takes_its_memory_once() -> None:
    """Most batches are computed in the memory of those before."""
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # features of 48 MiB
    model.num_classes = 64  # type: ignore[assignment]
    found: list[int] = []

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        x, y = torch.randn(3, 3, 256, 256), torch.arange(3)
        for _ in range(9):
            yield x, y
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    for score_all in (lambda: totals(model, batches()), lambda: score(model, batches(), [], {})):
        found.clear()
        score_all()
        assert found[-1] - found[0] < 8 * PAGES / 2
