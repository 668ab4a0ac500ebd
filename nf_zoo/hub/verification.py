"""Checking published weights through: hashes, agreement of all that describes them, and the accuracy."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..errors import CheckFailed, UserError
from . import card
from .places import known, parse, place
from .schema import read_json
from .weights import CARD, CONFIG, WEIGHTS, Folder, Weights, cfg_of, index, load, locate, open_folder

_SPLIT = re.compile(r'[\w.:%+\[\]-]+')


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found; there is only one where everything held."""

    name_tag: str
    place: str
    path: Path
    files: Mapping[str, str]  # sha256 by name
    recorded: Mapping[str, float]  # metrics of the manifest
    measured: Mapping[str, float] | None  # those of today, if they were measured

    def __str__(self) -> str:
        lines = [
            f'{self.name_tag} in {self.place}: verified',
            *(f'  {sha}  {file}' for file, sha in self.files.items()),
        ]
        metrics = {'recorded': self.recorded, 'measured': self.measured or {}}
        lines += [f'  {k}: top-1 {m["top1"]:.2f} % of {m["n"]}' for k, m in metrics.items() if 'top1' in m and 'n' in m]
        return '\n'.join(lines)


def verify(name: str, data_dir: str | Path | None = None, hub: str | Path | None = None) -> VerifyReport:
    """Check NAME or NAME.TAG through: every file's hash, that manifest, config, card and registry agree, that the
    weights are the architecture's, and, with ``data_dir``, that the accuracy is the recorded one.

    Raises:
        UserError: there is nothing of this name.
        CheckFailed: one of these does not hold.
    """
    folder = open_folder(locate(*parse(name), place(hub) if hub is not None else None))
    folder.check_all()
    weights = load(folder.name, folder.tag, folder.place)
    if weights.manifest != folder.manifest:
        raise CheckFailed(f'{folder} was replaced while it was verified; run it again')
    try:
        model = timm.create_model(folder.name, pretrained_cfg=weights.pretrained_cfg, **weights.model_args)
        model.load_state_dict(weights.state_dict)
    except (AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = ' '.join(str(error).split())[:200]
        raise CheckFailed(f'{folder}: these are no weights of {folder.name}: {reason}') from None
    _agree(folder, weights, model)
    recorded, measured = folder.manifest['metrics'], None
    if data_dir is not None:
        measured = _measure(folder, model, data_dir)
    return VerifyReport(folder.name_tag, str(folder.place), folder.path, folder.manifest['files'], recorded, measured)


def verify_all(
    hub: str | Path | None = None, data_dir: str | Path | None = None
) -> Iterator[tuple[str, VerifyReport | UserError | CheckFailed]]:
    """``verify`` for every ``name.tag`` of a hub, or of the search path; each with its report, or what was wrong.

    Raises:
        UserError: the hub can't be read.
    """
    where = place(hub) if hub is not None else None
    names = where.contents() if where else [f'{name}.{tag}' for name, tags in known().items() for tag in tags]
    for name_tag in names:
        try:
            yield name_tag, verify(name_tag, data_dir, hub)
        except (CheckFailed, UserError) as error:
            yield name_tag, error


def _agree(folder: Folder, weights: Weights, model: nn.Module) -> None:
    manifest, cfg = folder.manifest, weights.pretrained_cfg
    own_tag = read_json(folder.read(CONFIG), f'{folder}/{CONFIG}')['pretrained_cfg'].get(
        'tag'
    )  # ours wins when it is read
    dtypes = {str(t.dtype).removeprefix('torch.') for t in weights.state_dict.values() if t.is_floating_point()}
    parameters = sum(p.numel() for p in model.parameters())
    claims: list[tuple[str, Any, Any]] = [
        (f'num_classes in {CONFIG}', cfg.get('num_classes'), manifest['num_classes']),
        (f'license in {CONFIG}', cfg.get('license'), manifest['license']),
        (f'model_args in {CONFIG}', weights.model_args, manifest.get('model_args', {})),
        (f'tag in {CONFIG}', own_tag or folder.tag, folder.tag),
        (f'dtype of {WEIGHTS}', ', '.join(sorted(dtypes)), manifest.get('dtype')),
        (f'the number of parameters of {folder.name}', parameters, manifest.get('parameters')),
    ]
    if CARD in manifest['files']:
        text = folder.read(CARD)
        try:
            shown = card.metadata(text)
        except ValueError as error:
            raise CheckFailed(f'{folder}/{CARD}: {str(error).splitlines()[0][:200]}; publish it again') from None
        claims += [
            (f'license in {CARD}', shown['license'], manifest['license']),
            (f'library_name in {CARD}', shown['library_name'], 'timm'),
            (f'metrics in {CARD}', shown['metrics'], card.metric_names(manifest['metrics'])),
            (f'the sha256 of {WEIGHTS} in {CARD}', manifest['sha256'].encode() in text, True),
        ]
    entry = index().get(folder.name_tag, {})
    registered = folder.name_tag in timm.list_models(folder.name_tag, pretrained=True)
    if registered and entry.get('sha256') == manifest['sha256']:
        default = timm.get_pretrained_cfg(folder.name_tag).to_dict()
        claims += [(f'{key} in the registry', default.get(key), cfg.get(key)) for key in cfg_of(entry)]
    for what, said, expected in claims:
        if said != expected:
            raise CheckFailed(f'{folder}: {what} is {said}, not {expected}; publish it again')


def _measure(folder: Folder, model: nn.Module, data_dir: str | Path) -> dict[str, float]:
    from ..train import evaluate

    recorded = folder.manifest['metrics']
    if recorded.get('top1') is None:
        raise CheckFailed(f'{folder} has no recorded accuracy to compare with; publish it again with its metrics')
    recipe = folder.manifest.get('recipe') or {}
    split = recipe.get('val_split', 'validation')
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or '..' in split:  # a part of a path
        raise CheckFailed(f'{folder}: {split!r} is no name of a split; `nf-zoo evaluate --val-split` takes any')
    size = recipe.get('val_img_size')
    if type(size) is int and 0 < size <= 4096:  # of the images that the recorded accuracy is of
        cfg: Any = model.pretrained_cfg
        cfg['input_size'] = (cfg['input_size'][0], size, size)
    measured = evaluate(model, folder.manifest['dataset'], data_dir, recipe=recipe)
    tolerance = folder.manifest.get('tolerance', {}).get('top1', 0.05)
    if measured['n'] != recorded.get('n') or not abs(measured['top1'] - recorded['top1']) <= tolerance:
        raise CheckFailed(
            f'{folder}: top-1 is {measured["top1"]:.2f} % on {measured["n"]} images of {data_dir}, '
            f'recorded is {recorded["top1"]} on {recorded.get("n")} (tolerance {tolerance} points)'
        )
    return measured
