import time

import pytest
import torch

from latentseg.datasets.pairs import Batch
from latentseg.students.augmentation import augment, move


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


@pytest.mark.parametrize("kind", ["flip", "photo", "parts", "parts-photo"])
def test_augmentation_depends_only_on_seed_and_step(kind):
    batch = make_batch()
    first = augment(batch, kind, seed=1, step=5)
    torch.rand(7)  # the global random state must not matter
    again = augment(batch, kind, seed=1, step=5)
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    for other in (augment(batch, kind, seed=2, step=5), augment(batch, kind, seed=1, step=6)):
        assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("kind", ["photo", "parts-photo"])
def test_augmentation_leaves_the_global_random_state_alone(kind):
    batch = make_batch()
    before = torch.get_rng_state()
    augment(batch, kind, seed=0, step=0)
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


def make_ramps(n, height=24, width=16):
    """Images whose red and green tell the column and the row; ids are columns, and so is class 1.

    Columns and rows are counted from the centre, in pixels.
    """
    x = (torch.arange(width) + 0.5 - width / 2).expand(height, width)
    y = (torch.arange(height) + 0.5 - height / 2)[:, None].expand(height, width)
    images = torch.stack([2 * x / width, 2 * y / height, torch.ones_like(x)]).expand(n, -1, -1, -1)
    ids = (x + width / 2).floor().to(torch.uint8).expand(n, -1, -1)
    likely = (x / width + 0.5).expand(n, 1, -1, -1)
    return Batch(images, ids), Batch(images, torch.cat([1 - likely, likely], 1)), x, y


def sources(images, height=24, width=16):
    """Where in `make_ramps` the pixels come from, (2, B, H, W); and which do come from there."""
    x, y = images[:, 0] * width / 2, images[:, 1] * height / 2
    # Within half a pixel of the border the ramp goes on flat.
    inner = (images[:, 2] == 1) & (x.abs() < width / 2 - 0.51) & (y.abs() < height / 2 - 0.51)
    return torch.stack([x, y]), inner


def test_parts_moves_by_a_similarity_within_the_papers_ranges():
    batch, _, x, y = make_ramps(200)
    moved = augment(batch, "parts", seed=0, step=0)
    found, inner = sources(moved.images)
    turns, scales, shifts, mirrored = [], [], [], []
    for (columns, rows), valid in zip(found.movedim(1, 0), inner, strict=True):
        if valid.sum() < 20:
            continue
        here = torch.stack([x[valid], y[valid], torch.ones(int(valid.sum()))], 1).double()
        there = torch.stack([columns[valid], rows[valid]], 1).double()
        matrix = torch.linalg.lstsq(here, there).solution.T  # source = matrix @ (x, y, 1)
        torch.testing.assert_close(here @ matrix.T, there, atol=2e-3, rtol=0)
        linear = matrix[:, :2]
        scale = float(linear.det().abs() ** -0.5)
        same = torch.eye(2, dtype=torch.float64) / scale**2
        torch.testing.assert_close(linear.T @ linear, same, atol=2e-3, rtol=2e-3)
        mirrored.append(bool(linear.det() < 0))
        turns.append(float(torch.rad2deg(torch.atan2(linear[1, 0], linear[1, 1]))))
        scales.append(scale)
        shifts.append(-torch.linalg.solve(linear, matrix[:, 2]) / torch.tensor([16.0, 24.0]))
    assert len(scales) > 100
    assert 0.4 < sum(mirrored) / len(mirrored) < 0.6
    assert 9 < max(turns) < 10.1
    assert -10.1 < min(turns) < -9
    assert 0.49 < min(scales) < 0.7
    assert 1.9 < max(scales) < 2.01
    apart = torch.stack(shifts).abs()
    assert apart.max() < 0.501
    assert (apart.amax(0) > 0.4).all()


def test_parts_moves_ids_by_nearest_neighbour_with_the_image():
    batch, _, _, _ = make_ramps(32)
    moved = augment(batch, "parts", seed=3, step=1)
    found, inner = sources(moved.images)
    column = found[0] + 8
    between = (column % 1 - 0.5).abs() < 0.49  # not just between two columns
    clear = inner & between
    assert clear.sum() > 2000
    assert torch.equal(moved.masks[clear].long(), column[clear].floor().long())
    assert moved.masks.dtype == torch.uint8


def test_parts_moves_probabilities_bilinearly_with_the_image():
    hard, soft, _, _ = make_ramps(32)
    moved = augment(soft, "parts", seed=3, step=1)
    torch.testing.assert_close(moved.masks.sum(1), torch.ones(32, 24, 16))
    assert moved.weights is not None
    inside = moved.weights == 1
    torch.testing.assert_close(
        moved.masks[:, 1][inside], moved.images[:, 0][inside] / 2 + 0.5, atol=1e-5, rtol=0
    )
    again = augment(hard, "parts", seed=3, step=1)
    assert torch.equal(again.images, moved.images)
    assert again.weights is not None
    assert torch.equal(again.weights.bool(), inside)


def test_parts_gives_no_weight_to_what_comes_from_outside():
    batch, _, _, _ = make_ramps(64)
    weights = (batch.masks > 7).float()  # the right half
    moved = augment(Batch(batch.images, batch.masks, weights), "parts", seed=0, step=0)
    outside = moved.images[:, 2] == -1
    assert 0.1 < outside.float().mean() < 0.6
    assert (moved.images.movedim(1, -1)[outside] == -1).all()
    assert moved.weights is not None
    assert torch.equal(moved.weights, ((moved.masks > 7) & ~outside).float())


def test_parts_photo_moves_like_parts_and_changes_colours_only():
    batch = make_batch()
    plain, colourful = (augment(batch, kind, seed=0, step=0) for kind in ("parts", "parts-photo"))
    assert torch.equal(plain.masks, colourful.masks)
    assert plain.weights is not None
    assert colourful.weights is not None
    assert torch.equal(plain.weights, colourful.weights)
    assert (plain.images != colourful.images).flatten(1).any(1).float().mean() > 0.7
    assert colourful.images.min() >= -1
    assert colourful.images.max() <= 1


def test_move_uses_the_global_random_numbers_only():
    batch = make_batch()
    torch.manual_seed(5)
    first = move(batch)
    torch.manual_seed(5)
    assert torch.equal(move(batch).images, first.images)
