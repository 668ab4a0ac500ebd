"""Registration in timm: entry points, default cfgs and, for ``pretrained=True``, verified weights."""

import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, load_pretrained, register_model
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch import nn

from ..errors import CheckFailed, UserError
from ..hub import weights
from .batch_norm_weights import batch_norm_cfgs
from .network import ResNet

_logger = logging.getLogger(__name__)
_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id')

_COMMON: dict[str, Any] = dict(first_conv='stem.conv', classifier='head.fc', license='apache-2.0')
IMAGENET: dict[str, Any] = dict(
    _COMMON,
    input_size=(3, 224, 224),
    pool_size=(7, 7),
    crop_pct=0.875,
    interpolation='bilinear',
    mean=IMAGENET_DEFAULT_MEAN,
    std=IMAGENET_DEFAULT_STD,
    num_classes=1000,
)
CIFAR: dict[str, Any] = dict(
    _COMMON,
    input_size=(3, 32, 32),
    pool_size=(8, 8),
    crop_pct=1.0,
    interpolation='bicubic',
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    num_classes=10,
)

_nets: dict[str, type[ResNet]] = {}
_converted_tags: dict[str, str] = {}  # name -> timm's first tag, of weights with batch normalization


@dataclass(frozen=True)
class Owned:
    """A name that timm has: its entry point, its cfgs (which stay), the keywords that only its entry point takes."""

    entry: Callable[..., nn.Module]
    cfgs: DefaultCfg
    keywords: frozenset[str]

    def takes(self, kwargs: dict[str, Any]) -> bool:
        return not self.keywords.isdisjoint(kwargs) or kwargs.get('attn_layer') not in (None, 'se')


def list_models(filter: str | list[str] = '') -> list[str]:
    """Names that nf_zoo registers, of those that match timm's wildcard ``filter``; sorted naturally, as timm's."""
    return [name for name in timm.list_models(filter) if name in _nets]


def register(
    net: type[ResNet],
    variants: dict[str, dict[str, Any]],
    cfg: dict[str, Any],
    owned: dict[str, Owned] | None = None,
    batch_normalized: dict[str, str] | None = None,
) -> None:
    """Register ``net`` under each name of ``variants`` with that row's keyword arguments.

    Args:
        net: The method's network. Its optional static method ``checkpoint_filter(state_dict, model)`` converts foreign
            weights.
        variants: Name -> keyword arguments of ``net``.
        cfg: Default cfg of all of them, as in timm's ``PretrainedCfg``.
        owned: The names among them that timm has.
        batch_normalized: Name -> timm's network whose weights, under timm's tags, ``checkpoint_filter`` converts.
    """
    module = sys.modules[net.__module__]
    default_cfgs: dict[str, DefaultCfg] = module.__dict__.setdefault('default_cfgs', {})
    for name, args in variants.items():
        theirs = (owned or {}).get(name)
        cfgs = theirs.cfgs if theirs else DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(**cfg)})
        source = (batch_normalized or {}).get(name)
        if source:
            converted = batch_norm_cfgs(source, first_conv=cfg['first_conv'], classifier=cfg['classifier'])
            cfgs = DefaultCfg(deque(['', *converted]), {**cfgs.cfgs, **converted}, is_pretrained=True)
            _converted_tags[name] = next(iter(converted))
        timm_tags = frozenset(cfgs.cfgs)
        default_cfgs[name] = _with_index(name, cfgs)
        entry = _entry_point(name, partial(net, **args), net, theirs, timm_tags)
        setattr(module, name, entry)
        with warnings.catch_warnings():
            # Taking over a name of timm's is what is meant here.
            warnings.filterwarnings('ignore', message=f'Overwriting {name} in registry')
            register_model(entry)
        _nets[name] = net


def _with_index(name: str, cfgs: DefaultCfg) -> DefaultCfg:
    """``cfgs`` and a tag for each of the weights that the package's index pins; the default stays the default."""
    tags, by_tag, pretrained = deque(cfgs.tags), dict(cfgs.cfgs), cfgs.is_pretrained
    for name_tag, facts in weights.index().items():
        arch, _, tag = name_tag.partition('.')
        if arch == name:
            place = f'{weights.ORGANIZATION}/{name_tag}'
            tags.append(tag)
            by_tag[tag] = replace(cfgs.default, url=None, hf_hub_id=place, **weights.cfg_of(facts))
            pretrained = True
    return DefaultCfg(tags=tags, cfgs=by_tag, is_pretrained=pretrained)


