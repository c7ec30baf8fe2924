"""The protocols of the papers against their clauses, written out plainly a second time."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from latentseg.evaluation.measuring import Scores, measure
from latentseg.evaluation.protocols import PROTOCOLS
from latentseg.evaluation.results import Result
from latentseg.evaluation.tally import Tally
from latentseg.images import IGNORE, Pixels
from tests.datasets.fabricate import Lookup, make_dataset
from tests.evaluation.test_boundaries import plain_boundary_f, plain_trimap
from tests.evaluation.test_protocols import random_photos

TOLERANCE = 1e-9
Numbers = dict[str, float]
Photos = tuple[list[Pixels], list[Scores]]


def labelled(masks: list[Pixels], answers: list[Scores]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Truth and probability of the pixels that count, photo by photo."""
    pairs = [(m[m != IGNORE] == 1, s[1][m != IGNORE]) for m, s in zip(masks, answers, strict=True)]
    return [pair for pair in pairs if len(pair[0])]


def naive_voynov2020(masks: list[Pixels], answers: list[Scores]) -> Numbers:
    accs, ious, curves = [], [], []
    for truth, soft in labelled(masks, answers):
        hard = soft >= 0.5
        accs.append((hard == truth).mean())
        union = (hard | truth).sum()
        ious.append((hard & truth).sum() / union if union else math.nan)
        curve = []
        for k in range(255):
            above = soft > np.float32(k / 255)
            precision = (above & truth).sum() / above.sum() if above.any() else 1.0
            recall = (above & truth).sum() / truth.sum() if truth.any() else 1.0
            total = 0.3 * precision + recall
            curve.append(1.3 * precision * recall / total if total else 0.0)
        curves.append(curve)
    mean = np.mean(curves, axis=0)
    return {
        "acc": float(np.mean(accs)),
        "iou": float(np.mean(ious)),
        "max_f": float(mean.max()),
        "threshold": int(mean.argmax()) / 255,
    }


def naive_selfmask(masks: list[Pixels], answers: list[Scores]) -> Numbers:
    accs, ious, best, halves = [], [], [], []
    for truth, soft in labelled(masks, answers):
        hard = soft > 0.5
        accs.append((hard == truth).mean())
        ious.append((hard & truth).sum() / ((hard | truth).sum() + 1e-7))

        def f(threshold: float, truth: np.ndarray = truth, soft: np.ndarray = soft) -> float:
            above = soft > np.float32(threshold)
            precision = (above & truth).sum() / (above.sum() + 1e-7)
            recall = (above & truth).sum() / (truth.sum() + 1e-7)
            total = 0.09 * precision + recall
            return 1.09 * precision * recall / total if total else 0.0

        best.append(max(f(k / 255) for k in range(255)))
        halves.append(f(0.5))
    return {
        "acc": float(np.mean(accs)),
        "iou": float(np.mean(ious)),
        "max_f": float(np.mean(best)),
        "f_half": float(np.mean(halves)),
        "threshold": math.nan,
    }


def naive_mae(masks: list[Pixels], answers: list[Scores]) -> Numbers:
    errors, means, adaptive = [], [], []
    for truth, soft in labelled(masks, answers):
        errors.append(np.mean([abs(float(p) - float(t)) for p, t in zip(soft, truth, strict=True)]))

        def f(above: np.ndarray, truth: np.ndarray = truth) -> float:
            precision = (above & truth).sum() / above.sum() if above.any() else 1.0
            recall = (above & truth).sum() / truth.sum() if truth.any() else 1.0
            total = 0.3 * precision + recall
            return 1.3 * precision * recall / total if total else 0.0

        means.append(np.mean([f(soft > np.float32(k / 255)) for k in range(255)]))
        limit = min(2 * soft.astype(np.float64).mean(), soft.max())
        adaptive.append(f((soft >= limit) & (soft > 0)))
    return {
        "one_minus_mae": 1 - float(np.mean(errors)),
        "mean_f": float(np.mean(means)),
        "adaptive_f": float(np.mean(adaptive)),
    }


def ratio(hard: np.ndarray, truth: np.ndarray) -> float:
    union = (hard | truth).sum()
    return float((hard & truth).sum() / union) if union else math.nan


def naive_feng2023(masks: list[Pixels], answers: list[Scores]) -> Numbers:
    numbers: Numbers = {}
    for name, width in (("", math.inf), ("trimap", 3.0), ("narrow", 1.5)):
        hards, truths = [], []
        for mask, scores in zip(masks, answers, strict=True):
            counts = mask != IGNORE if width == math.inf else plain_trimap(mask, width)
            hards.append(scores[1][counts] > 0.5)
            truths.append(mask[counts] == 1)
        hard, truth = np.concatenate(hards), np.concatenate(truths)
        both = ratio(hard, truth), ratio(~hard, ~truth)
        mean = float(np.mean(both))
        if name == "narrow":
            numbers["trimap_narrow"] = mean
        elif name == "trimap":
            numbers |= {"trimap_foreground": both[0], "trimap_background": both[1]}
            numbers["trimap_mean"] = mean
        else:
            numbers |= {"iou_pooled": both[0], "iou_background": both[1], "mean_iou": mean}
    return numbers


def naive_boundary(masks: list[Pixels], answers: list[Scores]) -> Numbers:
    values = [
        plain_boundary_f((scores[1] > 0.5).astype(np.uint8), mask, 0.0075)
        for mask, scores in zip(masks, answers, strict=True)
        if (mask != IGNORE).any()
    ]
    return {"boundary_f": float(np.mean(values))}


