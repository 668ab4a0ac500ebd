"""Every registered name through one export, as a table."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..cli.export import SUFFIXES, run
from ..errors import CheckFailed, UserError
from ..inference.predict import load_model

SIDE = 64  # pixels at most: the graph is the same, and the largest networks are done in seconds


def survey(args: argparse.Namespace, kind: str, names: Sequence[str], folder: Path) -> list[str]:
    """Print a row for each name: nodes, relative difference, bytes, seconds, operators. Returns those that failed."""
    left = max(map(len, names))
    if not args.json:
        print(f'{"name":<{left}} {"input":>10} {"nodes":>6} {"diff":>8} {"bytes":>13} {"s":>6}  operators')
    failed = []
    for name in tqdm(names, unit='model', disable=not sys.stderr.isatty()):
        start = time.perf_counter()
        found = dict(
            name=name, nodes=0, max_abs_diff=None, max_rel_diff=None, bytes=0, ops={}, input_size=[], error=None
        )
        try:
            model = load_model(name, args.pretrained)
            if not args.pretrained:
                randomize(model)
            channels, height, width = model.pretrained_cfg['input_size']
            given = {**vars(args), 'input_size': args.input_size or (channels, min(height, SIDE), min(width, SIDE))}
            report = run(argparse.Namespace(**given), kind, model, folder / f'{name}{SUFFIXES[kind]}')
            found.update(vars(report))
        except (UserError, CheckFailed) as error:
            failed.append(name)
            found['error'] = str(error)
        seconds = time.perf_counter() - start
        if args.json:
            line = json.dumps(found | {'seconds': seconds})
        elif found['error']:
            line = f'{name:<{left}} FAILED: {found["error"]}'
        else:
            size = 'x'.join(map(str, report.input_size))
            ops = ' '.join(f'{op}:{count}' for op, count in report.ops.items())
            line = f'{name:<{left}} {size:>10} {report.nodes:>6} {report.max_rel_diff:>8.1e} {report.bytes:>13,} '
            line += f'{seconds:>6.1f}  {ops}'
        tqdm.write(line)
    return failed


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Give what starts as 0 or 1 (scalars, gains, biases, the classifier) other values: those would hide mistakes."""
    generator = torch.Generator().manual_seed(0)
    linear = {f'{name}.weight' for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, parameter in model.named_parameters():
        if name in linear:
            parameter.normal_(std=parameter.shape[1] ** -0.5, generator=generator)
        elif not name.endswith('weight') or parameter.ndim == 1:
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
