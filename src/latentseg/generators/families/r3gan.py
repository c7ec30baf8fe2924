"""R3GAN (Huang et al. 2024): residual stages without normalisation, from noise and class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan2 import filter_kernel, upfirdn
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import NoiseNetwork, adapt
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, stored

FIRST_SIZE = 4


@dataclass(frozen=True)
class R3GANConfig:
    """An R3GAN.

    Attributes:
        widths: Channels of each stage, coarse to fine; each doubles the size, the first has 4 px.
        blocks: Residual blocks of each stage.
        cardinalities: Groups of the convolutions of each stage.
        expansion: Channels inside a block for each of its stage.
        kernel: Side of the grouped convolutions.
        z_dim: Size of the noise.
        n_classes: Number of class labels, 0 for none.
        embed_features: Width of the class embedding.
    """

    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    cardinalities: tuple[int, ...]
    expansion: int = 2
    kernel: int = 3
    z_dim: int = 64
    n_classes: int = 0
    embed_features: int = 64

    def __post_init__(self) -> None:
        if not len(self.widths) == len(self.blocks) == len(self.cardinalities) > 0:
            raise InputError(
                f"widths {self.widths}, blocks {self.blocks} and cardinalities "
                f"{self.cardinalities}: expected one number for each stage."
            )
        for width, cardinality in zip(self.widths, self.cardinalities, strict=True):
            if self.expansion < 1 or cardinality < 1 or width * self.expansion % cardinality:
                raise InputError(
                    f"A stage of width {width} cannot have {cardinality} groups of channels at "
                    f"expansion {self.expansion}."
                )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        side = FIRST_SIZE * 2 ** (len(self.widths) - 1)
        return side, side


class ResidualBlock(nn.Module):
    """Three convolutions beside the identity; the biases come before the leaky ReLUs."""

    def __init__(self, width: int, cardinality: int, expansion: int, kernel: int) -> None:
        super().__init__()
        inner = width * expansion
        self.conv1 = nn.Conv2d(width, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=cardinality)
        self.conv3 = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape.

        Source: Huang et al. 2024, configuration E.
        """
        y = F.leaky_relu(self.conv1(x), 0.2)
        y = F.leaky_relu(self.conv2(y), 0.2)
        return x + self.conv3(y)


class Basis(nn.Module):
    """Noise and class to the first maps: learned maps of 4 px, each with its factor."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.maps = nn.Parameter(torch.randn(width, FIRST_SIZE, FIRST_SIZE))
        self.linear = nn.Linear(features, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) to (B, width, 4, 4)."""
        return self.maps * self.linear(x)[:, :, None, None]


