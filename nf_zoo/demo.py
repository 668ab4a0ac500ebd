"""The package's whole job on real data: `make demo`, or `python -m nf_zoo.demo --output DIR` in a checkout.

One process fine-tunes the bundled CIFAR-10 weights on scikit-learn's scans of handwritten digits and publishes the
result into a hub folder. A second process knows nothing but that folder. It loads the weights by name, folds the
network, exports it to ONNX and runs it in ONNX Runtime. All of them must give the same predictions on held-out digits.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from . import _interrupt
from .cli.parser import Parser, fail
from .errors import CheckFailed, UserError
from .net.registry import list_models
from .text import say

MODEL, TAG = 'eunnet20_cifar', 'digits'
RECIPE = f'digits/{MODEL}'
LEAST_ACCURACY = 97.0  # percent
LOGIT_TOLERANCE = 1e-3


class Steps(dict[str, float]):
    """The seconds of each step by its text, which is printed when the step starts."""

    @contextmanager
    def __call__(self, text: str) -> Iterator[None]:
        print(f'-- {text}', flush=True)
        start = time.perf_counter()
        yield
        self[text] = time.perf_counter() - start


def evaluate_bundled(data_dir: str) -> None:
    """Score the bundled weights on CIFAR-10's 10,000 test images."""
    from .train import evaluate

    for name in list_models('*_cifar'):
        if timm.is_model_pretrained(f'{name}.cifar10'):
            model = timm.create_model(f'{name}.cifar10', pretrained=True)
            found = evaluate(model, 'cifar10', data_dir)
            print(f'{name}.cifar10: {found["top1"]:.2f} % of the {found["n"]} test images of CIFAR-10', flush=True)


def fine_tune(output: Path, steps: Steps) -> None:
    """The first process: fine-tune CIFAR-10's weights on digits, and publish the result into output/hub."""
    from .hub.publishing import publish
    from .train import load_recipe, train

    with steps('fine-tune on the digits'):
        train(load_recipe(RECIPE, {'output': str(output / 'run')}))
    with steps('publish into a hub folder'):
        publish(output / 'run', output / 'hub', f'{MODEL}.{TAG}')


def deploy(output: Path, steps: Steps) -> dict[str, Any]:
    """The second process: from a name to ONNX Runtime. Returns the content of the table."""
    import onnxruntime

    from .export import export_onnx
    from .folding.network import fold
    from .train import load_dataset

    digits = load_dataset('digits', None, 'validation')
    with steps('load by name, in a new process'):
        model = timm.create_model(f'{MODEL}.{TAG}', pretrained=True).eval()
    config = resolve_model_data_config(model)
    mean, std = (torch.tensor(config[key]).view(1, -1, 1, 1) for key in ('mean', 'std'))
    images = (digits.images / 255 - mean) / std

    answers: dict[str, Tensor] = {}
    with steps('classify in PyTorch'):
        answers['PyTorch'] = logits(model, images)
    with steps('fold'):
        folded = fold(model)
    with steps('classify in PyTorch, folded'):
        answers['PyTorch, folded'] = logits(folded, images)
    with steps('export to ONNX, not folded'):
        before = export_onnx(model, output / f'{MODEL}-not-folded.onnx', fold=False)
    with steps('export to ONNX, folded'):
        after = export_onnx(model, output / f'{MODEL}.onnx')
    with steps('classify in ONNX Runtime'):
        session = onnxruntime.InferenceSession(output / f'{MODEL}.onnx', providers=['CPUExecutionProvider'])
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        answers['ONNX Runtime, folded'] = torch.from_numpy(found)

    reference = answers['PyTorch']
    draw(digits.images, digits.labels, reference.softmax(1), output / 'digits.png')
    return {
        'count': len(digits.labels),
        'correct': {key: int((found.argmax(1) == digits.labels).sum()) for key, found in answers.items()},
        'gap': {key: (found - reference).abs().max().item() for key, found in answers.items()},
        'nodes': [before.nodes, after.nodes],
        'seconds': steps,
    }


@torch.inference_mode()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    """The outputs (N, classes) of ``model`` for ``images`` (N, C, H, W), without gradients."""
    return model(images)


