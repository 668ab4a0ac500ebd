"""How much memory a training step keeps for its backward pass."""

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, size: int = 224, device: torch.device | None = None) -> float:
    """Bytes per image that autograd keeps for backward.

    Each storage counts once. The difference of two batch sizes leaves out what doesn't grow with the batch, such as
    the weights. ``size`` is the height and width of the images in pixels, ``device`` that of the model.
    """

    def kept(batch: int) -> int:
        storages: dict[int, int] = {}
        tensors = []  # keeps the storages alive, so that no address is used twice

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            tensors.append(tensor)
            return tensor

        x = torch.randn(batch, getattr(model, 'in_chans', 3), size, size, device=device)
        x = x.to(memory_format=torch.channels_last)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(x).sum()
        return sum(storages.values())

    return (kept(3) - kept(1)) / 2
