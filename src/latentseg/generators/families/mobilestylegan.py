"""MobileStyleGAN (Belousov 2021): StyleGAN2 distilled into separable convolutions and wavelets."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import InputError
from latentseg.generators.families.stylegan2 import SQRT_2, normalise_second_moment
from latentseg.generators.family import Sampling
from latentseg.generators.style_generator import StyleNetwork

MAX_SIDE = 8192
IMAGE_BANDS = 12  # one low and three high bands for each colour
DEFAULTS = Sampling(psi=0.5)  # fixed in the official code


@dataclass(frozen=True)
class MobileStyleGANConfig:
    """Everything that fixes the layers.

    Attributes:
        size: (height, width) of the images; both divisible by 2 to the power of len(channels).
        channels: Of the first convolution, and of each block, which doubles the size.
        w_dim: Size of the noise and of the style vector.
        mapping_layers: Layers of the mapping network.
        is_centre_layered: Whether truncation leads each layer to a mean style of its own.
    """

    size: tuple[int, int] = (1024, 1024)
    channels: tuple[int, ...] = (512, 512, 512, 512, 512, 256, 128, 64)
    w_dim: int = 512
    mapping_layers: int = 8
    is_centre_layered: bool = False

    def __post_init__(self) -> None:
        scale = 2 ** len(self.channels)
        if any(side % scale or side < scale for side in self.size):
            raise InputError(f"size {self.size}: both sides must be multiples of {scale}.")
        if any(channels % 4 for channels in self.channels[:-1]):
            raise InputError(f"channels {self.channels}: all but the last must be multiples of 4.")

    @property
    def z_dim(self) -> int:
        """Size of the noise, which is that of the style."""
        return self.w_dim

    @property
    def n_classes(self) -> int:
        """It has no classes."""
        return 0


def inverse_wavelet(x: Tensor, wavelet: Tensor) -> Tensor:
    """One step of the inverse transform: (B, 4 C, H, W) to (B, C, 2 H, 2 W).

    Args:
        x: C low bands, then three high bands for each of the C: along the height, along the width,
            and along both.
        wavelet: (4, 2, 2), the pixels that each band draws.
    """
    low, high = x.split([x.shape[1] // 4, x.shape[1] // 4 * 3], dim=1)
    bands = torch.cat([low.unsqueeze(2), high.unflatten(1, (-1, 3))], dim=2)
    return torch.einsum("bcnhw,nij->bchiwj", bands, wavelet).flatten(4, 5).flatten(2, 3)


def haar() -> Tensor:
    """The (4, 2, 2) `wavelet` of Haar."""
    low, high = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / SQRT_2
    return pixels(low, high, low, high)


def pixels(low_column: Tensor, high_column: Tensor, low_row: Tensor, high_row: Tensor) -> Tensor:
    """The `wavelet` of the two filters, each (2,), along the height and along the width."""
    columns = (low_column, high_column, low_column, high_column)
    rows = (low_row, low_row, high_row, high_row)
    return torch.stack([torch.outer(*pair) for pair in zip(columns, rows, strict=True)])


class Modulation(nn.Module):
    """Scales the channels of activations by a linear function of the style."""

    def __init__(self, w_dim: int, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(w_dim, channels)
        nn.init.ones_(self.linear.bias)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, C, H, W) and (B, w_dim) to (B, C, H, W)."""
        return x * self.linear(w)[:, :, None, None]


class StyledConv(nn.Module):
    """Modulation, 3x3 convolution, noise, bias, leaky ReLU.

    Args:
        w_dim: Size of the style.
        in_channels, out_channels: Of the activations.
        size: (height, width) of the activations.
        is_separable: One filter for each channel, then a 1x1 convolution.
    """

    noise_const: Tensor

    def __init__(
        self,
        w_dim: int,
        in_channels: int,
        out_channels: int,
        *,
        size: tuple[int, int],
        is_separable: bool,
    ) -> None:
        super().__init__()
        self.modulation = Modulation(w_dim, in_channels)
        self.conv = (
            nn.Sequential(
                nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
                nn.Conv2d(in_channels, out_channels, 1),
            )
            if is_separable
            else nn.Sequential(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        )
        nn.init.kaiming_normal_(self.conv[-1].weight, a=0.2)  # pyright: ignore[reportArgumentType]
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(size))

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """(B, C_in, H, W) and (B, w_dim) to (B, C_out, H, W)."""
        x = self.conv(self.modulation(x, w))
        if noise == "const":
            x = x + self.noise_const * self.noise_strength
        elif noise == "random":
            x = x + torch.randn_like(x[:, :1]) * self.noise_strength
        return F.leaky_relu(x, 0.2)


