"""Trains toys in forked children that kill themselves with SIGKILL: ``kill_toys.py FOLDER OPTIONS PLANS``.

A plan is a list of event numbers: the first child of a run dies at the first of them, the next, which resumes, at the
second ..., and the last child ends the run. Events are the updates and every step of writing a file. Without plans it
prints the number of events of an unbroken run.
"""

import itertools
import json
import os
import signal
import sys
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from train_toys import render_nothing, run_toy, toy_set

from nf_zoo.train.data import memory as data
from nf_zoo.train.gradients import Gradients


def train_until(event: int, folder: Path, options: dict, resume: bool) -> int:
    """Number of events of a run that was not killed; else the exit status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reader) as file:
            count = file.read()
        if not count and os.WTERMSIG(status) != signal.SIGKILL:
            raise SystemExit('a child failed by itself')
        return int(count) if count else -1
    counter = itertools.count()

    def counted(function):
        def wrapped(*args, **kwargs):
            if next(counter) == event:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return wrapped

    os.fsync, os.replace, os.unlink = counted(os.fsync), counted(os.replace), counted(os.unlink)
    Gradients.clip = counted(Gradients.clip)
    run_toy(folder, resume=resume, **options)
    os.write(writer, str(next(counter)).encode())
    os._exit(0)


if __name__ == '__main__':
    data._LOADERS['toys'] = toy_set
    Figure.savefig = render_nothing
    place, options, plans = Path(sys.argv[1]), yaml.safe_load(sys.argv[2]), json.loads(sys.argv[3])
    if not plans:
        print(train_until(-1, place, options, False))
    for number, plan in enumerate(plans):
        for index, event in enumerate([*plan, -1]):
            train_until(event, place / str(number), options, resume=index > 0)
