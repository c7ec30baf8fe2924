"""Choices about students, measured on train photos that are for choices alone.

python benchmarks/students.py PAIRS DATASET OUT --rows student photos

Test photos are no place for choices. DATASET is a folder of train photos with masks: of its names,
sorted and permuted by numpy's default_rng(0), the first 500 are measured on; the others are the
unlabelled photos of self-training, and their masks are never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro
from numpy.typing import NDArray
from scipy import ndimage
from tyro.conf import Positional

from measuring import Row, show

if TYPE_CHECKING:
    from latentseg.datasets.real import RealDataset
    from latentseg.students.segmenter import Segmenter

CHOSEN = 500
IGNORE = 255
NEAR = 3  # px
SPLIT_SEED = 0


@dataclass(frozen=True)
class Choice:
    """A student that learns from pairs, and then from photos if `photos` is not None.

    Attributes:
        train: Fields of the TrainConfig that differ from the preset.
        photos: Fields of the SelfTrainingConfig that differ from its defaults.
        answers: Options of `Segmenter.predict`.
    """

    train: dict[str, Any]
    photos: dict[str, Any] | None = None
    answers: dict[str, Any] | None = None


LITE0 = {"network": "unet:efficientnet-lite0", "width": 1.0}
PLAIN = {"mixing": "none"}
CHOICES = {
    "scratch": Choice({}),
    "student": Choice(LITE0),
    "student, flip": Choice(LITE0, answers={"flip": True}),
    "student, flip and scales": Choice(LITE0, answers={"flip": True, "scales": (1.0, 1.5)}),
    "student, edges 4": Choice(LITE0, answers={"edges": 4}),
    "student, edges 8": Choice(LITE0, answers={"edges": 8}),
    "student, ema": Choice({**LITE0, "ema": 0.98}),
    "student, encoder at full rate": Choice({**LITE0, "encoder_lr": 1e-3}),
    "student, 224 px": Choice({**LITE0, "size": (224, 224)}),
    "photos": Choice(LITE0, photos=PLAIN),
    "photos, area of the student": Choice(LITE0, photos={**PLAIN, "area_from": "student"}),
    "photos, last not held": Choice(LITE0, photos={**PLAIN, "hold_last": False}),
    "photos, classmix": Choice(LITE0, photos={"mixing": "classmix"}),
    "photos, cutmix": Choice(LITE0, photos={"mixing": "cutmix"}),
    "photos, smoothing": Choice(LITE0, photos={**PLAIN, "agreement_smoothing": 0.5}),
    "photos, label edges": Choice(LITE0, photos={**PLAIN, "label_edges": 8}),
    "photos, warm": Choice(LITE0, photos={**PLAIN, "warm_start": True}),
    "photos, default": Choice(LITE0, photos={}),
}


def split(dataset: "RealDataset", chosen: int) -> tuple["RealDataset", "RealDataset"]:
    """The photos to measure on, and all others."""
    pairs = sorted(dataset.pairs, key=lambda pair: pair.name)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pairs))
    first, others = (
        tuple(pairs[i] for i in part) for part in (order[:CHOSEN][:chosen], order[CHOSEN:])
    )
    return replace(dataset, pairs=first), replace(dataset, pairs=others)


def trained(
    name: str, pairs: Path, photos: Sequence[Path], out: Path, base: Any, rounds: int, device: str
) -> "Segmenter":
    """The student of a row; equal students are trained once."""
    from latentseg.datasets.pairs import FolderPairs
    from latentseg.students.self_training import self_train
    from latentseg.students.self_training_settings import SelfTrainingConfig
    from latentseg.students.training import train

    choice = CHOICES[name]
    config = replace(base, **choice.train)
    same = next(n for n, c in CHOICES.items() if c.train == choice.train)
    source = FolderPairs(pairs, seed=config.seed)
    student = train(source, out=out / same, config=config, device=device)
    if choice.photos is None:
        return student
    settings = SelfTrainingConfig(rounds=rounds, train=config, **choice.photos)
    return self_train(student, photos, source, out=out / name, config=settings, device=device)


def measured(name: str, segmenter: "Segmenter", chosen: "RealDataset") -> Row:
    """The numbers of a row."""
    from latentseg.evaluation.measuring import measure

    scorer = segmenter.with_options(**(CHOICES[name].answers or {}))
    result = measure(scorer, chosen, protocol="melas2021", quiet=True)
    found = [scorer.scores(image)[0] < 0.5 for _, image, _ in chosen]
    near = [near_iou(mask, truth) for mask, (_, _, truth) in zip(found, chosen, strict=True)]
    return {
        "choice": name,
        "IoU": result.iou,
        "error": result.iou_error,
        "IoU near the outline": float(np.nanmean(near)),
        "area": float(np.mean([mask.mean() for mask in found])),
        "photos": len(chosen),
    }


def near_iou(mask: NDArray[np.bool_], truth: NDArray[np.uint8]) -> float:
    """IoU of the pixels that lie within 3 px of ignored ones, as outlines are in the pets."""
    near = ndimage.maximum_filter(truth == IGNORE, size=2 * NEAR + 1) & (truth != IGNORE)
    union = ((mask | (truth > 0)) & near).sum()
    return float((mask & (truth > 0) & near).sum() / union) if union else np.nan


def main(
    pairs: Positional[Path],
    dataset: Positional[Path],
    out: Positional[Path],
    rows: tuple[str, ...] = ("student", "photos"),
    chosen: int = CHOSEN,
    unlabelled: int = 5_000,
    rounds: int = 1,
    steps: int = 400,
    batch: int = 32,
    seed: int = 0,
    device: str = "auto",
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Trains the students of the rows, and measures them on photos that are for choices.

    Args:
        pairs: Dataset folder of synthetic pairs.
        dataset: Train photos with masks.
        out: Folder of the trainings; the same command again goes on.
        rows: Names of `CHOICES`.
        chosen: Measure on so many of the 500 photos that are for choices.
        unlabelled: Learn from at most so many of the other photos.
        rounds: Of self-training.
        steps: Of each student.
        batch: Pairs per step.
        seed: Of the students.
        device: auto, cpu, cuda, ...
        json: File for the numbers.
    """
    from latentseg.datasets.real import open_dataset
    from latentseg.students.training import PRESETS

    apart, others = split(open_dataset(dataset), chosen)
    photos = [pair.image for pair in others.pairs][:unlabelled]
    base = replace(
        PRESETS["standard"], steps=steps, decay_at=round(0.7 * steps), batch=batch, seed=seed
    )
    table = []
    for name in rows:
        segmenter = trained(name, pairs, photos, out, base, rounds, device)
        table.append(measured(name, segmenter, apart))
        print(table[-1], flush=True)
    show("Students", table, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
