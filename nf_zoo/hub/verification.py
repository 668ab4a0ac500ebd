"""Checking weights: their hashes, whether everything that describes them agrees, and their accuracy."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..errors import CheckFailed, UserError
from ..files import read_json
from ..text import clean
from ..train.run_folder import WEIGHTS, describe, is_run, load_run
from . import card
from .folder import Folder
from .index import cfg_of, index
from .names import CARD, CONFIG, is_name_tag, parse
from .package import build, tolerance
from .places import HfPlace, parse_place, search_path
from .schema import short
from .weights import Weights, load, locate

_SPLIT = re.compile(r'[\w.:%+\[\]-]+')


@dataclass(frozen=True)
class VerifyReport:
    """What ``verify`` found. There is a report only if everything held."""

    name_tag: str
    place: str
    path: Path
    files: Mapping[str, str]  # sha256 by name
    recorded: Mapping[str, float]  # metrics of the manifest
    measured: Mapping[str, float] | None  # the metrics of today, if they were measured

    def __str__(self) -> str:
        lines = [
            f'{self.name_tag} in {clean(self.place)}: verified',
            *(f'  {sha}  {file}' for file, sha in self.files.items()),
        ]
        metrics = {'recorded': self.recorded, 'measured': self.measured or {}}
        lines += [f'  {k}: top-1 {m["top1"]:.2f} % of {m["n"]}' for k, m in metrics.items() if 'top1' in m and 'n' in m]
        return '\n'.join(lines)


def verify(name: str, data_dir: str | Path | None = None, hub: str | Path | None = None) -> VerifyReport:
    """Check published weights, or a run.

    Every file has its hash; manifest, config, card and registry agree; the weights are finite and fit the architecture;
    with ``data_dir``, the accuracy is the recorded one.

    Args:
        name: NAME, NAME.TAG, or the folder of a finished run.
        data_dir: The folder of the data set; without it the accuracy is not measured.
        hub: Look in this hub instead of the search path.

    Raises:
        UserError: there is nothing of this name.
        CheckFailed: one of these does not hold.
    """
    if hub is None and is_run(name):
        return _verify_run(Path(name), data_dir)
    entry = locate(*parse(name), parse_place(hub) if hub is not None else None)
    weights = load(entry.name, entry.tag, entry.place)
    folder = weights.folder
    folder.check_all()
    try:
        _, model = build(folder, weights.state_dict)
    except UserError as error:
        raise CheckFailed(str(error)) from None
    _agree(folder, weights, model)
    manifest, measured = folder.manifest, None
    if data_dir is not None:
        # The publisher's tolerance, but no more than any weights get.
        most = tolerance(manifest['metrics'], {'float16'}).get('top1', 0.05)
        tolerated = min(manifest.get('tolerance', {}).get('top1', 0.05), most)
        recipe = manifest.get('recipe') or {}
        measured = _measure(str(folder), model, manifest['dataset'], data_dir, manifest['metrics'], recipe, tolerated)
    return VerifyReport(
        folder.name_tag, str(folder.place), folder.path, manifest['files'], manifest['metrics'], measured
    )


def verify_all(
    hub: str | Path | None = None, data_dir: str | Path | None = None
) -> Iterator[tuple[str, VerifyReport | UserError | CheckFailed]]:
    """``verify`` for every NAME.TAG of a hub, or of the search path; each with its report, or its error.

    Raises:
        UserError: a hub cannot be listed.
    """
    for name_tag in [*dict.fromkeys(_names(hub))]:
        try:
            if not is_name_tag(name_tag):
                raise UserError(f'{name_tag!r} is not NAME.TAG; rename the folder')
            yield name_tag, verify(name_tag, data_dir, hub)
        except (CheckFailed, UserError) as error:
            yield name_tag, error


def _names(hub: str | Path | None) -> Iterator[str]:
    if hub is not None:
        yield from parse_place(hub).names()
    else:  # without the network: an organization is looked through as far as it is cached
        for place in search_path():
            yield from place.names_offline() if isinstance(place, HfPlace) else place.names()


def _verify_run(path: Path, data_dir: str | Path | None) -> VerifyReport:
    model, _, result = load_run(path)
    describe(model, result)
    measured = None
    if data_dir is not None:
        tolerated = tolerance(result.metrics, {'float32'}).get('top1', 0.05)
        measured = _measure(str(path), model, result.dataset, data_dir, result.metrics, result.recipe, tolerated)
    return VerifyReport(result.architecture, str(path), path, {WEIGHTS: result.sha256}, result.metrics, measured)


def _agree(folder: Folder, weights: Weights, model: nn.Module) -> None:
    manifest, cfg = folder.manifest, weights.pretrained_cfg
    # parse_config puts the folder's own tag in place of the config's
    own_tag = read_json(folder.read(CONFIG), f'{folder}/{CONFIG}')['pretrained_cfg'].get('tag')
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
            raise CheckFailed(f'{folder}: {what} is {short(said)}, not {short(expected)}; publish it again')


def _measure(
    where: str,
    model: nn.Module,
    dataset: str,
    data_dir: str | Path,
    recorded: Mapping[str, float],
    recipe: Mapping[str, Any],
    tolerated: float,
) -> dict[str, float]:
    from ..train import evaluate

    if recorded.get('top1') is None:
        raise CheckFailed(f'{where} has no recorded accuracy to compare with; publish it again with its metrics')
    split = recipe.get('val_split', 'validation')
    if not isinstance(split, str) or not _SPLIT.fullmatch(split) or '..' in split:  # a part of a path
        raise CheckFailed(f'{where}: {split!r} is not the name of a split; `nf-zoo evaluate --val-split` takes any')
    size = recipe.get('val_img_size')
    if type(size) is int and 0 < size <= 4096:  # the image size that the recorded accuracy was measured at
        cfg: Any = model.pretrained_cfg
        cfg['input_size'] = (cfg['input_size'][0], size, size)
    measured = evaluate(model, dataset, data_dir, recipe=recipe)
    for key in ('top1', 'top5') if recorded.get('top5') is not None else ('top1',):
        said = recorded[key]
        if measured['n'] != recorded.get('n') or not abs(measured[key] - said) <= tolerated:
            raise CheckFailed(
                f'{where}: {key} is {measured[key]:.2f} % of {measured["n"]} images in {data_dir}, '
                f'recorded is {said} % of {recorded.get("n")} (tolerance {tolerated} points)'
            )
    return measured
