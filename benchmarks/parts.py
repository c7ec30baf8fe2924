"""Parts of real photos from a few painted images: python benchmarks/parts.py DATA PAINTED OUT.

DATA is a folder of photos with part labels (Clothing Co-Parsing), PAINTED a painting of images of
the generator. Photos are split once, by a fixed shuffle: one part to learn from, one to measure on.
Beside the few-shot route stand the same student trained on real labelled photos, and a simulated
painter: a student trained on all photos of the first part, whose masks of generated images take
the place of a person's. What is done is kept in OUT, so that the same command goes on.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from latentseg.datasets.pairs import FolderPairs
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.evaluation.measuring import measure
from latentseg.evaluation.metrics import accuracy, confusion_matrix, iou, weighted_iou
from latentseg.files import read_json, write_json
from latentseg.generators import load_generator
from latentseg.generators.protocols import Generator
from latentseg.images import read_mask, resize_mask, to_pixels
from latentseg.inversion.folder import invert
from latentseg.labelers.few_shot import FewShotLabeler, fit_few_shot
from latentseg.labelers.few_shot_settings import SETTINGS, FewShotConfig
from latentseg.labelers.painted import PaintedImages, read_painting
from latentseg.progress import say
from latentseg.students.segmenter import Segmenter
from latentseg.students.training import TrainConfig, train
from latentseg.synthesis.writers import synthesize

PROTOCOL = "tritrong2021"
SPLIT_SEED, PAINTER_KEY = 0, 77
INVERTED = 50  # photos
SHOTS, PHOTOS = (1, 5, 10), (1, 5, 10, 20, 50, 100, 200)
STUDENT = TrainConfig(width=0.25, steps=400, batch=16, decay_at=280, augment="photo")
PAINTER = replace(STUDENT, steps=1_200, decay_at=840)
HEADS = {
    "MLP": SETTINGS["ours"],
    "CNN": replace(SETTINGS["ours"], head="cnn"),
}


@dataclass(frozen=True)
class Bench:
    """Where everything lies, and how much of it is done."""

    data: Path
    painted: Path
    out: Path
    generator: Generator
    groups: tuple[str, ...]
    n_train: int
    count: int

    @cached_property
    def split(self) -> tuple[RealDataset, RealDataset]:
        """Photos to learn from, and photos to measure on."""
        dataset = open_dataset(self.data, grouping=self.groups)
        order = np.random.default_rng(SPLIT_SEED).permutation(len(dataset))
        parts = np.split(order, [self.n_train])
        first, second = (tuple(dataset.pairs[i] for i in part) for part in parts)
        return replace(dataset, pairs=first), replace(dataset, pairs=second)

    @cached_property
    def hand(self) -> PaintedImages:
        """What a person painted."""
        return read_painting(self.painted, self.generator)

    def supervised(self, name: str, dataset: RealDataset, config: TrainConfig) -> Segmenter:
        """A student of real labelled photos."""
        pairs = FolderPairs(dataset, size=self.generator.info.size, seed=config.seed)
        return train(pairs, out=self.out / name, config=config, quiet=True)

    def simulated(self, n: int, seed: int) -> PaintedImages:
        """`n` generated images, painted by a student of all photos of the first part."""
        painter = self.supervised("painter", self.split[0], PAINTER)
        seeds = np.random.default_rng([PAINTER_KEY, seed]).integers(2**31, size=n)
        latents = self.generator.sample(torch.from_numpy(seeds))
        scores = painter.scores_batch([*to_pixels(self.generator(latents))])
        masks = np.stack([each.argmax(axis=0) for each in scores]).astype(np.uint8)
        names = tuple(f"{one:08d}" for one in seeds)
        return PaintedImages(painter.classes, names, tuple(map(int, seeds)), masks)

    def head(self, name: str, painted: PaintedImages, config: FewShotConfig) -> FewShotLabeler:
        """A head taught by painted images."""
        out = self.out / name / "labeler"
        return fit_few_shot(self.generator, painted, config=config, out=out, quiet=True)

    def auto_shot(self, name: str, labeler: FewShotLabeler, config: TrainConfig) -> Segmenter:
        """A student of the head's class probabilities."""
        folder = self.out / name / "dataset"
        made = synthesize(
            self.generator, labeler, count=self.count, out=folder, soft=True, quiet=True
        )
        pairs = FolderPairs(made, seed=config.seed)
        return train(pairs, out=self.out / name / "student", config=config, quiet=True)

    def inverted(self, name: str, labeler: str) -> dict[str, Any]:
        """The head's masks of real photos, by way of their latents (the paper's few-shot route)."""
        photos = self.split[1].thinned(INVERTED)
        out = self.out / name
        files = [pair.image for pair in photos.pairs]
        invert(self.generator, files, out=out, labeler=self.out / labeler / "labeler")
        n_classes = len(photos.classes) + 1
        confusion = np.zeros((n_classes, n_classes), np.int64)
        for i, file in enumerate(files):
            truth = photos[i][2]
            mask = resize_mask(read_mask(out / f"{file.stem}_mask.png"), truth.shape)
            confusion += confusion_matrix(mask, truth, n_classes=n_classes)
        by_class = dict(zip(("background", *photos.classes), iou(confusion).tolist(), strict=True))
        return {
            "n_images": len(photos),
            "mean_iou": float(np.nanmean(iou(confusion))),
            "weighted_iou": weighted_iou(confusion),
            "acc": accuracy(confusion),
            "class_iou": by_class,
        }

    def measure(self, segmenter: Segmenter, limit: int | None = None) -> dict[str, Any]:
        """The numbers of the protocol on the photos of the second part."""
        result = measure(segmenter, self.split[1], protocol=PROTOCOL, limit=limit, quiet=True)
        return result.to_json()


