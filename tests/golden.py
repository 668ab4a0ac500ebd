"""Parameters and multiply-accumulates of every name. ``python -m tests.golden`` (``make golden``) writes them anew."""

import json
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import nf_zoo

PATH = Path(__file__).with_name('golden.json')


def measure(name: str) -> dict[str, int]:
    """Parameters, and MACs of convolutions and linear layers for one image of the default size; allocates nothing."""
    model = timm.create_model(name, device='meta').eval()
    x = torch.empty(1, *model.pretrained_cfg['input_size'], device='meta')
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return dict(params=sum(p.numel() for p in model.parameters()), macs=counter.get_total_flops() // 2)


if __name__ == '__main__':
    golden = {name: measure(name) for name in nf_zoo.list_models()}
    rows = [f'  "{name}": {json.dumps(numbers)}' for name, numbers in golden.items()]
    PATH.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
