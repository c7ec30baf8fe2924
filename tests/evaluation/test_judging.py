import numpy as np
import pytest
import torch

from latentseg.errors import InputError
from latentseg.evaluation.judging import judge
from latentseg.generators.protocols import Latents
from latentseg.images import Pixels, to_pixels
from latentseg.labelers.protocols import Labelled
from tests.datasets.fabricate import Bright, ToyLabeler


class Left:
    """Calls the left half foreground, whatever it sees."""

    def scores(self, image: Pixels) -> np.ndarray:
        foreground = np.zeros(image.shape[:2], np.float32)
        foreground[:, : image.shape[1] // 2] = 0.9
        return np.stack([1 - foreground, foreground])


class Picky(ToyLabeler):
    """Keeps every second image of a batch, with a mask of class 3."""

    def label(self, latents: Latents) -> Labelled:
        labelled = super().label(latents)
        rejected = torch.arange(len(labelled.images)) % 2
        return Labelled(labelled.images, 3 * labelled.masks, labelled.confidence, rejected)


def test_judge_measures_the_labelers_masks_against_those_of_the_judge(tmp_path):
    judgment = judge(Picky(), Left(), name="left", count=12, quiet=True)
    drawn: list[tuple[Pixels, Pixels]] = []

    class Watching(Picky):
        def label(self, latents: Latents) -> Labelled:
            labelled = super().label(latents)
            drawn.extend(zip(to_pixels(labelled.images), labelled.masks.numpy() > 0, strict=True))
            return labelled

    judge(Watching(), Left(), name="left", count=12, quiet=True)
    truth = np.stack([Left().scores(image)[1] > 0.5 for image, _ in drawn])
    for result, rows in ((judgment.everything, slice(None)), (judgment.kept, slice(0, None, 2))):
        assert result is not None
        hard, true = np.stack([mask for _, mask in drawn])[rows], truth[rows]
        assert result.iou_pooled == pytest.approx((hard & true).sum() / (hard | true).sum())
        assert result.iou_background == pytest.approx((~hard & ~true).sum() / (~hard | ~true).sum())
        assert "Pseudo truth" in result.note
        assert "left" in result.note
        assert result.n_images == len(true)
    assert judgment.n_kept == 6


def test_image_i_depends_on_the_seed_and_i_alone():
    few = judge(ToyLabeler(), Left(), name="x", count=3, seed=5, quiet=True).everything
    more = judge(ToyLabeler(), Left(), name="x", count=9, seed=5, quiet=True).everything
    other = judge(ToyLabeler(), Left(), name="x", count=3, seed=6, quiet=True).everything
    assert more.per_image[:3] == few.per_image
    assert other.per_image != few.per_image


def test_judge_when_the_filters_keep_all_or_nothing_has_one_row():
    assert judge(ToyLabeler(), Bright(), name="x", count=3, quiet=True).kept is None

    class Refusing(ToyLabeler):
        def label(self, latents: Latents) -> Labelled:
            labelled = super().label(latents)
            return Labelled(
                labelled.images,
                labelled.masks,
                labelled.confidence,
                torch.ones(len(labelled.images)),
            )

    judgment = judge(Refusing(), Bright(), name="x", count=3, quiet=True)
    assert (judgment.kept, judgment.n_kept, judgment.everything.n_images) == (None, 0, 3)


def test_judge_when_asked_wrongly_is_refused():
    with pytest.raises(InputError, match="`count`: expected at least 1, found 0"):
        judge(ToyLabeler(), Bright(), name="x", count=0)
    with pytest.raises(InputError, match="`protocol`: tritrong2021 measures several classes"):
        judge(ToyLabeler(), Bright(), name="x", protocol="tritrong2021")
