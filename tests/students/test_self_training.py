import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentseg.datasets.pairs import Batch
from latentseg.errors import InputError
from latentseg.files import verify_manifest
from latentseg.images import write_image
from latentseg.seeds import random_generator
from latentseg.students.networks import build_network
from latentseg.students.photo_labels import (
    PhotoLabels,
    hold_area,
    label_photos,
    likely_areas,
    match_area,
    mean_iou,
    object_areas,
    soft_labels,
)
from latentseg.students.photo_pairs import PhotoPairs, confidence, sharpen
from latentseg.students.segmenter import Segmenter
from latentseg.students.self_training import read_photos, self_train
from latentseg.students.self_training_settings import SelfTrainingConfig
from latentseg.students.training import TrainConfig, train
from tests.students.test_segmenter import make_image, make_segmenter
from tests.students.toy import QUICK, Discs, iou_of

SIZE = (16, 16)
TRAIN = TrainConfig(steps=12, decay_at=8, lr=3e-3, augment="flip", **QUICK)
CONFIG = SelfTrainingConfig(
    rounds=1,
    train=TRAIN,
    scales=(1.0,),
    mixing="none",
    hold_last=False,
    min_consistency=0.0,
    warm_start=True,
    stop_agreement=1.1,
)


class Photos(Discs):
    """The same discs in every light, where the generator knows only bright ones."""

    def batch(self, step, size):
        batch = super().batch(step, size)
        order = torch.randperm(size, generator=random_generator(9, step))
        light = torch.linspace(0.35, 1, size)[order][:, None, None, None]
        return Batch(batch.images * light - (1 - light) * 0.3, batch.masks)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    config = replace(TRAIN, steps=60, decay_at=40)
    return train(
        Discs(SIZE), out=tmp_path_factory.mktemp("student") / "s", config=config, quiet=True
    )


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, image in enumerate(Photos(SIZE).photos(96)[0]):
        write_image(folder / f"{index:02d}.png", image)
    return folder


def make_labels(probabilities, is_kept=None):
    n = len(probabilities)
    kept = torch.ones(n, dtype=torch.bool) if is_kept is None else torch.tensor(is_kept)
    return PhotoLabels(torch.as_tensor(probabilities, dtype=torch.uint8), torch.ones(n), kept)


@pytest.mark.slow
def test_photos_help_on_other_photos_of_their_domain(student, photos, tmp_path):
    pictures, masks = Photos(SIZE, seed=5).photos(128)
    before = iou_of(student, pictures, masks)
    config = replace(CONFIG, rounds=2, train=replace(TRAIN, steps=60, decay_at=40))
    better = self_train(student, photos, Discs(SIZE), out=tmp_path, config=config, quiet=True)
    assert iou_of(better, pictures, masks) > before + 0.015
    verify_manifest(tmp_path)
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert [line["round"] for line in rounds] == [0, 1, 2]
    assert all(0 <= line["agreement"] <= 1 for line in rounds[1:])
    assert better.card["photos"]["n_photos"] == 96
    assert "results" not in better.card


def test_interrupted_self_training_continues_bit_for_bit(student, photos, tmp_path):
    config = replace(CONFIG, rounds=2)
    whole = self_train(student, photos, Discs(SIZE), out=tmp_path / "a", config=config, quiet=True)

    class Killed(Discs):
        calls = 0

        def batch(self, step, size):
            self.calls += 1
            if self.calls == 8 + 12 + 7:  # eight to learn the areas, all of round 1, in round 2
                raise RuntimeError("killed")
            return super().batch(step, size)

    with pytest.raises(RuntimeError, match="killed"):
        self_train(student, photos, Killed(SIZE), out=tmp_path / "b", config=config, quiet=True)
    assert (tmp_path / "b/round-1/model").exists()
    assert not (tmp_path / "b/round-2/model").exists()
    again = self_train(student, photos, Discs(SIZE), out=tmp_path / "b", config=config, quiet=True)
    assert again.digest == whole.digest


def test_more_rounds_continue_and_other_options_are_refused(student, photos, tmp_path):
    one = self_train(student, photos, Discs(SIZE), out=tmp_path, config=CONFIG, quiet=True)
    two = self_train(
        student, photos, Discs(SIZE), out=tmp_path, config=replace(CONFIG, rounds=2), quiet=True
    )
    assert Segmenter.from_pretrained(tmp_path / "round-1").digest == one.digest
    assert Segmenter.from_pretrained(tmp_path / "round-2").digest == two.digest
    with pytest.raises(InputError, match="temperature"):
        self_train(
            student,
            photos,
            Discs(SIZE),
            out=tmp_path,
            config=replace(CONFIG, temperature=1.0),
            quiet=True,
        )


