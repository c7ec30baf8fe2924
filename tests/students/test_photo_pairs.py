"""What is pasted over what, and how doubt makes labels smoother."""

import pytest
import torch

from latentseg.datasets.pairs import Batch
from latentseg.seeds import random_generator
from latentseg.students.photo_pairs import mix, smooth

N, SIDE = 64, 16


@pytest.fixture
def batch():
    """Picture i is filled with the value i / N, and so are its weights; objects are squares."""
    values = torch.arange(N) / N
    masks = torch.zeros(N, 3, SIDE, SIDE)
    masks[:, 1, 2:8, 2:8] = 0.9
    masks[:, 2, 10:14, 10:14] = 0.8
    masks[:, 0] = 1 - masks[:, 1:].sum(1)
    images = values.view(N, 1, 1, 1).expand(N, 3, SIDE, SIDE).clone()
    return Batch(images, masks, values.view(N, 1, 1).expand(N, SIDE, SIDE).clone())


def pasted(batch, mixed):
    """(N, H, W): where another picture shows."""
    return (mixed.images != batch.images).any(1)


@pytest.mark.parametrize("kind", ["cutmix", "classmix"])
def test_images_masks_and_weights_move_together(batch, kind):
    numbered = Batch(batch.images, torch.cat([batch.masks[:, :2], batch.images[:, :1]], 1))
    numbered = Batch(numbered.images, numbered.masks, batch.weights)
    mixed = mix(numbered, kind, random_generator(0, 1))
    assert torch.equal(mixed.images[:, 0], mixed.masks[:, 2])
    assert mixed.weights is not None
    assert torch.equal(mixed.images[:, 0], mixed.weights)
    share = pasted(batch, mixed).flatten(1).any(1).float().mean()
    assert 0.3 < share < 0.7  # half of the pictures


def test_cutmix_pastes_rectangles_of_up_to_half_of_the_picture(batch):
    where = pasted(batch, mix(batch, "cutmix", random_generator(0, 2)))
    for region in where[where.flatten(1).any(1)]:
        rows, columns = region.any(1).sum(), region.any(0).sum()
        assert region.sum() == rows * columns
        # Up to half, and one row and one column that rounding may add.
        assert region.sum() <= SIDE * SIDE / 2 + rows + columns


def test_classmix_pastes_the_objects_of_half_of_the_classes(batch):
    where = pasted(batch, mix(batch, "classmix", random_generator(0, 3)))
    squares = batch.masks[0, 1:] > 0.5
    found = where[where.flatten(1).any(1)]
    kinds = [next(i for i, square in enumerate(squares) if torch.equal(r, square)) for r in found]
    assert set(kinds) == {0, 1}


def test_the_only_class_is_always_pasted(batch):
    one = Batch(batch.images, batch.masks[:, :2] / batch.masks[:, :2].sum(1, True), batch.weights)
    where = pasted(one, mix(one, "classmix", random_generator(0, 4)))
    for region in where[where.flatten(1).any(1)]:
        assert torch.equal(region, one.masks[0, 1] > 0.5)


def test_nothing_is_mixed_unless_asked(batch):
    assert mix(batch, "none", random_generator(0)) is batch


def test_doubt_spreads_probabilities_evenly():
    probabilities = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).repeat(3, 1, 1, 1)
    smoothed = smooth(probabilities, torch.tensor([0.0, 0.5, 1.0]))
    torch.testing.assert_close(smoothed[:, 0, 0, 0], torch.tensor([0.9, 0.7, 0.5]))
    torch.testing.assert_close(smoothed.sum(1), torch.ones(3, 1, 1))
