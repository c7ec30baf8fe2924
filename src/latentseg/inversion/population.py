"""What a generator's latents are like, and where a search begins."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.chunks import parts
from latentseg.generators.protocols import Generator, Latents
from latentseg.inversion.losses import MultiScaleLoss, reduced
from latentseg.inversion.settings import InversionConfig
from latentseg.seeds import derive_seeds

THUMBNAIL_PX = 64
AT_ONCE = 256  # latents that are drawn at once for the mean
OF_MEAN, OF_START = 1, 2  # keep the random numbers of one seed apart


@dataclass(frozen=True)
class Population:
    """The mean and std of a generator's latents, and some latents to start from.

    Attributes:
        mean, std: (*latent) float, of each coordinate.
        drawn: N latents to start from.
        thumbnails: Their images (N, 3, h, w) in [-1, 1], at most 64 px a side, on the CPU.
    """

    mean: Tensor
    std: Tensor
    drawn: Latents
    thumbnails: Tensor

    @staticmethod
    @torch.no_grad()
    def of(generator: Generator, config: InversionConfig, seed: int) -> "Population":
        """Draws the latents of `generator` and estimates their mean and std.

        Raises:
            InputError: its images do not have the size that its card says.
        """

        def sample(key: int, rows: range) -> Latents:
            return generator.sample(derive_seeds(seed, key, np.array(rows)).to(generator.device))

        n = config.mean_samples
        total = squares = torch.zeros((), dtype=torch.float64)
        for start in range(0, n, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, n))
            values = sample(OF_MEAN, rows).values.cpu().double()
            total, squares = total + values.sum(dim=0), squares + values.square().sum(dim=0)
        mean = total / n
        std = (squares / n - mean.square()).clamp(min=0).sqrt()
        drawn = sample(OF_START, range(config.candidates))
        small = []
        for part in parts(config.candidates, generator.info.size):
            x = generator(drawn[part])
            if x.shape[1:] != (3, *generator.info.size):
                raise InputError(
                    f"generator {generator.info.name!r} draws images of shape "
                    f"{tuple(x.shape[1:])}, but its card says {(3, *generator.info.size)}."
                )
            small.append(thumbnails(x).cpu())
        device = generator.device
        return Population(mean.float().to(device), std.float().to(device), drawn, torch.cat(small))

    def distances(self, x: Tensor) -> Tensor:
        """(B, N): the multi-scale loss between thumbnails of photos (B, 3, H, W) and of `drawn`."""
        loss = MultiScaleLoss()
        drawn = loss.describe(self.thumbnails)
        wanted = loss.describe(thumbnails(x).cpu())
        rows = [loss.compare([level[i : i + 1] for level in wanted], drawn) for i in range(len(x))]
        return torch.stack(rows)


def thumbnails(x: Tensor) -> Tensor:
    """Images (B, 3, H, W) averaged down to at most 64 px a side."""
    return reduced(x, THUMBNAIL_PX)
