"""Every recipe in configs/: its comments, its keys, and two updates of its model with its optimizer on tiny data."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from families import classes_and_stages
from PIL import Image
from timm.optim import list_optimizers

import nf_zoo
from nf_zoo.train import MemorySet, Recipe, load_recipe
from nf_zoo.train.data.memory import in_memory
from nf_zoo.train.engine import Run
from nf_zoo.train.progress import StopSignal
from nf_zoo.train.recipe import OWN

ROOT = Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(ROOT.glob('*/*.yaml'))
every_recipe = pytest.mark.parametrize('path', CONFIGS, ids=lambda p: f'{p.parent.name}/{p.stem}')

# The options of timm's train.py, which its wheel doesn't have.
TRAIN_PY = frozenset(
    """amp amp_dtype amp_impl aa aug_repeats aug_splits batch_size bce_loss bce_pos_weight bce_sum bce_target_thresh
    bn_eps bn_momentum channels_last checkpoint_hist class_map clip_grad clip_mode color_jitter color_jitter_prob
    cooldown_epochs crop_pct cutmix cutmix_minmax data data_dir dataset dataset_download dataset_trust_remote_code
    decay_epochs decay_milestones decay_rate device device_modules dist_bn drop drop_block drop_connect drop_path
    epoch_repeats epochs eval_metric experiment fast_norm fuser gaussian_blur_prob gp grad_accum_steps
    grad_checkpointing grayscale_prob head_init_bias head_init_scale hflip img_size in_chans initial_checkpoint
    input_img_mode input_key input_size interpolation jsd_loss layer_decay layer_decay_min_scale
    layer_decay_no_opt_scale local_rank log_interval log_wandb lr lr_base lr_base_scale lr_base_size lr_cycle_decay
    lr_cycle_limit lr_cycle_mul lr_k_decay lr_noise lr_noise_pct lr_noise_std mean min_lr mixup mixup_mode
    mixup_off_epoch mixup_prob mixup_switch_prob model model_dtype model_ema model_ema_decay model_ema_force_cpu
    model_ema_warmup model_kwargs momentum no_aug no_ddp_bb no_prefetcher no_resume_opt num_classes opt opt_betas
    opt_eps opt_kwargs output patience_epochs pin_mem pretrained pretrained_path ratio recount recovery_interval remode
    reprob resplit resume save_images scale sched sched_on_updates seed smoothing split_bn std sync_bn
    synchronize_step target_key torchcompile torchcompile_mode torchscript train_crop_mode train_interpolation
    train_num_samples train_split tta use_multi_epochs_loader val_interval val_num_samples val_split
    validation_batch_size vflip warmup_epochs warmup_lr warmup_prefix weight_decay worker_seeding workers""".split()
)


def test_keys_are_options_of_timms_train_py_or_said_to_be_our_own() -> None:
    keys = {field.name for field in fields(Recipe)}
    assert keys - OWN <= TRAIN_PY and keys >= OWN and not OWN & TRAIN_PY


def has_lr_scales(model: str) -> bool:
    return model in nf_zoo.list_models() and hasattr(classes_and_stages()[model][0], 'lr_scales')


@every_recipe
def test_a_recipe_says_where_its_numbers_are_from_how_to_run_it_and_what_came_of_it(path: Path) -> None:
    text = path.read_text()
    head = ' '.join(line.lstrip('# ') for line in text[: text.index('\n\n')].splitlines())
    assert f'nf-zoo train configs/{path.parent.name}/{path.name} ' in head
    assert re.search(r'Expected: .+ Reached: .+', head)
    assert re.search(r'(section|appendix|Table|official code|No paper)', head)
    recipe = load_recipe(path)
    recipe.check()
    assert path.stem.split('.')[0] == recipe.model.split('.')[0] and timm.is_model(recipe.model.split('.')[0])
    assert recipe.device_modules == ('nf_zoo',), "timm's train.py would not know the model"
    assert recipe.opt in list_optimizers()
    if has_lr_scales(recipe.model.split('.')[0]) or recipe.clip_sched or recipe.lr_scales:
        assert "timm's train.py" in head, 'what timm cannot do is said'


class Pictures:
    """Eight pictures of ten classes, as an image folder gives them."""

    classes = [str(i) for i in range(10)]

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        return Image.effect_noise((40, 36), 20.0 + number).convert('RGB'), number


def signature(recipe: Recipe) -> tuple[Any, ...]:
    """What of a recipe decides which code runs: not its numbers, and not how many blocks its model has."""
    # The 50, 101 ... of an ImageNet layout have one block, the 18 and 34 another; those of a CIFAR layout one as well.
    model = re.sub(r'(?<=_b)[0-5]|(?<!\d)(50|101|152|200|288)(?!\d)|(20|56|110)(?=_cifar)', 'N', recipe.model)
    values = (
        'model_kwargs pretrained opt sched clip_mode clip_sched aa remode mixup_mode interpolation model_ema'.split()
    )
    switches = 'drop drop_path train_sizes val_img_size color_jitter reprob mixup cutmix smoothing scale ratio'.split()
    switches += 'opt_kwargs opt_betas opt_eps clip_grad warmup_epochs amp model_ema_warmup train_interpolation'.split()
    return (
        model,
        in_memory(recipe.dataset),
        *(repr(getattr(recipe, key)) for key in values),
        *(bool(getattr(recipe, key)) for key in switches),
    )


DISTINCT = list({signature(load_recipe(path)): path for path in reversed(CONFIGS)}.values())[::-1]


@pytest.mark.parametrize('path', DISTINCT, ids=lambda p: f'{p.parent.name}/{p.stem}')
def test_a_recipe_takes_two_steps(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    options: dict[str, Any] = {'batch_size': 4, 'workers': 0, 'output': str(tmp_path), 'device': 'cpu'}
    if not recipe.pretrained:
        few: dict[str, Any] = {'layers': [1] * 4}  # timm's own ResNets
        if recipe.model in nf_zoo.list_models():
            few = {'depths': [1] * classes_and_stages()[recipe.model][1], 'width': 0.25}
        options['model_kwargs'] = {**recipe.model_kwargs, **few}
    sets: tuple[Any, Any] = (Pictures(), Pictures())
    if in_memory(recipe.dataset):
        pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
        sets = (MemorySet(pixels, torch.arange(8), [str(i) for i in range(10)]),) * 2
    else:
        options |= {'img_size': 32, 'val_img_size': 40 if recipe.val_img_size else None}
    run = Run.start(recipe.with_options(options), tmp_path, lambda line: None, False, sets=sets)
    grouped = [id(p) for group in run.optimizer.param_groups for p in group['params']]
    assert len(grouped) == len(set(grouped)) == len(list(run.model.parameters()))
    before = [p.detach().clone() for p in run.model.parameters()]
    run.model.train()
    with StopSignal() as stop:
        assert run.train_epoch(0, stop) > 0
    assert run.updates == 2
    assert any(not torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))
    if recipe.val_img_size:
        assert next(iter(run.data.val_batches()))[0].shape[-1] == 40
