"""The signal at every residual block, forwards and backwards.

Forwards: the signal propagation plots of Brock, De, Smith (2021), arXiv:2101.08692, section 3. Backwards: the variance
of the gradients of the blocks' outputs, as Civitelli et al. (2021), arXiv:2112.12299, figure 2, plot it.
"""

import copy
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..block_scalars import Branch, ResidualWatch, check_blocks, variance
from ..errors import UserError, refused

STEM = 'stem'


class BlockSignal(NamedTuple):
    """The signal at one residual block: statistics over images and pixels, averaged over the channels.

    The first row is the stem's: what enters the first block. It has no branch, so its ``branch_variance`` and ``share``
    are NaN.

    Attributes:
        block: The block's name in the model.
        stage: Number of the stage, from 0. A stage begins where the size of the features changes. The stem's is -1.
        squared_mean: Of the block's output: each channel's mean, squared.
        variance: Of the block's output (biased).
        branch_variance: Of the residual branch before its factors (alpha, a SkipInit scalar).
        share: Variance of the branch with its factors, divided by ``variance``.
        nonzero: Share of the output's elements that are not 0.
        gradient_variance: Of the gradient of the block's output; NaN if no gradients were asked for.
    """

    block: str
    stage: int
    squared_mean: float
    variance: float
    branch_variance: float
    share: float
    nonzero: float
    gradient_variance: float


def signal_propagation(
    model: nn.Module,
    x: Tensor | None = None,
    *,
    blocks: Collection[str] | None = None,
    awake: bool = False,
    loss: Callable[[Any], Tensor] | None = None,
    backward: bool = True,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> list[BlockSignal]:
    """Send images through a residual network and noise back, and measure both at every residual block.

    Works for every network of nf_zoo, folded or not, and for the residual networks of timm, torchvision and a user's
    own. Dropout and stochastic depth are off. Batch normalization that has never been trained uses the batch's
    statistics, as at the start of training, and its running statistics otherwise. The model, its gradients and torch's
    random state stay as they are.

    Args:
        model: The network.
        x: Images (N, in_chans, H, W). By default four of N(0, 1), of the size in the model's config, else 224 x 224.
        blocks: Names of the modules that are the residual blocks. By default they are found: see `block_scalars`.
        awake: Set to 1 what starts a branch at 0: SkipInit scalars, zero gains, zero weights of a last normalisation.
            Zero weights of a convolution (Fixup's) stay.
        loss: From the model's output to a scalar, whose gradients are measured. By default the gradient of the last
            features is drawn from N(0, 1).
        backward: False saves the memory and time of the gradients.
        dtype: Of the calculation. By default the model's, but at least float32, and float64 where that overflows.
        seed: Of the noise.

    Returns:
        A row for the stem and one for each block, in the order of the forward pass.

    Raises:
        UserError: ``x`` is empty or not finite, no residual block was found, ``blocks`` names a module that isn't
            there, or the network can't take these images.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f'{type(model).__name__} is no network; give one as timm.create_model returns it')
    if x is not None and not (x.numel() and x.isfinite().all()):
        raise UserError('there are no images, or they hold NaN or infinity')
    check_blocks(model, blocks)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    if like.is_meta:
        raise UserError(f'{type(model).__name__} is on the meta device and has no values; create it on the CPU')
    net: Any = copy.deepcopy(model).eval().requires_grad_(False)
    if hasattr(net, 'set_grad_checkpointing'):
        net.set_grad_checkpointing(False)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and _is_untrained(module):
            module.train()
    if awake:
        wake(net)
    generator = torch.Generator().manual_seed(seed)
    if x is None:
        x = torch.randn(4, *_input_size(net), generator=generator)
    dtypes = [dtype] if dtype else [like.dtype if like.dtype == torch.float64 else torch.float32, torch.float64]
    noise_seed = int(torch.randint(1 << 62, (), generator=generator))
    rows: list[BlockSignal] = []
    for tried in dtypes:
        rows = _measure(net.to(tried), x.detach().to(like.device, tried), blocks, loss, backward, noise_seed)
        if all(math.isfinite(row.variance) and not math.isinf(row.gradient_variance) for row in rows):
            break
    return rows


def _measure(
    net: Any,
    x: Tensor,
    blocks: Collection[str] | None,
    loss: Callable[[Any], Tensor] | None,
    backward: bool,
    seed: int,
) -> list[BlockSignal]:
    rows: list[BlockSignal] = []
    gradients: dict[int, float] = {}
    shape: list[Any] = [None]
    last: list[Tensor] = []

    def row(block: str, y: Tensor, branch: Branch) -> None:
        if y.ndim != 4:
            raise UserError(f"the output of '{block}' has the shape {tuple(y.shape)}, not (N, C, H, W)")
        size = y.shape[1:]
        stage = -1 if block == STEM and not rows else rows[-1].stage + (rows[-1].stage < 0 or size != shape[0])
        shape[0], index = size, len(rows)
        total, mean = variance(y), y.detach().mean((0, 2, 3)).square().mean().item()
        share = branch.added / total if total else 0.0
        nonzero = (y.detach() != 0).float().mean().item()
        rows.append(BlockSignal(block, stage, mean, total, branch.variance, share, nonzero, math.nan))
        if backward:
            y.register_hook(lambda g: gradients.update({index: variance(g)}))
            last[:] = [y]

    def done(block: str, first: Tensor, output: Tensor, branch: Branch) -> None:
        if not rows:
            row(STEM, first, Branch(math.nan, math.nan))
        row(block, output, branch)

    x = x.requires_grad_(backward)
    features_alone = hasattr(net, 'forward_features') and loss is None
    with torch.set_grad_enabled(backward):
        with ResidualWatch(net, x, done, blocks):
            with refused(f'{type(net).__name__} cannot take images {tuple(x.shape)}'):
                output = (net.forward_features if features_alone else net)(x)
        if not rows:
            hint = 'name its blocks' if blocks is None else 'name modules that are run'
            raise UserError(f'{type(net).__name__} has no residual block that can be found by its addition; {hint}')
        if backward:
            _send_back(output, last[0], x, loss, features_alone, seed)
    return [row._replace(gradient_variance=gradients.get(i, math.nan)) for i, row in enumerate(rows)]


def _send_back(
    output: Any, last: Tensor, x: Tensor, loss: Callable[[Any], Tensor] | None, features_alone: bool, seed: int
) -> None:
    if loss is not None:
        target, gradient = loss(output), None
        if target.numel() != 1 or not target.requires_grad:
            raise UserError('loss must give a scalar that depends on the output of the model')
    else:
        # Without forward_features, as in torchvision, the last block's output stands for the features.
        target = output if features_alone and isinstance(output, Tensor) else last
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(target.shape, generator=generator).to(target)
    torch.autograd.grad(target, x, gradient, allow_unused=True)


def wake(model: nn.Module) -> None:
    """Set every parameter that starts a branch at 0 to 1, in place: scalars, gains, weights of normalisations."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            factor = parameter.ndim < 2 or name.endswith('gain')
            if factor and 'bias' not in name.rpartition('.')[2] and not parameter.any():
                parameter.fill_(1.0)


def _is_untrained(norm: Any) -> bool:
    """Whether the running statistics are those that the layer was created with."""
    return norm.running_mean is None or (not norm.running_mean.any() and bool((norm.running_var == 1).all()))


def _input_size(net: Any) -> tuple[int, ...]:
    size = (getattr(net, 'pretrained_cfg', None) or {}).get('input_size') or (3, 224, 224)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    chans = convs[0].in_channels if convs else size[0]
    return getattr(net, 'in_chans', chans), *size[1:]
