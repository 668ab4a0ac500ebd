"""Writes the model cards of the bundled weights again, after a change of their wording: ``make cards [DATA=DIR]``.

With DIR, which holds the data sets, what a manifest lacks is measured first on the validation images: the calibration
error and the share of every residual block's branch. Everything else of a manifest stays as it was.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from nf_zoo.block_scalars import block_shares
from nf_zoo.files import write_whole
from nf_zoo.hub import card
from nf_zoo.hub.index import bundled
from nf_zoo.hub.names import CARD, CONFIG, CURVES, MANIFEST
from nf_zoo.hub.package import json_bytes
from nf_zoo.hub.release import write_index
from nf_zoo.inference.loading import load_model
from nf_zoo.train.evaluation import accuracies, totals, validation

IMAGES = 64  # for the shares of the blocks, as in training


def rendered(folder: Path, manifest: dict[str, Any]) -> bytes:
    """The card of a bundled folder."""
    config = json.loads((folder / CONFIG).read_bytes())
    return card.render(manifest, config, (folder / CURVES).exists()).encode()


def measure(name: str, manifest: dict[str, Any], data_dir: str) -> None:
    """Put into the manifest what it lacks: the share of each block's branch, and the calibration error."""
    if manifest.get('blocks') and 'ece' in manifest['metrics']:
        return
    model = load_model(name)
    batches, _ = validation(model, manifest['dataset'], data_dir, recipe=manifest['recipe'])
    if not manifest.get('blocks'):
        images, _ = next(iter(batches))
        manifest['blocks'] = block_shares(model, images[:IMAGES])
    if 'ece' not in manifest['metrics']:
        batches, _ = validation(model, manifest['dataset'], data_dir, recipe=manifest['recipe'])
        found = accuracies(*totals(model, batches))
        if abs(found['top1'] - manifest['metrics']['top1']) > manifest['tolerance']['top1']:
            sys.exit(f'{name}: top-1 is {found["top1"]}, recorded is {manifest["metrics"]["top1"]}')
        manifest['metrics'] = {**manifest['metrics'], 'ece': found['ece']}
    print(f'{name}: calibration error {manifest["metrics"]["ece"]:.2f} %, {len(manifest["blocks"])} blocks')


def write(folder: Path, data_dir: str) -> None:
    """Write the card of a bundled folder, and the manifest with its hash."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if data_dir:
        measure(folder.name, manifest, data_dir)
    text = rendered(folder, manifest)
    manifest['files'][CARD] = hashlib.sha256(text).hexdigest()
    write_whole(folder / CARD, text)
    write_whole(folder / MANIFEST, json_bytes(manifest))


if __name__ == '__main__':
    for path in sorted(bundled().glob('*.*/')):
        write(path, *(sys.argv[1:] or ['']))
        write_index()  # at once: an index of before would refuse the folder
