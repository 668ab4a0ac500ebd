"""Writes results/<data set>.csv and the tables of README.md and RESULTS.md from the manifests of the bundled weights:
``make results``."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from nf_zoo.catalogue import facts
from nf_zoo.places import BUNDLED

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ['model', 'top1', 'top5', 'param_count', 'img_size', 'recipe', 'sha256']  # timm's, and the last two
START, END = '<!-- make results: start -->\n', '<!-- make results: end -->'


def rows() -> dict[str, list[dict[str, Any]]]:
    """Data set -> a row for each of its bundled weights, the best first. ``param_count`` is in millions, as timm's."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(BUNDLED.glob('*/manifest.json')):
        manifest = json.loads(path.read_bytes())
        config = json.loads(path.with_name('config.json').read_bytes())
        recipe = f'configs/{manifest["dataset"]}/{manifest["architecture"]}.yaml'
        found.setdefault(manifest['dataset'], []).append(
            {
                'model': f'{manifest["architecture"]}.{manifest["tag"]}',
                'top1': f'{manifest["metrics"]["top1"]:.2f}',
                'top5': f'{manifest["metrics"]["top5"]:.2f}',
                'param_count': f'{manifest["parameters"] / 1e6:.2f}',
                'img_size': config['pretrained_cfg']['input_size'][-1],
                'recipe': recipe,
                'sha256': manifest['sha256'],
                'manifest': manifest,
            }
        )
    return {dataset: sorted(table, key=lambda row: -float(row['top1'])) for dataset, table in found.items()}


def files() -> dict[Path, str]:
    """What this writes: path -> text."""
    texts = {}
    lines = ['| name | top-1 | top-5 | parameters | multiply-adds | epochs | recipe |', '|---|---|---|---|---|---|---|']
    runs = ['| run | top-1 | loss | n | seed | epochs | time | hardware |', '|---|---|---|---|---|---|---|---|']
    for dataset, table in rows().items():
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, extrasaction='ignore', lineterminator='\n')
        writer.writeheader()
        writer.writerows(table)
        texts[ROOT / 'results' / f'{dataset}.csv'] = text.getvalue()
        for row in table:
            manifest = row['manifest']
            size = facts(row['model'])  # of these weights: their classes, their pixels
            lines.append(
                f'| `{row["model"]}` | {row["top1"]} % | {row["top5"]} % | {size["parameters"]:,} | {size["MACs"]:,} '
                f'| {manifest["epochs"]} | [{row["recipe"]}]({row["recipe"]}) |'
            )
            metrics, minutes = manifest['metrics'], manifest['seconds'] / 60
            runs.append(
                f'| `{row["model"]}` | {row["top1"]} % | {metrics["loss"]:.3f} | {metrics["n"]:,} '
                f'| {manifest["seed"]} | {manifest["epochs"]} | {minutes:.0f} min | {manifest["hardware"]} |'
            )
    for name, table in (('README.md', lines), ('RESULTS.md', runs)):
        texts[ROOT / name] = _with_table((ROOT / name).read_text(encoding='utf-8'), table, name)
    return texts


def _with_table(text: str, lines: list[str], name: str) -> str:
    head, _, rest = text.partition(START)
    tail = rest.partition(END)[2]
    if not tail:
        sys.exit(f'{name} has no {START.strip()} and {END}')
    return head + START + '\n' + '\n'.join(lines) + '\n\n' + END + tail


if __name__ == '__main__':
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding='utf-8')
