"""How far drawn images are from photos: without a network, and by Inception features."""

import importlib
from pathlib import Path

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentseg.errors import InputError

PATCH = 7  # Karras et al. 2018: 7 x 7 neighbourhoods
COARSEST_PX = 16


def sliced_wasserstein(
    a: Tensor, b: Tensor, *, patches: int = 64, directions: int = 128, seed: int = 0
) -> dict[int, float]:
    """Sliced Wasserstein distance of two sets of images, per level of their Laplacian pyramids.

    It compares local texture and structure at each scale; it does not know what an object is.

    Args:
        a, b: (N, 3, H, W) uint8, equally many.
        patches: Neighbourhoods drawn from each image.
        directions: Random projections.
        seed: Of the places and the projections.

    Returns:
        {height in pixels: distance x 1000}, fine to coarse; 0 for equal sets.

    Source: Karras et al. 2018, Progressive Growing of GANs, section 5.
    """
    generator = torch.Generator().manual_seed(seed)
    pyramid_a, pyramid_b = _laplacian(a), _laplacian(b)
    distances = {}
    for level_a, level_b in zip(pyramid_a, pyramid_b, strict=True):
        projections = torch.randn(3 * PATCH * PATCH, directions, generator=generator)
        projections = projections / projections.norm(dim=0)
        sorted_a, sorted_b = (
            (_descriptors(level, patches, generator) @ projections).sort(dim=0).values
            for level in (level_a, level_b)
        )
        distances[level_a.shape[2]] = 1000 * (sorted_a - sorted_b).abs().mean().item()
    return distances


def _laplacian(images: Tensor) -> list[Tensor]:
    x, levels = images.float() / 127.5 - 1, []
    while min(x.shape[2:]) >= 2 * COARSEST_PX:
        coarse = F.avg_pool2d(x, 2)
        levels.append(x - F.interpolate(coarse, size=x.shape[2:], mode="bilinear"))
        x = coarse
    return [*levels, x]


def _descriptors(level: Tensor, patches: int, generator: torch.Generator) -> Tensor:
    """(N * patches, 147): neighbourhoods, each channel normalized over the whole set."""
    n, _, height, width = level.shape
    top = torch.randint(0, height - PATCH + 1, (n, patches), generator=generator)
    left = torch.randint(0, width - PATCH + 1, (n, patches), generator=generator)
    offset = torch.arange(PATCH)
    rows = (top[..., None] + offset)[:, :, :, None]
    columns = (left[..., None] + offset)[:, :, None, :]
    samples = torch.arange(n)[:, None, None, None]
    cut = level.permute(0, 2, 3, 1)[samples, rows, columns]  # (N, patches, 7, 7, 3)
    mean = cut.mean(dim=(0, 1, 2, 3))
    std = cut.std(dim=(0, 1, 2, 3)) + 1e-8
    return ((cut - mean) / std).flatten(2).flatten(0, 1)


FEATURE_BATCH = 32
FEATURES = "2048"  # the pooled layer that the FID is defined on


class FrechetDistance:
    """The FID (Heusel et al. 2017) of drawn images to photos, for who has the Inception weights.

    Args:
        weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; never downloaded.
        photos: (N, 3, H, W) uint8.

    Raises:
        InputError: no such file, or the extra `metrics` is missing or does not work here.
    """

    def __init__(self, weights: Path | str, photos: Tensor) -> None:
        if not Path(weights).is_file():
            raise InputError(f"`inception`: {weights}: there is no such file.")
        try:
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        except (ImportError, RuntimeError, OSError) as error:
            raise InputError(
                f"`inception`: needs torch-fidelity and a torchvision that fits torch ({error}). "
                "Install: pip install 'latentseg[metrics]'; see `latentseg doctor`."
            ) from error
        self.extractor = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", [FEATURES], feature_extractor_weights_path=str(weights)
        )
        self.n_images = len(photos)
        self.photos = gaussian(self._features(photos))

    def __call__(self, images: Tensor) -> float:
        """The FID of (N, 3, H, W) uint8 images; it falls with N, so compare equal numbers only."""
        return frechet(gaussian(self._features(images)), self.photos)

    @torch.no_grad()
    def _features(self, images: Tensor) -> NDArray[np.float64]:
        batches = (self.extractor(batch)[0] for batch in images.split(FEATURE_BATCH))
        return torch.cat(list(batches)).double().numpy()


Gaussian = tuple[NDArray[np.float64], NDArray[np.float64]]


def gaussian(features: NDArray[np.float64]) -> Gaussian:
    """Mean (D,) and covariance (D, D) of features (N, D)."""
    return features.mean(axis=0), np.cov(features, rowvar=False)


def frechet(a: Gaussian, b: Gaussian) -> float:
    """Frechet distance of two Gaussians: |m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)).

    Source: Dowson and Landau 1982; as used by Heusel et al. 2017, Eq. 6.
    """
    (mean_a, cov_a), (mean_b, cov_b) = a, b
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    difference = mean_a - mean_b
    return float(difference @ difference + np.trace(cov_a + cov_b - 2 * np.real(root)))
