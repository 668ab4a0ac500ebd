"""The network that all methods share: stem, stages, head, and timm's model contract.

A method subclasses :class:`ResNet` and gives its hooks: ``conv`` (stem), ``block``, ``init_weights`` and, where the
method activates before its convolutions, ``preact``.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    AvgPool2dSame,
    ClassifierHead,
    DropPath,
    SEModule,
    calculate_drop_path_rates,
    get_device_dtype,
)
from timm.models import checkpoint, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UserError, nearest
from .foreign import resnet_names
from .layout import Layout, Site, conv_shape


class PadShortcut(nn.Module):
    """The parameter-free shortcut of He et al. (2016): every ``stride``-th pixel, the new channels zero."""

    def __init__(self, site: Site):
        super().__init__()
        self.stride = site.stride
        self.new_chs = site.out_chs - site.in_chs

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.new_chs)) if self.new_chs else x


class Bias(nn.Module):
    """x + b of features (N, C, H, W), with one b (``channels`` 1) or one for each channel."""

    def __init__(self, channels: int = 1, **dd: Any):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, **dd))

    def forward(self, x: Tensor) -> Tensor:
        # Under autocast the features have another dtype than the parameters, and shall keep it.
        return x + self.bias.to(x.dtype).view(-1, 1, 1)


def biased_stem(stem: nn.Sequential, channels: int, **dd: Any) -> nn.Sequential:
    """``stem`` with a :class:`Bias` behind its convolution."""
    conv, *rest = stem.named_children()
    return nn.Sequential(OrderedDict([conv, ('bias', Bias(channels, **dd)), *rest]))


def avg_pool(site: Site) -> nn.Module:
    """The average pooling of a transition block's shortcut; sizes as the strided conv's, so ceil(size / 2)."""
    if site.stride > 1:
        return nn.AvgPool2d(site.stride, site.stride, ceil_mode=True, count_include_pad=False)
    if site.dilation[1] > 1:
        return AvgPool2dSame(2, 1, ceil_mode=True, count_include_pad=False)
    return nn.Identity()


def pooled_projection(site: Site, conv: Callable[..., nn.Module]) -> nn.Sequential:
    """Average pooling, then a 1x1 convolution: ResNet-D's shortcut of a transition block."""
    return nn.Sequential(OrderedDict(pool=avg_pool(site), conv=conv(**conv_shape(site.in_chs, site.out_chs, 1))))


def shortcut(site: Site, projection: Callable[[Site], nn.Module]) -> nn.Module | None:
    """The block's shortcut h: None for the identity, else ``projection(site)`` or, in CIFAR layouts, zero padding."""
    if not site.transition:
        return None
    return PadShortcut(site) if site.padded else projection(site)


