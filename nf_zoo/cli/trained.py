"""``nf-zoo info NAME.TAG --trained``: what each block of a trained network has learned."""

import argparse
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..text import columns, say

if TYPE_CHECKING:
    from torch import nn

    from ..analysis.trained import TrainedBlock

HEADS = ('block', 'scalar', 'value', 'share', 'not 0', 'variance', 'largest', 'smallest', 'worst')


def show_trained(args: argparse.Namespace) -> None:
    """Print the table, warnings and, with -o, a picture."""
    from ..analysis.inputs import noise, open_network, pictures
    from ..analysis.plots import check_suffix
    from ..analysis.trained import draw_trained, trained_blocks, warnings
    from ..analysis.verdict import number

    if args.output:
        check_suffix(args.output)
    names = [args.name, *([args.beside] if args.beside else [])]
    networks: dict[str, tuple[nn.Module, Sequence[TrainedBlock]]] = {}
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        model = open_network(name, pretrained=True)
        x = pictures(model, args.images, args.batch_size) if args.images else noise(model, args.batch_size)
        rows = trained_blocks(model, x)
        networks[name] = model, rows
        found[name] = {'blocks': [_as_dict(row) for row in rows], 'warnings': warnings(rows)}
    what = f'{args.batch_size} images of {args.images}' if args.images else f'{args.batch_size} images N(0, 1)'
    if args.output:
        draw_trained(args.output, networks, what)
    if args.json:
        say(json.dumps(found, indent=2))
        return
    for name, (_, shown) in networks.items():
        lines = [
            [row.block, row.scalar, *('' if math.isnan(v) else number(v) for v in row[2:8]), row.worst] for row in shown
        ]
        say(f'{name}, {what}')
        for line in columns(HEADS, lines, right=range(2, 8)):
            say(line)
        for warning in found[name]['warnings']:
            say(f'warning: {warning}')


def check_options(args: argparse.Namespace) -> None:
    """Raises UserError: an option that belongs to --trained, without it."""
    for option in ('images', 'output', 'beside'):
        if getattr(args, option):
            raise UserError(f'--{option} needs --trained')


def _as_dict(row: Any) -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row._asdict().items()}
