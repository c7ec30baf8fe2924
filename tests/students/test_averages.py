import pytest
import torch
from torch import nn

from latentseg.students.averages import WARM_UP, Average


def test_the_average_forgets_its_beginning_and_then_follows_slowly():
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 100.0)
    average, expected = Average(network, 0.9), 100.0
    for step in range(200):
        nn.init.constant_(network.weight, float(step))
        average.update(network, step)
        kept = min(0.9, (step + 1) / (step + 1 + WARM_UP))
        expected = kept * expected + (1 - kept) * step
    assert average.network.get_parameter("weight").item() == pytest.approx(expected, rel=1e-5)
    assert 185 < expected < 195  # about 1 / (1 - 0.9) steps late


def test_counts_are_those_of_the_network_itself():
    network = nn.BatchNorm2d(2)
    average = Average(network, 0.9)
    network(torch.ones(2, 2, 3, 3))
    average.update(network, 0)
    assert average.network.get_buffer("num_batches_tracked").item() == 1
