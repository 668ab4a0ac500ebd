"""The model card of published weights: README.md with the metadata that the Hugging Face Hub reads."""

import json
from typing import Any

from ..block_scalars import DEAD, dead_blocks
from ..train.recipe import Recipe
from .huggingface import timms_repository

_DATASETS = {
    'cifar10': ('uoft-cs/cifar10', 'CIFAR-10', 'test'),
    'cifar100': ('uoft-cs/cifar100', 'CIFAR-100', 'test'),
    'imagenette': ('frgfm/imagenette', 'Imagenette', 'validation'),
    'folder': (None, 'a folder of pictures', 'validation'),
}
_CIFAR = (
    'The authors of CIFAR state no licence for its images, which were collected from the web. They ask that the report '
    '"Learning multiple layers of features from tiny images" (Krizhevsky, 2009) is cited.'
)
_TERMS = {
    'cifar10': _CIFAR,
    'cifar100': _CIFAR,
    'imagenette': "Imagenette's photographs are ImageNet's, which are for research, not for commerce.",
    'digits': "The scans are scikit-learn's copy of a set of the UCI repository, by Alpaydin and Kaynak (1998).",
}
_METRICS = {'top1': 'Top-1 accuracy (%)', 'top5': 'Top-5 accuracy (%)', 'loss': 'Cross-entropy'}
_NAMED = 10  # classes that a card names

_BODY = """# {name_tag}

{summary}

## What it is for

{purpose}

## Use

```python
import nf_zoo, timm  # nf_zoo first: it registers the model in timm
from nf_zoo.inference.predict import predict

model = timm.create_model('{name_tag}', pretrained=True).eval()
print(predict(model, 'image.png', top=1))  # for each image its classes and their probabilities
folded = nf_zoo.fold(model)  # the same answers, fewer operations
```

```sh
nf-zoo predict {name_tag} image.png
nf-zoo export {name_tag} --pretrained -o {name}.onnx
nf-zoo verify {name_tag}
```

A hub folder that is not part of the package is found through the environment variable `NF_ZOO_HUB` (a directory or
`hf://ORG`). Loaded by name, the weights are hashed before they are used. The names `local-dir:FOLDER` and
`hf-hub:ORG/{name_tag}` work too (after `import nf_zoo`), but go through timm unchanged, without a hash check.

## Results

{metrics}
{calibration}{blocks}{curves}
## Training

{note}{facts}

The settings that differ from the defaults of `nf-zoo train` (`manifest.json` has all of them):

```yaml
{recipe}```

## Licence and data

The weights: {license}. {terms}

## Files

`model.safetensors`: {bytes:,} bytes, {dtype}, sha256 `{sha256}`.
`manifest.json` has everything above in machine-readable form, and the hashes of all files.
"""


def render(manifest: dict[str, Any], config: dict[str, Any], curves: bool) -> str:
    """README.md for a manifest.

    Args:
        manifest: The content of manifest.json; its hashes of files are not needed.
        config: The content of config.json: image size and classes.
        curves: Whether curves.png lies beside the card.
    """
    import yaml
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    name, name_tag = manifest['architecture'], f'{manifest["architecture"]}.{manifest["tag"]}'
    dataset = manifest['dataset']
    repo, title, split = _DATASETS.get(dataset, (None, dataset, 'validation'))
    metrics = {key: manifest['metrics'][key] for key in _METRICS if manifest['metrics'].get(key) is not None}
    n = manifest['metrics'].get('n')
    recipe = manifest.get('recipe') or {}
    of_timm = recipe.get('pretrained') and not recipe.get('initial_checkpoint')
    parent = timms_repository(recipe.get('model', name)) if of_timm else ''
    results = [
        EvalResult(
            task_type='image-classification',
            dataset_type=repo or dataset,
            dataset_name=title,
            dataset_split=split,
            metric_type='accuracy' if key.startswith('top') else key,
            metric_name=_METRICS[key],
            metric_value=value,
        )
        for key, value in metrics.items()
    ]
    data = ModelCardData(
        license=manifest['license'],
        library_name='timm',
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'nf_zoo'],
        datasets=[repo] if repo else None,
        base_model=parent or None,
        model_name=name_tag if results else None,
        eval_results=results or None,
    )
    summary = f'`{name}`, {manifest["parameters"]:,} parameters, trained on {title} ({manifest["num_classes"]} classes)'
    if 'top1' in metrics:
        summary += f': {metrics["top1"]:.2f} % top-1' + (f' on {n:,} {split} images' if n else '')
    facts = {
        'Images': manifest.get('train_n'),
        'Epochs': manifest.get('epochs'),
        'Updates': manifest.get('steps'),
        'Seed': manifest.get('seed'),
        'Differential privacy': _privacy(manifest.get('privacy') or {}),
        'Hardware': manifest.get('hardware'),
        'Seconds': manifest.get('seconds'),
        'Seconds an epoch': manifest.get('seconds_per_epoch'),
        'Versions': ', '.join(f'{k} {v}' for k, v in manifest.get('versions', {}).items()),
    }
    shown = {_METRICS[key]: f'{value:.{2 if key.startswith("top") else 4}f}' for key, value in metrics.items()} | (
        {'Images': n} if n else {}
    )
    body = _BODY.format(
        **{key: manifest[key] for key in ('bytes', 'dtype', 'sha256', 'license')},
        name=name,
        name_tag=name_tag,
        summary=f'{summary}.',
        purpose=_purpose(manifest, config),
        calibration=_calibration(manifest),
        blocks=_blocks(manifest.get('blocks') or {}),
        terms=_TERMS.get(dataset, 'For the images that it was trained on, the terms of their source hold.'),
        metrics=_table(shown),
        curves='\n![Loss and accuracy over the epochs](curves.png)\n' if curves else '',
        note=f'{manifest["note"]}\n\n' if manifest.get('note') else '',
        facts=_table({key: _plain(value) for key, value in facts.items() if value not in (None, '')}),
        recipe=yaml.safe_dump(_not_the_defaults(recipe), sort_keys=False),
    )
    return str(ModelCard(f'---\n{data.to_yaml()}\n---\n\n{body}', ignore_metadata_errors=False))


