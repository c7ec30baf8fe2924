"""Shards of the world of blobs, labelled by its exact masks: quick to make, also by processes."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentseg.generators.protocols import Latents
from latentseg.labelers.protocols import Labelled
from latentseg.synthesis.shards import synthesize_shards
from tests.world import World


class Truth:
    """Gives the exact masks, and refuses objects on the left and dark pictures.

    Args:
        fuse: A file; the process that first finds it missing at its third call makes it and kills
            itself.
        pause_s: How long labelling takes besides.
    """

    classes = ("blob",)
    filters = ("left", "dark")

    def __init__(self, fuse: Path | None = None, pause_s: float = 0) -> None:
        self.generator = World()
        self.fuse, self.pause_s = fuse, pause_s
        self.calls = 0

    @property
    def info(self) -> dict[str, Any]:
        return {"method": "truth"}

    def label(self, latents: Latents) -> Labelled:
        self.calls += 1
        if self.pause_s:
            time.sleep(self.pause_s)
        if self.fuse and self.calls == 3 and not self.fuse.exists():
            self.fuse.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        images, masks = self.generator(latents), self.generator.masks(latents)
        is_left, is_dark = latents.values[:, 1] < -0.5, images.mean(dim=(1, 2, 3)) < -0.3
        rejected_by = torch.where(is_left, 1, torch.where(is_dark, 2, 0))
        return Labelled(images, masks, torch.full((len(latents),), 0.5), rejected_by)

    def save(self, folder: Path | str) -> None:
        raise NotImplementedError


class SoftTruth(Truth):
    """Knows probabilities as well: the mask, blurred to three levels."""

    def label_softly(self, latents: Latents) -> tuple[Labelled, Tensor]:
        labelled = self.label(latents)
        likely = 0.2 + 0.6 * labelled.masks[:, None].float()
        return labelled, torch.cat([1 - likely, likely], dim=1)


def make(out: Path, count: int = 22, *, labeler: Truth | None = None, **options: Any) -> Path:
    """22 samples in blocks of 4 and shards of 8: two whole shards and one of 6."""
    settings: dict[str, Any] = {"block": 4, "shard_size": 8, "quiet": True, **options}
    return synthesize_shards(World(), labeler or Truth(), count=count, out=out, **settings)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder of shards."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