def squeeze_excite(layer: str | None, channels: int, hidden: int | None = None, **dd: Any) -> nn.Module | None:
    """Squeeze-and-excite with ``hidden`` units (a quarter of the channels by default), or None.

    The block multiplies its result by 2: the sigmoid's mean is a half at initialisation.
    """
    if layer is None:
        return None
    if layer != 'se':
        raise UserError(
            f"attn_layer='{layer}': only 'se' (squeeze-and-excite) is built here{nearest(str(layer), ['se'])}"
        )
    return SEModule(channels, rd_channels=hidden or max(1, channels // 4), **dd)


def drop_path(site: Site) -> nn.Module:
    """Stochastic depth that never divides by the keep rate (Brock, De, Smith 2021, appendix B.2)."""
    return DropPath(site.drop_path, scale_by_keep=False) if site.drop_path else nn.Identity()


def _check(in_chans: Any, num_classes: Any, **rates: float) -> None:
    for name, value, least in (('in_chans', in_chans, 1), ('num_classes', num_classes, 0)):
        if not isinstance(value, Integral) or value < least:
            raise UserError(f'{name}={value!r}: give a whole number, {least} or more')
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise UserError(f'{name}={rate!r}: give a rate from 0 to below 1')


class ResNet(nn.Module):
    """A residual network after a :class:`~nf_zoo.net.layout.Layout`, with timm's whole model contract.

    Args:
        layout: Function that gives the plan for ``depths`` and ``output_stride``.
        depths: Blocks of each stage.
        num_classes: Classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: Type of the pooling before the classifier, as in timm; '' for none.
        output_stride: 8, 16 or 32; below 32 later stages are dilated (ImageNet layouts).
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate of the last block.
        attn_layer: 'se' or None.
        block_args: Method keywords, handed to ``block``.

    Raises:
        UserError: a value that the layout or the method does not know.
    """

    preact = False

    def __init__(
        self,
        layout: Callable[..., Layout],
        depths: Sequence[int],
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        output_stride: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **block_args: Any,
    ):
        super().__init__()
        rates = {k: v for k, v in block_args.items() if k.endswith('_rate')}
        _check(in_chans, num_classes, drop_rate=drop_rate, drop_path_rate=drop_path_rate, **rates)
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        plan = layout(depths=depths, output_stride=output_stride)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.small = plan.stem_stride == 1
        self.block_args = block_args

        self.stem = self.make_stem(plan, in_chans, **dd)
        # A CIFAR layout's stem has the resolution and width of its first stage, and is no feature level of its own.
        tap = 'conv' if self.preact else 'act'
        self.stem_tap = -1 if self.small else [name for name, _ in self.stem.named_children()].index(tap)
        feature_info: list[dict[str, Any]] = []
        if not self.small:
            feature_info.append(dict(num_chs=plan.stem_chs, reduction=plan.stem_stride, module=f'stem.{tap}'))

        path_rates = iter(self.drop_path_rates(drop_path_rate, plan))
        stages = []
        reduction = plan.stem_reduction
        for i, sites in enumerate(plan.stages):
            sites = tuple(replace(site, drop_path=next(path_rates)) for site in sites)
            stages.append(nn.Sequential(*(self.block(s, attn_layer=attn_layer, **block_args, **dd) for s in sites)))
            reduction *= sites[0].stride
            feature_info.append(dict(num_chs=sites[-1].out_chs, reduction=reduction, module=f'stages.{i}'))
        self.stages = nn.Sequential(*stages)
        self.num_features = plan.stages[-1][-1].out_chs
        self.final_conv: nn.Module = nn.Identity()
        if plan.head_chs:
            self.final_conv = self.conv(conv_shape(self.num_features, plan.head_chs, 1), **dd)
            self.num_features = plan.head_chs
            feature_info[-1] = dict(num_chs=plan.head_chs, reduction=reduction, module='final_conv')
        self.feature_info = feature_info
        self.final_act = self.make_final(self.num_features, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        with torch.no_grad():
            self.init_weights()

    # ---- hooks of a method

    def conv(self, shape: dict[str, Any], **dd: Any) -> nn.Conv2d:
        """The stem's convolution, and the one behind the last stage where the layout has it."""
        raise NotImplementedError

    def block(self, site: Site, **kwargs: Any) -> nn.Module:
        raise NotImplementedError

    def init_weights(self) -> None:
        """Initialise all weights after the paper; called once, without gradients."""
        raise NotImplementedError

    def make_stem(self, plan: Layout, in_chans: int, **dd: Any) -> nn.Sequential:
        shape = conv_shape(in_chans, plan.stem_chs, plan.stem_kernel, plan.stem_stride)
        stem = OrderedDict[str, nn.Module](conv=self.conv(shape, **dd))
        if not self.preact:
            stem['act'] = nn.ReLU()
        if plan.stem_pool:
            stem['pool'] = nn.MaxPool2d(3, stride=2, padding=1)
        return nn.Sequential(stem)

    def make_final(self, chs: int, **dd: Any) -> nn.Module:
        """What stands between the last features, of ``chs`` channels, and the pooling."""
        return nn.ReLU() if self.preact else nn.Identity()

    def drop_path_rates(self, rate: float, plan: Layout) -> list[float]:
        """Stochastic depth rate of every block: rises linearly from 0 to ``rate`` at the last block, as timm's."""
        return calculate_drop_path_rates(rate, sum(plan.depths))

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Foreign weights under our names, for timm's loaders."""
        return resnet_names(state_dict, model)

    # ---- timm's contract

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)'
        return dict(stem=r'^stem', blocks=[(blocks, None), (r'^final_conv', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        return self.head.fc

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the method does not decay."""
        return set()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Features at the levels of ``feature_info``, each (N, C, H, W), and forward_features' result before them.

        Args:
            x: Images (N, in_chans, H, W).
            indices: Levels: all (None), the last n (int), or these (list).
            norm: Unused: there is no final normalisation.
            stop_early: Skip what comes after the last level asked for.
            output_fmt: Only 'NCHW'.
            intermediates_only: Return the list alone.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        first = 0 if self.small else 1  # level of the first stage
        last = len(self.stages)
        take_indices, max_index = feature_take_indices(last + first, indices)

        for i, module in enumerate(self.stem):
            x = module(x)
            if i == self.stem_tap and 0 in take_indices:
                intermediates.append(x)
        if torch.jit.is_scripting() or not stop_early:
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1 - first]
        for i, stage in enumerate(stages):
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = checkpoint(stage, x)
            else:
                x = stage(x)
            if i + 1 == last:
                x = self.final_conv(x)
            if i + first in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if len(stages) == last:
            x = self.final_act(x)
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the given feature levels do not need. Returns the levels."""
        first = 0 if self.small else 1
        take_indices, max_index = feature_take_indices(len(self.stages) + first, indices)
        pruned = max_index + 1 - first < len(self.stages)
        if max_index == 0 and first:
            self.stem = self.stem[: self.stem_tap + 1]
        self.stages = self.stages[: max_index + 1 - first]
        if pruned:
            # The head was made for the last features.
            self.final_conv = self.final_act = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
        if prune_head or pruned:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.final_act(self.final_conv(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))