def test_it_stops_when_students_agree(student, photos, tmp_path):
    config = replace(CONFIG, rounds=5, stop_agreement=0.0)
    self_train(student, photos, Discs(SIZE), out=tmp_path, config=config, quiet=True)
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert [line.get("stop") for line in rounds] == [None, "agreed"]


def test_a_student_that_collapsed_is_dropped(student, photos, tmp_path):
    class Empty(Discs):  # synthetic pairs without objects, after those that the areas come from
        calls = 0

        def batch(self, step, size):
            self.calls += 1
            batch = super().batch(step, size)
            return Batch(batch.images, batch.masks * (self.calls <= 8))

    config = replace(CONFIG, photo_share=0.01, rounds=3, warm_start=False, hold_area=False)
    kept = self_train(student, photos, Empty(SIZE), out=tmp_path, config=config, quiet=True)
    rounds = json.loads((tmp_path / "rounds.json").read_text())
    assert rounds[-1]["stop"] == "collapsed"
    assert kept.digest == student.digest


def test_warm_start_begins_with_the_student_before(student, photos, tmp_path):
    config = replace(CONFIG, train=replace(TRAIN, lr=0.0, steps=1))
    warm = self_train(student, photos, Discs(SIZE), out=tmp_path, config=config, quiet=True)
    for mine, its in zip(warm.members.parameters(), student.members.parameters(), strict=True):
        assert torch.equal(mine, its)


def area_seen(segmenter, pictures):
    return float(np.mean([segmenter.predict(p).mask > 0 for p in pictures]))


def test_the_area_is_that_of_the_synthetic_masks_or_the_one_that_is_known(
    student, photos, tmp_path
):
    pictures = read_photos(photos, SIZE, limit=999, seed=0)
    for name, changes, expected in (
        ("pairs", {}, float(object_areas(Discs(SIZE)).mean())),
        ("known", {"area": 0.4}, 0.4),
    ):
        config = replace(CONFIG, hold_last=True, **changes)
        held = self_train(
            student, photos, Discs(SIZE), out=tmp_path / name, config=config, quiet=True
        )
        assert area_seen(held, pictures) == pytest.approx(expected, abs=0.01)
        rounds = json.loads((tmp_path / name / "rounds.json").read_text())
        # Small components are removed after the area was matched.
        assert [line["area"] for line in rounds] == pytest.approx([expected] * 2, abs=0.05)


def test_holding_the_area_keeps_the_order_of_pixels():
    segmenter = make_segmenter(classes=("a", "b"), logits_up_to=2)
    pictures = np.stack([make_image(16, 16, seed) for seed in range(6)])
    held = hold_area(segmenter, pictures, 0.7)
    before, after = (
        np.stack(each.scores_batch(list(pictures)))[:, 0] for each in (segmenter, held)
    )
    assert (after < 0.5).mean() == pytest.approx(0.7, abs=0.01)
    order = before.flatten().argsort()
    assert (np.diff(after.flatten()[order]) >= -1e-6).all()


def test_students_work_at_their_own_size_photos_and_pairs_alike(student, photos, tmp_path):
    config = replace(CONFIG, train=replace(TRAIN, steps=1, lr=0.0, size=(24, 24)))
    larger = self_train(student, photos, Discs(SIZE), out=tmp_path, config=config, quiet=True)
    assert larger.input_size == (24, 24)


def test_the_first_teacher_takes_the_statistics_of_the_photos(student, photos, tmp_path):
    found = []
    for name, adapt in (("plain", False), ("adapted", True)):
        config = replace(CONFIG, adapt=adapt, train=replace(TRAIN, steps=1))
        self_train(student, photos, Discs(SIZE), out=tmp_path / name, config=config, quiet=True)
        rounds = json.loads((tmp_path / name / "rounds.json").read_text())
        found.append(rounds[0]["consistency"])
    assert found[0] != found[1]


