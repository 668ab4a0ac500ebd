"""Networks against their peers: inference, a training step, and the cost of depth."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ..analysis.inputs import open_network
from ..errors import UserError
from ..folding.network import fold
from ..net.registry import list_models
from ..saved_memory import saved_bytes
from ..train import allocator
from .measure import MIB, BenchRow, interleaved
from .peers import open_peers, share_weights
from .settings import Settings, Step

LAYERS = (50, 100, 200, 400, 600)


def bench_inference(names: Sequence[str], settings: Settings) -> Iterator[BenchRow]:
    """A prediction by each network, as it is and folded, beside its peers.

    Args:
        names: Networks.
        settings: How they are measured.
    """
    for name in names:
        model = open_network(name)
        found = {f'{name}, folded': fold(model), name: model} if name.partition('.')[0] in list_models() else {}
        ours = found or {name: model}
        peers = open_peers(name, model, settings.peers)
        if found and 'floor' in peers:
            share_weights(peers['floor'], ours[f'{name}, folded'])
        # A network by itself with its peers: more networks in turn share the caches, and the times scatter.
        for batch in settings.predictions():
            x, _ = settings.images(model, batch)
            calls = {label: settings.of(label).forward(net, x) for label, net in {**ours, **peers}.items()}
            with allocator.keep_freed():  # for all, as in an evaluation
                times = interleaved(calls, settings.rounds or 15, device=settings.device, advance=settings.advance)
            for label in ours:
                what = f'{label}: inference, batch {batch}'
                yield from (BenchRow(what, peer, times[label], times[peer], 'ms', name) for peer in peers)


def bench_training(names: Sequence[str], settings: Settings) -> Iterator[BenchRow]:
    """A training step of each network, with the update of SGD, beside its peers'."""
    batch = settings.batch_size or 8
    for name in names:
        model = open_network(name)
        x, y = settings.images(model, batch)
        peers = open_peers(name, model, settings.peers)
        steps = {label: Step(net, x, y, settings.of(label)) for label, net in {name: model, **peers}.items()}
        with allocator.keep_freed():  # for all, as in a run
            times = interleaved(dict(steps), settings.rounds or 5, device=settings.device, advance=settings.advance)
        for peer in peers:
            what = f'{name}: training step, batch {batch}'
            yield BenchRow(what, peer, times[name], times[peer], 'ms', name)


def bench_depth(
    names: Sequence[str],
    settings: Settings,
    layers: Sequence[int] = LAYERS,
    width: float = 0.25,
) -> Iterator[BenchRow]:
    """A training step, and the bytes kept for backward, of networks of equal stages and growing depth.

    The peer is the straight line through the values, fitted by least squares of the relative errors.

    Args:
        names: Networks, whose stages are made longer.
        settings: How they are measured.
        layers: Numbers of convolutions, about.
        width: Factor of all widths.

    Raises:
        UserError: a network that nf_zoo doesn't have.
    """
    batch = settings.batch_size or 2
    size = settings.img_size or 128
    for name in names:
        if name.partition('.')[0] not in list_models():
            raise UserError(f'{name}: the depth can be chosen of the networks of nf_zoo alone (`nf-zoo list`)')
        nets = _deep(name, layers, width)
        kept = [saved_bytes(net.train(), size) / MIB for net in nets.values()]
        x, y = Settings(img_size=size).images(next(iter(nets.values())), batch)
        x = x.to(settings.device).contiguous(memory_format=settings.format())
        steps = {str(depth): Step(net, x, y.to(settings.device), settings) for depth, net in nets.items()}
        with allocator.keep_freed():
            times = interleaved(dict(steps), settings.rounds or 5, device=settings.device, advance=settings.advance)
        yield from against_line(f'{name}, {{}} layers: training step', list(nets), list(times.values()), 'ms', name)
        yield from against_line(f'{name}, {{}} layers: kept for backward', list(nets), [[k] for k in kept], 'MiB', name)


def _deep(name: str, layers: Sequence[int], width: float) -> dict[int, nn.Module]:
    """Networks of about so many layers, by their exact number: the convolutions of stem and branches, and the head."""
    found: dict[int, nn.Module] = {}
    small: Any = open_network(name, model_args={'width': width})
    stages = len(small.stages)
    a_stage = stages * len(small.stages[0][0].convs())
    for count in layers:
        blocks = max(1, round((count - 2) / a_stage))
        arguments: dict[str, Any] = {'width': width, 'depths': (blocks,) * stages}
        found[a_stage * blocks + 2] = open_network(name, model_args=arguments)
    return found


def against_line(
    what: str, x: Sequence[float], values: Sequence[Sequence[float]], unit: str, network: str
) -> list[BenchRow]:
    """A row for each x, beside the straight line through the medians. ``what`` has a place for x.

    Args:
        what: What was measured.
        x: Where, at least two different numbers.
        values: Measurements there.
        unit: Their unit.
        network: The network.
    """
    medians = [float(np.median(found)) for found in values]
    slope, start = np.polyfit(x, medians, 1, w=[1 / value for value in medians])
    return [
        BenchRow(what.format(at), 'straight line', found, [float(start + slope * at)], unit, network)
        for at, found in zip(x, values, strict=True)
    ]
