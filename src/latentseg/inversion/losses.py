"""How far a reconstruction is from a photo: with the weights of a perceptual loss, or with none."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.weights.containers import Weights, open_checkpoint
from latentseg.weights.folding import stored

COARSEST_PX = 8
LEAST_LOSS = 1 / 255  # of a photo in one color: one level


class Loss(Protocol):
    """How far drawn images are from photos."""

    @property
    def name(self) -> str:
        """As results name it."""
        ...

    def describe(self, x: Tensor) -> list[Tensor]:
        """What is compared of images (B, 3, H, W) in [-1, 1]: tensors (B, ...)."""
        ...

    def compare(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """(B,): the distance of what `describe` gave; 0 for equal images."""
        ...


class MultiScaleLoss:
    """The mean absolute difference of colors and of gradients over a pyramid; needs no weights."""

    name = "multi-scale"

    def describe(self, x: Tensor) -> list[Tensor]:
        """The images, halved again and again, with their differences along each axis."""
        described = []
        while True:
            described += [x, x.diff(dim=3), x.diff(dim=2)]
            if min(x.shape[2:]) < 2 * COARSEST_PX:
                return described
            x = functional.avg_pool2d(x, 2)

    def compare(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """(B,): the mean over all scales."""
        levels = [(x - y).abs().flatten(1).mean(dim=1) for x, y in zip(a, b, strict=True)]
        return torch.stack(levels).sum(dim=0) * (3 / len(levels))


# Of VGG16: the convolutions of each block, by their place in torchvision's `features`.
VGG16_BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
VGG16_CHANNELS = (64, 128, 256, 512, 512)
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
LPIPS_PX, LEAST_VGG_PX = 256, 16


class PerceptualLoss:
    """LPIPS: the distance between activations of VGG16, each normalized over its channels.

    Larger images are averaged down to at most 256 px a side, as the official projectors do.

    Args:
        files: State dicts of torchvision's VGG16 and of LPIPS' linear layers (`vgg.pth` of the
            package lpips), or one file with both. Without linear layers all channels count alike.
            Nothing is downloaded, and no code in them is run.
        device: Where images are compared.
        pixel_weight: Weight of the mean squared error that is added.

    Raises:
        InputError: there is no such file, or it is a program instead of weights.
        CorruptFileError: weights are missing, damaged or of another shape.

    Source: Zhang et al. 2018 (LPIPS), Eq. 1; used by Karras et al. 2020, appendix D.
    """

    def __init__(
        self, files: Sequence[Path | str], device: torch.device, *, pixel_weight: float = 0.0
    ) -> None:
        tensors: dict[str, Tensor] = {}
        for file in files:
            checkpoint = open_checkpoint(file)
            if checkpoint.kind not in ("torch", "safetensors"):
                raise InputError(
                    f"{file}: this is a {checkpoint.kind} file. Give the state dict of "
                    "torchvision's VGG16 (vgg16-397923af.pth) and, better, that of LPIPS (vgg.pth)."
                )
            tensors |= checkpoint.weights()
        weights = Weights(tensors, ", ".join(str(file) for file in files))
        self.convolutions = _vgg16(weights, device)
        self.linear = _lpips_linear(weights, device)
        self.shift = torch.tensor(LPIPS_SHIFT, device=device)[:, None, None]
        self.scale = torch.tensor(LPIPS_SCALE, device=device)[:, None, None]
        self.pixel_weight = pixel_weight

    @property
    def name(self) -> str:
        """ "lpips-vgg16", or "vgg16" without LPIPS' weights of the channels."""
        kind = "lpips-vgg16" if self.linear else "vgg16"
        return f"{kind} + {self.pixel_weight:g} mse" if self.pixel_weight else kind

    def describe(self, x: Tensor) -> list[Tensor]:
        """Activations scaled so that `compare` only needs their squared difference."""
        x = reduced(x, LPIPS_PX)
        if min(x.shape[2:]) < LEAST_VGG_PX:
            raise InputError(f"A perceptual loss needs images of at least {LEAST_VGG_PX} px.")
        described = [x * math.sqrt(self.pixel_weight / x[0].numel())] if self.pixel_weight else []
        x = (x - self.shift) / self.scale
        for level, block in enumerate(self.convolutions):
            x = functional.max_pool2d(x, 2) if level else x
            for weight, bias in block:
                x = functional.conv2d(x, weight, bias, padding=1).relu()
            unit = x / (x.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()
            unit = unit * self.linear[level].sqrt() if self.linear else unit
            described.append(unit / math.sqrt(x.shape[2] * x.shape[3]))
        return described

    def compare(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
        """(B,): squared differences, averaged over pixels, summed over channels and layers."""
        levels = [(x - y).square().flatten(1).sum(dim=1) for x, y in zip(a, b, strict=True)]
        return torch.stack(levels).sum(dim=0)


def _vgg16(weights: Weights, device: torch.device) -> list[list[tuple[Tensor, Tensor]]]:
    """Weights and biases of the convolutions, block by block, by torchvision's or LPIPS' names."""
    fewer, blocks = 3, []
    for number, (block, channels) in enumerate(zip(VGG16_BLOCKS, VGG16_CHANNELS, strict=True), 1):
        layers = []
        for i in block:
            is_lpips = f"net.slice{number}.{i}.weight" in weights
            name = f"net.slice{number}.{i}" if is_lpips else f"features.{i}"
            weight = stored(weights, f"{name}.weight", channels, fewer, 3, 3)
            bias = stored(weights, f"{name}.bias", channels)
            layers.append((weight.to(device), bias.to(device)))
            fewer = channels
        blocks.append(layers)
    return blocks


def _lpips_linear(weights: Weights, device: torch.device) -> list[Tensor]:
    """(C, 1, 1), not negative: how much each channel counts; [] if the files do not say it."""
    if "lin0.model.1.weight" not in weights:
        return []
    found = [
        stored(weights, f"lin{level}.model.1.weight", 1, channels, 1, 1)
        for level, channels in enumerate(VGG16_CHANNELS)
    ]
    return [each[0].clamp(min=0).to(device) for each in found]


def reduced(x: Tensor, most: int) -> Tensor:
    """Images (B, 3, H, W) averaged down to at most `most` pixels a side."""
    factor = max(x.shape[2:]) / most
    if factor <= 1:
        return x
    return functional.interpolate(
        x, size=[max(round(side / factor), 1) for side in x.shape[2:]], mode="area"
    )


def unexplained(images: Tensor, x: Tensor) -> Tensor:
    """(B,): the multi-scale loss of `images` over that of an image in the photo's mean color.

    0 for a perfect reconstruction; about 1 for one that shows no more of the photo than a plain
    color does; more for one that is even farther from it.

    Args:
        images: Reconstructions (B, 3, H, W) in [-1, 1].
        x: The photos, alike.
    """
    loss = MultiScaleLoss()
    photo = loss.describe(x)
    flat = loss.describe(x.mean(dim=(2, 3), keepdim=True).expand_as(x))
    whole = loss.compare(flat, photo).clamp(min=LEAST_LOSS)
    return loss.compare(loss.describe(images), photo) / whole