def test_labels_end_at_edges_of_the_photo():
    """A segmenter that sees every edge two pixels too far left."""

    class Late(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(20.0))

        def forward(self, x):
            bright = x[:, 0].roll(-2, dims=-1)
            return torch.stack([-bright, bright], 1) * self.gain

    pictures = np.full((2, 16, 16, 3), 30, np.uint8)
    pictures[:, :, 8:] = 220
    segmenter = Segmenter([Late()], classes=("a",), input_size=SIZE)
    true = np.broadcast_to(np.arange(16) >= 8, (2, 16, 16))
    config = replace(CONFIG, min_component=0.0, hold_area=False)
    ious = [
        mean_iou(
            label_photos(
                segmenter, pictures, replace(config, label_edges=e), (0, 1), quiet=True
            ).foreground,
            true,
        )
        for e in (None, 4)
    ]
    assert ious[1] > ious[0] + 0.05


def test_labels_agree_with_the_student_and_are_judged(student):
    pictures, masks = Discs(SIZE).photos(12)
    pictures[0] = 40  # nothing to see
    labels = label_photos(student, pictures, CONFIG, (0.02, 0.6), quiet=True)
    assert labels.probabilities.shape == (12, 1, *SIZE)
    assert mean_iou(labels.foreground[1:], masks[1:] > 0) > 0.7
    assert not labels.is_kept[0]
    assert labels.is_kept[1:].float().mean() > 0.8
    strict = label_photos(
        student, pictures, replace(CONFIG, min_consistency=1.1), (0, 1), quiet=True
    )
    assert not strict.is_kept.any()


def test_small_components_become_background():
    torch.manual_seed(0)

    class Threshold(torch.nn.Module):
        """Foreground where a picture is bright."""

        def __init__(self):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(20.0))

        def forward(self, x):
            return torch.stack([-x[:, 0], x[:, 0]], 1) * self.gain

    picture = np.zeros((1, 16, 16, 3), np.uint8)
    picture[0, 2:8, 2:8] = 255
    picture[0, 12, 12] = 255
    segmenter = Segmenter([Threshold()], classes=("a",), input_size=SIZE)
    labels = label_photos(segmenter, picture, CONFIG, (0, 1), quiet=True)
    assert labels.foreground[0, 2:8, 2:8].all()
    assert labels.foreground.sum() == 36


def test_pairs_mix_photos_and_synthetic_pairs_as_a_function_of_the_step():
    pictures, masks = Discs(SIZE).photos(10)
    labels = make_labels(masks[:, None] * 255, [True] * 4 + [False] * 6)
    pairs = PhotoPairs(pictures, labels, Discs(SIZE), CONFIG, seed=0)
    batch = pairs.batch(3, 8)
    assert batch.images.shape == (8, 3, *SIZE)
    assert batch.masks.shape == (8, 2, *SIZE)
    assert batch.weights is not None
    assert batch.weights.shape == (8, *SIZE)
    assert torch.equal(batch.images, pairs.batch(3, 8).images)
    assert torch.equal(batch.images[6:], Discs(SIZE).batch(3, 2).images)
    seen = torch.cat([pairs.batch(step, 8).images[:6] for step in range(2)])
    assert len(seen.unique(dim=0)) == 4  # only kept photos, each three times in two batches
    only = PhotoPairs(
        pictures, labels, Discs(SIZE, stop_at=0), replace(CONFIG, photo_share=1.0), seed=0
    )
    assert only.batch(0, 8).images.shape == (8, 3, *SIZE)


def test_uncertain_pixels_count_less():
    pictures = np.zeros((1, *SIZE, 3), np.uint8)
    probabilities = torch.zeros(1, 1, *SIZE)
    probabilities[..., 0] = 128
    probabilities[..., 1] = 255
    pairs = PhotoPairs(
        pictures, make_labels(probabilities), Discs(SIZE), replace(CONFIG, photo_share=1.0), seed=0
    )
    weights = pairs.batch(0, 1).weights
    assert weights is not None
    assert weights[0, 0, 0] < 0.01
    assert torch.equal(weights[0, 0, 1:3], torch.ones(2))


def test_no_likely_label_is_an_error():
    pictures, masks = Discs(SIZE).photos(2)
    with pytest.raises(InputError, match="None of the 2 photos"):
        PhotoPairs(pictures, make_labels(masks[:, None], [False] * 2), Discs(SIZE), CONFIG, seed=0)


def test_likely_areas_come_from_the_synthetic_masks():
    low, high = likely_areas(object_areas(Discs(SIZE)))
    shares = Discs(SIZE).batch(0, 512).masks.float().mean((1, 2))
    assert 0.3 * shares.min() < low < shares.min()
    assert shares.max() < high < 0.8


