"""ProGAN (Karras et al. 2018) of the PyTorch GAN zoo, and the reader of its files.

The constants of its layers are folded into the weights by the reader: the layers are ordinary ones.
"""

import fnmatch
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import NoiseNetwork, adapt
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, he_constant, stored, upsampling_kernel
from latentseg.weights.records import Record

BASE = 4  # pixels of the first scale
TANH_LOSSES = ("MSE", "DCGAN")  # losses with which the zoo ends its generator in a tanh


@dataclass(frozen=True)
class ProGANConfig:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        channels: Of each scale, coarse to fine, the first 4 pixels wide.
        z_dim: Size of the noise.
        out_channels: 3, or 1 for grey images.
        alpha: Share of the image that the scale before the last draws, in [0, 1]; 0 once trained.
        leak: Negative slope of the activations.
        is_tanh: The image goes through tanh at the end.
    """

    channels: tuple[int, ...] = (128, 96, 64, 32, 16)
    z_dim: int = 128
    out_channels: int = 3
    alpha: float = 0.0
    leak: float = 0.2
    is_tanh: bool = False

    def __post_init__(self) -> None:
        if not self.channels or self.out_channels not in (1, 3):
            raise InputError("A ProGAN needs at least one scale, and 1 or 3 colours.")
        if not 0 <= self.alpha <= 1 or (self.alpha > 0 and len(self.channels) == 1):
            raise InputError(
                f"`alpha`: expected 0 to 1, and 0 for a single scale, found {self.alpha}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        side = BASE * 2 ** (len(self.channels) - 1)
        return (side, side)

    @property
    def n_classes(self) -> int:
        """None."""
        return 0


class ProGAN(NoiseNetwork):
    """Noise to images, coarse to fine."""

    config: ProGANConfig

    def __init__(self, config: ProGANConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.formatLayer = nn.Linear(config.z_dim, first * BASE**2)
        layers: list[nn.Module] = [nn.Conv2d(first, first, 3, padding=1)]
        for fewer, channels in pairwise(config.channels):
            layers.append(nn.ConvTranspose2d(fewer, channels, 4, stride=2, padding=1))
            layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        self.layers = nn.ModuleList(layers)
        self.toRGB = nn.Conv2d(last, config.out_channels, 1)
        if config.alpha:
            self.previousToRGB = nn.Conv2d(config.channels[-2], config.out_channels, 1)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""
        return (self.config.z_dim,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Two maps of each scale."""
        return tuple(channels for channels in self.config.channels for _ in range(2))

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images, and what each layer gives before its activation.

        Args:
            z: (B, z_dim).
            labels: Not used: there are no classes.

        Returns:
            (B, 3, H, W), nominally in [-1, 1], not clamped; and the maps, coarse to fine.
        """
        features = [self.formatLayer(normalised(z)).unflatten(1, (-1, BASE, BASE))]
        for layer in self.layers:
            features.append(layer(self._activated(features[-1])))
        x = self.toRGB(self._activated(features[-1]))
        if self.config.alpha:
            # Two layers above it end the scale before the last.
            coarse = self.previousToRGB(self._activated(features[-3]))
            x = torch.lerp(x, F.interpolate(coarse, scale_factor=2), self.config.alpha)
        x = x.tanh() if self.config.is_tanh else x
        return x.expand(-1, 3, -1, -1), features

    def _activated(self, x: Tensor) -> Tensor:
        return normalised(F.leaky_relu(x, self.config.leak))


def normalised(x: Tensor) -> Tensor:
    """Divides (B, C, ...) by the root mean square of its channels, at each place.

    Source: pixelwise feature vector normalisation, Karras et al. 2018, section 4.2.
    """
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a ProGAN of the zoo; None if it is one."""
    names = {_plain(name) for name in checkpoint.names("avgG")}
    for needed in ("formatLayer.weight", "groupScale0.0.weight", "toRGBLayers.0.weight"):
        if needed not in names:
            return f"no parameter {needed!r} under 'avgG'"
    return None if checkpoint.has("config") else "no 'config'"


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the average generator.

    Raises:
        InputError: it is conditional.
        CorruptFileError: parameters are missing or of another shape, or its settings are none.
    """
    source = Weights(
        {_plain(name): tensor for name, tensor in checkpoint.weights("avgG").items()},
        checkpoint.path,
    )
    settings = _settings(checkpoint)
    n_scales = len(fnmatch.filter(source, "scaleLayers.*.0.weight"))
    ends = ["groupScale0.0", *(f"scaleLayers.{index}.1" for index in range(n_scales))]
    to_rgb = f"toRGBLayers.{n_scales}"
    try:
        config = ProGANConfig(
            channels=tuple(len(stored(source, f"{name}.bias", ANY)) for name in ends),
            z_dim=stored(source, "formatLayer.weight", ANY, ANY).shape[1],
            out_channels=len(stored(source, f"{to_rgb}.bias", ANY)),
            alpha=settings.alpha if n_scales else 0.0,
            leak=settings.leak,
            is_tanh=settings.loss in TANH_LOSSES,
        )
    except InputError as error:
        raise CorruptFileError(f"{checkpoint.path}: {error}") from error
    theirs = {"formatLayer": "formatLayer", "layers.0": "groupScale0.0", "toRGB": to_rgb}
    for index in range(n_scales):
        theirs[f"layers.{2 * index + 1}"] = f"scaleLayers.{index}.0"
        theirs[f"layers.{2 * index + 2}"] = f"scaleLayers.{index}.1"
    if config.alpha:
        theirs["previousToRGB"] = f"toRGBLayers.{n_scales - 1}"
    weights = {}
    for ours, name in theirs.items():
        kernel = () if ours == "formatLayer" else (1, 1) if "RGB" in ours else (3, 3)
        weight = stored(source, f"{name}.weight", ANY, ANY, *kernel)
        bias = stored(source, f"{name}.bias", ANY)
        # The zoo multiplies what comes out of a layer, bias included.
        gain = he_constant(weight) if settings.is_equalised else 1.0
        if name.startswith("scaleLayers") and name.endswith(".0"):
            weight = upsampling_kernel(weight)
        weights[f"{ours}.weight"] = weight * gain
        weights[f"{ours}.bias"] = bias * gain
    return Imported(config, weights)


@dataclass(frozen=True)
class _Settings:
    """Those of a training of the zoo that change what its generator draws."""

    alpha: float
    leak: float
    loss: str
    is_equalised: bool


def _settings(checkpoint: Checkpoint) -> _Settings:
    record = checkpoint.tree["config"]
    fields = record.state if isinstance(record, Record) else record
    if not isinstance(fields, dict):
        raise CorruptFileError(f"{checkpoint.path}: 'config' holds no settings.")

    def get(kind: type, *names: str, default: Any) -> Any:
        value = next((fields[name] for name in names if name in fields), default)
        if not isinstance(value, kind) and not (kind is float and type(value) is int):
            raise CorruptFileError(
                f"{checkpoint.path}: {names[0]!r} in 'config' is a {type(value).__name__}, "
                f"expected {kind.__name__}."
            )
        return value

    if get(int, "categoryVectorDim", default=0):
        raise InputError(
            f"{checkpoint.path}: was trained with attributes (categoryVectorDim). Conditional "
            "networks of the zoo are not read."
        )
    return _Settings(
        alpha=float(get(float, "alpha", default=0.0)),
        leak=get(float, "leakyReluLeak", "leakyness", default=0.2),
        loss=get(str, "lossCriterion", "lossMode", default="WGANGP"),
        is_equalised=get(bool, "equalizedlR", default=True),
    )


def _plain(name: str) -> str:
    """A name of newer files, "formatLayer.module.weight", as in older ones."""
    return name.replace(".module.", ".")


def _published(n_scales: int) -> ProGANConfig:
    return ProGANConfig((512, 512, 512, 512, 256, 128, 64, 32, 16)[: n_scales + 1], z_dim=512)


FAMILY = Family(
    name="progan",
    title="ProGAN of the PyTorch GAN zoo (Karras et al. 2018)",
    files="PyTorch GAN zoo .pth",
    licence="BSD-3-Clause, of the zoo; the photos that its weights were trained on have their own",
    config=ProGANConfig,
    build=ProGAN,
    adapt=adapt,
    objection=objection,
    read=read,
    published={
        "celebahq-256": _published(6),
        "celebahq-512": _published(7),
        "celeba-cropped-128": _published(5),
        "dtd-128": _published(5),
    },
)
