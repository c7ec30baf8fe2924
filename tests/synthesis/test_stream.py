"""The stream: sample i depends only on (seed, i), and every sample has passed the filters."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentseg.datasets.pairs import from_levels
from latentseg.errors import InputError
from latentseg.generators.protocols import Latents
from latentseg.images import to_pixels
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import RefinementConfig
from latentseg.labelers.protocols import Labelled, SoftLabeler
from latentseg.synthesis.stream import Block, Stream
from tests.closeness import assert_same_masks, assert_same_pictures
from tests.parts_world import PARTS, PartsWorld
from tests.world import World, fitted

# Most of the world's masks are smaller, so that many candidates are refused.
CHOOSY = RefinementConfig(min_area=0.25)


class Knowing:
    """Labels the parts world by its exact masks, blurred; refuses samples with a large head."""

    classes, filters, info = PARTS, ("head",), {"method": "knowing"}

    def __init__(self, size: tuple[int, int] = (24, 16)) -> None:
        self.generator: Any = PartsWorld(size)

    def label(self, latents: Latents) -> Labelled:
        return self.label_softly(latents)[0]

    def label_softly(self, latents: Latents) -> tuple[Labelled, Tensor]:
        parts = functional.one_hot(self.generator.masks(latents).long(), 4).movedim(3, 1).float()
        soft = functional.avg_pool2d(parts, 3, stride=1, padding=1, count_include_pad=False)
        masks = soft.argmax(1).to(torch.uint8)
        refused = ((masks == 2).float().mean(dim=(1, 2)) > 0.05).long()
        sure = soft.amax(1).mean(dim=(1, 2))
        return Labelled(self.generator(latents), masks, sure, refused), soft

    def save(self, folder) -> None: ...


def stream(*, choosy: bool = False, n_classes: int = 0, **options) -> Stream:
    labeler = fitted(n_classes)
    if choosy:
        labeler = labeler.with_config(replace(labeler.config, refinement=CHOOSY))
    return Stream(World(n_classes=n_classes), labeler, **options)


EXACT = ("labels", "seeds", "attempts", "removed")
FIELDS = ("images", "masks", "confidence", *EXACT)


def samples(source: Stream, n: int) -> list[Block]:
    return [source.block(k) for k in range(-(-n // source.block_size))]


def assert_same_samples(found: dict[str, NDArray], expected: Block) -> None:
    assert_same_pictures(found["images"], expected.images)
    assert_same_masks(found["masks"], expected.masks)
    np.testing.assert_allclose(found["confidence"], expected.confidence, atol=1e-6)
    for field in EXACT:
        np.testing.assert_array_equal(found[field], getattr(expected, field))


@pytest.mark.parametrize("size", [1, 7, 32])
def test_stream_when_the_block_size_differs_then_the_samples_are_the_same(size: int):
    n = 32
    expected = stream(choosy=True, block=n).block(0)
    blocks = samples(stream(choosy=True, block=size), n)
    found = {
        field: np.concatenate([getattr(block, field) for block in blocks])[:n] for field in FIELDS
    }
    assert_same_samples(found, expected)


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
    assert_same_pictures(to_pixels(source.generator(latents)), block.images)
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
        assert_same_pictures(to_pixels(batch.images), images[rows])
        assert_same_masks(batch.masks, masks[rows])
        assert batch.images.dtype == torch.float32


def test_batch_when_drawn_ahead_then_nothing_changes():
    plain, ahead = stream(block=4), stream(block=4, is_ahead=True)
    for step in range(4):
        torch.testing.assert_close(plain.batch(step, 6).images, ahead.batch(step, 6).images)


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


def test_soft_stream_when_compared_with_the_hard_one_then_only_probabilities_are_added():
    labeler = Knowing()
    hard = Stream(labeler.generator, labeler, block=12).block(1)
    soft = Stream(labeler.generator, labeler, block=12, soft=True).block(1)
    assert_same_samples({field: getattr(soft, field) for field in FIELDS}, hard)
    assert hard.soft is None
    assert soft.attempts.max() > 1


def test_soft_block_when_read_then_the_levels_are_those_of_the_samples_that_were_kept():
    labeler = Knowing()
    block = Stream(labeler.generator, labeler, block=12, soft=True).block(0)
    assert block.soft is not None
    assert block.soft.shape == (12, 3, 24, 16)
    exact = labeler.label_softly(labeler.generator.sample(torch.from_numpy(block.seeds)))[1]
    assert (from_levels(torch.from_numpy(block.soft)) - exact).abs().max() < 1 / 255


def test_soft_batch_when_asked_for_then_it_holds_probabilities_and_each_image_is_drawn_once():
    labeler = Knowing()
    source = Stream(labeler.generator, labeler, block=8, soft=True)
    batch = source.batch(1, 4)
    assert batch.masks.shape == (4, 4, 24, 16)
    assert batch.masks.dtype == torch.float32
    torch.testing.assert_close(batch.masks.sum(1), torch.ones(4, 24, 16))
    block = source.block(0)
    assert_same_pictures(to_pixels(batch.images), block.images[4:])
    assert labeler.generator.draws == 2 * block.attempts.sum()


def test_soft_stream_when_the_labeler_only_has_masks_then_it_is_refused_before_any_work():
    assert isinstance(Knowing(), SoftLabeler)
    with pytest.raises(InputError, match="directions gives masks, but no probabilities"):
        stream(soft=True)
