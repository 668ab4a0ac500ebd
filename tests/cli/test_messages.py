"""What the commands say about folders that aren't there, unequal runs and the columns of a table."""

from pathlib import Path

import pytest

from nf_zoo.cli.main import main
from nf_zoo.train.compare import Summary, table
from nf_zoo.train.recipe import Recipe

ROW = {'epoch': 0.0, 'lr': 0.1, 'train_loss': 1.0, 'eval_loss': 1.0, 'eval_top1': 50.0, 'eval_top5': 90.0}


def run(name: str, dataset: str, epochs: int) -> Summary:
    recipe = Recipe(model=name, dataset=dataset, epochs=epochs)
    return Summary(name, recipe, [ROW | {'epoch': float(i)} for i in range(epochs)], 'eval')


def test_runs_that_differ_in_more_than_the_network_are_named() -> None:
    assert 'warning' not in table([run('a', 'digits', 2), run('b', 'digits', 2)])
    last = table([run('a', 'digits', 2), run('b', 'cifar10', 3)]).splitlines()[-1]
    assert last == 'warning: the runs differ in data set (digits, cifar10) and number of epochs (2, 3)'
    assert table([run('a', 'digits', 2), run('b', 'digits', 3)]).endswith('differ in number of epochs (2, 3)')


@pytest.mark.parametrize('command', ['compare', 'predict'])
def test_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    folder = tmp_path / 'eunnet50x'
    assert main([command, str(folder), *(['a.png'] if command == 'predict' else [])]) == 2
    said = capsys.readouterr().err
    assert f'{folder}: no such folder' in said
    assert ("did you mean 'eunnet50'?" in said) == (command == 'predict')


def test_signal_says_what_its_columns_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['signal', 'eunnet20_cifar', '--batch-size', '1']) == 0
    said = capsys.readouterr().out
    assert all(f'{head}: ' in said for head in ('variance', 'branch', 'share', 'not 0', 'gradient'))