NAIVE: dict[str, Callable[[list[Pixels], list[Scores]], Numbers]] = {
    "voynov2020": naive_voynov2020,
    "selfmask": naive_selfmask,
    "mae": naive_mae,
    "feng2023": naive_feng2023,
    "boundary": naive_boundary,
}


def measured(folder: Path, photos: Photos, protocol: str) -> Result:
    dataset = make_dataset(folder, photos[0])
    return measure(Lookup(dataset, photos[1]), dataset, protocol=protocol, quiet=True)


@pytest.mark.parametrize("protocol", NAIVE)
@pytest.mark.parametrize("seed", range(3))
def test_protocol_when_compared_with_its_clauses_written_plainly(
    protocol: str, seed: int, tmp_path: Path
):
    photos = random_photos(seed, 40)
    result = measured(tmp_path, photos, protocol)
    for name, expected in NAIVE[protocol](*photos).items():
        tolerance = 1e-7 if name == "threshold" else TOLERANCE  # thresholds are float32
        value = getattr(result, name)
        assert value == pytest.approx(expected, abs=tolerance, nan_ok=True), name


FULL, EMPTY = np.ones((6, 6), np.uint8), np.zeros((6, 6), np.uint8)
HALF = np.repeat(np.array([[0, 1]], np.uint8), 6, axis=0).repeat(3, axis=1)


def hard(mask: Pixels) -> Scores:
    return np.stack([1 - mask, mask]).astype(np.float32)


@pytest.mark.parametrize(
    ("protocol", "name", "truth", "mask", "expected"),
    [
        # 0/0
        ("voynov2020", "iou", EMPTY, EMPTY, math.nan),
        ("melas2021", "iou", EMPTY, EMPTY, 0.0),
        ("selfmask", "iou", EMPTY, EMPTY, 0.0),
        ("feng2023", "iou_pooled", EMPTY, EMPTY, math.nan),
        ("feng2023", "iou_background", EMPTY, EMPTY, 1.0),
        ("feng2023", "mean_iou", EMPTY, EMPTY, 1.0),
        ("feng2023", "trimap_mean", EMPTY, EMPTY, math.nan),
        ("boundary", "boundary_f", EMPTY, EMPTY, 1.0),
        ("mae", "one_minus_mae", EMPTY, EMPTY, 1.0),
        ("mae", "adaptive_f", EMPTY, EMPTY, 1.0),
        # an empty prediction: its precision is 1, or 0 with an epsilon
        ("voynov2020", "f_half", HALF, EMPTY, 0.0),
        ("selfmask", "max_f", HALF, EMPTY, 0.0),
        ("feng2023", "iou_pooled", HALF, EMPTY, 0.0),
        ("feng2023", "iou_background", HALF, EMPTY, 0.5),
        ("boundary", "boundary_f", HALF, EMPTY, 0.0),
        ("mae", "one_minus_mae", HALF, EMPTY, 0.5),
        ("mae", "adaptive_f", HALF, EMPTY, 0.0),
        # an empty truth: its recall is 1, or 0 with an epsilon
        ("voynov2020", "iou", EMPTY, HALF, 0.0),
        ("voynov2020", "max_f", EMPTY, EMPTY, 1.0),
        ("selfmask", "max_f", EMPTY, EMPTY, 0.0),
        ("mae", "one_minus_mae", EMPTY, FULL, 0.0),
        # all right
        ("selfmask", "iou", FULL, FULL, 1.0),
        ("feng2023", "trimap_mean", HALF, HALF, 1.0),
        ("feng2023", "trimap_mean", FULL, FULL, math.nan),
    ],
)
def test_protocol_at_the_edges(
    protocol: str, name: str, truth: Pixels, mask: Pixels, expected: float
):
    tally = Tally("one photo", ("pet",), PROTOCOLS[protocol])
    ids = np.arange(2, dtype=np.uint8)
    tally.add("photo", hard(mask), truth, ids)
    tally.add("without labels", hard(mask), np.full_like(truth, IGNORE), ids)
    result = tally.result()
    assert getattr(result, name) == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert (result.n_images, result.n_unlabelled) == (1, 1)


def test_voynov2020_takes_a_probability_of_a_half_and_the_others_do_not(tmp_path: Path):
    half = np.full((2, 6, 6), 0.5, np.float32)
    values = {
        name: measured(tmp_path / name, ([FULL], [half]), name).acc
        for name in ("voynov2020", "melas2021", "selfmask", "mae", "feng2023", "boundary")
    }
    assert values.pop("voynov2020") == 1
    assert set(values.values()) == {0}


def test_columns_of_every_protocol_are_numbers_of_a_result(tmp_path: Path):
    for name, rules in PROTOCOLS.items():
        result = measured(tmp_path / name, random_photos(0, 12), name)
        assert result.protocol == rules.name == name
        numbers = result.to_json()
        for heading, key in rules.columns.items():
            is_known = isinstance(numbers[key], float) or (name, key) == ("voynov2020", "iou")
            assert is_known, (name, heading)


def test_f_beta_at_a_half_is_shown_where_it_is_computed():
    for name in ("melas2021", "voynov2020", "selfmask", "pooled"):
        assert PROTOCOLS[name].columns["F"] == "f_half"
