"""The memory of a training step: what autograd keeps for backward, and the peak of the activations."""

import gc
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ..analysis.inputs import open_network
from ..saved_memory import saved_bytes
from .measure import MIB, BenchRow
from .peers import open_peers
from .settings import Settings, Step

KINDS = ('kept for backward, per image', "activations' peak, batch {}")


def bench_memory(names: Sequence[str], settings: Settings) -> Iterator[BenchRow]:
    """Bytes kept for backward per image, and the activations' peak of a training step, beside the peers'.

    The peak is the most that a step holds at once beyond weights, gradients, the optimizer's state and the batch.
    """
    batch = settings.batch_size or 8
    for name in names:
        model = open_network(name)
        x, y = settings.images(model, batch)
        peers = open_peers(name, model, settings.peers)
        kept, peaks = {}, {}
        for label, network in {name: model, **peers}.items():
            with settings.autocast():
                kept[label] = saved_bytes(settings.place(network.train()), x.shape[-1], settings.device) / MIB
            step = Step(network, x, y, settings.of(label), keep=True)
            step()  # allocates gradients and momentum, and compiles
            peaks[label] = peak_bytes(step, settings.device) / MIB
            settings.advance()
            del step
            network.zero_grad(set_to_none=True)
        for peer in peers:
            for what, found in zip(KINDS, (kept, peaks), strict=True):
                yield BenchRow(f'{name}: {what.format(batch)}', peer, [found[name]], [found[peer]], 'MiB', name)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``function`` holds on ``device`` at once, beyond those that were allocated before it."""
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'trace.json'
        found.export_chrome_trace(str(file))
        events = [event for event in json.loads(file.read_text())['traceEvents'] if event.get('name') == '[memory]']
    held = most = 0
    for event in sorted(events, key=lambda event: event['ts']):
        held += event['args']['Bytes']
        most = max(most, held)
    return most


@contextmanager
def silent() -> Iterator[None]:
    """The profiler's library writes to standard error that it starts, and that there is no GPU."""
    kept = os.dup(2)
    with open(os.devnull, 'wb') as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
