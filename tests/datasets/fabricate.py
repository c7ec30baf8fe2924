"""Small data sets, scorers and run folders, made up for the tests of evaluation."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.evaluation.baselines import floors
from latentseg.evaluation.measuring import Scores, measure
from latentseg.evaluation.pictures import write_examples, write_pairs, write_story
from latentseg.files import write_json
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.images import Pixels, contact_sheet, encode, to_tensor
from latentseg.labelers.protocols import Labelled

SIDE = 16


def ids(rows: Sequence[Sequence[int]]) -> Pixels:
    """A mask from its rows."""
    return np.array(rows, np.uint8)


def blob(seed: int, *, height: int = SIDE, width: int = SIDE) -> Pixels:
    """A mask with an ellipse somewhere near the centre, (height, width) of 0 and 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / (max(height, width) - 1) - 0.5
    (cy, cx), (ry, rx) = rng.uniform(-0.15, 0.15, 2), rng.uniform(0.15, 0.4, 2)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1).astype(np.uint8)


def photo(seed: int, mask: Pixels) -> Pixels:
    """An image that shows the mask, in noise; different for each seed."""
    noise = np.random.default_rng(seed).integers(0, 90, (*mask.shape, 3), dtype=np.uint8)
    return noise + 120 * (mask[..., None] == 1).astype(np.uint8)


def write(path: Path, picture: Pixels) -> None:
    """A picture file; not flushed to the disk, which many small files would wait for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode(picture, path.suffix))


def write_pair(folder: Path, name: str, image: Pixels, mask: Pixels) -> None:
    """images/NAME.png and masks/NAME.png."""
    write(folder / "images" / f"{name}.png", image)
    write(folder / "masks" / f"{name}.png", mask)


def make_dataset(
    folder: Path, masks: Sequence[Pixels], classes: Sequence[str] = ("pet",)
) -> RealDataset:
    """A dataset folder with these masks (255 is ignored), opened."""
    for number, mask in enumerate(masks):
        write_pair(folder, f"{number:04d}", photo(number, mask), mask)
    write_json(folder / "dataset.json", {"classes": list(classes), "ignore": 255})
    return open_dataset(folder)


class Lookup:
    """Answers with scores that were fixed for each photo."""

    def __init__(self, dataset: RealDataset, scores: Sequence[NDArray[np.float32]]) -> None:
        self.scores_of = {
            dataset[i][1].tobytes(): answer
            for i, answer in zip(range(len(dataset)), scores, strict=True)
        }

    def scores(self, image: Pixels) -> Scores:
        return self.scores_of[image.tobytes()]


class Bright:
    """Calls bright pixels foreground."""

    def scores(self, image: Pixels) -> Scores:
        foreground = (image.mean(axis=-1) / 255).astype(np.float32)
        return np.stack([1 - foreground, foreground])


class ToyGenerator:
    """Draws the photos of this module; its latents are random numbers and never looked at."""

    info = GeneratorInfo("toy", (SIDE, SIDE), (3, 4), 0, "w", "Apache-2.0", "made up", "0" * 64)
    device = torch.device("cpu")

    def to(self, device: torch.device | str) -> "ToyGenerator":
        return self

    def sample(self, seeds: Tensor) -> Latents:
        rngs = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
        return Latents(torch.stack([torch.randn(self.info.latent, generator=rng) for rng in rngs]))

    def __call__(self, latents: Latents) -> Tensor:
        numbers = [int(1e4 * value.abs().sum()) for value in latents.values]
        return to_tensor(np.stack([photo(n, blob(n)) for n in numbers]))

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        return latents.with_values(latents.values + step)


class ToyLabeler:
    """Calls bright pixels foreground, and pretends to have directions."""

    generator = ToyGenerator()
    classes = ("foreground",)
    filters = ("area",)

    @property
    def info(self) -> dict[str, str]:
        return {"method": "toy"}

    def label(self, latents: Latents) -> Labelled:
        x = self.generator(latents)
        masks = (x.mean(dim=1) > 0).to(torch.uint8)
        ones = torch.linspace(0.5, 1, len(x))
        return Labelled(x, masks, ones, torch.zeros(len(x), dtype=torch.int64))

    def steps(self, latents: Latents) -> dict[str, Tensor]:
        x = self.generator(latents)
        return {"light": (x + 0.3).clamp(-1, 1), "dark": (x - 0.3).clamp(-1, 1)}

    def save(self, folder: Path | str) -> None:
        raise NotImplementedError


def write_run(folder: Path) -> Path:
    """A run folder with every part that the report knows, in numbers that were made up."""
    dataset = make_dataset(folder.parent / "photos", [blob(i) for i in range(14)])
    scorer = Bright()
    result = measure(scorer, dataset, quiet=True)
    entry = {
        **result.to_json(),
        "setting": "label-free",
        "floors": {name: floor.to_json() for name, floor in floors(dataset).items()},
        "ceiling": {**result.to_json(), "iou": 0.987},
    }
    pooled = measure(scorer, dataset, protocol="pooled", quiet=True).to_json()
    write_json(folder / "results.json", [entry, {**entry, "setting": "with photos"}, pooled])
    write_examples(scorer, dataset, result, folder / "examples", n=3)
    write_story(ToyLabeler(), scorer, dataset, result, folder / "samples")
    masks = np.stack([blob(i) for i in range(20)])
    images = np.stack([photo(i, mask) for i, mask in enumerate(masks)])
    write_pairs(images, masks, folder / "samples" / "pairs.png")
    write(folder / "labeler" / "contact_sheet.png", contact_sheet([list(images[:5])]))
    write_json(folder / "labeler" / "quality.json", _quality())
    _write_metrics(folder / "student")
    _write_metrics(folder / "photos" / "round-1")
    rounds = [
        {"round": 1, "used": 12, "agreement": 0.9},
        {"round": 2, "used": 13, "agreement": 0.95},
    ]
    write_json(folder / "photos" / "rounds.json", rounds)
    config = {
        "command": "latentseg run toy run",
        "generator": ToyGenerator.info.to_json(),
        "train": {"steps": 100, "lr": 1e-3},
        "versions": {"latentseg": "0.1.0"},
    }
    write_json(folder / "config.json", config)
    return folder


def _quality() -> dict[str, object]:
    losses = {part: [1 / (1 + i) for i in range(30)] for part in ("loss", "contrast", "structure")}
    both = {"light": 0.2, "dark": -0.1}
    row = {"edge_change": both, "brightness_change": both, "kept": 0.7, "area": 0.3}
    return {
        "directions": {sign: {"losses": losses, "steps": 30} for sign in both},
        "cosine": -0.437,
        "radii": [
            {"radius": 1.0, **row, "edge_alignment": None, "agreement": None},
            {"radius": 2.0, **row, "edge_alignment": 1.2, "agreement": 0.8},
        ],
        "generation_radius": 2.0,
        "samples": 100,
        "kept": 71,
        "removed": {"components": 0, "area": 29},
        "areas": {"bounds": [0.0, 0.5, 1.0], "counts": [60, 11]},
    }


def _write_metrics(folder: Path) -> None:
    folder.mkdir(parents=True)
    lines = [json.dumps({"step": s, "loss": 1 / s, "iou": 0.5, "lr": 1e-3}) for s in (50, 100, 150)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 200, "lo')
