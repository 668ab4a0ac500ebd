"""Residual blocks of any network, found by the additions in which they end, and what each block's branch contributes.

A residual block computes h(x) + F(x). Watching one forward pass shows each sum of two feature maps, of which one has
passed through more layers than the other: that one is the branch F, the other the shortcut h, and the block is the
module in whose ``forward`` the sum is taken. No list of class names is needed, so the blocks of torchvision, timm, of a
folded network or of a user's own are found alike.
"""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .errors import UserError, nearest

DEAD = 1e-6  # a branch with a smaller share of its block's output variance contributes nothing
WEAK = 1e-4  # below this share a reader is warned

_aten = torch.ops.aten
_LAYERS = {_aten.convolution, _aten._convolution, _aten.addmm, _aten.mm, _aten.bmm, _aten.baddbmm}
_SUMS = {_aten.add, _aten.add_}
_PRODUCTS = {_aten.mul, _aten.mul_}
_DROP = ('DropPath', 'StochasticDepth')


class Branch(NamedTuple):
    """Variances of a block's residual branch, over images and pixels, averaged over the channels.

    Attributes:
        variance: Of F itself, before the block's factors (alpha, a learned scalar).
        added: Of what is added to the shortcut, factors included.
    """

    variance: float
    added: float


class _Factors(NamedTuple):
    """What a tensor has been multiplied with, and the variance before the product became 0."""

    learned: float = 1.0
    constant: float = 1.0
    before: float = math.nan

    def remove(self, variance: float, constants: bool) -> float:
        factor = self.learned * (self.constant if constants else 1.0)
        return self.before if self.learned == 0 or factor == 0 else variance / factor**2


Done = Callable[[str, Tensor, Tensor, Branch], None]


