"""Parameters and multiply-accumulates of every name. ``python -m tests.golden`` (``make golden``) writes them anew."""

import json
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import nf_zoo

PATH = Path(__file__).with_name('golden.json')


def multiply_adds(model: torch.nn.Module, *size: int) -> int:
    """Those of convolutions and linear layers for one image (channels, height, width) on the meta device."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, *size, device='meta'))
    return counter.get_total_flops() // 2


def measure(name: str) -> dict[str, int]:
    """Parameters, and multiply-accumulates for an image of the default size; nothing is allocated."""
    model = timm.create_model(name, device='meta')
    params = sum(p.numel() for p in model.parameters())
    return dict(params=params, macs=multiply_adds(model, *model.pretrained_cfg['input_size']))


if __name__ == '__main__':
    golden = {name: measure(name) for name in nf_zoo.list_models()}
    rows = [f'  "{name}": {json.dumps(numbers)}' for name, numbers in golden.items()]
    PATH.write_text('{\n' + ',\n'.join(rows) + '\n}\n')
