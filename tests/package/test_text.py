"""Lines that several processes write don't run into one another."""

import subprocess
import sys
from pathlib import Path

from nf_zoo.text import say

WRITER = """
import os, sys
sys.path.insert(0, sys.argv[1])  # text.py alone: the package would import torch
from text import say
for number in range(300):
    say(f'{sys.argv[2]} {number} ' + 50 * 'x', sys.stderr)
"""


def test_a_line_and_its_newline_are_one_write() -> None:
    class Stream(list):
        write = list.append

        def flush(self) -> None:
            self.append('flushed')

    stream = Stream()
    say('a line', stream)  # type: ignore[arg-type]
    assert stream == ['a line\n', 'flushed']


def test_lines_of_unbuffered_processes_stay_whole(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    with open(tmp_path / 'said', 'wb') as file:
        command = [sys.executable, '-S', '-u', '-c', WRITER, f'{root}/nf_zoo']
        writers = [subprocess.Popen([*command, str(name)], stderr=file) for name in range(3)]
        assert [writer.wait() for writer in writers] == [0, 0, 0]
    lines = (tmp_path / 'said').read_text().splitlines()
    assert sorted(lines) == sorted(f'{name} {number} {50 * "x"}' for name in range(3) for number in range(300))
