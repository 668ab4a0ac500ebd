"""Training a fitted network towards the outputs of the original."""

import torch
from torch import nn

from nf_zoo.conversion.distillation import _augmented, distil


def test_the_outputs_come_near_to_the_originals_without_any_class() -> None:
    teacher, student = (nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).train() for _ in range(2))
    images = torch.randn(64, 3, 4, 4)
    before = (student(images) - teacher(images)).square().mean()
    weights = [p.clone() for p in teacher.parameters()]
    distil(student, teacher, images, 400, bar=False)
    assert (student(images) - teacher(images)).square().mean() < 0.7 * before
    assert all(torch.equal(a, b) for a, b in zip(weights, teacher.parameters(), strict=True))
    assert not student.training and not teacher.training


def test_images_are_shifted_by_up_to_an_eighth_and_mirrored() -> None:
    x = torch.arange(1.0, 257).view(1, 1, 16, 16).expand(8, 1, 16, 16)
    seen = set()
    for seed in range(40):
        for image in _augmented(x, torch.Generator().manual_seed(seed)):
            row, column = ((image == value).nonzero()[0, 1:] for value in (120, 121))
            step = int(column[1] - row[1])
            assert step in (-1, 1) and abs(int(row[0]) - 7) <= 2
            seen.add((step, int(row[0]) - 7))
            assert set(image.flatten().tolist()) <= {0.0, *range(1, 257)}
    assert {step for step, _ in seen} == {-1, 1} and {shift for _, shift in seen} == {-2, -1, 0, 1, 2}
