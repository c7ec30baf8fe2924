"""MobileStyleGAN (Belousov 2021): StyleGAN2 distilled into separable convolutions and wavelets.

The network in plain PyTorch, and the reader of the official checkpoints, which folds into its
weights what depends on no style: scales, and the demodulation.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan2 import SQRT_2, normalise_second_moment
from latentseg.generators.family import Family, Imported, Options, Sampling
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.weights.containers import Checkpoint, Weights

LR_MULTIPLIER = 0.01  # of the mapping network; the official code has no other
MAX_LAYERS = 64
MAX_SIDE = 8192
IMAGE_BANDS = 12  # one low and three high bands for each colour
DEFAULTS = Sampling(psi=0.5)  # fixed in the official code
NOTES = (
    "The scale of the mapping network's parameters was assumed to be the official 0.01.",
    "The file holds no noise maps: they were drawn from a fixed seed.",
)


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
    return _pixels(low, high, low, high)


def _pixels(low_column: Tensor, high_column: Tensor, low_row: Tensor, high_row: Tensor) -> Tensor:
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


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a MobileStyleGAN checkpoint; None if it is one."""
    names = checkpoint.names("state_dict")
    for name in ("student.input.input", "mapping_net.layers.1.weight"):
        if name not in names:
            return f"no parameter {name!r} under 'state_dict'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a Lightning checkpoint of the official code; teacher and losses are left out."""
    weights = checkpoint.weights("state_dict")
    config = _config(weights)
    n_blocks = len(config.channels) - 1
    last = f"student.layers.{n_blocks - 1}.to_img" if n_blocks else "student.to_img1"
    height, width = (side // 2 ** len(config.channels) for side in config.size)
    drawn = torch.Generator().manual_seed(0)
    ours = {
        "style_mean": _centre(weights, n_blocks),
        "const": weights["student.input.input"][0],
        "wavelet": _wavelet(weights, "student.idwt"),
        "bands.weight": weights[f"{last}.conv.weight"],
        "bands.bias": weights[f"{last}.bias"].flatten(),
        **_below("to_bands", _modulation(weights, f"{last}.conv", fan_in=config.channels[-1])),
        **_below("conv1", _styled(weights, "student.conv1", (height, width), drawn)),
    }
    for layer in range(config.mapping_layers):
        name = f"mapping_net.layers.{layer + 1}"
        scale = LR_MULTIPLIER / math.sqrt(config.w_dim)
        ours[f"mapping.{layer}.weight"] = weights[f"{name}.weight"].double() * scale
        ours[f"mapping.{layer}.bias"] = weights[f"{name}.bias"].double() * LR_MULTIPLIER
    for block in range(n_blocks):
        name, scale = f"student.layers.{block}", 2 ** (block + 1)
        size = (height * scale, width * scale)
        parts = {
            "wavelet": _wavelet(weights, f"{name}.up.idwt"),
            **_below("up", _modulation(weights, f"{name}.up", fan_in=1)),
            **_below("conv1", _styled(weights, f"{name}.conv1", size, drawn)),
            **_below("conv2", _styled(weights, f"{name}.conv2", size, drawn)),
        }
        ours |= _below(f"blocks.{block}", parts)
    ours = {name: tensor.float() for name, tensor in ours.items()}
    return Imported(config, ours, DEFAULTS, notes=NOTES)


def _config(weights: Weights) -> MobileStyleGANConfig:
    outputs = [
        name
        for block in range(MAX_LAYERS)
        if (name := f"student.layers.{block}.conv2.conv.weight_permute") in weights
    ]
    with _fitting(weights.where, "student.input.input"):
        _, first, height, width = weights["student.input.input"].shape
        scale = 2 ** (len(outputs) + 1)
        if max(height, width) * scale > MAX_SIDE:
            raise ValueError(f"images would have {height * scale} x {width * scale} pixels")
    return MobileStyleGANConfig(
        size=(height * scale, width * scale),
        channels=(first, *(len(weights[name]) for name in outputs)),
        w_dim=len(weights["mapping_net.layers.1.weight"]),
        mapping_layers=sum(
            f"mapping_net.layers.{layer}.weight" in weights for layer in range(MAX_LAYERS)
        ),
        is_centre_layered=_centre(weights, len(outputs)).ndim == 2,
    )


def _centre(weights: Weights, n_blocks: int) -> Tensor:
    """The mean style, (w_dim,), or (n_layers, w_dim) where it differs between the layers."""
    with _fitting(weights.where, "style_mean"):
        centre = weights["style_mean"][0]
        if centre.ndim == 2:
            centre = centre[official_layers(n_blocks)]
            return centre[0] if (centre == centre[0]).all() else centre
        return centre


def _styled(
    weights: Weights, name: str, size: tuple[int, int], drawn: torch.Generator
) -> dict[str, Tensor]:
    """The `StyledConv` that the official code calls `name`."""
    with _fitting(weights.where, name):
        if name == "student.conv1":
            kernel = weights[f"{name}.conv.weight"].double()
            kernels = [kernel]
        else:
            kernels = [weights[f"{name}.conv.weight_{k}"].double() for k in ("dw", "permute")]
            kernel = kernels[0].transpose(0, 1) * kernels[1]
        fan_in = kernel[0].numel()
        usual = weights[f"{name}.conv.style_inv"][0].double()
        lengths = (usual * kernel).square().sum(dim=(1, 2, 3)) / fan_in
        kernels[-1] = kernels[-1] * (lengths + 1e-8).rsqrt()[:, None, None, None]
        strength = weights[f"{name}.noise.weight"].reshape(())
    return {
        **_below("modulation", _modulation(weights, f"{name}.conv", fan_in=fan_in)),
        **{f"conv.{i}.weight": kernel for i, kernel in enumerate(kernels)},
        f"conv.{len(kernels) - 1}.bias": weights[f"{name}.bias"].flatten(),
        "noise_strength": strength,
        "noise_const": torch.randn(size, generator=drawn),
    }


def _modulation(weights: Weights, name: str, *, fan_in: int) -> dict[str, Tensor]:
    return {
        f"linear.{kind}": weights[f"{name}.modulation.{kind}"].double() / math.sqrt(fan_in)
        for kind in ("weight", "bias")
    }


def _wavelet(weights: Weights, name: str) -> Tensor:
    with _fitting(weights.where, name):
        filters = [f"{name}.{kind}" for kind in ("g0_col", "g1_col", "g0_row", "g1_row")]
        return _pixels(*(weights[filter_].flatten() for filter_ in filters))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


@contextmanager
def _fitting(where: Path | str, name: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        raise CorruptFileError(f"{where}: the shapes of {name!r} do not fit: {error}.") from error


FAMILY = Family(
    name="mobilestylegan",
    title="MobileStyleGAN (Belousov 2021)",
    files="Lightning .ckpt of bes-dev/MobileStyleGAN.pytorch",
    licence=(
        "Apache-2.0; the published weights were distilled from NVIDIA's StyleGAN2, whose licence "
        "is non-commercial"
    ),
    config=MobileStyleGANConfig,
    build=MobileStyleGAN,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    defaults=DEFAULTS,
    choices=("psi", "cutoff", "noise"),
    abilities=("variants", "features"),
    published={"mobilestylegan-ffhq-1024": MobileStyleGANConfig()},
)