def test_area_is_matched_and_the_order_of_pixels_stays():
    torch.manual_seed(0)
    drawn = torch.rand(100, 2, 8, 8) / 2  # two classes
    probabilities = (drawn * 255).round().to(torch.uint8)
    for share in (0.1, 0.3, 0.6):
        matched = match_area(probabilities, share)
        before, after = (p.sum(1, dtype=torch.int32).flatten() for p in (probabilities, matched))
        assert (after > 127).float().mean() == pytest.approx(share, abs=0.01)
        order = before.argsort()
        assert (after[order].diff() >= -2).all()  # two roundings


def test_area_that_fits_already_is_left_alone():
    probabilities = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    matched = match_area(probabilities, 0.5)
    assert (matched.int() - probabilities.int()).abs().max() <= 2


def test_soft_labels_hold_ids_and_ignored_pixels():
    masks = torch.tensor([[[0, 2, 255]]], dtype=torch.uint8)
    soft, weights = soft_labels(Batch(torch.zeros(1, 3, 1, 3), masks), ("a", "b"))
    assert soft[0, :, 0, 0].tolist() == [1, 0, 0]
    assert soft[0, :, 0, 1].tolist() == [0, 0, 1]
    assert weights.tolist() == [[[1, 1, 0]]]
    again, halves = soft_labels(Batch(torch.zeros(1, 3, 1, 3), soft, weights / 2), ("a", "b"))
    assert torch.equal(again, soft)
    assert torch.equal(halves, weights / 2)


def test_confidence_and_sharpening():
    probabilities = torch.tensor([0.2, 0.8]).view(1, 2, 1, 1)
    assert confidence(probabilities).item() == pytest.approx(0.6)
    assert sharpen(probabilities, 1.0)[0, 1].item() == pytest.approx(0.8)
    assert sharpen(probabilities, 0.5)[0, 1].item() == pytest.approx(0.64 / 0.68)


def test_mean_iou_counts_two_empty_masks_as_agreement():
    masks = np.zeros((2, 4, 4), bool)
    others = masks.copy()
    others[1, 0, 0] = True
    assert mean_iou(masks, others) == 0.5


def test_photos_are_read_at_the_size_and_at_most_the_limit(tmp_path):
    for index in range(5):
        write_image(tmp_path / f"{index}.png", np.full((20, 40, 3), index, np.uint8))
    pictures = read_photos(tmp_path, (8, 8), limit=3, seed=0)
    assert pictures.shape == (3, 8, 8, 3)
    assert len(np.unique(pictures)) == 3
    assert np.array_equal(pictures, read_photos(tmp_path, (8, 8), limit=3, seed=0))


def test_photos_of_several_folders_are_read_together(tmp_path):
    for index in range(4):
        write_image(
            tmp_path / "ab"[index % 2] / f"{index}.png", np.full((8, 8, 3), index, np.uint8)
        )
    write_image(tmp_path / "5.png", np.full((8, 8, 3), 5, np.uint8))
    places = [tmp_path / "a", tmp_path / "5.png", tmp_path / "b"]
    pictures = read_photos(places, (8, 8), limit=9, seed=0)
    assert pictures[:, 0, 0, 0].tolist() == [0, 2, 5, 1, 3]


def test_all_unreadable_photos_are_named(tmp_path):
    write_image(tmp_path / "good.png", np.zeros((8, 8, 3), np.uint8))
    for name in ("bad.jpg", "worse.png"):
        (tmp_path / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"(?s)bad\.jpg.*worse\.png"):
        read_photos(tmp_path, (8, 8), limit=9, seed=0)
    with pytest.raises(InputError, match="No photos"):
        read_photos([], (8, 8), limit=9, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rounds": 0},
        {"photo_share": 0},
        {"photo_share": 2},
        {"scales": ()},
        {"temperature": 0},
        {"agreement_smoothing": 2},
        {"mixing": "mixup"},
        {"area": 0},
        {"area": 0.3, "hold_area": False},
        {"label_edges": 0},
    ],
)
def test_wrong_options_are_refused(changes):
    with pytest.raises(InputError):
        replace(CONFIG, **changes)


def test_student_of_other_classes_than_the_pairs_is_refused(photos, tmp_path):
    network = build_network("unet", 3, width=0.125)
    other = Segmenter([network], classes=("a", "b"), input_size=SIZE, width=0.125)
    with pytest.raises(InputError, match="classes"):
        self_train(other, photos, Discs(SIZE), out=tmp_path, config=CONFIG, quiet=True)
