"""Toy runs in several processes: ``ddp_toys.py FOLDER OPTIONS RUN...``, each in the folder of its name.

whole: a run; pieces: one that was stopped and continued; stopped: one that was only stopped; dying: one whose second
process dies in the second epoch.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from train_toys import render_nothing, toy_recipe, toy_set

from nf_zoo.cli.main import main
from nf_zoo.train import Interrupted, train
from nf_zoo.train.data import memory as data
from nf_zoo.train.gradients import Gradients


def stop_at(update: int, number: int, folder: Path, options: dict[str, Any]) -> None:
    """Send the last process the signal ``number`` in its ``update``-th update of a run in ``folder``."""
    clip, count = Gradients.clip, [0]

    def counted(*args: Any) -> Any:
        count[0] += 1
        if count[0] == update and os.environ['RANK'] == '1':
            os.kill(os.getpid(), number)
        return clip(*args)

    Gradients.clip = counted
    try:
        train(toy_recipe(folder, **options), log=lambda line: None, bar=False)
    except Interrupted:
        pass
    finally:
        Gradients.clip = clip


if __name__ == '__main__':
    torch.set_num_threads(1)
    data._LOADERS['toys'] = toy_set
    Figure.savefig = render_nothing
    place, options = Path(sys.argv[1]), yaml.safe_load(sys.argv[2])
    for run in sys.argv[3:]:
        if run == 'dying':
            # through the command, so that what it prints is what a user sees
            import nf_zoo.cli.train

            nf_zoo.cli.train.main = lambda argv: stop_at(5, signal.SIGKILL, place / 'dying', options)
            sys.exit(main(['train']))
        if run != 'whole':
            stop_at(8, signal.SIGTERM, place / run, options)
        if run != 'stopped':
            train(toy_recipe(place / run, **options, resume=run == 'pieces'), bar=False)
