"""Parameter groups: decay is off exactly where the model says so, rates are scaled where it says so."""

import pytest
import torch
from timm.scheduler import create_scheduler_v2
from torch import nn

from nf_zoo.errors import UserError
from nf_zoo.train import Recipe
from nf_zoo.train.build import build_optimizer
from nf_zoo.train.groups import parameter_groups


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(1))

    def no_weight_decay(self) -> set[str]:
        return {'conv.bias', 'sca*'}

    def lr_scales(self) -> dict[str, float]:
        return {r'\.bias$|scale': 0.1}


def by_name(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g['weight_decay'], g['lr_scale']) for g in groups for p in g['params']}


def test_groups_follow_the_model() -> None:
    model = Net()
    assert by_name(model, parameter_groups(model, 0.5)) == {
        'conv.weight': (0.5, 1.0),
        'conv.bias': (0.0, 0.1),
        'fc.weight': (0.5, 1.0),
        'fc.bias': (0.5, 0.1),
        'scale': (0.0, 0.1),
    }


def test_the_recipes_scales_come_before_the_models() -> None:
    model = Net()
    groups = by_name(model, parameter_groups(model, 0.0, {r'^fc\.': 0.0, 'scale': 2.0}))
    assert {name: scale for name, (_, scale) in groups.items()} == {
        'conv.weight': 1.0,
        'conv.bias': 0.1,
        'fc.weight': 0.0,
        'fc.bias': 0.0,
        'scale': 2.0,
    }
    (own,) = model.lr_scales()
    assert by_name(model, parameter_groups(model, 0.0, {own: 1.0}))['conv.bias'] == (0.0, 1.0)


@pytest.mark.parametrize(
    ('pattern', 'line'), [('skip_gain', 'the names end in bias, scale, weight'), ('(', 'no regular')]
)
def test_a_scale_that_would_change_nothing_is_refused(pattern: str, line: str) -> None:
    with pytest.raises(UserError, match=f'lr_scales: .*{line}'):
        build_optimizer(Recipe(model='x', lr_scales={pattern: 0.5}), Net())


def test_a_model_without_wishes_is_one_group_that_decays_its_biases_too() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    (group,) = parameter_groups(model, 0.5)
    assert group['weight_decay'] == 0.5 and len(group['params']) == 4


def test_frozen_parameters_are_left_out() -> None:
    model = Net()
    model.conv.requires_grad_(False)
    assert set(by_name(model, parameter_groups(model, 0.5))) == {'fc.weight', 'fc.bias', 'scale'}


def test_timms_optimizer_and_scheduler_keep_decay_and_rate() -> None:
    model = Net()
    optimizer = build_optimizer(Recipe(model='x', lr=0.4, weight_decay=0.5, opt='adamw'), model)
    scheduler, _ = create_scheduler_v2(optimizer, 'cosine', num_epochs=10, warmup_epochs=2, warmup_lr=0.1)
    scheduler.step(5)
    base = max(group['lr'] for group in optimizer.param_groups)
    assert 0 < base < 0.4
    for group in optimizer.param_groups:
        assert group['lr'] == base * group['lr_scale']
    assert set(by_name(model, optimizer.param_groups).values()) == {(0.5, 1.0), (0.0, 0.1), (0.5, 0.1)}
