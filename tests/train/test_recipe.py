"""Recipes: what is refused and how, and that files, options and the written recipe.yaml mean the same."""

from pathlib import Path

import pytest
import yaml

from nf_zoo.errors import UserError
from nf_zoo.train import Recipe, load_recipe
from nf_zoo.train.build import learning_rate


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
        ('model: x\nepochs: 0', 'epochs is 0, expected at least 1'),
        ('model: x\nseed: -1', 'seed is -1'),
        ('model: x\nsched: cosin', "did you mean 'cosine'?"),
        ('model: x\namp_dtype: float16', "unknown amp_dtype 'float16'"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, text))
    assert said in str(caught.value)


def test_a_missing_or_binary_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='No such file'):
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
