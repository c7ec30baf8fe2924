"""Every generator and every labeler, clause by clause through its protocol.

To hold another family of generators to its contract, add a module tests/generators/tiny_*.py; to
hold another labeler to it, a line to LABELERS.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.abilities import abilities
from latentseg.generators.protocols import Generator, HasFeatures, HasVariants, Latents
from latentseg.labelers import Labeler, kinds, labelers_for, load_labeler
from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
from tests.closeness import assert_same_masks
from tests.generators.tiny import TINY, one_of_each
from tests.labelers.test_feature_clusters import fitted as feature_clusters
from tests.labelers.test_few_shot import fitted as few_shot
from tests.labelers.test_prototypes import fitted as fitted_parts
from tests.labelers.test_style_mixing import mixing
from tests.world import World, fitted, seeds, with_gradient

GENERATORS: dict[str, Callable[[], Generator]] = {
    "world": World,
    "world, conditional": lambda: World(n_classes=3),
    "world, not square": lambda: World((24, 16)),
    **TINY,
}
LABELERS: dict[str, Callable[[], Labeler]] = {
    "directions": fitted,
    "directions, conditional": lambda: fitted(3),
    "directions, light": lambda: fitted().with_config(replace(fitted().config, mode="light")),
    "directions, dark": lambda: fitted().with_config(replace(fitted().config, mode="dark")),
    "style-mixing": mixing,
    "style-mixing, conditional": lambda: mixing(3),
    "style-mixing, parts": lambda: fitted_parts("shared"),
    "style-mixing, matched parts": lambda: fitted_parts("matched"),
    "agreement": lambda: AgreementLabeler(mixing(), fitted()),
    "few-shot": few_shot,
    "feature-clusters": feature_clusters,
    "voting": lambda: VotingLabeler(fitted(), mixing()),
}


@pytest.fixture(params=one_of_each(GENERATORS))
def generator(request: pytest.FixtureRequest) -> Generator:
    return GENERATORS[request.param]()


@pytest.fixture(params=LABELERS)
def labeler(request: pytest.FixtureRequest) -> Labeler:
    return LABELERS[request.param]()


def test_generator_when_checked_then_it_has_all_parts_and_a_licence(generator: Generator):
    assert isinstance(generator, Generator)
    assert generator.info.licence
    assert json.dumps(generator.info.to_json())
    assert generator.to("cpu") is generator
    assert generator.device == torch.device("cpu")


def test_generator_when_sampled_then_a_latent_depends_only_on_its_seed(generator: Generator):
    whole, part = generator.sample(seeds(6)), generator.sample(seeds(6)[3:5])
    assert whole.values.shape == (6, *generator.info.latent)
    assert whole.values.dtype == torch.float32
    torch.testing.assert_close(whole.values[3:5], part.values)
    assert not torch.equal(whole.values[0], whole.values[1])
    if whole.labels is not None and part.labels is not None:
        assert torch.equal(whole.labels[3:5], part.labels)


def test_generator_when_conditional_then_all_labels_occur_and_else_there_are_none(
    generator: Generator,
):
    labels = generator.sample(seeds(60)).labels
    if generator.info.n_classes == 0:
        assert labels is None
    else:
        assert labels is not None
        assert labels.dtype == torch.int64
        assert set(labels.tolist()) == set(range(generator.info.n_classes))


def test_generator_when_drawn_then_shape_dtype_and_range_hold(generator: Generator):
    x = generator(generator.sample(seeds(4)))
    assert x.shape == (4, 3, *generator.info.size)
    assert x.dtype == torch.float32
    assert x.isfinite().all()
    # Nominally [-1, 1]: some generators overshoot and are not clamped.
    assert x.abs().quantile(0.5) <= 1


def test_generator_when_drawn_again_or_in_other_batches_then_images_agree(generator: Generator):
    latents = generator.sample(seeds(5))
    x = generator(latents)
    torch.testing.assert_close(x, generator(latents), atol=1e-4, rtol=1e-4)
    one_by_one = torch.cat([generator(latents[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(x, one_by_one, atol=1e-4, rtol=1e-4)


def test_generator_when_differentiated_then_every_latent_has_a_gradient(generator: Generator):
    latents = with_gradient(generator.sample(seeds(3)))
    x = generator(latents)
    (gradient,) = torch.autograd.grad(x.square().sum(), latents.values)
    assert gradient.isfinite().all()
    assert (gradient.flatten(1).abs().amax(dim=1) > 0).all()


def test_generator_when_shifted_by_one_then_it_moves_by_one_standard_deviation(
    generator: Generator,
):
    latents = generator.sample(seeds(2000))
    moved = generator.shift(latents, torch.ones(generator.info.latent))
    spread = (moved.values - latents.values)[0]
    # Truncation makes samples narrower than the space whose spread is the unit.
    ratio = latents.values.std(dim=0) / spread
    assert ((ratio > 0.6) & (ratio < 1.3)).all()


def test_generator_when_shifted_then_steps_add_and_the_class_stays(generator: Generator):
    latents = generator.sample(seeds(3))
    step = torch.randn(3, *generator.info.latent, generator=torch.Generator().manual_seed(0))
    there = generator.shift(latents, step)
    torch.testing.assert_close(generator.shift(there, -step).values, latents.values)
    one = generator.shift(latents[1:2], step[1])
    torch.testing.assert_close(one.values, there.values[1:2])
    assert (there.labels is None) == (latents.labels is None)
    if latents.labels is not None and there.labels is not None:
        assert torch.equal(there.labels, latents.labels)


def test_generator_when_moved_then_nothing_of_it_stays_behind(generator: Generator):
    latents = generator.sample(seeds(2))
    generator.to("meta")  # computes shapes only, and refuses tensors of another device
    assert generator.device == torch.device("meta")
    labels = None if latents.labels is None else latents.labels.to("meta")
    moved = generator.shift(
        Latents(latents.values.to("meta"), labels), torch.ones((), device="meta")
    )
    x = generator(moved)
    assert x.device == torch.device("meta")
    assert x.shape == (2, 3, *generator.info.size)
    if isinstance(generator, HasFeatures):
        assert {features.device.type for features in generator.features(moved)} == {"meta"}


def test_generator_when_it_has_variants_then_keeping_all_layers_changes_nothing(
    generator: Generator,
):
    if not isinstance(generator, HasVariants):
        pytest.skip("has no variants")
    latents = generator.sample(seeds(2))
    seeds_of_others = seeds(3, key=1)
    kept, mixed = (
        generator.variants(latents, seeds_of_others, keep) for keep in (generator.n_layers, 1)
    )
    assert kept.shape == mixed.shape == (2, 3, 3, *generator.info.size)
    x = generator(latents)
    torch.testing.assert_close(kept, x[:, None].expand_as(kept), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(mixed[:, 0], mixed[:, 1])


def test_generator_when_it_has_features_then_their_channels_are_as_announced(
    generator: Generator,
):
    if not isinstance(generator, HasFeatures):
        pytest.skip("has no features")
    maps = generator.features(generator.sample(seeds(2)))
    assert tuple(features.shape[1] for features in maps) == generator.feature_channels
    sizes = [features.shape[-2:].numel() for features in maps]
    assert sizes == sorted(sizes)


def test_generator_when_asked_then_its_labelers_are_known_methods(generator: Generator):
    assert set(labelers_for(abilities(generator))) <= set(kinds())
    assert "directions" in labelers_for(abilities(generator))


def test_world_when_appearance_is_exchanged_then_masks_stay():
    world = World()
    latents, others = world.sample(seeds(4)), world.sample(seeds(4, key=1))
    mixed = latents.with_values(torch.cat([latents.values[:, :7], others.values[:, 7:]], dim=1))
    assert_same_masks(world.masks(mixed), world.masks(latents))
    assert not torch.equal(world.masks(others), world.masks(latents))


def test_labeler_when_labelling_then_shapes_types_and_values_hold(labeler: Labeler):
    latents = labeler.generator.sample(seeds(5))
    labelled = labeler.label(latents)
    height, width = labeler.generator.info.size
    torch.testing.assert_close(labelled.images, labeler.generator(latents))
    assert not labelled.images.requires_grad
    assert labelled.masks.shape == (5, height, width)
    assert labelled.masks.dtype == torch.uint8
    assert labelled.masks.max() <= len(labeler.classes)
    assert labelled.confidence.shape == labelled.rejected_by.shape == (5,)
    assert ((labelled.confidence >= 0) & (labelled.confidence <= 1)).all()
    assert labelled.rejected_by.dtype == torch.int64
    assert labelled.rejected_by.min() >= 0
    assert labelled.rejected_by.max() <= len(labeler.filters)


def test_labeler_when_the_batch_is_split_then_masks_and_verdicts_agree(labeler: Labeler):
    latents = labeler.generator.sample(seeds(9))
    whole = labeler.label(latents)
    parts = [labeler.label(latents[rows]) for rows in (slice(0, 1), slice(1, 5), slice(5, 9))]
    assert_same_masks(whole.masks, torch.cat([part.masks for part in parts]))
    assert torch.equal(whole.rejected_by, torch.cat([part.rejected_by for part in parts]))
    torch.testing.assert_close(whole.confidence, torch.cat([part.confidence for part in parts]))


def test_labeler_when_saved_and_loaded_then_it_labels_alike(labeler: Labeler, tmp_path: Path):
    labeler.save(tmp_path)
    loaded = load_labeler(tmp_path, labeler.generator)
    latents = labeler.generator.sample(seeds(4))
    expected, found = labeler.label(latents), loaded.label(latents)
    assert_same_masks(expected.masks, found.masks)
    assert torch.equal(expected.rejected_by, found.rejected_by)
    assert loaded.classes == labeler.classes
    assert json.dumps(loaded.info) == json.dumps(labeler.info)


def test_labeler_when_any_file_is_damaged_then_it_is_refused(labeler: Labeler, tmp_path: Path):
    labeler.save(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises((CorruptFileError, InputError)):
            load_labeler(tmp_path, labeler.generator)
        path.write_bytes(whole)