class Upsampling(nn.Module):
    """To the width of the next stage, where it differs, and to twice the size."""

    kernel: Tensor

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, 1, bias=False) if in_width != width else None
        self.register_buffer("kernel", filter_kernel((1, 3, 3, 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, width, 2H, 2W)."""
        return upfirdn(x if self.conv is None else self.conv(x), self.kernel, up=2, gain=4)


class R3GAN(NoiseNetwork):
    """Stages from 4 px to the image, all in float32."""

    config: R3GANConfig

    def __init__(self, config: R3GANConfig) -> None:
        super().__init__()
        self.config = config
        features = config.z_dim
        if config.n_classes:
            self.embed = nn.Embedding(config.n_classes, config.embed_features)
            features += config.embed_features
        entries = [
            Basis(features, config.widths[0]),
            *(Upsampling(fewer, width) for fewer, width in pairwise(config.widths)),
        ]
        shapes = zip(entries, config.widths, config.blocks, config.cardinalities, strict=True)
        self.stages = nn.ModuleList(
            nn.Sequential(
                entry,
                *(
                    ResidualBlock(width, cardinality, config.expansion, config.kernel)
                    for _ in range(n_blocks)
                ),
            )
            for entry, width, n_blocks, cardinality in shapes
        )
        self.to_rgb = nn.Conv2d(config.widths[-1], 3, 1, bias=False)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""
        return (self.config.z_dim,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each stage."""
        return self.config.widths

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W), nominally in [-1, 1], not clamped, and the maps of each stage."""
        x, features = z, []
        if self.config.n_classes:
            if labels is None:
                raise InputError("A conditional generator needs class labels.")
            x = torch.cat([z, self.embed(labels)], dim=1)
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.to_rgb(x), features


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not an R3GAN checkpoint; None if it is one."""
    if not checkpoint.has_module("G_ema"):
        return "no network under 'G_ema'"
    if "Model.MainLayers.0" not in checkpoint.module("G_ema").nodes:
        return "its network has no stage 'Model.MainLayers.0'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the authors' pickles; the configuration is that of the shapes.

    Raises:
        CorruptFileError: parameters are missing or do not fit together.
    """
    source = checkpoint.weights("G_ema")
    try:
        config = _config(source)
    except InputError as error:
        raise CorruptFileError(f"{source.where}: {error}") from error
    with torch.device("meta"):
        expected = R3GAN(config).state_dict()
    weights = {}
    for name, tensor in expected.items():
        shape = reversed(tensor.shape) if name == "embed.weight" else tensor.shape
        weights[name] = stored(source, _official(name), *shape)
    if config.n_classes:
        # One-hot classes times this matrix are its columns.
        weights["embed.weight"] = weights["embed.weight"].T.contiguous()
    return Imported(config, weights)


RENAMED = (
    (r"^stages\.(\d+)\.", r"Model.MainLayers.\1.Layers."),
    (r"^to_rgb\.", "Model.AggregationLayer.Layer."),
    (r"^embed\.", "Model.EmbeddingLayer."),
    (r"\.conv([12])\.bias$", r".NonLinearity\1.Bias"),
    (r"\.conv([123])\.weight$", r".LinearLayer\1.Layer.weight"),
    (r"\.conv\.weight$", ".LinearLayer.Layer.weight"),
    (r"\.linear\.weight$", ".LinearLayer.weight"),
    (r"\.maps$", ".Basis"),
    (r"\.kernel$", ".Resampler.Kernel"),
)


def _official(name: str) -> str:
    """What the authors call the parameter that we call `name`."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def _config(source: Weights) -> R3GANConfig:
    """Everything but the noise and the classes follows from the blocks of each stage."""
    n_stages = _count(source, r"Model\.MainLayers\.(\d+)\.")
    blocks = [
        _count(source, rf"Model\.MainLayers\.{stage}\.Layers\.(\d+)\.") - 1
        for stage in range(n_stages)
    ]
    if not n_stages or min(blocks) < 1:
        raise CorruptFileError(f"{source.where}: a stage of its network has no residual block.")
    grouped = [
        stored(source, f"Model.MainLayers.{i}.Layers.1.LinearLayer2.Layer.weight", *[ANY] * 4)
        for i in range(n_stages)
    ]
    last = [
        stored(source, f"Model.MainLayers.{i}.Layers.1.LinearLayer3.Layer.weight", *[ANY] * 4)
        for i in range(n_stages)
    ]
    features = stored(source, "Model.MainLayers.0.Layers.0.LinearLayer.weight", ANY, ANY).shape[1]
    embed_features, n_classes = 0, 0
    if "Model.EmbeddingLayer.weight" in source:
        embed_features, n_classes = stored(source, "Model.EmbeddingLayer.weight", ANY, ANY).shape
    return R3GANConfig(
        widths=tuple(len(weight) for weight in last),
        blocks=tuple(blocks),
        cardinalities=tuple(weight.shape[0] // weight.shape[1] for weight in grouped),
        expansion=len(grouped[0]) // len(last[0]),
        kernel=grouped[0].shape[-1],
        z_dim=features - embed_features,
        n_classes=n_classes,
        embed_features=embed_features,
    )


def _count(source: Weights, pattern: str) -> int:
    """One more than the highest number that the pattern finds in the names; 0 for none."""
    found = (re.match(pattern, name) for name in source)
    return max((int(match[1]) + 1 for match in found if match), default=0)


def preset(scale: float, halvings: Sequence[int], n_classes: int = 0) -> R3GANConfig:
    """An official training preset.

    Args:
        scale: Factor of 1024 channels: 3/4, or 6/4 for ImageNet.
        halvings: How often each stage's channels and groups are halved.
        n_classes: Number of class labels.
    """
    return R3GANConfig(
        widths=tuple(round(scale * 1024) // 2**times for times in halvings),
        blocks=(2,) * len(halvings),
        cardinalities=tuple(96 // 2**times for times in halvings),
        n_classes=n_classes,
    )


FAMILY = Family(
    name="r3gan",
    title="R3GAN (Huang et al. 2024)",
    files="the authors' .pkl",
    licence="none stated by its authors: ask them before you use or pass on what is made with it",
    config=R3GANConfig,
    build=R3GAN,
    adapt=adapt,
    objection=objection,
    read=read,
    choices=("class_weights",),
    abilities=("features", "classes"),
    published={
        "r3gan-cifar10-32": preset(0.75, (0, 0, 0, 0), n_classes=10),
        "r3gan-ffhq-64": preset(0.75, (0, 0, 0, 0, 1)),
        "r3gan-ffhq-256": preset(0.75, (0, 0, 0, 0, 1, 2, 3)),
        "r3gan-imagenet-32": preset(1.5, (0, 0, 0, 0), n_classes=1000),
        "r3gan-imagenet-64": preset(1.5, (0, 0, 0, 0, 0), n_classes=1000),
    },
)
