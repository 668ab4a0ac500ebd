"""Writes results/<data set>.csv and the tables of README.md, RESULTS.md and two pages of docs/: ``make results``.

Speed and memory come from results/bench and results/gpu (performance.py), training with few images a step from the
examples' results (few_images.py). The others come from the manifests of the bundled weights and
from results/runs.csv, the runs whose weights are not published.
``make results RUNS='DIR DIR'`` adds runs to the latter, of recipes in configs/ alone, with whatever seed.
"""

import csv
import io
import json
import re
import statistics
import sys
from functools import cache
from pathlib import Path
from typing import Any

from nf_zoo.analysis.catalogue import facts
from nf_zoo.hub.index import bundled
from nf_zoo.train.recipe import Recipe, load_recipe
from nf_zoo.train.run_folder import read_result

from . import few_images, performance

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / 'results' / 'runs.csv'
COLUMNS = ['model', 'top1', 'top5', 'param_count', 'img_size', 'recipe', 'sha256']  # timm's, and the last two
RUN_COLUMNS = ['recipe', 'seed', 'top1', 'top5', 'loss', 'n', 'epochs', 'minutes', 'hardware', 'sha256']
BEST = 3  # of a data set, in README.md
# A table's name, and what it is of: recipes, a file of benches, a part of a GPU's results, or an example.
MARKED = re.compile(r'(<!-- make results: (\w+)([^\n]*) -->\n).*?(<!-- end -->)', re.DOTALL)


