"""The network that all methods share: stem, stages, head, and timm's model contract.

A method subclasses :class:`ResNet`. Its constructor hands ``conv`` and ``block`` to this one, with the method's
keywords bound. The subclass says how to initialise the weights and, where the activation comes before the
convolutions, sets ``preact``.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any

import torch
from timm.layers import ClassifierHead, calculate_drop_path_rates, get_device_dtype
from timm.models import checkpoint, checkpoint_seq
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import UserError
from .foreign import resnet_names
from .layout import Layout, conv_shape
from .parts import check_rates


def _check_sizes(in_chans: Any, num_classes: Any) -> None:
    for name, value, least in (('in_chans', in_chans, 1), ('num_classes', num_classes, 0)):
        if not isinstance(value, Integral) or value < least:
            raise UserError(f'{name}={value!r}: give a whole number, {least} or more')


class ResNet(nn.Module):
    """A residual network after a :class:`~nf_zoo.net.layout.Layout`, with timm's whole model contract.

    Args:
        layout: Gives the plan for ``depths``, ``output_stride`` and ``width``.
        depths: Blocks of each stage.
        conv: Makes the stem's convolution, and the one after the last stage where the layout has it.
        block: Makes a residual block from its :class:`~nf_zoo.net.layout.Site`, ``attn_layer``, device and dtype.
        act: Makes the activation of the stem, or before the pooling if ``preact``.
        num_classes: Number of classes; 0 for no classifier.
        in_chans: Input channels.
        global_pool: Type of the pooling before the classifier, as in timm; '' for none.
        output_stride: 8, 16 or 32; below 32 the later stages are dilated (ImageNet layouts).
        width: Factor of all widths, which are then rounded to multiples of 8.
        drop_rate: Dropout rate before the classifier.
        drop_path_rate: Stochastic depth rate of the last block.
        attn_layer: 'se' or None.
        device: Device of all parameters.
        dtype: Data type of all parameters.

    Raises:
        UserError: a value that the layout or the method doesn't know.
    """

    preact = False

    def __init__(
        self,
        layout: Callable[..., Layout],
        depths: Sequence[int],
        *,
        conv: Callable[..., nn.Module],
        block: Callable[..., nn.Module],
        act: Callable[[], nn.Module] = nn.ReLU,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        output_stride: int = 32,
        width: float = 1.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        attn_layer: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        _check_sizes(in_chans, num_classes)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        dd: dict[str, Any] = dict(device=device, dtype=dtype)
        plan = layout(depths=depths, output_stride=output_stride, width=width)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.stem_is_level = plan.stem_is_level

        self.stem = self.make_stem(plan, in_chans, partial(conv, **dd), act, **dd)
        tap = 'conv' if self.preact else 'act'
        self.stem_tap = [name for name, _ in self.stem.named_children()].index(tap) if plan.stem_is_level else -1
        feature_info: list[dict[str, Any]] = []
        if plan.stem_is_level:
            feature_info.append(dict(num_chs=plan.stem_chs, reduction=plan.stem_stride, module=f'stem.{tap}'))

        path_rates = iter(self.drop_path_rates(drop_path_rate, plan))
        stages = []
        reduction = plan.stem_reduction
        for i, sites in enumerate(plan.stages):
            sites = tuple(replace(site, drop_path=next(path_rates)) for site in sites)
            stages.append(nn.Sequential(*(block(site, attn_layer=attn_layer, **dd) for site in sites)))
            reduction *= sites[0].stride
            feature_info.append(dict(num_chs=sites[-1].out_chs, reduction=reduction, module=f'stages.{i}'))
        self.stages = nn.Sequential(*stages)
        self.num_features = plan.stages[-1][-1].out_chs
        self.final_conv: nn.Module = nn.Identity()
        if plan.head_chs:
            self.final_conv = conv(**conv_shape(self.num_features, plan.head_chs, 1), **dd)
            self.num_features = plan.head_chs
            feature_info[-1] = dict(num_chs=plan.head_chs, reduction=reduction, module='final_conv')
        self.feature_info = feature_info
        self.final_act = self.make_final(self.num_features, act, **dd)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate, **dd)
        self.head_hidden_size = self.head.num_features
        if not next(self.parameters()).is_meta:  # nothing to write there, and it would take most of the time
            with torch.no_grad():
                self.init_weights()

    # ---- what a method may override

    def init_weights(self) -> None:
        """Initialise all weights after the paper. The constructor calls it once, without gradients."""
        raise NotImplementedError

    def make_stem(
        self, plan: Layout, in_chans: int, conv: Callable[..., nn.Module], act: Callable[[], nn.Module], **dd: Any
    ) -> nn.Sequential:
        """The modules before the first stage, by name."""
        shape = conv_shape(in_chans, plan.stem_chs, plan.stem_kernel, plan.stem_stride)
        stem = OrderedDict[str, nn.Module](conv=conv(**shape))
        if not self.preact:
            stem['act'] = act()
        if plan.stem_pool:
            stem['pool'] = nn.MaxPool2d(3, stride=2, padding=1)
        return nn.Sequential(stem)

    def make_final(self, chs: int, act: Callable[[], nn.Module], **dd: Any) -> nn.Module:
        """The module between the last features, of ``chs`` channels, and the pooling."""
        return act() if self.preact else nn.Identity()

    def drop_path_rates(self, rate: float, plan: Layout) -> list[float]:
        """Stochastic depth rate of every block, from 0 for the first to ``rate`` for the last, as in timm."""
        return calculate_drop_path_rates(rate, sum(plan.depths))

    @staticmethod
    def checkpoint_filter(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        """Weights of another code base under this model's names. timm's loaders call it."""
        return resnet_names(state_dict, model)

    # ---- timm's contract

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups by depth, for layer-wise learning rates."""
        blocks = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.(\d+)'
        return dict(stem=r'^stem', blocks=[(blocks, None), (r'^final_conv', (99999,))])

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the features of each stage in backward instead of storing them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head.fc

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that the method doesn't decay."""
        return set()

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier and, if given, the type of the pooling."""
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
        """The result of forward_features, and the features (N, C, H, W) at the levels of ``feature_info``.

        Args:
            x: Images (N, in_chans, H, W).
            indices: Levels: None for all, an int n for the last n, or a list.
            norm: Unused, because there is no final normalisation.
            stop_early: Don't run the stages after the last of these levels.
            output_fmt: Only 'NCHW'.
            intermediates_only: Return the features alone.
        """
        assert output_fmt in ('NCHW',), 'Output shape must be NCHW.'
        intermediates = []
        first = int(self.stem_is_level)  # level of the first stage
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
        """Remove the modules that the given feature levels don't need. Returns the levels."""
        first = int(self.stem_is_level)
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
        """Features (N, num_features, H, W) before the pooling."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x)
        else:
            x = self.stages(x)
        return self.final_act(self.final_conv(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits of the features, or, with ``pre_logits``, the pooled features."""
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, num_classes) of images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))
