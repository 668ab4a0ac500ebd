"""Networks of one architecture that are trained side by side, with other learning rates and seeds.

A small network with few images a step leaves a GPU idle between its kernels. Here the parameters of K networks are
stacked (`torch.func`), so that a kernel computes for all of them, and a CUDA graph replays a whole step. Each network
sees the images that :func:`common.fit` would show it, in the same order.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import timm
import torch
from common import CLIP, MOMENTUM, order_of, progress, rate_factor
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

WARM_UP = 3  # steps before a capture, as PyTorch asks for
AHEAD = 100  # steps that are waiting for the device at most


class Images(NamedTuple):
    """What all networks train on: padded (N, H + 2P, W + 2P, 3) and labels (N,), on the device."""

    padded: Tensor
    labels: Tensor


class Draws(NamedTuple):
    """What a network takes at each of S steps: index (S, B) of the images, corners (S, 2, B), mirrored (S, B)."""

    index: Tensor
    corners: Tensor
    mirrored: Tensor


class SideBySide:
    """K networks, one for each learning rate and seed, that learn in the same steps.

    Args:
        name: Model of timm.
        batch: Images a step, of each network.
        runs: Learning rate and seed of each network.
        images: What they train on.
        epochs: Passes over the images.
        draw: Takes the number of images; returns corners (2, B) and mirrored (B,), with torch's global seed.
        cut: Takes the padded images, index (B,), corners (2, B) and mirrored (B,); returns images (B, 3, H, W).
    """

    def __init__(
        self,
        name: str,
        batch: int,
        runs: Sequence[tuple[float, int]],
        images: Images,
        epochs: int,
        draw: Callable[[int], tuple[Tensor, Tensor]],
        cut: Callable[..., Tensor],
    ) -> None:
        self.images, self.cut, self.device = images, cut, images.padded.device
        count = len(images.labels)
        self.steps = max(1, epochs * count // batch)
        models: list[nn.Module] = []
        draws: dict[int, Draws] = {}
        for _, seed in runs:
            torch.manual_seed(seed)
            models.append(timm.create_model(name).train())
            draws[seed] = draws.get(seed) or self._draws(count, batch, draw)
        self.model = models[0].to(self.device)
        parameters, buffers = stack_module_state([model.to(self.device) for model in models])
        self.buffers = {key: value.detach() for key, value in buffers.items()}
        self.flat = torch.cat([p.detach().flatten(1) for p in parameters.values()], 1)
        parts = self.flat.split([p[0].numel() for p in parameters.values()], 1)
        # Leaves that share the memory of `flat`: the optimizer is a few kernels then, for all parameters.
        self.parameters = {
            key: part.unflatten(1, p.shape[1:]).detach().requires_grad_()
            for part, (key, p) in zip(parts, parameters.items(), strict=True)
        }
        self.momentum = torch.zeros_like(self.flat)
        self.step_number = torch.zeros(1, dtype=torch.long, device=self.device)
        factors = torch.tensor([rate_factor(step, self.steps) for step in range(self.steps)])
        self.rates = (torch.tensor([lr for lr, _ in runs])[:, None] * factors).to(self.device)
        taken = [draws[seed] for _, seed in runs]
        self.draws = Draws(*(torch.stack(parts, 1).to(self.device) for parts in zip(*taken, strict=True)))

    def _draws(self, count: int, batch: int, draw: Callable[[int], tuple[Tensor, Tensor]]) -> Draws:
        index, corners, mirrored = [], [], []
        order: list[Tensor] = []
        for _ in range(self.steps):
            order = order or order_of(count, batch)
            index.append(order.pop())
            corner, mirror = draw(batch)
            corners.append(corner)
            mirrored.append(mirror)
        return Draws(torch.stack(index), torch.stack(corners), torch.stack(mirrored))

    def _logits(self, x: Tensor, in_dims: int | None) -> Tensor:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.model, (parameters, buffers), (x,))

        return vmap(one, in_dims=(0, 0, in_dims))(self.parameters, self.buffers, x)

    def train(self, text: str) -> None:
        """All steps, with a progress bar named ``text``. On a GPU a step is captured first."""
        step = self._captured() if self.device.type == 'cuda' else self.step
        for number in progress(range(self.steps), text):
            step()
            if number % AHEAD == 0 and self.device.type == 'cuda':
                torch.cuda.synchronize()

    def step(self) -> None:
        """One update of every network. It never waits for the device."""
        number = self.step_number
        index, corners, mirrored = (part.index_select(0, number)[0] for part in self.draws)
        k, batch = index.shape
        x = self.cut(self.images.padded, index.flatten(), corners.transpose(0, 1).flatten(1), mirrored.flatten())
        logits = self._logits(x.unflatten(0, (k, batch)).contiguous(), 0)
        labels = self.images.labels[index.flatten()]
        losses = F.cross_entropy(logits.flatten(0, 1).float(), labels, reduction='none')
        found = torch.autograd.grad(losses.sum() / batch, list(self.parameters.values()))
        with torch.no_grad():
            gradient = torch.cat([g.flatten(1) for g in found], 1)
            norm = gradient.norm(dim=1, keepdim=True)
            gradient *= (CLIP / (norm + 1e-6)).clamp(max=1)
            self.momentum.mul_(MOMENTUM).add_(gradient)
            self.flat -= self.rates.index_select(1, number) * self.momentum
            number += 1

    def _captured(self) -> Callable[[], None]:
        """A step as the replay of a CUDA graph. The networks stay as they are."""
        state = [self.flat, self.momentum, self.step_number, *self.buffers.values()]
        kept = [t.clone() for t in state]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        for tensor, old in zip(state, kept, strict=True):
            tensor.copy_(old)
        return graph.replay

    @torch.no_grad()
    def top1(self, images: Tensor, labels: Tensor) -> list[float]:
        """Accuracy of each network in percent, in evaluation mode. images (N, 3, H, W), labels (N,)"""
        self.model.eval()
        right = torch.zeros(len(self.flat), device=self.device)
        for x, y in zip(images.split(500), labels.split(500), strict=True):
            right += (self._logits(x, None).argmax(2) == y).sum(1)
        self.model.train()
        return (100 * right / len(labels)).tolist()
