"""Recipes: what is refused and how, and that files, options and the written recipe.yaml mean the same."""

import os
import stat
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from nf_zoo.errors import UserError
from nf_zoo.train import Recipe, load_recipe
from nf_zoo.train.build import learning_rate
from nf_zoo.train.recipe import RANGES, TYPES


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / 'recipe.yaml'
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('model: x\nweight_deacy: 1', "unknown key 'weight_deacy'; did you mean 'weight_decay'?"),
        ('model: x\nepochs: many', "epochs is 'many', expected a whole number"),
        ('model: x\nepochs: true', 'epochs is True, expected a whole number'),
        ('model: x\nepochs: 1.5', 'epochs is 1.5, expected a whole number'),
        ('model: x\nlr: fast', "lr is 'fast', expected a number or null"),
        ('model: x\namp: 1', 'amp is 1, expected true or false'),
        ('model: x\nmean: 0.5', 'mean is 0.5, expected a list, each item a number or null'),
        ('model: x\ntrain_sizes: {0: big}', "train_sizes is {0: 'big'}, expected a mapping from a whole number"),
        ('model: 7', 'model is 7, expected a text'),
        ('model: [', 'not valid YAML'),
        ('- model', 'a recipe is a list of "key: value" lines'),
        ('epochs: 3', 'the key "model" is missing'),
    ],
)
def test_a_bad_recipe_is_one_line_that_names_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    message = str(caught.value)
    assert said in message and str(path) in message and '\n' not in message


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('epochs: 0', 'epochs is 0, expected 1 to 1,000,000,000'),
        ('seed: -1', 'seed is -1, expected 0 to'),
        ('sched: cosin', "did you mean 'cosine'?"),
        ('amp_dtype: float16', "unknown amp_dtype 'float16'"),
        ('clip_grad: -1', 'clip_grad is -1.0, expected more than 0'),
        ('clip_grad: 0', 'clip_grad is 0.0, expected more than 0'),
        ('hflip: 5', 'hflip is 5.0, expected 0 to 1'),
        ('smoothing: -1', 'smoothing is -1.0, expected at least 0, less than 1; 0 is off'),
        ('std: [.inf]', 'expected finite numbers'),
        ('std: [0, 1, 1]', 'std is [0.0, 1.0, 1.0], expected 1 or 3 numbers, each more than 0, at most 10'),
        ('mean: [0.5, 0.5]', 'mean is [0.5, 0.5], expected 1 or 3 numbers'),
        ('scale: [0.9, 0.3]', 'scale is [0.9, 0.3], expected 2 numbers'),
        ('scale: [0.5]', 'scale is [0.5], expected 2 numbers, each more than 0, at most 1, never falling'),
        ('lr: 1e308', 'lr is 1e+308, expected more than 0, at most 1,000'),
        ('lr: 1e999', 'expected finite numbers'),
        ('mixup: -1', 'mixup is -1.0, expected 0 to 1,000; 0 is off'),
        ('min_lr: -1', 'min_lr is -1.0'),
        ('workers: -1', 'workers is -1, expected 0 to 1,024'),
        ('img_size: 0', 'img_size is 0, expected 1 to 4,096'),
        ('train_sizes: {0: 0}', 'train_sizes is [0], expected 1 to 4,096'),
        ('lr_scales: {scale: -1}', "lr_scales is {'scale': -1.0}, expected 0 to 1,000"),
        ('train_sizes: {-1: 8}', 'train_sizes is {-1: 8}, expected 0 to'),
        ('interpolation: bicubc', "unknown interpolation 'bicubc'"),
        ('model_kwargs: {depths: [.nan]}', 'expected finite numbers'),
        ('model_kwargs: {1: 2}', 'model_kwargs is {1: 2}, expected a mapping'),
        ('model_kwargs: {a: 2020-01-01}', 'expected a mapping'),
        ('output: "a\\0b"', 'expected a text'),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, f'model: x\n{text}')
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert said in str(caught.value) and str(caught.value).startswith(str(path)) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        ({'epochs': 5}, 'warmup_epochs is 5, but there are 5 epochs, so lr is never reached'),
        ({'in_chans': 2}, 'the images would have 2 channels'),
        ({'mean': [0.5], 'std': [0.5, 0.5, 0.5]}, 'numbers and std has .; give one for each channel'),
        ({'mean': [0.5, 0.5, 0.5], 'std': [0.5]}, 'numbers and std has .; give one for each channel'),
    ],
)
def test_values_that_do_not_fit_one_another_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Recipe(model='x').with_options(options).check()
    Recipe(model='x', epochs=5, sched='none').check()


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('model: x\nlr: 0.1\nlr: 0.2', "line 3: not valid YAML (the key 'lr' is there twice)"),
        ('model: &a x\noutput: *a', 'line 2: not valid YAML (an alias (*NAME) is not allowed)'),
        ('[' * 20_000, 'nested too deeply'),
        ('a: a: a: 1', 'not valid YAML'),
        ('model: 2020-99-99', 'a value that cannot be read'),
        ('model: !!bool x', 'a value that cannot be read'),
        ('seed: ' + '9' * 5000, 'a value that cannot be read'),
        ('model: x # ' + 'x' * 1_000_001, 'is no recipe: it has more than 1,000,000 bytes'),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_says_one_thing_twice_or_too_much_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert said in str(caught.value) and '\n' not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize('make', [os.mkfifo, os.mkdir, lambda path: os.mknod(path, stat.S_IFSOCK | 0o600)])
