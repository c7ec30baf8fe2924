import numpy as np
import pytest
import torch

from latentseg.datasets.pairs import Batch
from latentseg.students.scaled_pairs import ScaledPairs, at_size
from latentseg.students.training import TrainConfig, working_size
from tests.students.toy import Discs


class Fixed:
    """One batch, whatever is asked for."""

    classes = ("a", "b")

    def __init__(self, masks, weights=None):
        self.made = Batch(torch.zeros(len(masks), 3, *masks.shape[-2:]), masks, weights)
        self.size = (masks.shape[-2], masks.shape[-1])

    def batch(self, step, size):
        return self.made


def test_a_disc_stays_a_disc_with_a_smoother_outline():
    small, large = Discs((32, 32)), Discs((96, 96))
    scaled = ScaledPairs(small, (96, 96)).batch(3, 16)
    expected = large.batch(3, 16)
    nearest = torch.nn.functional.interpolate(small.batch(3, 16).masks[:, None], size=(96, 96))
    wrong = (scaled.masks != expected.masks).float().mean()
    assert scaled.images.shape == (16, 3, 96, 96)
    assert scaled.masks.dtype == torch.uint8
    assert wrong < 0.9 * (nearest[:, 0] != expected.masks).float().mean()


def test_ignored_pixels_stay_ignored_and_ids_are_kept():
    masks = torch.tensor([[[0, 1], [2, 255]]], dtype=torch.uint8)
    scaled = ScaledPairs(Fixed(masks), (4, 4)).batch(0, 1).masks[0]
    assert scaled[0, 0] == 0
    assert scaled[0, 3] == 1
    assert scaled[3, 0] == 2
    assert np.array_equal(scaled[2:, 2:].numpy(), np.full((2, 2), 255))


def test_probabilities_and_weights_are_scaled():
    masks = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(1)
    weights = torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 4, 4)
    scaled = ScaledPairs(Fixed(masks, weights), (8, 8)).batch(0, 2)
    torch.testing.assert_close(scaled.masks.sum(1), torch.ones(2, 8, 8))
    assert scaled.weights is not None
    assert scaled.weights.amax((1, 2)).tolist() == [0, 1]


def test_pairs_of_the_right_size_are_left_alone():
    pairs = Discs((32, 32))
    assert at_size(pairs, (32, 32)) is pairs


@pytest.mark.parametrize(
    ("options", "size", "expected"),
    [
        ({}, (64, 64), (64, 64)),
        ({"network": "unet:efficientnet-lite0"}, (64, 64), (128, 128)),
        ({"network": "unet:efficientnet-lite0"}, (96, 64), (192, 128)),
        ({"network": "unet:efficientnet-lite0"}, (256, 256), (256, 256)),
        ({"network": "unet:efficientnet-lite0", "size": (224, 160)}, (64, 64), (224, 160)),
    ],
)
def test_encoders_of_photos_work_at_the_size_of_photos(options, size, expected):
    assert working_size(TrainConfig(**options), size) == expected
