"""Random recipes, of right and wrong values: a run either trains or is refused in one line, and the plan agrees."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_origin

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from train_toys import toy_recipe, toys  # noqa: F401

from nf_zoo.errors import CheckFailed, UserError
from nf_zoo.train import Recipe, train
from nf_zoo.train.plan import describe
from nf_zoo.train.recipe import RANGES, TYPES

pytestmark = [pytest.mark.usefixtures('toys', 'rendered'), pytest.mark.filterwarnings('ignore')]

# What would only cost time here, or write elsewhere.
FIXED = {'output', 'experiment', 'resume', 'epochs', 'dataset_download', 'log_tensorboard', 'pretrained'}
CHOSEN: dict[str, list[Any]] = {
    'model': ['eunnet20_cifar', 'nf_resnet20_cifar', 'test_resnet', 'vit_tiny_patch16_224', 'eunnet20', 'hf-hub:x', ''],
    'model_kwargs': [
        {'depths': [1, 1, 1]},
        {'depths': []},
        {'depths': 'x'},
        {'norm': 'l2'},
        {'width': 0},
        {'scale': 7},
    ],
    'dataset': [
        'toys',
        'folder',
        'torch/image_folder',
        'torchvision/cifar10',
        'toy',
        'digits',
        'wds/x',
        'hfds/',
        '/',
        '',
    ],
    'data_dir': ['PICTURES', '/dev/null', 'nowhere', ''],
    'device': ['cpu', 'meta', 'cuda:99', 'warp', 'cpu:1', ''],
    'torchcompile': ['eager', 'eagr', ''],
    'initial_checkpoint': ['none.safetensors', 'PICTURES/torn.safetensors', 'x.pth', ''],
    'opt': ['sgd', 'adamw', 'lamb', 'lookahead_sgd', 'muon', 'adafactor', 'sgdd', 'lookahead_', ''],
    'opt_kwargs': [{'nesterov': False}, {'nestrov': 1}, {'foreach': True}, {'lr': 'x'}, {'betas': 3}],
    'aa': ['rand-m9-n2', 'rand-m5-mstd0.5', 'original', 'augmix-m3', '3a', 'rand', 'rand-mx', 'v0-mstd', 'x', ''],
    'img_size': [1, 2, 8, 16, 31, 40],
    'val_img_size': [1, 16, 20],
    'input_size': [(3, 16, 16), (1, 16, 16), (3, 16, 20), (2, 8, 8), (3, 1, 1)],
    'train_sizes': [{0: 8}, {0: 16, 1: 24}, {1: 12}, {0: 1}, {0: 200}, {5: 16}],
    'lr_scales': [{'scale': 0.1}, {r'bias$': 0, 'fc': 2}, {'none such': 1}, {'(': 1}],
    'crop_pad': [0, 1, 4, 16, 40],
    'batch_size': [1, 2, 3, 7, 8, 41, 64],
    'validation_batch_size': [1, 5, 100],
    'grad_accum_steps': [1, 2, 9],
    'workers': [0],
    'num_classes': [1, 2, 3, 50],
    'warmup_epochs': [0, 1, 2],
}
READING = ('cannot be read', 'cannot read the image', 'the augmentation fails')  # which the plan doesn't try
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([10**9 + 1, -(10**30), 2**63, 1e308, -1.0, 1e-320]),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.floats(), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


def right(key: str) -> st.SearchStrategy[Any]:
    """Values of the right type, most of them in range."""
    limits, kind = RANGES[key], TYPES[key]
    if key in CHOSEN:
        return st.sampled_from(CHOSEN[key])
    if limits.choices:
        return st.sampled_from(limits.choices)
    while get_origin(kind) not in (None, tuple, dict):
        kind = get_args(kind)[0]
    if kind is bool:
        return st.booleans()
    if kind is str:
        return st.text(max_size=6)
    number = (
        st.integers(0, 9) if int in (kind, *get_args(kind)) else st.sampled_from([0, 1e-9, 0.1, 0.5, 0.99, 1, 2, 30])
    )
    if get_origin(kind) is tuple:
        return st.lists(number, min_size=1, max_size=3).map(sorted)
    return number


def recipes(changes: int) -> st.SearchStrategy[dict[str, Any]]:
    keys = sorted(set(TYPES) - FIXED)
    values = {key: st.one_of(right(key), right(key), right(key), ODD) for key in keys}
    chosen = st.lists(st.sampled_from(keys), max_size=changes, unique=True)
    return chosen.flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names}))


@pytest.fixture(scope='module')
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('pictures')
    rng = np.random.default_rng(0)
    for split, name in ((split, name) for split in ('train', 'validation') for name in 'abc'):
        (folder / split / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / name / f'{number}.png')
    (folder / 'torn.safetensors').write_bytes(b'\x10\0\0\0\0\0\0\0{"a"')
    return folder


def outcome(work: Any) -> str:
    try:
        work()
    except (UserError, CheckFailed) as error:
        text = str(error)
        assert text and '\n' not in text and len(text) < 1500
        return text if isinstance(error, UserError) else ''
    return ''


def trial(changes: dict[str, Any], pictures: Path) -> None:
    """Train, and plan, by a toy recipe with ``changes``: anything but success or one line raises here."""
    changes = {k: v.replace('PICTURES', str(pictures)) if isinstance(v, str) else v for k, v in changes.items()}
    with TemporaryDirectory() as folder:
        run = Path(folder) / 'run'
        base = {'workers': 0, 'epochs': 1, 'log_interval': 1000}

        def trained() -> None:
            train(toy_recipe(run, **base).with_options(changes), log=lambda line: None, bar=False)

        def planned() -> None:
            list(describe(toy_recipe(run, **base).with_options(changes)))

        said = outcome(planned)
        assert not run.exists()
        ran = outcome(trained)
        if changes.get('data_dir') or changes.get('dataset', 'toys') == 'toys':
            assert ran == said or any(word in ran for word in READING)


@given(changes=recipes(3))
@settings(max_examples=10, suppress_health_check=list(HealthCheck))
def test_a_random_recipe_trains_or_is_refused_in_one_line(changes: dict[str, Any], pictures: Path) -> None:
    trial(changes, pictures)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@given(changes=recipes(5))
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
def test_two_thousand_random_recipes_train_or_are_refused_in_one_line(changes: dict[str, Any], pictures: Path) -> None:
    trial(changes, pictures)


@given(key=st.sampled_from(sorted(TYPES)), value=ODD)
@settings(max_examples=300)
def test_any_value_of_any_key_is_taken_or_refused_in_one_line_that_names_it(key: str, value: Any) -> None:
    try:
        recipe = Recipe().with_options({key: value}, 'FILE')
    except UserError as error:
        assert str(error).startswith('FILE: ') and key in str(error) and '\n' not in str(error)
    else:
        assert Recipe().with_options(recipe.as_dict()) == recipe
