"""A painting of the tests' world, and a head that is known: it labels what is bright."""

import threading
from pathlib import Path

import numpy as np
import torch

from latentseg.app.painting import Painting, gallery_seed, start_painting
from latentseg.app.previews import Painted
from latentseg.images import Pixels, to_pixels
from tests.world import World

SIZE = (24, 32)  # height and width differ, so that exchanging them is noticed
PARTS = ("hair", "skin", "shoes")


def begin(folder: Path, n: int = 2, parts: tuple[str, ...] = PARTS) -> Painting:
    """A painting with `n` chosen images of the world, nothing painted."""
    world = World(SIZE)
    painting = start_painting(folder, world.info.to_json(), seed=0, parts=parts)
    for index in range(n):
        seed = gallery_seed(0, index)
        image = to_pixels(world(world.sample(torch.tensor([seed]))))[0]
        painting.choose(seed, image, None)
    return painting


def noise(key: int, n_classes: int = 3) -> Pixels:
    """A mask in which every id occurs, and 255."""
    ids = np.array([*range(n_classes + 1), 255], np.uint8)
    return np.random.default_rng(key).choice(ids, SIZE)


class Threshold:
    """A previewer: class 1 where the image of the seed is bright, once it learnt."""

    def __init__(self) -> None:
        self.world = World(SIZE)
        self.fits: list[tuple[list[str], tuple[str, ...]]] = []
        self.may_learn = threading.Event()
        self.may_learn.set()
        self.error: Exception | None = None

    def fit(self, painted: list[Painted], classes: tuple[str, ...]) -> bool:
        self.fits.append(([name for name, _, _ in painted], classes))
        mine = len(self.fits)
        self.may_learn.wait(5)
        if self.error:
            raise self.error
        return mine == len(self.fits)

    def predict(self, seeds: list[int]) -> Pixels:
        images = self.world(self.world.sample(torch.tensor(seeds)))
        return (images.mean(dim=1) > 0).to(torch.uint8).numpy()
