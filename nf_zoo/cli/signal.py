"""``nf-zoo signal``: the signal at every residual block of one or several networks, and the papers' figures of it."""

import argparse
import ast
import csv
import io
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..files import write_whole
from ..text import columns, say
from .parser import JSON, Add, Command, count, output_file

if TYPE_CHECKING:
    from ..analysis.plots import Curve
    from ..analysis.signal import BlockSignal

HEADS = {
    'block': 'block',
    'squared_mean': 'mean^2',
    'variance': 'variance',
    'branch_variance': 'branch',
    'share': 'share',
    'nonzero': 'not 0',
    'gradient_variance': 'gradient',
}
COLUMNS = (
    "mean^2 and variance: of each channel of a block's output; branch: variance of its branch before factors;\n"
    "share: the branch's variance with its factors / variance; not 0: part of the output; gradient: its variance"
)


def _signal(args: argparse.Namespace) -> None:
    from ..analysis.plots import check_suffix

    if bool(args.names) == bool(args.figure):
        raise UserError('give the names of networks, or --figure NAME (`nf-zoo signal --help` shows the usage)')
    if args.output:
        check_suffix(args.output)
        if args.output == args.csv:
            raise UserError(f'{args.csv} can be the picture or the table; give two names')
    curves, verdicts = _figure(args) if args.figure else _networks(args)
    if args.csv:
        write_whole(args.csv, _csv(curves).encode())
    if args.json:
        found = {name: {'verdict': verdicts[name], 'blocks': list(map(_as_dict, c.rows))} for name, c in curves.items()}
        say(json.dumps(found, indent=2))
        return
    if not args.figure:
        for line in _table(curves):
            say(line)
        say(f'\n{COLUMNS}\n')
    for name, text in verdicts.items():
        say(f'{name}: {text}')


