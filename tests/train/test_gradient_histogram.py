"""`log_gradients`: the distribution of a layer's gradients over a run."""

import pytest
import torch
from torch import nn
from train_toys import run_toy, toys  # noqa: F401

from nf_zoo.errors import UserError
from nf_zoo.train.gradient_histogram import GradientHistogram
from nf_zoo.train.report import read_csv


def test_each_element_is_counted_by_its_sign_and_magnitude(tmp_path):
    net = nn.Sequential(nn.Linear(3, 2, bias=False))
    histogram = GradientHistogram(net, '0', tmp_path)
    net[0].weight.grad = torch.tensor([[1e-12, 0.5, -0.5], [-2e-4, 300.0, -1e-12]])
    histogram.add()
    counts, edges = histogram.counts, histogram.edges
    assert counts.sum() == 6 and counts[50] == 2 and counts[-1] == 1
    for value in (0.5, -0.5, -2e-4):
        index = int(torch.bucketize(torch.tensor(value, dtype=torch.float64), edges)) - 1
        assert counts[index] == 1 and edges[index] < value < edges[index + 1]
    assert torch.equal(counts[:50].sum(), torch.tensor(2.0, dtype=torch.float64))


def test_a_run_has_a_row_for_each_epoch_a_picture_and_events(toys, rendered, tmp_path):  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    layer = 'stages.1.0.conv2'
    run_toy(tmp_path, log_gradients=layer, log_tensorboard=True)
    rows = read_csv(tmp_path / 'gradients.csv')
    assert [row.pop('epoch') for row in rows] == [0, 1]
    assert [sum(row.values()) for row in rows] == [5 * 32 * 32 * 9] * 2  # updates, elements of the weight
    assert (tmp_path / 'gradients.png').stat().st_size > 5000
    events = EventAccumulator(str(tmp_path / 'tensorboard'), size_guidance={'histograms': 0}).Reload()
    assert [event.step for event in events.Histograms(f'gradient/{layer}')] == [0, 1]


def test_an_unknown_layer_is_named_with_the_nearest_one(tmp_path):
    with pytest.raises(UserError, match="no layer 'conv'.*; did you mean 'conv1'"):
        GradientHistogram(nn.Sequential(nn.Identity(), nn.ModuleDict({'conv1': nn.Linear(1, 1)}))[1], 'conv', tmp_path)
