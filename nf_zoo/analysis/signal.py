"""Signal propagation plots as numbers. Brock, De, Smith (2021), arXiv:2101.08692, section 3."""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UserError


class BlockSignal(NamedTuple):
    """The signal at one residual block: statistics over images and pixels, averaged over the channels.

    Attributes:
        block: The block's name in the model.
        squared_mean: Of the block's output.
        variance: Of the block's output.
        branch_variance: Of the residual branch where it reaches ``drop_path``. What the block has multiplied it with by
            then is in it, so EUNNet's beta s, but not NF's alpha.
        gradient_variance: Of the gradient of the block's output, if that of the last features is drawn from N(0, 1).
    """

    block: str
    squared_mean: float
    variance: float
    branch_variance: float
    gradient_variance: float


def signal_propagation(model: nn.Module, x: Tensor | None = None) -> list[BlockSignal]:
    """Send noise through ``model`` and back, and measure it at every residual block.

    Dropout and stochastic depth are off; batch normalization uses the batch's statistics, as in training. The model,
    its parameters' gradients and torch's random state stay as they are.

    Args:
        model: A model of nf_zoo, or one of timm's that has ``stages`` of blocks with a module ``drop_path``.
        x: Images (N, in_chans, H, W). By default four of N(0, 1), of the size in the model's cfg.

    Returns:
        One row per block, from the stem to the head.

    Raises:
        UserError: the model has no such blocks.
    """
    net: Any = copy.deepcopy(model).eval().requires_grad_(False)
    stages = [stage for stage in getattr(net, 'stages', ()) if isinstance(stage, nn.Sequential)]
    blocks: dict[str, Any] = {f'stages.{i}.{j}': b for i, stage in enumerate(stages) for j, b in enumerate(stage)}
    if not blocks or not all(isinstance(getattr(block, 'drop_path', None), nn.Module) for block in blocks.values()):
        kind = type(model).__name__
        raise UserError(f'{kind} has no stages of blocks with a drop_path: give a model of nf_zoo, before folding')
    net.set_grad_checkpointing(False)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()

    generator = torch.Generator().manual_seed(0)
    if x is None:
        x = torch.randn(4, net.in_chans, *net.pretrained_cfg['input_size'][1:], generator=generator)
    x = x.detach().to(next(net.parameters())).requires_grad_()
    outputs: dict[str, Tensor] = {}
    branches: dict[str, float] = {}
    for name, block in blocks.items():
        block.register_forward_hook(lambda _, args, y, name=name: outputs.update({name: y}))
        block.drop_path.register_forward_pre_hook(lambda _, f, name=name: branches.update({name: _variance(f[0])}))
    with torch.enable_grad():
        features = net.forward_features(x)
        noise = torch.randn(features.shape, generator=generator).to(features)
        gradients = torch.autograd.grad(features, list(outputs.values()), noise)
    return [
        BlockSignal(
            block=name,
            squared_mean=output.detach().mean((0, 2, 3)).square().mean().item(),
            variance=_variance(output),
            branch_variance=branches[name],
            gradient_variance=_variance(gradient),
        )
        for (name, output), gradient in zip(outputs.items(), gradients, strict=True)
    ]


def _variance(x: Tensor) -> float:
    return x.detach().var((0, 2, 3), correction=0).mean().item()