def draw(images: Tensor, labels: Tensor, probabilities: Tensor, path: Path) -> None:
    """Ten held-out digits, one of each, as a PNG with the prediction and the truth above each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout='constrained')
    figure.suptitle('Held-out digits: prediction, its probability, and the true class (red: wrong)')
    for digit, axes in enumerate(np.ravel(figure.subplots(2, 5))):
        index = int(np.flatnonzero(labels == digit)[0])
        value, guess = probabilities[index].max(0)
        axes.imshow(images[index].permute(1, 2, 0))
        title = f'predicted {guess.item()} ({value:.1%})\ntrue {digit}'
        axes.set_title(title, fontsize='medium', color='black' if guess == digit else 'red')
        axes.set_axis_off()
    figure.savefig(path, dpi=100)


def report(found: dict[str, Any], output: Path) -> None:
    """Print the table. Raises `CheckFailed` if the predictions differ or the accuracy is too low."""
    count, correct, gap = found['count'], found['correct'], found['gap']
    print(f'\n{"held-out digits":<32}{"correct":>12}{"accuracy":>11}{"largest difference":>20}')
    for key, right in correct.items():
        print(f'{key:<32}{f"{right} of {count}":>12}{f"{100 * right / count:.2f} %":>11}{gap[key]:>20.1e}')
    print('\nnodes of the ONNX graph: {} before folding, {} after'.format(*found['nodes']))
    print('(the folded graph normalises by the elementary operators that ONNX Runtime runs fastest)')
    print('\nseconds')
    for key, seconds in found['seconds'].items():
        print(f'{key:<32}{seconds:>12.2f}')
    print(f'\nTen of the digits with their predictions: {output / "digits.png"}')
    if len(set(correct.values())) > 1 or not max(gap.values()) <= LOGIT_TOLERANCE:
        raise CheckFailed('PyTorch, the folded network and ONNX Runtime differ (see the table)')
    if min(correct.values()) < LEAST_ACCURACY / 100 * count:
        raise CheckFailed(f'fewer than {LEAST_ACCURACY:g} % of the digits are right (see the table)')


def run(output: Path, data_dir: str | None) -> None:
    """Run both processes and print the table.

    Args:
        output: The folder to write into; what an earlier demo left there is replaced.
        data_dir: The folder of CIFAR-10, to score the bundled weights too.

    Raises:
        UserError: bad input; CheckFailed: the predictions differ, or the accuracy is too low.
    """
    if data_dir:
        evaluate_bundled(data_dir)
    for old in ('run', 'hub'):
        shutil.rmtree(output / old, ignore_errors=True)
    steps = Steps()
    fine_tune(output, steps)
    command = [sys.executable, '-m', 'nf_zoo.demo', '--deploy', '--output', str(output)]
    if subprocess.run(command, env=os.environ | {'NF_ZOO_HUB': str(output / 'hub')}).returncode:
        raise CheckFailed('the deploying process failed (see above)')
    found = json.loads((output / 'report.json').read_text())
    report(found | {'seconds': steps | found['seconds']}, output)


def main() -> int:
    """Run the demo; returns the exit code."""
    _interrupt.restore()
    parser = Parser(prog='python -m nf_zoo.demo', description='The whole job on real data.')
    parser.add_argument('--output', type=Path, default=Path('demo-output'), metavar='DIR', help='folder to write into')
    text = 'evaluate the bundled *_cifar weights too, on the CIFAR-10 there'
    parser.add_argument('--data-dir', metavar='DIR', help=text)
    parser.add_argument('--deploy', action='store_true', help=argparse.SUPPRESS)  # the second process
    try:
        args = parser.parse_args()
        if args.deploy:
            (args.output / 'report.json').write_text(json.dumps(deploy(args.output, Steps())))
        else:
            run(args.output.resolve(), args.data_dir)
        return 0
    except (UserError, CheckFailed, OSError) as error:
        return fail(error)
    except KeyboardInterrupt:
        say('nf-zoo: interrupted', sys.stderr)
        return 130


if __name__ == '__main__':
    sys.exit(main())
