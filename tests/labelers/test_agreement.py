"""Two labelers together: agreement as confidence and filter, and masks both vote for."""

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.configs import from_json
from latentseg.errors import InputError
from latentseg.labelers import load_labeler
from latentseg.labelers.agreement import AgreementConfig, AgreementLabeler, VotingLabeler
from latentseg.labelers.direction_search import find_direction
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import SETTINGS
from latentseg.labelers.mask_measures import mask_iou
from latentseg.labelers.protocols import Labelled
from tests.closeness import assert_same_masks
from tests.labelers.test_style_mixing import mixing
from tests.world import World, seeds

KINDS = (AgreementLabeler, VotingLabeler)
STEPS = replace(SETTINGS["ours"], batch=8, generation_radius=4.0, is_opposite=True)


@cache
def fitted() -> DirectionsLabeler:
    """Directions of the world after a short search."""
    world, brief = World(), replace(STEPS, steps=60, restarts=1, tolerance=0.0)
    found = {
        sign: find_direction(world, sign, config=brief, quiet=True).values for sign in brief.signs
    }
    return DirectionsLabeler(world, found, config=brief, seed=0)


class Noisy:
    """A labeler that is right in the left half of an image and guesses in the right one."""

    classes = ("foreground",)
    filters = ()

    def __init__(self, generator: World, key: int) -> None:
        self.generator, self.key = generator, key
        self.info = {"method": "noisy"}

    def votes(self, latents, x) -> torch.Tensor:
        truth = 2.0 * self.generator.masks(latents) - 1
        rng = torch.Generator().manual_seed(self.key)
        noise = 0.3 * torch.randn(truth.shape, generator=rng)
        half = truth.shape[2] // 2
        blind = slice(half, None) if self.key == 0 else slice(0, half)
        truth[:, :, blind] = noise[:, :, blind]
        return truth

    def label(self, latents) -> Labelled:
        masks = (self.votes(latents, None) > 0).to(torch.uint8)
        n = len(latents)
        return Labelled(
            self.generator(latents), masks, torch.ones(n), torch.zeros(n, dtype=torch.int64)
        )

    def save(self, folder) -> None:
        raise NotImplementedError


def test_agreement_when_labelling_then_masks_are_the_firsts_and_confidence_is_the_iou():
    first, second = mixing(), fitted()
    latents = first.generator.sample(seeds(8))
    labelled = AgreementLabeler(first, second).label(latents)
    own, other = first.label(latents), second.label(latents)
    assert_same_masks(labelled.masks, own.masks)
    expected = mask_iou(own.masks.numpy() > 0, other.masks.numpy() > 0)
    np.testing.assert_allclose(labelled.confidence.numpy(), expected, rtol=1e-6)
    assert labelled.confidence.mean() > 0.85


def test_agreement_when_masks_differ_then_the_last_filter_refuses_them():
    first, second = mixing(), fitted()
    latents = first.generator.sample(seeds(8))
    config = AgreementConfig(min_agreement=1.0)
    labeler = AgreementLabeler(first, second, config=config)
    labelled = labeler.label(latents)
    assert labeler.filters == (*first.filters, "agreement with directions")
    differs = labelled.confidence < 1
    assert differs.any()
    assert (labelled.rejected_by[differs] == len(labeler.filters)).all()
    assert torch.equal(labelled.rejected_by[~differs], first.label(latents).rejected_by[~differs])


def test_voting_when_each_is_sure_elsewhere_then_it_beats_both():
    world = World()
    pair = Noisy(world, 0), Noisy(world, 1)
    latents = world.sample(seeds(16))
    truth = world.masks(latents).numpy() > 0

    def iou(labelled: Labelled) -> float:
        return float(mask_iou(labelled.masks.numpy() > 0, truth).mean())

    voted = iou(VotingLabeler(*pair).label(latents))
    assert voted > 0.9 > max(iou(labeler.label(latents)) for labeler in pair)


def test_voting_when_both_labelers_are_good_then_so_is_it():
    world, labeler = World(), VotingLabeler(fitted(), mixing())
    latents = world.sample(seeds(32, key=7))
    labelled = labeler.label(latents)
    ious = mask_iou(labelled.masks.numpy() > 0, world.masks(latents).numpy() > 0)
    assert ious.mean() >= 0.95
    assert (labelled.rejected_by == 0).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_pair_when_saved_and_loaded_then_it_labels_alike(kind, tmp_path: Path):
    labeler = kind(mixing(), fitted(), config=AgreementConfig(min_agreement=0.7))
    labeler.save(tmp_path)
    again = load_labeler(tmp_path, labeler.generator)
    assert isinstance(again, kind)
    latents = labeler.generator.sample(seeds(4))
    expected, found = labeler.label(latents), again.label(latents)
    assert_same_masks(expected.masks, found.masks)
    assert torch.equal(expected.rejected_by, found.rejected_by)
    assert json.dumps(again.info) == json.dumps(labeler.info)


@pytest.mark.parametrize("kind", KINDS)
def test_pair_when_the_batch_is_split_then_masks_and_verdicts_agree(kind):
    labeler = kind(mixing(), fitted())
    latents = labeler.generator.sample(seeds(6))
    whole = labeler.label(latents)
    parts = [labeler.label(latents[rows]) for rows in (slice(0, 1), slice(1, 6))]
    assert_same_masks(whole.masks, torch.cat([part.masks for part in parts]))
    assert torch.equal(whole.rejected_by, torch.cat([part.rejected_by for part in parts]))


@pytest.mark.parametrize("kind", KINDS)
def test_pair_when_the_generators_differ_then_it_is_refused(kind):
    with pytest.raises(InputError, match="same one"):
        kind(mixing(), mixing(3))


def test_voting_when_a_labeler_cannot_vote_then_it_is_named():
    class Parts(Noisy):
        classes = ("head", "body")

    with pytest.raises(InputError, match="'noisy' with classes head, body"):
        VotingLabeler(Parts(World(), 0), mixing())


def test_config_when_a_threshold_is_impossible_then_it_is_refused():
    with pytest.raises(InputError, match=r"`min_agreement`: expected 0 to 1, found 1\.5"):
        replace(AgreementConfig(), min_agreement=1.5)
    with pytest.raises(InputError, match="Perhaps 'min_area'"):
        from_json(AgreementConfig, {"min_aera": 0.1}, "labeler.json")
    config = AgreementConfig(min_agreement=0.3)
    assert from_json(AgreementConfig, json.loads(json.dumps(asdict(config))), "x") == config
