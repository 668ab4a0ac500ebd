"""Registration in timm: entry points, default cfgs and, for ``pretrained=True``, verified weights."""

import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import timm
from safetensors import SafetensorError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import _registry, build_model_with_cfg, load_pretrained, register_model
from timm.models._pretrained import DefaultCfg, PretrainedCfg
from torch import nn

from ..errors import CheckFailed, UserError
from ..files import not_finite
from ..hub import weights
from ..hub.folder import Folder, open_folder
from ..hub.huggingface import timms_download
from ..hub.index import ORGANIZATION, cfg_of, index
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

_builders: dict[str, '_Builder'] = {}


@dataclass(frozen=True)
class Owned:
    """A name that timm has: its entry point, its cfgs (which stay), the keywords that only its entry point takes."""

    entry: Callable[..., nn.Module]
    cfgs: DefaultCfg
    keywords: frozenset[str]

    def takes(self, kwargs: dict[str, Any]) -> bool:
        """Whether timm's own entry point has to build the model, because a keyword is timm's alone."""
        return not self.keywords.isdisjoint(kwargs) or kwargs.get('attn_layer') not in (None, 'se')


def list_models(filter: str | list[str] = '') -> list[str]:
    """Names that nf_zoo registers, of those that match timm's wildcard ``filter``; sorted naturally, as timm's."""
    return [name for name in timm.list_models(filter) if name in _builders]


def others_download(name: str, pretrained: bool) -> AbstractContextManager[None]:
    """`timms_download` for the names of timm's other modules. The names here ask the Hub in their own builder."""
    return timms_download(name, pretrained and name.partition('.')[0] not in _builders)


def timms_own(name: str, **kwargs: Any) -> nn.Module | None:
    """timm's own network of a name that nf_zoo registers too, or None; **kwargs as for its entry point."""
    builder = _builders.get(name)
    return builder.owned.entry(**kwargs) if builder and builder.owned else None


def variant(name: str) -> dict[str, Any]:
    """The keyword arguments with which a registered name's network is made: layout, depths and the method's own."""
    return dict(_builders[name].make.keywords)


def timms_tag(name: str) -> str | None:
    """timm's tag that the bare NAME stands for, if it stands for weights of timm's."""
    default = timm.get_pretrained_cfg(name)
    return _builders[name].converted_tag or (default.tag if default.has_weights else None)


def create_from(entry: weights.Entry, pretrained: bool = True, **kwargs: Any) -> nn.Module:
    """``timm.create_model`` for one published NAME.TAG, wherever it is; NAME is one that nf_zoo registers.

    Args:
        entry: The weights.
        pretrained: If false, the network of these weights as it is initialised.
        **kwargs: As for ``timm.create_model``.

    Raises:
        UserError: the files are malformed, or don't fit the network.
        CheckFailed: a file is not the published one, or a value is NaN or infinite.
    """
    builder, kwargs = _builders[entry.name], {key: value for key, value in kwargs.items() if value is not None}
    return builder.load(entry, {}, kwargs) if pretrained else builder.without_weights(entry, {}, kwargs)


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
    pinned: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # name -> tag and entry, the best first
    for name_tag, entry in index().items():
        name, _, tag = name_tag.partition('.')
        pinned.setdefault(name, []).append((tag, entry))
    for name, args in variants.items():
        theirs = (owned or {}).get(name)
        cfgs = theirs.cfgs if theirs else DefaultCfg(tags=deque(['']), cfgs={'': PretrainedCfg(**cfg)})
        source, converted_tag = (batch_normalized or {}).get(name), None
        if source:
            converted = batch_norm_cfgs(source, first_conv=cfg['first_conv'], classifier=cfg['classifier'])
            cfgs = DefaultCfg(deque(['', *converted]), {**cfgs.cfgs, **converted}, is_pretrained=True)
            converted_tag = next(iter(converted))
        default_cfgs[name] = _with_pinned(name, cfgs, pinned.get(name, ()))
        make, filter_fn = partial(net, **args), getattr(net, 'checkpoint_filter', None)
        _builders[name] = _Builder(name, make, filter_fn, theirs, frozenset(cfgs.cfgs), converted_tag)
        entry_point = _entry_point(net, _builders[name])
        setattr(module, name, entry_point)
        with warnings.catch_warnings():
            # Taking over a name of timm's is what is meant here. One pattern for all names is compiled once.
            warnings.filterwarnings('ignore', message='Overwriting .* in registry')
            register_model(entry_point)
        if name in pinned or converted_tag:
            # The bare name loads weights, but timm asks the default cfg, which has none. Its lists keep to tags.
            _registry._model_has_pretrained.add(name)
            _registry._model_with_tags[name].remove(name)


