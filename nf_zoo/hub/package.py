"""What a published folder holds, made from a run, a model or published weights: weights, config, manifest and card."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from torch import nn

from ..block_scalars import DEAD, dead_blocks
from ..errors import CheckFailed, UserError, nearest
from ..files import tensor_bytes
from . import card
from .huggingface import has_token
from .places import MANIFEST, DirPlace, parse, readable
from .schema import FORMAT, read_json
from .weights import CARD, CONFIG, WEIGHTS, Folder, Found, locate, open_folder, parse_config

CURVES = 'curves.png'
DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}


@dataclass(frozen=True)
class Facts:
    """What is known of a training: the keys of a run's result.json, which ``publish`` also takes as keywords."""

    dataset: str = ''
    classes: list[str] | None = None
    num_classes: int | None = None
    input_size: tuple[int, int, int] | None = None  # channels, height, width
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)  # top1, top5 in percent, loss, n images
    train_n: int | None = None
    epochs: int | None = None
    steps: int | None = None
    seed: int | None = None
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seconds: float | None = None
    seconds_per_epoch: float | None = None
    hardware: str | None = None
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    blocks: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of each block its scalar and its share


_FACTS = [field.name for field in dataclasses.fields(Facts)]


@dataclass(frozen=True)
class _Origin:
    """Where the contents of a folder come from; ``data`` are the weights as they are stored there."""

    model: nn.Module
    architecture: str
    known: Facts
    data: bytes | None = None
    curves: bytes | None = None
    tag: str = ''
    license: str = 'apache-2.0'


@dataclass(frozen=True)
class Contents:
    """A folder that is ready to be written: its ``name.tag`` and its files."""

    name_tag: str
    manifest: dict[str, Any]
    files: dict[str, bytes]

    def same_as(self, manifest: Mapping[str, Any]) -> bool:
        """Whether ``manifest`` is of these very files, published on whatever day."""
        return {**manifest, 'published': None} == {**self.manifest, 'published': None}

    def refuse_others(self, target: str, manifest: Mapping[str, Any]) -> None:
        """Raises UserError: ``manifest``, that of ``target``, is of other weights."""
        if manifest.get('sha256') != self.manifest['sha256']:
            raise UserError(f'{target} has other weights; replace them (--replace), or choose another tag')


def gather(
    source: nn.Module | str | Path,
    name: str | None,
    tag: str | None,
    dtype: str | None,
    license: str | None,
    facts: dict[str, Any],
    allow_dead: bool = False,
) -> Contents:
    """The contents of the folder to publish; see ``hub.publish`` for the arguments.

    Raises:
        UserError: a run that isn't finished, or something that no hub would take.
        CheckFailed: the run's weights are not those that it was measured with.
    """
    for key in facts:
        if key not in _FACTS:
            raise UserError(f'{key!r} is no fact of a training{nearest(key, _FACTS)}')
    if dtype not in (None, *DTYPES):
        raise UserError(f'{dtype!r} is no dtype of weights; expected one of {", ".join(DTYPES)}')
    if isinstance(source, nn.Module):
        origin = _of_model(source, facts)
    elif _is_name(source):
        folder = open_folder(locate(*parse(str(source))))
        if name in (None, folder.name_tag) and not (tag or dtype or license or facts):
            return _copy(folder)
        origin = _of_folder(folder, facts)
    else:
        origin = _of_run(Path(source), facts)
    model, known, data = origin.model, origin.known, origin.data
    dead = [] if allow_dead else dead_blocks(known.blocks)
    if dead:
        raise UserError(
            f"the branch of {', '.join(dead)} adds less than {DEAD:g} of its block's output; "
            'train again with a lower learning rate for the scalars, or publish it all the same (--allow-dead)'
        )
    license = license or origin.license
    name, given = parse(name or origin.architecture)
    if name != origin.architecture:
        raise UserError(f'the weights are those of {origin.architecture}, not of {name}')
    if tag and given and tag != given:
        raise UserError(f'two tags, {given} and {tag}; give one')
    tag = tag or given or origin.tag or re.sub(r'[^A-Za-z0-9_.-]+', '_', known.dataset)
    if not tag:
        raise UserError('without a data set, the weights need a tag: name them NAME.TAG')
    found = Found(DirPlace(Path()), name, parse(f'{name}.{tag}')[1] or '')

    state = model.state_dict()
    if data is None or dtype is not None:
        cast = DTYPES[dtype] if dtype else None
        state = {key: t.to(cast) if cast and t.is_floating_point() else t for key, t in state.items()}
        data = tensor_bytes(state)
    bad = next((key for key, t in state.items() if not t.isfinite().all()), None)
    if bad:
        raise UserError(f'{bad} of the weights is not finite; nothing to publish')
    config = _config(model, known, found, license)
    _, model_args = parse_config(config, found)  # what no reader would take is not published either
    manifest = _manifest(model, known, found, license, data, state, model_args)
    files = {WEIGHTS: data, CONFIG: config}
    if origin.curves is not None:
        files[CURVES] = origin.curves
    files[CARD] = card.render(manifest, CURVES in files).encode()
    manifest['files'] = {key: hashlib.sha256(content).hexdigest() for key, content in sorted(files.items())}
    files[MANIFEST] = json_bytes(manifest)
    spoiled = next((key for key, content in files.items() if has_token(content)), None)
    if spoiled:
        raise UserError(f'{spoiled} would show your token of the Hugging Face Hub; take it out of the run or the facts')
    return Contents(found.name_tag, manifest, files)


