"""Writes nf_zoo/analysis/models.json, parameters and multiply-accumulates of every name, anew (``make golden``)."""

import json

import nf_zoo
from nf_zoo.analysis.catalogue import SIZES_FILE, measure

if __name__ == '__main__':
    sizes = {name: measure(name) for name in nf_zoo.list_models()}
    rows = [f'  "{name}": {json.dumps(numbers)}' for name, numbers in sizes.items()]
    SIZES_FILE.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
