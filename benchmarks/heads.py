"""Heads and their trainings on hand-painted images: python benchmarks/heads.py GENERATOR PAINTED.

The head learns from the first painted images and is measured on the others, by all of their pixels
together; the time is that of teaching it, features included.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from latentseg.evaluation.metrics import confusion_matrix, iou
from latentseg.generators import load_generator
from latentseg.labelers.few_shot import fit_few_shot
from latentseg.labelers.few_shot_settings import SETTINGS
from latentseg.labelers.painted import PaintedImages, read_painting
from measuring import Row, show

SETTINGS = {
    "ours, mlp-small": SETTINGS["ours"],
    "ours, cnn": replace(SETTINGS["ours"], head="cnn"),
    "official, cnn": SETTINGS["official"],
    "bryandlee, cnn-l": SETTINGS["bryandlee"],
    "datasetgan, ensemble": SETTINGS["datasetgan"],
}


def main(
    generator: tyro.conf.Positional[str],
    painted: tyro.conf.Positional[Path],
    learned: Annotated[int, tyro.conf.arg(help="Images that the head learns from.")] = 5,
    settings: tuple[str, ...] = tuple(SETTINGS),
    seed: int = 0,
) -> None:
    """Prints the table."""
    opened = load_generator(generator)
    all_of_them = read_painting(painted, opened)
    first, rest = part(all_of_them, slice(learned)), part(all_of_them, slice(learned, None))
    rows: list[Row] = []
    for name in settings:
        began = time.perf_counter()
        labeler = fit_few_shot(opened, first, config=SETTINGS[name], seed=seed, quiet=True)
        seconds = time.perf_counter() - began
        masks = labeler.label(opened.sample(torch.tensor(rest.seeds))).masks.numpy()
        n_classes = len(rest.classes) + 1
        pairs = zip(masks, rest.masks, strict=True)
        counts = np.sum([confusion_matrix(*pair, n_classes=n_classes) for pair in pairs], axis=0)
        ious = dict(zip(("background", *rest.classes), iou(counts).tolist(), strict=True))
        rows.append({"head": name, "seconds": seconds, "mean IoU": iou(counts).mean(), **ious})
    title = f"{learned} images to learn from, {len(rest.names)} to measure on"
    show(title, rows, device="cpu", json_file=None)


def part(painted: PaintedImages, rows: slice) -> PaintedImages:
    """Some of the painted images."""
    return replace(
        painted, names=painted.names[rows], seeds=painted.seeds[rows], masks=painted.masks[rows]
    )


if __name__ == "__main__":
    tyro.cli(main)
