"""A toy domain: a coloured disc on a noisy ground, with its exact mask."""

from dataclasses import dataclass

import numpy as np
import torch

from latentseg.datasets.pairs import Batch
from latentseg.images import Pixels, to_pixels
from latentseg.seeds import random_generator

QUICK = {"width": 0.125, "batch": 8, "report_every": 5, "checkpoint_every": 5}


@dataclass
class Discs:
    """Pairs of a disc and its mask; `shuffled` gives every picture the mask of another one."""

    size: tuple[int, int] = (32, 32)
    classes: tuple[str, ...] = ("disc",)
    seed: int = 0
    n_steps: int | None = None  # batches until the same come again
    shuffled: bool = False
    stop_at: int | None = None  # raise instead of giving this step

    def batch(self, step: int, size: int) -> Batch:
        if step == self.stop_at:
            raise RuntimeError("killed")
        step = step % self.n_steps if self.n_steps else step
        rng = random_generator(self.seed, step)
        height, width = self.size
        centre = torch.rand(size, 2, 1, 1, generator=rng) * 0.5 + 0.25
        radius = torch.rand(size, 1, 1, generator=rng) * 0.15 + 0.15
        rows = (torch.arange(height) + 0.5)[:, None] / height
        columns = (torch.arange(width) + 0.5)[None, :] / width
        masks = (rows - centre[:, 0]) ** 2 + (columns - centre[:, 1]) ** 2 < radius**2
        colour = torch.rand(size, 3, 1, 1, generator=rng) * 0.5 + 0.3
        images = torch.rand(size, 3, height, width, generator=rng) * 0.6 - 0.6
        images = torch.where(masks[:, None], colour, images)
        return Batch(images, masks.roll(1, 0).byte() if self.shuffled else masks.byte())

    def photos(self, n: int) -> tuple[Pixels, Pixels]:
        batch = self.batch(1_000_000, n)
        return to_pixels(batch.images), batch.masks.numpy()


def iou_of(segmenter, images: Pixels, masks: Pixels) -> float:
    """Mean IoU per image."""
    found = np.stack([prediction.mask for prediction in segmenter.predict(list(images))]) > 0
    true = masks > 0
    return float(((found & true).sum((1, 2)) / (found | true).sum((1, 2)).clip(1)).mean())
