import time

import pytest
import torch

from latentseg.students.augmentation import augment
from latentseg.synthesis.pairs import Batch


def make_batch(n=16, size=32):
    """Masks of classes 0, 1 and 255, and images that show their mask in the red channel."""
    masks = torch.zeros(n, size, size, dtype=torch.uint8)
    masks[:, 4:20, 8:16] = 1
    masks[:, 4:6, 8:16] = 255
    images = torch.rand(n, 3, size, size) * 2 - 1
    images[:, 0] = (masks == 1).float() * 2 - 1
    return Batch(images, masks)


def test_none_changes_nothing():
    batch = make_batch()
    assert augment(batch, "none", seed=0, step=0) is batch


@pytest.mark.parametrize("kind", ["flip", "photo"])
def test_augmentation_depends_only_on_seed_and_step(kind):
    batch = make_batch()
    first = augment(batch, kind, seed=1, step=5)
    torch.rand(7)  # the global random state must not matter
    again = augment(batch, kind, seed=1, step=5)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    for other in (augment(batch, kind, seed=2, step=5), augment(batch, kind, seed=1, step=6)):
        assert not torch.equal(first.images, other.images)


def test_augmentation_leaves_the_global_random_state_alone():
    batch = make_batch()
    before = torch.get_rng_state()
    augment(batch, "photo", seed=0, step=0)
    assert torch.equal(before, torch.get_rng_state())


def test_photo_keeps_shapes_ranges_and_mask_values():
    batch = make_batch()
    changed = augment(batch, "photo", seed=0, step=0)
    assert changed.images.shape == batch.images.shape
    assert changed.images.min() >= -1
    assert changed.images.max() <= 1
    assert changed.masks.dtype == torch.uint8
    assert set(changed.masks.unique().tolist()) == {0, 1, 255}
    assert changed.weights is None


def test_flip_moves_images_masks_and_weights_together():
    batch = make_batch()
    batch = Batch(batch.images, batch.masks, (batch.masks == 1).float())
    changed = augment(batch, "flip", seed=0, step=0)
    flipped = (changed.masks != batch.masks).flatten(1).any(1)
    assert 0 < flipped.sum() < len(flipped)
    assert changed.weights is not None
    assert torch.equal(changed.weights > 0, changed.masks == 1)
    assert torch.equal(changed.images[:, 0] > 0, changed.masks == 1)


def test_photo_moves_soft_masks_like_images():
    hard = make_batch()
    soft = torch.stack([(hard.masks != 1).float(), (hard.masks == 1).float()], 1)
    same = augment(Batch(hard.images, soft, soft[:, 1]), "photo", seed=0, step=0)
    assert torch.equal(same.masks[:, 1] > 0.5, augment(hard, "photo", seed=0, step=0).masks == 1)
    assert torch.equal(same.masks.sum(1), torch.ones_like(same.masks[:, 0]))
    assert same.weights is not None
    assert torch.equal(same.weights, same.masks[:, 1])
    # The red channel showed the mask: it still does, up to blur, noise and interpolation.
    brighter = same.images[:, 0][same.masks[:, 1] > 0.5].mean()
    assert brighter > same.images[:, 0][same.masks[:, 1] < 0.5].mean() + 0.8


def test_photo_costs_less_than_a_training_step():
    batch = make_batch(32, 64)
    augment(batch, "photo", seed=0, step=0)
    began = time.process_time()
    for step in range(3):
        augment(batch, "photo", seed=0, step=step)
    assert (time.process_time() - began) / 3 < 0.1  # 17 ms on one core; the step takes 120 ms