def _entry_point(
    name: str,
    make: partial[ResNet],
    net: type[ResNet],
    owned: Owned | None,
    timm_tags: frozenset[str],
) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if owned and owned.takes(kwargs):
            return owned.entry(pretrained=pretrained, **kwargs)
        return _build(name, make, getattr(net, 'checkpoint_filter', None), timm_tags, pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = net.__module__
    entry.__doc__ = (
        f'{net.__name__} ``{name}``. Keyword arguments: :class:`nf_zoo.net.network.ResNet` and the page of the method.'
    )
    return entry


def _build(
    name: str,
    make: partial[ResNet],
    filter_fn: Callable[..., Any] | None,
    timm_tags: frozenset[str],
    pretrained: bool,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    feature_cfg: dict[str, Any] = dict(flatten_sequential=True)
    if name.endswith('_cifar'):
        feature_cfg['out_indices'] = tuple(range(len(make.keywords['depths'])))
    overlay = pretrained_cfg_overlay or {}
    if pretrained and pretrained_cfg is None and not any(overlay.get(key) for key in _SOURCES):
        pretrained_cfg = _converted_tag(name)
    with ExitStack() as stack:
        # A cfg that is no tag comes from hf-hub: or local-dir:, an overlay's source is the user's own: timm loads both.
        if pretrained and isinstance(pretrained_cfg, str | None) and not any(overlay.get(key) for key in _SOURCES):
            found: weights.Opened | None = None
            if pretrained_cfg is None and timm_tags == {''}:
                found = stack.enter_context(weights.opened(name))
                facts = found.pretrained_cfg
                _logger.warning(
                    f'{name}: loading the weights {found.folder.tag} ({facts["num_classes"]} classes, '
                    f'{"x".join(map(str, facts["input_size"]))} images); {name}.TAG chooses others'
                )
            elif pretrained_cfg is not None and pretrained_cfg not in timm_tags:
                found = stack.enter_context(weights.opened(name, pretrained_cfg))
            if found is not None:
                cfg = PretrainedCfg(
                    **{**found.pretrained_cfg, **overlay, 'architecture': name, 'tag': found.folder.tag}
                )
                pretrained, pretrained_cfg, overlay = False, cfg, {}
                if all(value is None or key in ('device', 'dtype') for key, value in kwargs.items()):
                    stack.enter_context(_fitting(found.folder))
                kwargs = {**found.model_args, **kwargs}
                make = partial(_make_and_load, make, found, cfg, filter_fn, bool(kwargs.get('features_only')))
        return build_model_with_cfg(
            make,
            name,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=overlay,
            pretrained_filter_fn=filter_fn,
            feature_cfg=feature_cfg,
            **kwargs,
        )


def _converted_tag(name: str) -> str | None:
    """timm's first tag of a name that takes timm's weights and converts them, and a line in the log that says so."""
    tag = _converted_tags.get(name)
    if tag is not None:
        cfg = timm.get_pretrained_cfg(f'{name}.{tag}')
        _logger.warning(
            f'{name}: loading {cfg.hf_hub_id} of timm (licence {cfg.license}) and converting its batch normalization '
            f'to weight normalization; {name}.TAG chooses other weights'
        )
    return tag


@contextmanager
def _fitting(folder: weights.Folder) -> Iterator[None]:
    """Where the user has given no argument, what a model can't be built from is the fault of the weights' files."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckFailed) or str(folder) in str(error):
            raise
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{folder} is not for {folder.name}: {reason}; publish it again') from None


def _make_and_load(
    make: Callable[..., ResNet],
    found: weights.Opened,
    cfg: PretrainedCfg,
    filter_fn: Callable[..., Any] | None,
    features_only: bool,
    **kwargs: Any,
) -> ResNet:
    """The model with its weights, in the memory of one of them: its first values go before the weights are read."""
    model = make(**kwargs)
    num_classes = 0 if features_only else model.num_classes
    # What timm's loader may leave as it is, for other classes or channels, keeps its first values.
    kept = [cfg.classifier] * (num_classes != cfg.num_classes) + [cfg.first_conv] * (
        model.in_chans != cfg.input_size[0]
    )
    gone = {key: p for key, p in model.named_parameters() if key.rpartition('.')[0] not in kept}
    for p in gone.values():
        p.data = p.new_empty(1).expand(p.shape)
    # timm's loader has no keyword for it, and would copy into what was just given back.
    model.load_state_dict = partial(model.load_state_dict, assign=True)  # type: ignore[method-assign]
    load_pretrained(
        model,
        pretrained_cfg={**cfg.to_dict(), 'state_dict': found.read(like=model.state_dict())},
        num_classes=num_classes,
        in_chans=model.in_chans,
        filter_fn=filter_fn,
    )
    del model.load_state_dict
    now = dict(model.named_parameters())
    missing = next((key for key, p in gone.items() if now[key] is p), None)
    if missing:
        raise UserError(f'the weights of {found.folder} have no {missing}; publish them again')
    return model