def _purpose(manifest: dict[str, Any], config: dict[str, Any]) -> str:
    """What the weights are good for, and what not."""
    _, height, width = config['pretrained_cfg']['input_size']
    labels = config.get('label_names') or []
    words = config.get('label_descriptions') or {}
    names = ', '.join(words.get(name, name) for name in labels) if len(labels) <= _NAMED else ''
    classes = f'{manifest["num_classes"]} classes' + (f': {names}' if names else '')
    return (
        f'Good for: images of {width} x {height} pixels (others are resized) that show one thing of its {classes}; '
        'a start for fine-tuning on images of that kind; comparing methods.\n\n'
        'Not for: anything else that an image may show. The network always answers with one of its classes, and a high '
        'probability does not mean that the image shows one of them. Do not let it decide about people.'
    )


def _calibration(manifest: dict[str, Any]) -> str:
    """A sentence on how far probabilities are from accuracies; empty if that was not measured."""
    error = manifest['metrics'].get('ece')
    if error is None:
        return ''
    what = 'the mean distance between the probability of an answer and how often such answers are right'
    return f'\nExpected calibration error: {error:.2f} %, {what}.\n'


def _blocks(blocks: dict[str, dict[str, float]]) -> str:
    """Two sentences on the residual blocks that contribute least; empty if that was not measured."""
    shares = {name: row['share'] for name, row in blocks.items() if row.get('share') is not None}
    if not shares:
        return ''
    least = min(shares, key=shares.__getitem__)
    dead = len(dead_blocks(blocks))
    rule = f'The branch of a dead block has less than {DEAD:g} of the variance of its output'
    smallest = f'the smallest share is {shares[least]:.2g}, of `{least}`'
    return f'\nDead blocks: {dead} of {len(shares)}. {rule}; {smallest}.\n'


def _not_the_defaults(recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recipe that ``nf-zoo train`` would not take by itself, its model and its data set."""
    defaults = json.loads(json.dumps(Recipe().as_dict()))
    named = ('model', 'dataset', 'seed')
    return {key: value for key, value in recipe.items() if key in named or defaults.get(key, ...) != value}


def metadata(card: bytes) -> dict[str, Any]:
    """What the Hub reads from a card: ``license``, ``library_name``, and by name the metrics of its model-index.

    Raises:
        ValueError: it has no metadata, or none that the Hub takes.
    """
    import yaml
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(card.decode()).data
        results = data.get('eval_results') or []
        metrics = {result.metric_name: result.metric_value for result in results}
    except (AttributeError, LookupError, RecursionError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f'no metadata: {type(error).__name__}') from None
    return {'license': data.get('license'), 'library_name': data.get('library_name'), 'metrics': metrics}


def metric_names(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a manifest that a card shows, under the names that it shows."""
    return {_METRICS[key]: metrics[key] for key in _METRICS if metrics.get(key) is not None}


def _privacy(privacy: dict[str, Any]) -> str:
    """What a private training promises, and how it keeps that; nothing for a training that isn't private."""
    if not privacy:
        return ''
    how = {
        'clip': "each image's gradient clipped at {:.4g}",
        'noise': 'noise of {:.4g} times that',
        'sample_rate': 'each image in a batch with probability {:.4g}',
        'steps': '{:,} steps',
        'accountant': 'accountant {}',
    }
    details = ', '.join(text.format(privacy[key]) for key, text in how.items() if key in privacy)
    promise = 'epsilon {epsilon:g} at delta {delta:g}'.format(**privacy)
    return f'{promise} ({details})' if details else promise


def _table(rows: dict[str, Any]) -> str:
    return '\n'.join(['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items())])


def _plain(value: Any) -> str:
    return f'{value:.1f}' if isinstance(value, float) else str(value)