class MobileBlock(nn.Module):
    """Doubles the size by an inverse wavelet transform; then two separable convolutions."""

    wavelet: Tensor

    def __init__(
        self, w_dim: int, in_channels: int, out_channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.up = Modulation(w_dim, in_channels)
        self.register_buffer("wavelet", haar())
        self.conv1 = StyledConv(w_dim, in_channels // 4, out_channels, size=size, is_separable=True)
        self.conv2 = StyledConv(w_dim, out_channels, out_channels, size=size, is_separable=True)

    def forward(self, x: Tensor, first: Tensor, second: Tensor, noise: str) -> list[Tensor]:
        """(B, C_in, H, W) to the activations of both convolutions, (B, C_out, 2 H, 2 W).

        Args:
            x: Activations of the block before.
            first: (B, w_dim) style of the enlargement and of the first convolution.
            second: (B, w_dim) style of the second convolution.
            noise: "const", "random" or "none".
        """
        lower = self.conv1(inverse_wavelet(self.up(x, first), self.wavelet), first, noise)
        return [lower, self.conv2(lower, second, noise)]


class MobileStyleGAN(StyleNetwork):
    """Mapping and synthesis. Of the official image layers it has the last, which alone draws."""

    config: MobileStyleGANConfig
    style_mean: Tensor
    wavelet: Tensor

    def __init__(self, config: MobileStyleGANConfig) -> None:
        super().__init__()
        self.config = config
        self.is_centre_layered = config.is_centre_layered
        w_dim, first = config.w_dim, config.channels[0]
        self.mapping = nn.ModuleList(nn.Linear(w_dim, w_dim) for _ in range(config.mapping_layers))
        for layer in self.mapping:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")  # pyright: ignore[reportArgumentType]
        height, width = (side // 2 ** len(config.channels) for side in config.size)
        self.const = nn.Parameter(torch.randn(first, height, width))
        self.conv1 = StyledConv(w_dim, first, first, size=(height, width), is_separable=False)
        self.blocks = nn.ModuleList(
            MobileBlock(w_dim, fewer, channels, (height * 2**level, width * 2**level))
            for level, (fewer, channels) in enumerate(pairwise(config.channels), 1)
        )
        self.to_bands = Modulation(w_dim, config.channels[-1])
        self.bands = nn.Conv2d(config.channels[-1], IMAGE_BANDS, 1)
        self.register_buffer("wavelet", haar())
        shape = (self.n_layers, w_dim) if config.is_centre_layered else (w_dim,)
        self.register_buffer("style_mean", torch.zeros(shape))

    @property
    def n_layers(self) -> int:
        """One style for each convolution, and one for the image."""
        return 2 * len(self.config.channels)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each convolution."""
        first, *rest = self.config.channels
        return (first, *(channels for channels in rest for _ in range(2)))

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, w_dim) to styles (B, w_dim); there are no labels."""
        x = normalise_second_moment(z)
        for layer in self.mapping:
            x = F.leaky_relu(layer(x), 0.2) * SQRT_2
        return x

    def centre(self, labels: Tensor | None) -> Tensor:
        """The mean style, (w_dim,), or (n_layers, w_dim) if it differs between the layers."""
        return self.style_mean

    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and the activations after each convolution, coarse to fine."""
        styles = ws.unbind(dim=1)
        features = [self.conv1(self.const.expand(len(ws), -1, -1, -1), styles[0], noise)]
        for block, first, second in zip(self.blocks, styles[1:-1:2], styles[2:-1:2], strict=True):
            features += block(features[-1], first, second, noise)
        bands = self.bands(self.to_bands(features[-1], styles[-1]))
        return inverse_wavelet(bands, self.wavelet), features


def official_layers(n_blocks: int) -> list[int]:
    """For each of our layers, its index among the 3 * n_blocks + 2 of the official code.

    The others only serve images of lower resolution, which nobody sees, or nothing.
    """
    convolutions = [3 * block + layer for block in range(n_blocks) for layer in (1, 2)]
    return [0, *convolutions, 3 * n_blocks]
