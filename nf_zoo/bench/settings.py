"""What a user may set of a bench, and what follows from it: images, modules on a device, a forward pass, a step."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..analysis.inputs import noise
from .measure import Advance

EAGER = 'eager'  # the peer that is the network itself, not compiled


@dataclass(frozen=True)
class Settings:
    """How networks are measured.

    Attributes:
        batch_size: Images; None for the bench's own.
        img_size: Height and width in pixels; None for the network's own.
        device: Where.
        bfloat16: Whether autocast computes in bfloat16.
        channels_last: Whether images and weights are in channels_last.
        compiled: Whether networks are compiled (torch.compile).
        peers: Kinds or names of peers, as of :func:`~nf_zoo.bench.peers.open_peers`.
        rounds: Rounds that count; None for the bench's own number.
        advance: Called after each measurement.
    """

    batch_size: int | None = None
    img_size: int | None = None
    device: torch.device = torch.device('cpu')
    bfloat16: bool = False
    channels_last: bool = True
    compiled: bool = False
    peers: tuple[str, ...] = ('bn',)
    rounds: int | None = None
    advance: Advance = field(default_factory=lambda: lambda: None)

    def of(self, label: str) -> 'Settings':
        """The settings by which the network or peer of this label is measured."""
        return replace(self, compiled=False) if label == EAGER else self

    def predictions(self) -> tuple[int, ...]:
        """The numbers of images in one prediction: ``batch_size``, or one and then eight."""
        return (self.batch_size,) if self.batch_size else (1, 8)

    def format(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """``model`` on the device, in the memory format."""
        return model.to(self.device).to(memory_format=self.format())

    def images(self, model: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
        """Noise (``batch``, C, H, W) of the network's size or ``img_size``, and a class for each image."""
        x = noise(model, batch, self.img_size).to(self.device).contiguous(memory_format=self.format())
        return x, torch.randint(0, max(1, getattr(model, 'num_classes', 1)), (batch,)).to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which networks compute."""
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()

    def call(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """The forward pass, compiled if that is asked for."""
        return torch.compile(model) if self.compiled else model

    def forward(self, model: nn.Module, x: Tensor) -> Callable[[], object]:
        """A prediction of ``x`` without gradients."""
        run = self.call(self.place(model.eval()))

        def predict() -> None:
            with torch.inference_mode(), self.autocast():
                run(x)

        return predict

    def __str__(self) -> str:
        parts = [
            'bfloat16' if self.bfloat16 else 'float32',
            'channels_last' if self.channels_last else 'channels first',
        ]
        return ', '.join(parts + ['torch.compile'] * self.compiled)


class Step:
    """A training step on one batch: forward, backward, an update of SGD with momentum.

    Parameters that a method starts at 0 are drawn first. At this rate they would stay so small that gradients get below
    1e-38, and a processor computes such numbers many times slower than others.

    ``keep``: gradients stay allocated, as zeros, so that the memory of a step beyond the first is that of activations.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, settings: Settings, keep: bool = False):
        self.model = settings.place(model.train())
        self.run = settings.call(self.model)
        self.x, self.y, self.settings, self.keep = x, y, settings, keep
        with torch.no_grad():
            for parameter in self.model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.01)
        # So small a rate that many steps on noise don't leave the range of the weights.
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-8, momentum=0.9)

    def __call__(self) -> None:
        with self.settings.autocast():
            loss = F.cross_entropy(self.run(self.x), self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.keep)
