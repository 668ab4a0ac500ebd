"""Where the time of a training step goes: milliseconds in each operator, of a network and of its peers, as a table.

python -m tools.profile_step eunnet50 --peer bn        # prints the table of docs/performance.md
"""

import argparse

from torch.profiler import ProfilerActivity, profile

from nf_zoo.analysis.inputs import open_network
from nf_zoo.bench.memory import silent
from nf_zoo.bench.peers import open_peers
from nf_zoo.bench.settings import Settings, Step
from nf_zoo.train import allocator

SHOWN = 0.01  # of the longest step: operators with less are summed up


def times_of(step: Step, steps: int) -> dict[str, float]:
    """Milliseconds of a step in each operator, without what the operator calls."""
    step()
    with silent(), profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
    return {event.key: event.self_cpu_time_total / 1000 / steps for event in found.key_averages()}


def table(times: dict[str, dict[str, float]]) -> list[str]:
    """A row for each operator, the longest first, then the rest and the sum."""
    total = {name: sum(ops.values()) for name, ops in times.items()}
    longest = {key: max(ops.get(key, 0.0) for ops in times.values()) for key in set().union(*times.values())}
    shown = [key for key in longest if longest[key] >= SHOWN * max(total.values())]
    rows = {
        f'`{key}`': [ops.get(key, 0.0) for ops in times.values()] for key in sorted(shown, key=lambda k: -longest[k])
    }
    rows['all others'] = [total[name] - sum(ops.get(key, 0.0) for key in shown) for name, ops in times.items()]
    rows['sum'] = list(total.values())
    lines = [f'| operator, ms a step | {" | ".join(times)} |', '|---' * (len(times) + 1) + '|']
    return lines + [f'| {key} | {" | ".join(f"{value:.0f}" for value in values)} |' for key, values in rows.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('name', help='the network')
    parser.add_argument('--peer', action='append', default=[], help='bn, gn, floor or a name of timm')
    parser.add_argument('--steps', type=int, default=5)
    args = parser.parse_args()
    model, settings = open_network(args.name), Settings()
    x, y = settings.images(model, 8)
    networks = {args.name: model, **open_peers(args.name, model, args.peer)}
    times = {}
    with allocator.keep_freed():
        for name, network in networks.items():
            times[name] = times_of(Step(network, x, y, settings), args.steps)
    print('\n'.join(table(times)))


if __name__ == '__main__':
    main()