def _networks(args: argparse.Namespace) -> tuple[dict[str, 'Curve'], dict[str, str]]:
    from ..analysis.inputs import noise, open_network, pictures
    from ..analysis.plots import Curve, Panel, draw
    from ..analysis.signal import signal_propagation
    from ..analysis.verdict import expected_variance, verdict
    from ..train.curves import COLOURS
    from ..train.run_folder import is_run

    if args.full:
        raise UserError('--full is for --figure; the options --width and --img-size set the size of a network')
    arguments = _model_args(args)
    curves: dict[str, Curve] = {}
    verdicts = {}
    for number, name in enumerate(dict.fromkeys(args.names)):
        model = open_network(name, args.pretrained, args.seed, arguments)
        n = args.batch_size
        x = pictures(model, args.images, n) if args.images else noise(model, n, args.img_size, args.seed)
        rows = signal_propagation(model, x, blocks=args.blocks, awake=args.awake, seed=args.seed)
        expected = expected_variance(model, rows) if args.awake else None
        style = ('-', '--', ':')[number // len(COLOURS) % 3]
        curves[name] = Curve(name, rows, COLOURS[number % len(COLOURS)], expected, style)
        verdicts[name] = verdict(rows, expected, args.pretrained or is_run(name))
        if not args.awake and all(row.share == 0 for row in rows[1:]):
            verdicts[name] += ' (--awake starts them at 1)'
    if args.output:
        fields = ('squared_mean', 'variance', 'branch_variance', 'gradient_variance')
        # Gradients grow by orders of magnitude in most networks, those with batch normalization too.
        panels = [Panel(list(curves.values()), [(field, '')], log=args.log or 'gradient' in field) for field in fields]
        state = 'pretrained' if args.pretrained else 'at initialisation' + (', awake' if args.awake else '')
        what = f'of {args.images}' if args.images else f'N(0, 1), seed {args.seed}'
        title = ', '.join(curves) if len(curves) < 4 else f'{len(curves)} networks'
        draw(args.output, f'Signal propagation: {title}', [panels[:2], panels[2:]], f'{state}; {n} images {what}')
    return curves, verdicts


def _figure(args: argparse.Namespace) -> tuple[dict[str, 'Curve'], dict[str, str]]:
    from ..analysis.figures import FIGURES, curves_of, draw_figure, figure_size, measure_figure
    from ..analysis.verdict import verdict

    for option in ('pretrained', 'images', 'depths', 'model_kwargs', 'blocks', 'log', 'awake'):
        if getattr(args, option):
            raise UserError(f'--{option.replace("_", "-")} is for networks; --figure fixes it')
    given = {'width': args.width, 'pixels': args.img_size, 'seed': args.seed}
    size = figure_size(args.figure, args.full, **{key: value for key, value in given.items() if value is not None})
    panels = measure_figure(args.figure, size)
    if args.output:
        draw_figure(args.figure, args.output, panels, size)
    curves = curves_of(panels)
    if not args.json:
        say(f'{FIGURES[args.figure].title}. The paper: {FIGURES[args.figure].claim}')
    return curves, {name: verdict(curve.rows) for name, curve in curves.items()}


def _model_args(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in args.model_kwargs or ():
        key, equals, value = item.partition('=')
        if not equals or not key.isidentifier():
            raise UserError(f"--model-kwargs '{item}': give KEY=VALUE")
        if key in ('pretrained', 'checkpoint_path'):
            raise UserError(f'--model-kwargs {key}: give --pretrained, NAME.TAG or the folder of a run for weights')
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found[key] = value
    if args.depths:
        found['depths'] = args.depths
    if args.width is not None:
        found['width'] = args.width
    return found


def _as_dict(row: 'BlockSignal') -> dict[str, Any]:
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row._asdict().items()}


def _csv(curves: Mapping[str, 'Curve']) -> str:
    text = io.StringIO()
    rows = [{'network': name, **_as_dict(row)} for name, curve in curves.items() for row in curve.rows]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _table(curves: Mapping[str, 'Curve']) -> list[str]:
    from ..analysis.verdict import number

    head, lines = list(HEADS.values()), []
    for name, curve in curves.items():
        for row in curve.rows:
            values = [number(getattr(row, field)) for field in HEADS if field != 'block']
            lines.append([name] * (len(curves) > 1) + [row.block, *('' if v == 'nan' else v for v in values)])
    if len(curves) > 1:
        head.insert(0, 'network')
    return columns(head, lines, right=range(len(head) - len(HEADS) + 1, len(head)))


def _depths(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(','))


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 100:
        raise argparse.ArgumentTypeError(f"'{text}' is not a factor above 0, such as 0.25")
    return value


def _seed(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"'{text[:40]}' is not a whole number from 0 to 2^63 - 1")
    return int(text)


def _options(add: Add) -> None:
    add('names', nargs='*', metavar='NAME', help='networks of nf_zoo or timm, NAME or NAME.TAG, and folders of runs')
    add('--figure', metavar='FIGURE', help="draw a paper's figure: brock1, 2, 6 to 11, hoedt4, 5, civitelli2, 6")
    add('--full', action='store_true', help="with --figure: the paper's width and image size (minutes)")
    add('-o', '--output', type=output_file, metavar='FILE', help='write a picture, .png or .svg')
    add('--csv', type=output_file, metavar='FILE', help='write all rows')
    add('--json', **JSON)
    add('--awake', action='store_true', help='set to 1 what starts a branch at 0: scalars and gains')
    add('--pretrained', action='store_true', help='use the pretrained weights instead of the initial ones')
    add('--depths', type=_depths, metavar='N,N,...', help='blocks of each stage, such as 50,50,50,50')
    add('--width', type=_factor, metavar='FACTOR', help='factor of all widths, such as 0.25')
    add('--img-size', type=count, metavar='PIXELS', help="side of the images (the model's)")
    add('--images', metavar='DIR', help='send the images of a folder instead of noise N(0, 1)')
    add('--batch-size', type=count, default=4, metavar='N', help='images (4)')
    add('--seed', type=_seed, default=0, metavar='N', help='of the weights and of the noise (0)')
    add(
        '--model-kwargs', nargs='+', metavar='KEY=VALUE', help="further arguments of the model, such as attn_layer='se'"
    )
    add(
        '--blocks', nargs='+', metavar='MODULE', help='names of the residual blocks (they are found by their additions)'
    )
    add('--log', action='store_true', help='all y axes logarithmic; that of the gradients always is')


COMMAND = Command(
    'mean, variance and gradients at every residual block',
    'nf-zoo signal dm_nf_resnet50 resnet50 --awake -o signal.png',
    _options,
    _signal,
)