def _with_pinned(name: str, cfgs: DefaultCfg, pinned: Iterable[tuple[str, dict[str, Any]]]) -> DefaultCfg:
    """``cfgs`` with a tag for each set of weights that the package's index pins. The default cfg stays the default."""
    tags, by_tag, pretrained = deque(cfgs.tags), dict(cfgs.cfgs), cfgs.is_pretrained
    for tag, entry in pinned:
        tags.append(tag)
        by_tag[tag] = replace(cfgs.default, url=None, hf_hub_id=f'{ORGANIZATION}/{name}.{tag}', **cfg_of(entry))
        pretrained = True
    return DefaultCfg(tags=tags, cfgs=by_tag, is_pretrained=pretrained)


def _entry_point(net: type[ResNet], builder: '_Builder') -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return builder(pretrained, **kwargs)

    entry.__name__ = entry.__qualname__ = builder.name
    entry.__module__ = net.__module__
    entry.__doc__ = (
        f'{net.__name__} ``{builder.name}``. '
        'Keyword arguments: :class:`nf_zoo.net.network.ResNet` and the page of the method.'
    )
    return entry


@dataclass(frozen=True)
class _Builder:
    """What an entry point does: finds the weights, builds the network and loads it."""

    name: str
    make: partial[ResNet]
    filter_fn: Callable[..., Any] | None
    owned: Owned | None
    timm_tags: frozenset[str]
    converted_tag: str | None  # timm's first tag, of weights with batch normalization

    def __call__(
        self,
        pretrained: bool,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> nn.Module:
        overlay = pretrained_cfg_overlay or {}
        # A cfg that is not a tag comes from hf-hub: or local-dir:, an overlay's source is the user's own: timm loads
        # both. It loads its own tags too.
        own_source = any(overlay.get(key) for key in _SOURCES)
        if pretrained and pretrained_cfg is None and not own_source and self.converted_tag:
            pretrained_cfg = self.converted_tag
            self.say_converted()
        if isinstance(pretrained_cfg, str | None) and not own_source and pretrained_cfg not in self.timm_tags:
            if pretrained and (pretrained_cfg is not None or self.timm_tags == {''}):
                model = self.load(weights.locate(self.name, pretrained_cfg), overlay, kwargs)
                if pretrained_cfg is None:
                    self.say_which(model)
                return model
            known_to_timm = pretrained_cfg is None or f'{self.name}.{pretrained_cfg}' in index()
            entry = None if pretrained or known_to_timm else weights.find(self.name, pretrained_cfg)
            if entry is not None:
                return self.without_weights(entry, overlay, kwargs)
        try:
            with self._download(pretrained and not own_source, pretrained_cfg):
                model = self.build(self.make, pretrained, pretrained_cfg, overlay, kwargs)
        except SafetensorError as error:
            raise UserError(f'{self.name}: the weights are not a valid safetensors file: {error}') from None
        bad = not_finite(model.state_dict()) if pretrained else None
        if bad:
            raise CheckFailed(f'{self.name}: {bad} of the weights holds NaN or infinity; load other weights')
        return model

    def _download(self, pretrained: bool, cfg: Any) -> AbstractContextManager[None]:
        tagged = f'{self.name}.{cfg}' if cfg else self.name
        return timms_download(tagged, pretrained and isinstance(cfg, str | None))

    def cfg(self, cfg: dict[str, Any], overlay: dict[str, Any]) -> PretrainedCfg:
        """timm's cfg of a hub's weights. The names of the first and the last layer are the registry's own."""
        default = timm.get_pretrained_cfg(self.name)
        layers = {'first_conv': default.first_conv, 'classifier': default.classifier}
        return PretrainedCfg(**{**cfg, **layers, **overlay, 'architecture': self.name, 'tag': cfg['tag']})

    def build(
        self,
        make: Callable[..., nn.Module],
        pretrained: bool,
        pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None,
        overlay: dict[str, Any],
        kwargs: dict[str, Any],
    ) -> nn.Module:
        given: dict[str, Any] = dict(pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
        if self.owned and self.owned.takes(kwargs):
            return self.owned.entry(pretrained=pretrained, **given, **kwargs)
        levels = self.make.keywords['layout'](depths=self.make.keywords['depths']).levels
        feature_cfg: dict[str, Any] = dict(flatten_sequential=True, out_indices=tuple(range(levels)))
        return build_model_with_cfg(
            make, self.name, pretrained, **given, pretrained_filter_fn=self.filter_fn, feature_cfg=feature_cfg, **kwargs
        )

    def say_converted(self) -> None:
        cfg = timm.get_pretrained_cfg(f'{self.name}.{self.converted_tag}')
        _logger.warning(
            f'{self.name}: loading {cfg.hf_hub_id} of timm (licence {cfg.license}) and converting its batch '
            f'normalization to weight normalization; {self.name}.TAG chooses other weights'
        )

    def say_which(self, model: nn.Module) -> None:
        cfg: Any = model.pretrained_cfg
        size = 'x'.join(map(str, cfg['input_size']))
        _logger.warning(
            f'{self.name}: loading the weights {cfg["tag"]} ({cfg["num_classes"]} classes, {size} images); '
            f'{self.name}.TAG chooses others'
        )

    def without_weights(self, entry: weights.Entry, overlay: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
        """The network of published weights, as it is initialised."""
        folder = open_folder(entry)
        cfg, model_args = weights.read_config(folder)
        with nullcontext() if _shapes(kwargs) else _fitting(folder):
            return self.build(self.make, False, self.cfg(cfg, overlay), {}, {**model_args, **kwargs})

    def load(self, entry: weights.Entry, overlay: dict[str, Any], kwargs: dict[str, Any]) -> nn.Module:
        """The network with verified weights.

        Raises:
            UserError: the files are malformed, or don't fit the network.
            CheckFailed: a file is not the published one, or a value is NaN or infinite.
        """
        found = weights.load(entry.name, entry.tag, entry.place)
        folder, cfg = found.folder, self.cfg(found.pretrained_cfg, overlay)
        context = nullcontext() if _shapes(kwargs) else _fitting(folder)
        kwargs = {**found.model_args, **kwargs}
        with context:
            if self.owned and self.owned.takes(kwargs):
                model = self.build(self.make, True, replace(cfg, state_dict=found.state_dict), {}, kwargs)
                model.pretrained_cfg.pop('state_dict')  # type: ignore[union-attr, operator]
            else:
                features_only = bool(kwargs.get('features_only'))
                make = partial(_make_and_load, self.make, found, cfg, self.filter_fn, features_only)
                model = self.build(make, False, cfg, {}, kwargs)
        bad = not_finite(model.state_dict())
        if bad:
            raise CheckFailed(f'{folder}: {bad} holds NaN or infinity after loading; publish it again')
        return model


def _shapes(kwargs: dict[str, Any]) -> bool:
    """Whether a user's arguments change the network."""
    return any(value is not None and key not in ('device', 'dtype') for key, value in kwargs.items())


@contextmanager
def _fitting(folder: Folder) -> Iterator[None]:
    """If the user passed no arguments of their own, a failed build means that the published config is wrong: say so."""
    try:
        yield
    except (ArithmeticError, AssertionError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckFailed) or str(folder) in str(error):
            raise
        reason = ' '.join(str(error).split())[:200]
        raise UserError(f'{folder} does not fit {folder.name}: {reason}; publish it again') from None


def _make_and_load(
    make: Callable[..., nn.Module],
    found: weights.Weights,
    cfg: PretrainedCfg,
    filter_fn: Callable[..., Any] | None,
    features_only: bool,
    **kwargs: Any,
) -> nn.Module:
    """The network with its weights, before timm wraps it for features."""
    model: Any = make(**kwargs)
    own = model.state_dict()
    if any(value.is_meta for value in own.values()):
        return model
    state = filter_fn(found.state_dict, model) if filter_fn else found.state_dict
    num_classes = 0 if features_only else model.num_classes
    # For other classes timm leaves out the classifier, and then it doesn't notice that another weight is missing.
    optional = f'{cfg.classifier}.' if num_classes != cfg.num_classes else '/'
    missing = next((key for key in own if key not in state and not key.startswith(optional)), None)
    if missing:
        raise UserError(f'the weights of {found.folder} have no {missing}; publish them again')
    load_pretrained(
        model,
        pretrained_cfg={**cfg.to_dict(), 'state_dict': state},
        num_classes=num_classes,
        in_chans=model.in_chans,
    )
    return model
