"""The files of a folder to publish, made from a run, a model or published weights: weights, config, manifest, card."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import timm
import torch
from torch import nn

from ..block_scalars import DEAD, dead_blocks
from ..errors import CheckFailed, UserError, nearest
from ..files import not_finite, readable, tensor_bytes
from ..train.data.labels import label_descriptions
from ..train.run_folder import Result, check_types, load_run
from . import card
from .folder import Entry, Folder, open_folder, parse_config, parse_manifest
from .huggingface import has_token
from .names import CARD, CONFIG, CURVES, MANIFEST, WEIGHTS, parse
from .places import DirPlace
from .schema import FORMAT, short
from .weights import locate, parse_weights, read_config

DTYPES = {'float32': torch.float32, 'float16': torch.float16, 'bfloat16': torch.bfloat16}

# What publish takes as keywords: the keys of a run's result.json, but for those that the weights themselves say.
FACTS = {f.name for f in dataclasses.fields(Result)} - {'model', 'sha256', 'bytes', 'best', 'processes'}


@dataclass(frozen=True)
class Package:
    """A folder that is ready to be written: its NAME.TAG and its files."""

    name_tag: str
    manifest: dict[str, Any]
    files: dict[str, bytes]

    def same_as(self, manifest: Mapping[str, Any]) -> bool:
        """Whether ``manifest`` describes these very files, published on whatever day."""
        return {**manifest, 'published': None} == {**self.manifest, 'published': None}

    def refuse_others(self, target: str, manifest: Mapping[str, Any]) -> None:
        """Raises UserError: ``manifest``, that of ``target``, says anything else than this package does."""
        if manifest.get('sha256') != self.manifest['sha256']:
            raise UserError(f'{target} has other weights; replace them (--replace), or choose another tag')
        # The card repeats the manifest and may have another wording; the curves are a picture.
        ours, theirs = ({**m, CONFIG: m.get('files', {}).get(CONFIG)} for m in (self.manifest, manifest))
        keys = sorted((ours.keys() | theirs.keys()) - {'published', 'files'})
        other = [key for key in keys if ours.get(key) != theirs.get(key)]
        if other:
            said = [
                f'{key} ({short(theirs.get(key))} there, {short(ours.get(key))} here)' for key in other if key != CONFIG
            ]
            more = f' and {len(said) - 3} more' if len(said) > 3 else ''
            what = ', '.join(said[:3]) or f'classes or preprocessing ({CONFIG})'
            raise UserError(f'{target} has these weights with other facts: {what}{more}; --replace writes the new ones')


@dataclass(frozen=True)
class _Source:
    """What a package is made from. ``data`` are the weights as they are stored there."""

    model: nn.Module
    architecture: str
    facts: Mapping[str, Any]  # keys of FACTS
    data: bytes | None = None
    curves: bytes | None = None
    tag: str = ''
    license: str = 'apache-2.0'


def gather(
    source: nn.Module | str | Path,
    name: str | None,
    tag: str | None,
    dtype: str | None,
    license: str | None,
    facts: dict[str, Any],
    allow_dead: bool = False,
) -> Package:
    """The package to publish; see ``hub.publish`` for the arguments.

    Raises:
        UserError: a run that has not finished, or something that no hub would take.
        CheckFailed: the weights have changed since they were trained or published, or hold NaN or infinity.
    """
    for key in facts:
        if key not in FACTS:
            raise UserError(f'{key!r} is not a fact of a training{nearest(key, FACTS)}')
    facts = {key: value for key, value in facts.items() if value is not None}
    check_types(facts, 'publish')
    if dtype not in (None, *DTYPES):
        raise UserError(f'{dtype!r} is not a dtype of weights; use one of {", ".join(DTYPES)}')
    if isinstance(source, nn.Module):
        origin = _of_model(source, facts)
    elif _is_name(source):
        folder = open_folder(locate(*parse(str(source))))
        if name in (None, folder.name_tag) and not (tag or dtype or license or facts):
            return _copy(folder)
        origin = _of_folder(folder, facts)
    else:
        origin = _of_run(Path(source), facts)
    model, known, data = origin.model, origin.facts, origin.data
    license = license or origin.license
    name, given = parse(name or origin.architecture)
    if name != origin.architecture:
        raise UserError(f'the weights are those of {origin.architecture}, not of {name}')
    if tag and given and tag != given:
        raise UserError(f'two tags, {given} and {tag}; give one')
    tag = tag or given or origin.tag or re.sub(r'[^A-Za-z0-9_.-]+', '_', known.get('dataset', ''))
    if not tag:
        raise UserError('without a data set, the weights need a tag: name them NAME.TAG')
    entry = Entry(DirPlace(Path()), name, parse(f'{name}.{tag}')[1] or '')

    state = model.state_dict()
    if data is None or dtype is not None:
        cast = DTYPES[dtype] if dtype else None
        state = {key: t.to(cast) if cast and t.is_floating_point() else t for key, t in state.items()}
        data = tensor_bytes(state)
    bad = not_finite(state)
    if bad:
        stored = f' as {dtype}' if dtype else ''
        raise UserError(f'{bad} of the weights holds NaN or infinity{stored}; there is nothing to publish')
    config = _config(model, known, entry, license)
    cfg, model_args = parse_config(config, entry)  # what no reader would take is not published either
    if isinstance(source, nn.Module):
        _refuse_unfit(name, cfg, model_args, state)
    manifest = _manifest(model, known, entry, license, data, state, model_args)
    files = {WEIGHTS: data, CONFIG: config}
    if origin.curves is not None:
        files[CURVES] = origin.curves
    hashes = {key: hashlib.sha256(files[key]).hexdigest() for key in (WEIGHTS, CONFIG)}
    parse_manifest(json_bytes(manifest | {'files': hashes}), entry)
    dead = [] if allow_dead else dead_blocks(known.get('blocks', {}))
    if dead:
        raise UserError(
            f"the branch of {', '.join(dead)} adds less than {DEAD:g} of its block's output; "
            'train again with a lower learning rate for the scalars, or publish it all the same (--allow-dead)'
        )
    files[CARD] = card.render(manifest, json.loads(config), CURVES in files).encode()
    manifest['files'] = {key: hashlib.sha256(content).hexdigest() for key, content in sorted(files.items())}
    files[MANIFEST] = json_bytes(manifest)
    spoiled = next((key for key, content in files.items() if has_token(content)), None)
    if spoiled:
        raise UserError(f'{spoiled} would show your token of the Hugging Face Hub; take it out of the run or the facts')
    return Package(entry.name_tag, json.loads(files[MANIFEST]), files)


def json_bytes(content: dict[str, Any]) -> bytes:
    """Raises UserError: something in ``content`` is no JSON."""
    try:
        return (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode()
    except (TypeError, ValueError) as error:
        raise UserError(f'{MANIFEST} cannot hold this: {error}') from None


def _is_name(source: str | Path) -> bool:
    """Whether this is NAME or NAME.TAG and no folder."""
    if isinstance(source, Path) or os.sep in source or Path(source).exists():
        return False
    return timm.is_model(source.partition('.')[0])


def _copy(folder: Folder) -> Package:
    files = {filename: folder.read(filename) for filename in folder.manifest['files']}
    read_config(folder, files[CONFIG])
    parse_weights(files[WEIGHTS], folder)
    return Package(folder.name_tag, json.loads(folder.manifest_bytes), {**files, MANIFEST: folder.manifest_bytes})


def _of_model(model: Any, facts: dict[str, Any]) -> _Source:
    if any(t.is_meta for t in model.state_dict().values()):
        raise UserError("the model is on the device 'meta' and has no weights to publish")
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if not cfg.get('architecture'):
        raise UserError('no config can be written for a model that timm.create_model has not made')
    return _Source(model, cfg['architecture'], facts)


def _refuse_unfit(
    name: str, cfg: dict[str, Any], model_args: dict[str, Any], state: Mapping[str, torch.Tensor]
) -> None:
    """Raises `UserError` unless the weights are those of the network that a reader builds."""
    fresh = timm.create_model(name, pretrained_cfg=cfg, device='meta', **model_args).state_dict()
    odd = [
        key for key in (*fresh, *state) if key not in fresh or key not in state or fresh[key].shape != state[key].shape
    ]
    if odd:
        raise UserError(
            f'the weights are not those of the {name} that timm.create_model makes ({odd[0]}); publish the network as '
            'it was before it was folded, pruned or changed'
        )


def _of_folder(folder: Folder, facts: dict[str, Any]) -> _Source:
    data, manifest = folder.read(WEIGHTS), folder.manifest
    cfg, model = build(folder, parse_weights(data, folder))
    curves = folder.read(CURVES) if CURVES in manifest['files'] else None
    known = {**manifest, **cfg, 'classes': cfg.get('label_names')}
    known = {key: known[key] for key in FACTS if known.get(key) is not None} | facts
    return _Source(model, folder.name, known, data, curves, folder.tag, manifest['license'])


def build(folder: Folder, state: Mapping[str, torch.Tensor]) -> tuple[dict[str, Any], nn.Module]:
    """timm's cfg of a folder, and its model with its weights.

    Raises:
        UserError: the config does not describe a model.
        CheckFailed: the weights are not those of the model, or too large for its dtype.
    """
    cfg, model_args = read_config(folder)
    errors = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        model = timm.create_model(folder.name, pretrained_cfg=cfg, **model_args)
    except errors as error:
        raise UserError(f'{folder} does not describe its model: {_reason(error)}; publish it again') from None
    try:
        model.load_state_dict(state)
    except errors as error:
        raise CheckFailed(f'{folder}: these are not weights of {folder.name}: {_reason(error)}') from None
    bad = not_finite(model.state_dict())
    if bad:
        raise CheckFailed(f'{folder}: {bad} holds NaN or infinity after loading; publish it again')
    return cfg, model


def _reason(error: Exception) -> str:
    return ' '.join(f'{type(error).__name__}: {error}'.split())[:200]


def _of_run(folder: Path, facts: dict[str, Any]) -> _Source:
    model, data, result = load_run(folder)
    path = folder / CURVES
    with readable(path):
        curves = path.read_bytes() if path.is_file() else None
    known = {key: value for key, value in vars(result).items() if key in FACTS and value is not None}
    return _Source(model, result.architecture, known | facts, data, curves)


def _config(model: nn.Module, known: Mapping[str, Any], entry: Entry, license: str) -> bytes:
    """timm's own config.json, so that ``local-dir:`` and ``hf-hub:`` work on the folder."""
    from timm.models._hub import save_config_for_hf

    num_classes, classes = known.get('num_classes', model.num_classes), known.get('classes')
    if num_classes != model.num_classes:
        raise UserError(f'the model has {model.num_classes} classes, the training {num_classes}')
    if classes is not None and len(classes) != model.num_classes:
        raise UserError(f'the model has {model.num_classes} classes, but {len(classes)} class names are given')
    preprocessing = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')
    data_config = {key: known[key] for key in preprocessing if key in known}
    cfg: dict[str, Any] = {'tag': entry.tag, 'license': license}
    if known.get('dataset'):  # a fine-tuned model still has the class names of the weights that it started from
        source: Any = model.pretrained_cfg
        cfg.update({key: None for key in ('label_names', 'label_descriptions') if source.get(key)})
    with readable(Path(gettempdir())), TemporaryDirectory() as folder:
        path = Path(folder) / CONFIG
        model_config = {'pretrained_cfg': cfg, 'label_names': list(classes) if classes else None}
        model_config['label_descriptions'] = label_descriptions(classes or ())
        try:
            save_config_for_hf(model, str(path), model_config=model_config, data_config=data_config)
        except (TypeError, ValueError) as error:
            raise UserError(f'timm has no config for this model: {str(error).splitlines()[0]}') from None
        return path.read_bytes()


