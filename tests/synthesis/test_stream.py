"""The stream: sample i depends only on (seed, i), and every sample has passed the filters."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentseg.errors import InputError
from latentseg.images import to_pixels
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.refinement import RefinementConfig
from latentseg.synthesis.stream import Block, Stream
from tests.world import World, fitted

# Most of the world's masks are smaller, so that many candidates are refused.
CHOOSY = RefinementConfig(min_area=0.25)


def stream(*, choosy: bool = False, n_classes: int = 0, **options) -> Stream:
    labeler = fitted(n_classes)
    if choosy:
        labeler = labeler.with_config(replace(labeler.config, refinement=CHOOSY))
    return Stream(World(n_classes=n_classes), labeler, **options)


def samples(source: Stream, n: int) -> list[Block]:
    return [source.block(k) for k in range(-(-n // source.block_size))]


@pytest.mark.parametrize("size", [1, 7, 32])
def test_stream_when_the_block_size_differs_then_the_samples_are_the_same(size: int):
    n = 32
    expected = stream(choosy=True, block=n).block(0)
    blocks = samples(stream(choosy=True, block=size), n)
    for field in ("images", "masks", "confidence", "labels", "seeds", "attempts", "removed"):
        found = np.concatenate([getattr(block, field) for block in blocks])[:n]
        np.testing.assert_array_equal(found, getattr(expected, field))


def test_stream_when_the_seed_differs_then_all_samples_differ():
    first, other = stream(seed=0, block=8).block(0), stream(seed=1, block=8).block(0)
    assert not set(first.seeds) & set(other.seeds)
    assert not (first.images == other.images).all(axis=(1, 2, 3)).any()


def test_block_when_filters_refuse_many_then_all_samples_pass_and_all_others_are_counted():
    source = stream(choosy=True, block=16)
    block = source.block(1)
    assert (block.masks.mean(axis=(1, 2)) >= 0.25).all()
    assert (block.removed.sum(axis=1) == block.attempts - 1).all()
    assert block.attempts.max() > 1
    assert block.removed[:, 1].sum() > 0


def test_block_when_drawn_again_from_its_seeds_then_images_and_labels_are_those():
    source = stream(n_classes=3, block=6)
    block = source.block(2)
    latents = source.generator.sample(torch.from_numpy(block.seeds))
    np.testing.assert_array_equal(to_pixels(source.generator(latents)), block.images)
    assert latents.labels is not None
    np.testing.assert_array_equal(latents.labels.numpy(), block.labels)


def test_batch_when_steps_are_asked_in_any_order_then_they_are_slices_of_the_stream():
    source = stream(block=8)
    blocks = samples(source, 24)
    images = np.concatenate([block.images for block in blocks])
    masks = np.concatenate([block.masks for block in blocks])
    for step in (3, 0, 2, 2, 1):
        batch = source.batch(step, 5)
        rows = slice(5 * step, 5 * step + 5)
        np.testing.assert_array_equal(to_pixels(batch.images), images[rows])
        np.testing.assert_array_equal(batch.masks.numpy(), masks[rows])
        assert batch.images.dtype == torch.float32


def test_batch_when_drawn_ahead_then_nothing_changes():
    plain, ahead = stream(block=4), stream(block=4, is_ahead=True)
    for step in range(4):
        assert torch.equal(plain.batch(step, 6).images, ahead.batch(step, 6).images)


def test_batch_when_consecutive_then_no_block_is_drawn_twice():
    world = World()
    labeler = DirectionsLabeler(world, fitted().directions, config=fitted().config, seed=0)
    source = Stream(world, labeler, block=8)
    for step in range(4):
        source.batch(step, 4)
    drawn, world.draws = world.draws, 0
    samples(source, 16)
    assert drawn == world.draws > 0


def test_batch_when_trained_on_then_gradients_can_pass():
    batch = stream(block=4).batch(0, 4)
    layer = torch.nn.Conv2d(3, 1, 3)
    layer(batch.images).mean().backward()
    assert layer.weight.grad is not None


def test_stream_when_filters_refuse_everything_then_the_error_names_them():
    labeler = fitted()
    never = replace(labeler.config, refinement=RefinementConfig(max_area=0.011))
    source = Stream(World(), labeler.with_config(never), block=2)
    with pytest.raises(InputError, match="removed: area 100%"):
        source.block(0)


def test_stream_when_the_labeler_belongs_to_another_generator_then_it_is_refused():
    with pytest.raises(InputError, match="fitted to generator 'world'"):
        Stream(World(n_classes=2), fitted())


def test_stream_when_asked_then_it_names_classes_and_size():
    assert stream().classes == ("foreground",)
    assert stream().size == (32, 32)
