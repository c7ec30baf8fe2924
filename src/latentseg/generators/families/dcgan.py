"""DCGAN (Radford et al. 2016) of the PyTorch examples, and the reader of its files.

Batch normalisation with the running statistics is folded into the convolutions by the reader.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import NoiseNetwork, adapt
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, stored

EPSILON = 1e-5  # of the batch normalisation


@dataclass(frozen=True)
class DCGANConfig:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        channels: After each layer but the last, coarse to fine; each layer doubles the size.
        z_dim: Size of the noise.
        out_channels: 3, or 1 for grey images.
        base: Width of the first activation map in pixels.
    """

    channels: tuple[int, ...] = (512, 256, 128, 64)
    z_dim: int = 100
    out_channels: int = 3
    base: int = 4

    def __post_init__(self) -> None:
        if not self.channels or self.out_channels not in (1, 3):
            raise InputError("A DCGAN needs at least two layers, and 1 or 3 colours.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        side = self.base * 2 ** len(self.channels)
        return (side, side)

    @property
    def n_classes(self) -> int:
        """None."""
        return 0


class DCGAN(NoiseNetwork):
    """Noise to images by transposed convolutions alone."""

    config: DCGANConfig

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        self.config = config
        first, *_ = widths = (*config.channels, config.out_channels)
        layers = [nn.ConvTranspose2d(config.z_dim, first, config.base)]
        for more, channels in pairwise(widths):
            layers.append(nn.ConvTranspose2d(more, channels, 4, stride=2, padding=1))
        self.layers = nn.ModuleList(layers)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""
        return (self.config.z_dim,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each layer but the last."""
        return self.config.channels

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images, and the activation maps after each ReLU.

        Args:
            z: (B, z_dim).
            labels: Not used: there are no classes.

        Returns:
            (B, 3, H, W) in [-1, 1]; and the maps, coarse to fine.
        """
        x, features = z[:, :, None, None], []
        *inner, last = self.layers
        for layer in inner:
            x = F.relu(layer(x))
            features.append(x)
        return last(x).tanh().expand(-1, 3, -1, -1), features


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a DCGAN generator; None if it is one."""
    names = checkpoint.names()
    for needed in ("main.0.weight", "main.1.running_mean"):
        if needed not in names:
            return f"no parameter {needed!r}"
    others = sorted(name for name in names if not re.match(r"main\.\d{1,4}\.[a-z_]+$", name))
    return f"unknown parameter {others[0]!r}" if others else None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a generator of any width and depth.

    Raises:
        CorruptFileError: parameters are missing or of another shape.
    """
    source = checkpoint.weights()
    norms = {int(name.split(".")[1]) for name in source if name.endswith(".running_mean")}
    named = {int(name.split(".")[1]) for name in source if name.endswith(".weight")}
    base = stored(source, "main.0.weight", ANY, ANY, ANY, ANY).shape[2]
    weights, channels = {}, [ANY]
    for layer, index in enumerate(sorted({norm - 1 for norm in norms} | (named - norms))):
        # The stride is not in the file: after the first layer, it is known for 4 x 4 alone.
        side = 4 if layer else base
        weight, bias = _folded(source, index, (channels[-1], ANY, side, side))
        weights |= {f"layers.{layer}.weight": weight, f"layers.{layer}.bias": bias}
        channels.append(len(bias))
    try:
        config = DCGANConfig(
            channels=tuple(channels[1:-1]),
            z_dim=len(weights["layers.0.weight"]),
            out_channels=channels[-1],
            base=base,
        )
    except InputError as error:
        raise CorruptFileError(f"{checkpoint.path}: {error}") from error
    return Imported(config, weights)


def _folded(source: Weights, index: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and of the batch normalisation after it, if there is one."""
    weight = stored(source, f"main.{index}.weight", *shape).double()
    n_channels = weight.shape[1]
    bias = torch.zeros(n_channels, dtype=torch.float64)
    if f"main.{index}.bias" in source:
        bias += stored(source, f"main.{index}.bias", n_channels)
    norm = f"main.{index + 1}"
    if f"{norm}.running_mean" in source:
        mean, variance, gain, offset = (
            stored(source, f"{norm}.{name}", n_channels).double()
            for name in ("running_mean", "running_var", "weight", "bias")
        )
        gain = gain * (variance + EPSILON).rsqrt()
        weight, bias = weight * gain[:, None, None], (bias - mean) * gain + offset
    return weight.float(), bias.float()


FAMILY = Family(
    name="dcgan",
    title="DCGAN of the PyTorch examples (Radford et al. 2016)",
    files="netG_epoch_N.pth",
    licence="BSD-3-Clause, of the code; whoever trained the weights says what holds for them",
    config=DCGANConfig,
    build=DCGAN,
    adapt=adapt,
    objection=objection,
    read=read,
    published={"pytorch-examples-64": DCGANConfig()},
)
