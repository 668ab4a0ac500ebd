"""Private training: digits are learned with differential privacy, by Opacus, at a stated epsilon.

CIFAR-10 weights are fine-tuned on handwritten digits. Opacus clips the gradient of each image and adds noise, so that
the weights say little of any one image. That needs a gradient for each image: networks that mix the images of a batch
are refused. Each network also learns without privacy, in as many steps; there the gradient of the batch is clipped.
Epsilon is that of one training: choosing a learning rate by its accuracy would cost more, and isn't counted here.

    pip install 'nf-zoo[private]'
    python examples/private.py                                  # some minutes; --quick: seconds
    python examples/private.py --models eunnet20_cifar.cifar10 --run RUN     # then: nf-zoo publish RUN --to HUB
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from common import MEAN, STD, Row, compare, finish, parser_of, prepared, progress, scans, start, top1
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import nf_zoo
from nf_zoo.cli.parser import limit
from nf_zoo.errors import UserError, extra, nearest
from nf_zoo.text import say
from nf_zoo.train import evaluate
from nf_zoo.train.recipe import Recipe
from nf_zoo.train.run_folder import check, write_run

MODELS = ('nf_resnet20_cifar.cifar10', 'gn_resnet20_cifar.cifar10')
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
SIDE, ACCOUNTANT = 16, 'prv'
DIGITS = tuple('0123456789')
CONFIG = {
    'input_size': (3, SIDE, SIDE),
    'mean': (MEAN,) * 3,
    'std': (STD,) * 3,
    'interpolation': 'bicubic',
    'crop_pct': 1.0,
}


def network(name: str) -> nn.Module:
    """The pretrained network with a new classifier."""
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=CONFIG | {'label_names': DIGITS})
    model.reset_classifier(10)
    return model


def refuse_mixing(name: str) -> None:
    """Raises `UserError` if there are no such weights, or if the network mixes the images of a batch."""
    if not timm.is_model_pretrained(name):
        known = timm.list_pretrained('*20_cifar*')
        raise UserError(f'there are no weights {name}{nearest(name, known)}; nf-zoo list --pretrained shows all')
    if not nf_zoo.is_batch_independent(timm.create_model(name)):
        raise UserError(
            f'{name} mixes the images of a batch, so no image has a gradient of its own; '
            'private training needs a network without batch normalization'
        )


def train(
    model: nn.Module, loader: Any, lr: float, epochs: int, seed: int, budget: Any, private: bool, text: str
) -> dict[str, Any]:
    """Train in place with plain SGD.

    Args:
        loader: Its batches become random ones, of its size on average.
        budget: ``epsilon``, ``delta`` and ``clip``.
        private: Otherwise the gradient of the batch is clipped instead of each image's, and there is no noise.

    Returns:
        What the training promises and how, as a manifest has it; nothing if it isn't private.
    """
    opacus = extra('opacus', 'private')
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=lr)
    wrapped: Any = model.train()
    with warnings.catch_warnings():
        # Noise from a seed makes the example repeatable. Real secrets need PrivacyEngine(secure_mode=True), no seed.
        warnings.filterwarnings('ignore', message='Secure RNG turned off')
        warnings.filterwarnings('ignore', message='Full backward hook is firing')
        warnings.filterwarnings('ignore', message='Optimal order is the largest alpha')
        engine = opacus.PrivacyEngine(accountant=ACCOUNTANT)
        if private:
            wrapped, optimizer, loader = engine.make_private_with_epsilon(
                module=model,
                optimizer=optimizer,
                data_loader=loader,
                target_epsilon=budget.epsilon,
                target_delta=budget.delta,
                epochs=epochs,
                max_grad_norm=budget.clip,
                noise_generator=torch.Generator().manual_seed(seed),
            )
        else:
            loader = opacus.data_loader.DPDataLoader.from_data_loader(loader)
        steps = 0
        for _ in progress(range(epochs), text):
            for x, y in loader:
                F.cross_entropy(wrapped(x), y).backward()
                if not private:
                    nn.utils.clip_grad_norm_(model.parameters(), budget.clip)
                optimizer.step()
                optimizer.zero_grad()
                steps += 1
        if not private:
            return {}
        return {
            'epsilon': math.ceil(1e4 * engine.get_epsilon(budget.delta)) / 1e4,
            'delta': budget.delta,
            'clip': budget.clip,
            'noise': float(optimizer.noise_multiplier),
            'sample_rate': float(loader.sample_rate),
            'steps': steps,
            'accountant': ACCOUNTANT,
        }


def main(argv: Sequence[str] | None = None) -> list[Row]:
    parser = parser_of(__doc__)
    parser.add_argument('--models', nargs='+', default=MODELS, metavar='NAME.TAG', help='pretrained networks')
    parser.add_argument('--epsilon', type=limit, default=3.0, help='how much may be said of one image (3)')
    parser.add_argument('--delta', type=limit, default=1e-4, help='the chance that more is said (0.0001)')
    parser.add_argument('--clip', type=limit, default=1.0, help="the largest norm of an image's gradient (1)")
    parser.add_argument('--run', type=Path, metavar='DIR', help="write the first network's best private training")
    args = parser.parse_args(argv)
    if not (args.epsilon > 0 and 0 < args.delta < 1 and args.clip > 0):
        raise UserError('--epsilon and --clip must be above 0, and --delta between 0 and 1')
    if args.run:
        check(args.run, resume=False)
    for name in args.models:
        refuse_mixing(name)
    images, classes = scans('train', SIDE, 60 if args.quick else None)
    held_out, answers = scans('validation', SIDE, 20 if args.quick else None)
    images, held_out = prepared(images), prepared(held_out)
    batch, epochs, rates = (16, 1, RATES[:1]) if args.quick else (256, 3, RATES)
    promises: dict[str, str] = {}

    def trained(arm: str, lr: float, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        name, _, form = arm.partition(', ')
        torch.manual_seed(seed)
        model = network(name)
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(TensorDataset(images, classes), batch, generator=generator)
        text = f'{arm}, rate {lr:g}, seed {seed}'
        privacy = train(model, loader, lr, epochs, seed, args, form == 'private', text)
        promises[arm] = f'{privacy["epsilon"]:.2f}' if privacy else 'none'
        return model, privacy

    def run(arm: str, lr: float, seed: int) -> float:
        return top1(trained(arm, lr, seed)[0], held_out, answers)

    arms = [f'{name}, {form}' for name in args.models for form in ('private', 'not private')]
    rows = [row | {'epsilon': promises[row['network']]} for row in compare(arms, rates, 1, run, 'top-1')]
    if args.run:
        lr = float(rows[0]['rate'])
        model, privacy = trained(arms[0], lr, 0)
        recipe = Recipe().with_options(
            {'model': args.models[0], 'pretrained': True, 'dataset': 'digits', 'input_size': list(CONFIG['input_size'])}
            | {'batch_size': batch, 'epochs': epochs, 'opt': 'sgd', 'momentum': 0.0, 'lr': lr, 'sched': 'constant'}
        )
        write_run(
            args.run,
            model,
            recipe,
            CONFIG,
            num_classes=10,
            classes=list(DIGITS),
            metrics=evaluate(model, 'digits'),
            train_n=len(images),
            epochs=epochs,
            steps=privacy['steps'],
            seed=0,
            recipe=recipe.settings(),
            privacy=privacy,
            note=f'The learning rate is the best of {len(rates)}, by accuracy; epsilon leaves this choice out.',
        )
        say(f'wrote {args.run}: nf-zoo publish {args.run} --to HUB')
    return finish(rows, args.output)


if __name__ == '__main__':
    start(main)