def json_bytes(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode()


def _is_name(source: str | Path) -> bool:
    """Whether this is NAME or NAME.TAG and no folder."""
    if isinstance(source, Path) or os.sep in source or Path(source).exists():
        return False
    return timm.is_model(source.partition('.')[0])


def _copy(folder: Folder) -> Contents:
    files = {filename: folder.read(filename) for filename in folder.manifest['files']}
    parse_config(files[CONFIG], folder)
    manifest = read_json(folder.manifest_bytes, f'{folder}/{MANIFEST}')
    return Contents(folder.name_tag, manifest, {**files, MANIFEST: folder.manifest_bytes})


def _of_model(model: Any, facts: dict[str, Any]) -> _Origin:
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('architecture'):
        raise UserError('the model was not made by timm.create_model, so that no config can be written for it')
    return _Origin(model, cfg['architecture'], Facts(**facts))


def _of_folder(folder: Folder, facts: dict[str, Any]) -> _Origin:
    cfg, model_args = parse_config(folder.read(CONFIG), folder)
    data, manifest = folder.read(WEIGHTS), folder.manifest
    curves = folder.read(CURVES) if CURVES in manifest['files'] else None
    known = manifest | {key: value for key, value in cfg.items() if value is not None}
    known['classes'] = cfg.get('label_names')
    with _built(str(folder), 'publish it again'):
        model = timm.create_model(folder.name, pretrained_cfg=cfg, **model_args)
        model.load_state_dict(safetensors.torch.load(data))
        return _Origin(model, folder.name, _known(known, facts), data, curves, folder.tag, manifest['license'])


def _of_run(run: Path, facts: dict[str, Any]) -> _Origin:
    model, data, result = read_run(run)
    curves = _bytes_of(run / CURVES) if (run / CURVES).is_file() else None
    with _built(str(run), 'train it again'):
        return _Origin(model, result['model'].partition('.')[0], _known(result, facts), data, curves)


def read_run(run: Path) -> tuple[nn.Module, bytes, dict[str, Any]]:
    """A finished run's model with its weights, these as bytes, and what its result.json says."""
    if not (run / 'result.json').is_file():
        raise UserError(f'{run} is no finished run (it has no result.json); train it to its end first')
    result = read_json(_bytes_of(run / 'result.json'), run / 'result.json')
    data = _bytes_of(run / WEIGHTS)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != result.get('sha256'):
        raise CheckFailed(
            f'{run / WEIGHTS} is not what was trained (sha256 {sha256} instead of {result.get("sha256")}); train again'
        )
    with _built(str(run), 'train it again'):
        name, recipe = result['model'].partition('.')[0], result.get('recipe') or {}
        args = {**(recipe.get('model_kwargs') or {}), 'in_chans': result['input_size'][0]}
        model = timm.create_model(name, num_classes=result['num_classes'], **args)
        model.load_state_dict(safetensors.torch.load(data))
    return model, data, result


def _known(found: dict[str, Any], facts: dict[str, Any]) -> Facts:
    return Facts(**{key: found[key] for key in _FACTS if key in found} | facts)


@contextmanager
def _built(where: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
        raise UserError(f'{where} does not describe its model ({reason[:200]}); {remedy}') from None


def _config(model: nn.Module, known: Facts, found: Found, license: str) -> bytes:
    """timm's own config.json, so that ``local-dir:`` and ``hf-hub:`` work on the folder."""
    from timm.models._hub import save_config_for_hf

    if known.num_classes not in (None, model.num_classes):
        raise UserError(f'the model has {model.num_classes} classes, the training {known.num_classes}')
    if known.classes is not None and len(known.classes) != model.num_classes:
        raise UserError(f'the model has {model.num_classes} classes, but {len(known.classes)} class names are given')
    preprocessing = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')
    data_config = {key: getattr(known, key) for key in preprocessing if getattr(known, key) is not None}
    cfg: dict[str, Any] = {'tag': found.tag, 'license': license}
    if known.dataset:  # a fine-tuned model still has the class names of the weights that it started from
        source: Any = model.pretrained_cfg
        cfg.update({key: None for key in ('label_names', 'label_descriptions') if source.get(key)})
    with readable(Path(gettempdir())), TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        model_config = {'pretrained_cfg': cfg, 'label_names': list(known.classes) if known.classes else None}
        try:
            save_config_for_hf(model, str(path), model_config=model_config, data_config=data_config)
        except (TypeError, ValueError) as error:
            raise UserError(f'timm has no config for this model: {str(error).splitlines()[0]}') from None
        return path.read_bytes()


def _manifest(
    model: nn.Module,
    known: Facts,
    found: Found,
    license: str,
    data: bytes,
    state: dict[str, torch.Tensor],
    model_args: dict[str, Any],
) -> dict[str, Any]:
    dtypes = {str(t.dtype).removeprefix('torch.') for t in state.values() if t.is_floating_point()}
    recipe = dict(known.recipe)
    if recipe.get('initial_checkpoint'):  # where it lay is nobody's business
        recipe['initial_checkpoint'] = Path(recipe['initial_checkpoint']).name
    manifest = {
        'format': FORMAT,
        'architecture': found.name,
        'tag': found.tag,
        'sha256': hashlib.sha256(data).hexdigest(),
        'bytes': len(data),
        'dtype': ', '.join(sorted(dtypes)),
        'parameters': sum(p.numel() for p in model.parameters()),
        'license': license,
        'published': datetime.now(timezone.utc).date().isoformat(),
        'dataset': known.dataset,
        'num_classes': model.num_classes,
        'model_args': model_args,
        'metrics': dict(known.metrics),
        'tolerance': _tolerance(known.metrics, dtypes),
        'recipe': recipe,
    }
    for key in ('train_n', 'epochs', 'steps', 'seed', 'seconds', 'seconds_per_epoch', 'hardware', 'versions', 'blocks'):
        if getattr(known, key) not in (None, {}):
            manifest[key] = getattr(known, key)
    return manifest


def _tolerance(metrics: Mapping[str, float], dtypes: set[str]) -> dict[str, float]:
    """By how much another machine's top-1 (points) may differ: one image in 2000, at least two; twice that in 16 bits.

    Sums are rounded in another order there, which turns the few images whose two best logits are that close.
    """
    if 'top1' not in metrics or not metrics.get('n'):
        return {}
    points = max(0.05, 200 / metrics['n']) * (1 if dtypes <= {'float32', 'float64'} else 2)
    return {'top1': round(points, 4)}


def _bytes_of(path: Path) -> bytes:
    with readable(path):
        return path.read_bytes()