class ResidualWatch(TorchDispatchMode):
    """Watch a forward pass; call ``done(block, input, output, branch)`` at the end of each residual block.

    Use it as a context around the pass. The model itself is not changed: hooks are removed at the end.

    Args:
        model: The network.
        x: Its input; only what is computed from it can be a shortcut or a branch.
        done: Called with the block's name in ``model``, its first input, its output, and its branch.
        blocks: Names of the modules that are the blocks; None to find them.
    """

    def __init__(self, model: nn.Module, x: Tensor, done: Done, blocks: Collection[str] | None = None):
        super().__init__()
        self._done = done
        self._blocks = blocks
        self._running: list[tuple[str, Any]] = []  # names and first inputs of the modules being run
        self._depth = WeakTensorKeyDictionary({x: 0})  # layers that a tensor has passed through
        self._factors = WeakTensorKeyDictionary()
        self._before_drop: dict[str, float] = {}
        self._branches: dict[str, Branch] = {}
        self._hooks: list[Any] = []
        for name, module in model.named_modules():
            self._watch(name, module)

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        for hook in self._hooks:
            hook.remove()

    def _watch(self, name: str, module: nn.Module) -> None:
        own = any(True for _ in module.children()) if self._blocks is None else name in self._blocks
        if own:  # a module without parts has no branch
            self._hooks.append(
                module.register_forward_pre_hook(
                    lambda _, args: self._running.append((name, args[0] if args else None))
                )
            )
            self._hooks.append(module.register_forward_hook(lambda _, args, y: self._leave(name, y)))
        if type(module).__name__ in _DROP or name.rpartition('.')[2] == 'drop_path':
            self._hooks.append(module.register_forward_pre_hook(lambda _, args: self._drop(args[0])))
        if isinstance(module, nn.Conv2d) and 'factor' in inspect.signature(module.forward).parameters:
            self._hooks.append(module.register_forward_hook(self._factor_in_weight, with_kwargs=True))

    def _leave(self, name: str, output: Any) -> None:
        _, first = self._running.pop()
        branch = self._branches.pop(name, None)
        if branch is None and self._blocks is not None:
            branch = Branch(math.nan, math.nan)
        if branch is not None and isinstance(output, Tensor) and isinstance(first, Tensor):
            self._done(name, first, output, branch)

    def _drop(self, f: Any) -> None:
        """The branch is what reaches stochastic depth; learned scalars before it are no part of it."""
        if self._running and isinstance(f, Tensor):
            factors = self._factors.get(f, _Factors())
            self._before_drop[self._running[-1][0]] = factors.remove(variance(f), constants=False)

    def _factor_in_weight(self, conv: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        """A convolution of nf_zoo that multiplies its weight with the block's scalar instead of its output."""
        bound = inspect.signature(conv.forward).bind(*args, **kwargs)
        factor = bound.arguments.get('factor')
        if factor is None:
            return
        value, before = float(factor), math.nan
        if value == 0:
            bound.arguments['factor'] = None
            before = variance(conv.forward(*bound.args, **bound.kwargs))
        self._factors[output] = _Factors(value, 1.0, before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket
        factors = self._multiplied(args) if op in _PRODUCTS else None
        if op in _SUMS:
            factors = self._add(args, kwargs)
        out = func(*args, **kwargs)
        depth = max((self._depth.get(a, -1) for a in _tensors(args)), default=-1)
        if depth >= 0:
            for result in _tensors((out,)):
                self._depth[result] = max(depth + (op in _LAYERS), self._depth.get(result, -1))
                if factors is not None:
                    self._factors[result] = factors
        return out

    def _multiplied(self, args: Any) -> _Factors | None:
        """The factors of a product of a feature map and one number."""
        for f, other in (args[:2], args[1::-1]):
            if not (isinstance(f, Tensor) and f.ndim == 4 and f in self._depth):
                continue
            old = self._factors.get(f, _Factors())
            if isinstance(other, Tensor):
                if other.numel() == 1 and other not in self._depth:
                    value = float(other)
                    before = variance(f) / old.learned**2 if value == 0 and old.learned else old.before
                    return _Factors(old.learned * value, old.constant, before)
            elif isinstance(other, int | float):
                return old._replace(constant=old.constant * other)
        return None

    def _add(self, args: Any, kwargs: Any) -> _Factors | None:
        """Note a residual addition; of another one, of a bias, return the factors, which it leaves as they are."""
        a, b = args[:2]
        if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.ndim == 4 and a.shape == b.shape):
            return self._factors.get(a) if isinstance(a, Tensor) else None
        depths = self._depth.get(a, -1), self._depth.get(b, -1)
        if not self._running or min(depths) < 0 or depths[0] == depths[1]:
            return None
        name = self._running[-1][0]
        branch, weight = (a, 1.0) if depths[0] > depths[1] else (b, kwargs.get('alpha', 1.0))
        added = variance(branch)
        inner = self._before_drop.pop(name, math.nan)
        if math.isnan(inner):
            inner = self._factors.get(branch, _Factors()).remove(added, constants=True)
        self._branches[name] = Branch(inner, added * weight**2)
        return None


def _tensors(values: Any) -> Any:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def variance(x: Tensor) -> float:
    """Biased variance over images and pixels of features (N, C, H, W), averaged over the channels."""
    x = x.detach()
    return (x if x.dtype == torch.float64 else x.float()).var((0, 2, 3), correction=0).mean().item()


def check_blocks(model: nn.Module, blocks: Collection[str] | None) -> None:
    """Raises UserError: ``blocks`` names a module that ``model`` doesn't have."""
    names = {name for name, _ in model.named_modules()}
    for block in blocks or ():
        if block not in names:
            raise UserError(f"{type(model).__name__} has no module '{block}'{nearest(block, names)}")


def branch_modules(block: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a block, with their names, but for those of its shortcut and of attention."""
    for name, module in block.named_modules():
        if not name.startswith(('downsample', 'shortcut', 'attn', 'se')):
            yield name, module


def block_scalar(block: nn.Module) -> tuple[str, float] | None:
    """What the block has learned to multiply its branch with: the parameter's name and its value.

    That is a learned scalar of the block itself (EUNNet, SkipInit, Fixup, RescaleNet, the paper's form of NF-ResNet);
    else the mean of the absolute gains of the branch's last convolution or normalisation; else None.
    """
    for name, parameter in block.named_parameters(recurse=False):
        if parameter.numel() == 1 and 'bias' not in name:
            return name, parameter.item()
    found = None
    for name, module in branch_modules(block):
        gain = getattr(module, 'gain', None)
        if gain is None and 'Norm' in type(module).__name__:
            gain, name = getattr(module, 'weight', None), f'{name}.weight'
        elif gain is not None:
            name = f'{name}.gain'
        if isinstance(gain, Tensor):
            found = name, gain.detach().abs().mean().item()
    return found


@contextmanager
def _evaluating(model: nn.Module) -> Any:
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def block_shares(model: nn.Module, x: Tensor) -> dict[str, dict[str, float]]:
    """For each residual block its learned scalar, if it has one, and the share of its branch in the output's variance.

    Args:
        model: A network with residual blocks; its mode and parameters stay as they are.
        x: Images (N, C, H, W), such as those of the validation set.

    Returns:
        {block: {name of the scalar: value, 'share': Var(branch, factors included) / Var(output)}}; empty if the network
        has no residual blocks.
    """
    modules = dict(model.named_modules())
    found: dict[str, dict[str, float]] = {}

    def done(name: str, first: Tensor, output: Tensor, branch: Branch) -> None:
        scalar, whole = block_scalar(modules[name]), variance(output)
        found[name] = dict([scalar] if scalar else [])
        found[name]['share'] = branch.added / whole if whole else 0.0

    with _evaluating(model), ResidualWatch(model, x, done):
        model(x)
    return found


def dead_blocks(shares: Mapping[str, Mapping[str, float]], limit: float = DEAD) -> list[str]:
    """The blocks of `block_shares` whose branch has less than ``limit`` of the output's variance."""
    return [block for block, row in shares.items() if not row.get('share', 1.0) >= limit]
