r"""A few steps of training towards the outputs of the network that a fitted one comes from.

The loss is that of Hinton, Vinyals and Dean (2015), :math:`T^2 \, KL(softmax(z_t / T) \| softmax(z / T))` with the
original's outputs :math:`z_t`. It needs images and no classes.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

BATCH, TEMPERATURE, LEARNING_RATE, WARMUP = 128, 2.0, 5e-4, 10
SHIFT = 1 / 8  # of the side, to each side


def distil(student: nn.Module, teacher: nn.Module, images: Tensor, steps: int, bar: bool = True) -> None:
    """Train ``student`` in place; both networks are in eval mode afterwards.

    Args:
        student: A network.
        teacher: The network whose outputs it shall have, of the same classes.
        images: (N, C, H, W), prepared as both take them. Each step takes 128 of them at random, mirrors half of them
            and shifts them all by up to an eighth of the side.
        steps: Updates with AdamW. The rate rises to 0.0005 in 10 steps and falls to 0 in a line.
        bar: Draw a progress bar.
    """
    teacher.eval()
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARMUP) * (1 - step / steps)
    )
    generator = torch.Generator().manual_seed(0)
    for _ in tqdm(range(steps), 'training', unit='step', leave=False, disable=not bar):
        x = _augmented(images[torch.randint(len(images), (BATCH,), generator=generator)], generator)
        with torch.no_grad():
            wanted = F.softmax(teacher(x) / TEMPERATURE, dim=1)
        found = F.log_softmax(student(x) / TEMPERATURE, dim=1)
        loss = TEMPERATURE**2 * F.kl_div(found, wanted, reduction='batchmean')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    student.eval()


def _augmented(x: Tensor, generator: torch.Generator) -> Tensor:
    mirrored = torch.rand(len(x), 1, 1, 1, generator=generator) < 0.5
    x = torch.where(mirrored, x.flip(3), x)
    height, width = x.shape[2:]
    most = (round(height * SHIFT), round(width * SHIFT))
    top, left = (int(torch.randint(2 * m + 1, (), generator=generator)) for m in most)
    padded = F.pad(x, (most[1], most[1], most[0], most[0]))
    return padded[:, :, top : top + height, left : left + width]