def test_a_recipe_that_is_no_file_is_one_line_at_once(tmp_path: Path, make: Any) -> None:
    make(tmp_path / 'it')
    with pytest.raises(UserError, match='not a file'):
        load_recipe(tmp_path / 'it')


def test_every_number_and_every_choice_has_a_range_in_words() -> None:
    free = {f.name for f in fields(Recipe) if not str(RANGES[f.name])}
    assert {str(TYPES[name]) for name in free} <= {
        str(kind) for kind in (str, bool, str | None, dict[str, Any], tuple[str, ...] | None)
    }
    for f in fields(Recipe):
        if f.default is not MISSING:
            assert RANGES[f.name].problem(f.name, f.default) is None


def test_contributing_lists_the_ranges() -> None:
    text = (Path(__file__).parents[2] / 'CONTRIBUTING.md').read_text()
    table = text.split('<!-- ranges of recipe keys -->\n')[1].split('\n<!-- end -->')[0].splitlines()
    rows = [f'| `{key}` | {limits} |' for key, limits in RANGES.items() if str(limits)]
    assert table == ['| key | values |', '|---|---|', *rows], '\n'.join(rows)


def test_a_missing_or_binary_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='no such file'):
        load_recipe(tmp_path / 'none.yaml')
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00\x80')
    with pytest.raises(UserError, match='not a text file'):
        load_recipe(tmp_path / 'binary.yaml')


def test_yaml_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / 'ran'
    with pytest.raises(UserError):
        load_recipe(write(tmp_path, f'model: !!python/object/apply:os.mkdir ["{mark}"]'))
    assert not mark.exists()


def test_exponents_without_a_dot_are_numbers(tmp_path: Path) -> None:
    assert load_recipe(write(tmp_path, 'model: x\nlr: 1e-3')).lr == 1e-3


def test_options_override_the_file(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, 'model: x\nlr: 0.5\nepochs: 7'), {'lr': 0.25})
    assert (recipe.lr, recipe.epochs) == (0.25, 7)


def test_the_written_recipe_reads_back_as_the_same(tmp_path: Path) -> None:
    recipe = Recipe(model='x', mean=(0.1, 0.2, 0.3), train_sizes={0: 24, 5: 32}, opt_betas=(0.9, 0.99), lr=1e-7)
    assert load_recipe(write(tmp_path, yaml.safe_dump(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(('opt', 'expected'), [('sgd', 0.1 * 512 / 256), ('adamw', 0.1 * (512 / 256) ** 0.5)])
def test_lr_base_scales_with_the_images_of_an_update(opt: str, expected: float) -> None:
    recipe = Recipe(model='x', opt=opt, lr_base=0.1, batch_size=128, grad_accum_steps=4)
    assert learning_rate(recipe) == pytest.approx(expected)
    assert learning_rate(recipe.with_options({'lr': 0.3})) == 0.3