def rows() -> dict[str, list[dict[str, Any]]]:
    """Data set -> a row for each of its bundled weights, the best first. ``param_count`` is in millions, as timm's."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(bundled().glob('*/manifest.json')):
        manifest = json.loads(path.read_bytes())
        config = json.loads(path.with_name('config.json').read_bytes())
        # What was converted was not trained: it has no recipe of its own.
        recipe = f'configs/{manifest["dataset"]}/{manifest["architecture"]}.yaml' if manifest.get('epochs') else ''
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


def unpublished() -> list[dict[str, str]]:
    """The rows of results/runs.csv."""
    if not RUNS.exists():
        return []
    with open(RUNS, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def row_of(run: Path) -> dict[str, str]:
    """A finished run, as a row of results/runs.csv. Exits with a line for a run of no recipe in configs/."""
    result = read_result(run)
    # A run that is older than a key ran with the key's default.
    trained = {**_settings(Recipe()), **result.recipe, 'seed': None}
    recipes = _recipes(result.dataset).items()
    recipe = next((name for name, known in recipes if {key: known.get(key) for key in trained} == trained), None)
    if recipe is None:
        sys.exit(f'{run}: no recipe in configs/{result.dataset} has its settings')
    metrics = result.metrics
    values = [
        recipe,
        result.seed,
        f'{metrics["top1"]:.2f}',
        f'{metrics["top5"]:.2f}',
        f'{metrics["loss"]:.4f}',
        metrics['n'],
        result.epochs,
        _minutes(result.seconds or 0),
        result.hardware,
        result.sha256,
    ]
    return dict(zip(RUN_COLUMNS, map(str, values), strict=True))


def _minutes(seconds: float) -> str:
    return f'{seconds / 60:.{0 if seconds >= 600 else 1}f}'


@cache
def _recipes(dataset: str) -> dict[str, dict[str, Any]]:
    """File -> settings, without the seed, as JSON has them."""
    return {
        str(path.relative_to(ROOT)): _settings(load_recipe(path)) | {'seed': None}
        for path in sorted((ROOT / 'configs' / dataset).glob('*.yaml'))
    }


def _settings(recipe: Recipe) -> dict[str, Any]:
    """As JSON has them."""
    found: dict[str, Any] = json.loads(json.dumps(recipe.settings()))
    return found


def files() -> dict[Path, str]:
    """What this writes: path -> text."""
    texts = {}
    weights = [
        '| name | top-1 | top-5 | images | parameters | multiply-adds | epochs | recipe |',
        '|---|---|---|---|---|---|---|---|',
    ]
    best = ['| name | top-1 | top-5 | parameters | multiply-adds |', '|---|---|---|---|---|']
    published = ['| run | top-1 | loss | n | seed | epochs | time | hardware |', '|---|---|---|---|---|---|---|---|']
    for dataset, table in sorted(rows().items(), reverse=True):  # photographs first
        texts[ROOT / 'results' / f'{dataset}.csv'] = _csv(table, COLUMNS)
        for place, row in enumerate(table):
            manifest = row['manifest']
            size = facts(row['model'])  # of these weights: their classes, their pixels
            weights.append(
                f'| `{row["model"]}` | {row["top1"]} % | {row["top5"]} % | {manifest["metrics"]["n"]:,} '
                f'| {size.parameters:,} | {size.macs:,} | '
                + (f'{manifest["epochs"]} | [{row["recipe"]}]({row["recipe"]}) |' if row['recipe'] else '| converted |')
            )
            if place < BEST:
                best.append(
                    f'| `{row["model"]}` | {row["top1"]} % | {row["top5"]} % | {size.parameters:,} | {size.macs:,} |'
                )
            if not row['recipe']:
                continue
            metrics = manifest['metrics']
            published.append(
                f'| `{row["model"]}` | {row["top1"]} % | {metrics["loss"]:.3f} | {metrics["n"]:,} '
                f'| {manifest["seed"]} | {manifest["epochs"]} | {_minutes(manifest["seconds"])} min '
                f'| {manifest["hardware"]} |'
            )
    tables = {
        'weights': weights,
        'best': best,
        'published': published,
        'runs': _runs(),
        'performance': performance.summary(),
    }

    makers = {'bench': performance.table, 'gpu': performance.gpu, 'few_images': few_images.table, 'seeds': _seeds}

    def table_of(mark: re.Match[str]) -> str:
        start, name, of, end = mark.groups()
        table = '\n'.join(makers[name](of.strip()) if name in makers else tables[name])
        return f'{start}\n{table}\n\n{end}'

    for name in ('README.md', 'RESULTS.md', 'docs/performance.md', 'docs/conversion.md'):
        text = (ROOT / name).read_text(encoding='utf-8')
        texts[ROOT / name], found = MARKED.subn(table_of, text)
        if found != text.count('<!-- make results: '):
            sys.exit(f'{name}: a <!-- make results: ... --> without its <!-- end -->')
    return texts


def _runs() -> list[str]:
    return [
        '| recipe | seed | top-1 | loss | n | epochs | time | hardware |',
        '|---|---|---|---|---|---|---|---|',
        *(
            f'| [{Path(row["recipe"]).stem}]({row["recipe"]}) | {row["seed"]} | {row["top1"]} % | {row["loss"]} '
            f'| {int(row["n"]):,} | {row["epochs"]} | {row["minutes"]} min | {row["hardware"]} |'
            for row in unpublished()
        ),
    ]


def _seeds(recipes: str) -> list[str]:
    """A row for each of the ``recipes``, names with spaces between them, which were run with several seeds."""
    lines = ['| recipe | seeds | top-1, mean | lowest ... highest | loss, mean |', '|---|---|---|---|---|']
    known = unpublished()
    for name in recipes.split():
        runs = [row for row in known if Path(row['recipe']).stem == name]
        if len(runs) < 2:
            sys.exit(f'{name}: results/runs.csv has no runs with several seeds')
        top1, loss = ([float(run[key]) for run in runs] for key in ('top1', 'loss'))
        lines.append(
            f'| [{name}]({runs[0]["recipe"]}) | {len(runs)} | {statistics.fmean(top1):.2f} % '
            f'| {min(top1):.2f} ... {max(top1):.2f} % | {statistics.fmean(loss):.4f} |'
        )
    return lines


def _csv(table: list[dict[str, Any]], columns: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction='ignore', lineterminator='\n')
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


if __name__ == '__main__':
    added = [row_of(Path(run)) for run in sys.argv[1:]]
    keys = {(row['recipe'], row['seed']) for row in added}
    kept = [row for row in unpublished() if (row['recipe'], row['seed']) not in keys]
    if added:
        table = sorted(kept + added, key=lambda row: (row['recipe'], int(row['seed'])))
        RUNS.write_text(_csv(table, RUN_COLUMNS), encoding='utf-8')
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding='utf-8')
    performance.draw()
    few_images.draw()