def cells(bench: Bench, seeds: int) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Name of each measurement, and what makes it; the dearest last."""

    def supervised(n: int, seed: int) -> dict[str, Any]:
        first = bench.split[0]
        chosen = np.random.default_rng([n, seed]).permutation(len(first))[:n]
        few = replace(first, pairs=tuple(first.pairs[i] for i in chosen))
        name = f"supervised-{n}-{seed}"
        return bench.measure(bench.supervised(name, few, replace(STUDENT, seed=seed)))

    def few_shot(
        name: str, painted: PaintedImages, head: str, seed: int, student: TrainConfig = STUDENT
    ) -> dict[str, Any]:
        labeler = bench.head(name, painted, HEADS[head])
        return bench.measure(bench.auto_shot(name, labeler, replace(student, seed=seed)))

    hand = bench.hand
    shots = sorted({1, 5, len(hand.names)} & set(range(1, len(hand.names) + 1)))
    for head in HEADS:
        for k in shots:
            name = f"hand-{head.lower()}-{k}"
            yield name, lambda k=k, head=head, name=name: few_shot(name, first(hand, k), head, 0)
    for head in HEADS:
        best = f"hand-{head.lower()}-{len(hand.names)}"
        yield f"inversion-{best}", lambda best=best: bench.inverted(f"inversion-{best}", best)
        yield (
            f"on-the-same-{best}",
            lambda best=best: bench.measure(
                Segmenter.from_pretrained(bench.out / best / "student" / "model"), INVERTED
            ),
        )
    for augment in ("parts", "parts-photo"):
        name = f"hand-mlp-{len(hand.names)}-{augment}"
        student = replace(STUDENT, augment=augment)
        yield name, lambda name=name, student=student: few_shot(name, hand, "MLP", 0, student)
    for seed in range(seeds):
        for n in PHOTOS:
            yield f"supervised-{n}-{seed}", lambda n=n, seed=seed: supervised(n, seed)
        for k in SHOTS:
            name = f"simulated-mlp-{k}-{seed}"
            yield (
                name,
                lambda k=k, seed=seed, name=name: few_shot(
                    name, bench.simulated(k, seed), "MLP", seed
                ),
            )
    for k in SHOTS:
        name = f"simulated-cnn-{k}-0"
        yield name, lambda k=k, name=name: few_shot(name, bench.simulated(k, 0), "CNN", 0)
    yield "painter", lambda: bench.measure(bench.supervised("painter", bench.split[0], PAINTER))


def first(painted: PaintedImages, k: int) -> PaintedImages:
    """The first `k` painted images."""
    return replace(
        painted, names=painted.names[:k], seeds=painted.seeds[:k], masks=painted.masks[:k]
    )


def show(out: Path) -> None:
    """One row for each kind of measurement: mean over the seeds, and their spread."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        repeated = path.stem.startswith(("supervised", "simulated"))
        kind = path.stem.rsplit("-", 1)[0] if repeated else path.stem
        found.setdefault(kind, []).append(read_json(path))
    for kind, rows in found.items():
        means = [row["mean_iou"] for row in rows]
        classes = {
            name: np.mean([row["class_iou"][name] or 0 for row in rows])
            for name in rows[0]["class_iou"]
        }
        print(
            f"{kind:<28} {len(rows)} seeds  mean IoU {np.mean(means):.3f} +- {np.std(means):.3f}  "
            f"weighted {np.mean([row['weighted_iou'] for row in rows]):.3f}  "
            f"acc {np.mean([row['acc'] for row in rows]):.3f}  "
            + "  ".join(f"{name} {value:.3f}" for name, value in classes.items())
        )


def main(
    data: tyro.conf.Positional[Path],
    painted: tyro.conf.Positional[Path],
    out: tyro.conf.Positional[Path],
    generator: str = "street96",
    group: tuple[str, ...] = (),
    n_train: int = 400,
    count: int = 2_000,
    seeds: int = 3,
    part: Annotated[
        int, tyro.conf.arg(help="Which cells this process makes: those of --part.")
    ] = 0,
    parts: int = 1,
) -> None:
    """Makes what is missing of all cells, and prints the table."""
    bench = Bench(data, painted, out, load_generator(generator), group, n_train, count)
    for number, (name, make) in enumerate(cells(bench, seeds)):
        path = out / "results" / f"{name}.json"
        if number % parts == part and not path.is_file():
            say(name)
            write_json(path, make())
    show(out)


if __name__ == "__main__":
    tyro.cli(main)