def _manifest(
    model: nn.Module,
    known: Mapping[str, Any],
    entry: Entry,
    license: str,
    data: bytes,
    state: dict[str, torch.Tensor],
    model_args: dict[str, Any],
) -> dict[str, Any]:
    dtypes = {str(t.dtype).removeprefix('torch.') for t in state.values() if t.is_floating_point()}
    recipe, metrics = dict(known.get('recipe', {})), dict(known.get('metrics', {}))
    if recipe.get('initial_checkpoint'):  # the file's folder is private
        recipe['initial_checkpoint'] = Path(str(recipe['initial_checkpoint'])).name
    manifest = {
        'format': FORMAT,
        'architecture': entry.name,
        'tag': entry.tag,
        'sha256': hashlib.sha256(data).hexdigest(),
        'bytes': len(data),
        'dtype': ', '.join(sorted(dtypes)),
        'parameters': sum(p.numel() for p in model.parameters()),
        'license': license,
        'published': datetime.now(timezone.utc).date().isoformat(),
        'dataset': known.get('dataset', ''),
        'num_classes': model.num_classes,
        'model_args': model_args,
        'metrics': metrics,
        'tolerance': tolerance(metrics, dtypes),
        'recipe': recipe,
    }
    for key in (
        'train_n',
        'epochs',
        'steps',
        'seed',
        'seconds',
        'seconds_per_epoch',
        'hardware',
        'versions',
        'blocks',
        'privacy',
        'changes',
        'note',
    ):
        if known.get(key) not in (None, {}, [], ''):
            manifest[key] = known[key]
    return manifest


def tolerance(metrics: Mapping[str, float], dtypes: set[str]) -> dict[str, float]:
    """The points of top-1 by which another machine may differ: one image in 2000, at least two; twice that in 16 bits.

    Another machine rounds sums in another order. That changes the prediction of the few images whose two largest logits
    are that close.
    """
    if (
        not all(isinstance(metrics.get(key), int | float) and metrics[key] >= 0 for key in ('top1', 'n'))
        or not metrics['n']
    ):
        return {}
    points = max(0.05, 200 / metrics['n']) * (1 if dtypes <= {'float32', 'float64'} else 2)
    return {'top1': round(points, 4)}
