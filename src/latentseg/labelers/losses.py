"""The contrast and structure terms that Eq. 1 of Melas-Kyriazi et al. 2021 adds, in two versions.

They are those of the official code and of the paper.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from kornia.filters import sobel, spatial_gradient
from torch import Tensor

LUMA = (0.2989, 0.5870, 0.1140)  # official code, of R, G and B


class Losses(NamedTuple):
    """One version of the two losses.

    Attributes:
        contrast: Shifted images to a scalar; it falls as the center lightens against the border.
        structure: Shifted images and images to a scalar; it grows as edges change.
    """

    contrast: Callable[[Tensor], Tensor]
    structure: Callable[[Tensor, Tensor], Tensor]


def gray(x: Tensor) -> Tensor:
    """Brightness of images: (..., 3, H, W) in [-1, 1] to (..., H, W)."""
    red, green, blue = x.unbind(dim=-3)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def edges(x: Tensor) -> Tensor:
    """Magnitude of the gray image's gradient by the Sobel filter, (B, 3, H, W) to (B, H, W).

    The kernels are divided by 8, the border is replicated, 1e-6 is added below the square root.

    Source: the official code, which calls kornia.
    """
    return sobel(gray(x)[:, None])[:, 0]


def squared_edges(x: Tensor) -> Tensor:
    """Squared gradient magnitude summed over the channels, (B, 3, H, W) to (B, H, W).

    Source: Melas-Kyriazi 2021, structure loss; the plain Sobel kernels, the border replicated.
    """
    return spatial_gradient(x, "sobel", normalized=False).square().sum(dim=(1, 2))


def official_prior(size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """C = 4 (rho - mean rho), (H, W): negative at the center, positive at the border.

    rho is the distance from the center; both axes run over [-1, 1].

    Source: official code.
    """
    y = torch.linspace(-1, 1, size[0], device=device)[:, None]
    x = torch.linspace(-1, 1, size[1], device=device)
    rho = (x.square() + y.square()).sqrt()
    return 4 * (rho - rho.mean())


def paper_prior(size: tuple[int, int], device: torch.device | str = "cpu") -> Tensor:
    """R = 1 - distance / alpha, (H, W): 1 at the center, -1 at the corners.

    Source: Melas-Kyriazi 2021, contrast loss.
    """
    height, width = size
    y = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=device) - (width - 1) / 2
    alpha = ((height - 1) ** 2 + (width - 1) ** 2) ** 0.5 / 4
    return 1 - (x.square() + y.square()).sqrt() / alpha


def _official_contrast(shifted: Tensor) -> Tensor:
    """Contrast term of Melas-Kyriazi et al. 2021, as the official code has it."""
    prior = official_prior((shifted.shape[-2], shifted.shape[-1]), shifted.device)
    return (gray(shifted) * prior).mean()


def _official_structure(shifted: Tensor, x: Tensor) -> Tensor:
    """Structure term of Melas-Kyriazi et al. 2021, as the official code has it."""
    return (edges(shifted) - edges(x)).square().mean()


def _paper_contrast(shifted: Tensor) -> Tensor:
    """Contrast term of Melas-Kyriazi et al. 2021, with the sign that its text describes."""
    prior = paper_prior((shifted.shape[-2], shifted.shape[-1]), shifted.device)
    # The paper adds this product, which would darken the center; its text and the official code
    # lighten it, and so does the minus sign here.
    return -(shifted * prior).sum(dim=(1, 2, 3)).mean()


def _paper_structure(shifted: Tensor, x: Tensor) -> Tensor:
    """Structure term of Melas-Kyriazi et al. 2021, as the paper prints it."""
    return (squared_edges(shifted) - squared_edges(x)).square().sum(dim=(1, 2)).mean()


LOSSES = {
    "official": Losses(_official_contrast, _official_structure),
    "paper": Losses(_paper_contrast, _paper_structure),
}


def center_minus_border(x: Tensor) -> Tensor:
    """How much lighter the center is than the border, (B, 3, H, W) to (B,), in units of x.

    The center is where the prior of the official code is negative: 46 % of the image.
    """
    center = official_prior((x.shape[-2], x.shape[-1]), x.device) < 0
    brightness = gray(x)
    return brightness[:, center].mean(dim=1) - brightness[:, ~center].mean(dim=1)
