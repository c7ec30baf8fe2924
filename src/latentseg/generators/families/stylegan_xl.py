"""StyleGAN-XL (Sauer et al. 2022): StyleGAN3's layers, grown in stages, a mean style per class."""

from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor, nn

from latentseg.errors import InputError
from latentseg.generators.families.stylegan2 import FullyConnected, normalise_second_moment
from latentseg.generators.families.stylegan3 import (
    N_CRITICAL,
    LayerConfig,
    SynthesisConfig,
    SynthesisNetwork,
    built,
    first_band,
    layer_names,
    official_weights,
    planned_bands,
    planned_layers,
    read_mapping,
    read_synthesis,
    well_described,
)
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, stored


@dataclass(frozen=True)
class StyleGANXLConfig:
    """A StyleGAN-XL.

    Attributes:
        synthesis: The layers that draw, of all stages.
        z_dim, w_dim: Size of the noise and of the style vector.
        n_classes: Number of class labels, 0 for none.
        embed_features: Width of the class embedding.
        mapping_layers: Layers of the mapping network.
        mapping_lr_multiplier: Scale of its parameters (equalised learning rate).
    """

    synthesis: SynthesisConfig
    z_dim: int = 64
    w_dim: int = 512
    n_classes: int = 1000
    embed_features: int = 320
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "synthesis", built(SynthesisConfig, self.synthesis))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.synthesis.size, self.synthesis.size


def staged(
    stages: tuple[tuple[int, int], ...],
    *,
    channel_base: int = 65536,
    channel_max: int = 1024,
) -> SynthesisConfig:
    """The official plan: each stage replaces the critically sampled layers of the one below.

    Args:
        stages: Image size, a power of two from 16, and number of new layers, for each stage.
        channel_base: Channels are half of this divided by the cutoff frequency,
        channel_max: but at most so many.

    Source: Sauer et al. 2022, on progressive growing.
    """
    band = first_band(channel_base, channel_max)
    layers: list[LayerConfig] = []
    for size, n_layers in stages:
        bands = planned_bands(band, size, n_layers, channel_base, channel_max)
        new = planned_layers(bands, size, kernel=3, is_radial=False, clamp=256.0)
        layers = [*layers[:-N_CRITICAL], *new]
        last = bands[-N_CRITICAL - 1]
        band = replace(last, stopband=max(last.stopband, last.rate / 2))
    return SynthesisConfig(tuple(layers), layers[0].channels)


class ClassMapping(nn.Module):
    """Noise z (B, z_dim) and a class's embedding to style w; keeps the mean of w of each class."""

    w_avg: Tensor

    def __init__(self, config: StyleGANXLConfig) -> None:
        super().__init__()
        self.n_layers, self.n_classes = config.mapping_layers, config.n_classes
        if config.n_classes:
            self.embed = nn.Embedding(config.n_classes, config.embed_features)
            self.embed_proj = FullyConnected(config.embed_features, config.z_dim, is_activated=True)
        first = 2 * config.z_dim if config.n_classes else config.z_dim
        widths = [first, *[config.w_dim] * config.mapping_layers]
        for index, (fewer, width) in enumerate(pairwise(widths)):
            layer = FullyConnected(
                fewer, width, is_activated=True, lr_multiplier=config.mapping_lr_multiplier
            )
            self.add_module(f"fc{index}", layer)
        shape = (config.n_classes, config.w_dim) if config.n_classes else (config.w_dim,)
        self.register_buffer("w_avg", torch.zeros(shape))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, z_dim) float32 and (B,) int64 to (B, w_dim)."""
        x = normalise_second_moment(z.float())
        if self.n_classes:
            if labels is None:
                raise InputError("A conditional generator needs class labels.")
            embedded = self.embed_proj(self.embed(labels))
            x = torch.cat([x, normalise_second_moment(embedded)], dim=1)
        for index in range(self.n_layers):
            x = self.get_submodule(f"fc{index}")(x)
        return x


class StyleGANXL(StyleNetwork):
    """Mapping and synthesis; layers are numbered in the state dict, all else has official names."""

    config: StyleGANXLConfig

    def __init__(self, config: StyleGANXLConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = ClassMapping(config)
        self.synthesis = SynthesisNetwork(config.synthesis, config.w_dim)

    @property
    def n_layers(self) -> int:
        """One style for the pose of the input, one for each layer, one for the image."""
        return len(self.config.synthesis.layers) + 2

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each layer."""
        return tuple(layer.channels for layer in self.config.synthesis.layers)

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, z_dim) and classes (B,) to styles (B, w_dim)."""
        return self.mapping(z, labels)

    def centre(self, labels: Tensor | None) -> Tensor:
        """The running mean of w of each image's class, (B, w_dim); (w_dim,) without classes."""
        return self.mapping.w_avg if labels is None else self.mapping.w_avg[labels]

    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and the activations after each layer; there is no noise."""
        return self.synthesis(ws)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a StyleGAN-XL checkpoint; None if it is one."""
    if not checkpoint.has_module("G_ema"):
        return "no network under 'G_ema'"
    nodes = checkpoint.module("G_ema").nodes
    if "synthesis.input" not in nodes:
        return "its network has no part 'synthesis.input'"
    if "mapping.embed" not in nodes or nodes["mapping.embed"].class_name != "Embedding":
        return "its network has no table 'mapping.embed'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the authors' pickles, from the state of the modules alone: the stem is in them.

    Raises:
        CorruptFileError: parameters or attributes are missing or do not fit.
    """
    tree = checkpoint.module("G_ema")
    source = Weights(tree.tensors, checkpoint.path)
    with well_described(checkpoint.path):
        config = StyleGANXLConfig(
            synthesis=read_synthesis(tree, source),
            embed_features=stored(source, "mapping.embed.weight", ANY, ANY).shape[1],
            **read_mapping(tree),
        )
        names = layer_names(tree)
    return Imported(config, official_weights(StyleGANXL, config, source, names))


# The README's recipe for small collections; which stages the published weights have is not stated.
RECIPE = ((16, 10), (32, 7))

FAMILY = Family(
    name="stylegan-xl",
    title="StyleGAN-XL (Sauer et al. 2022)",
    files="the authors' .pkl, stem or super-resolution",
    licence=(
        "built on NVIDIA's code (NVIDIA Source Code License), treat as non-commercial: so is every "
        "dataset and segmenter made with it"
    ),
    config=StyleGANXLConfig,
    build=StyleGANXL,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    choices=("psi", "cutoff", "class_weights"),
    abilities=("variants", "features", "classes"),
    published={"stylegan-xl-recipe-32": StyleGANXLConfig(staged(RECIPE), n_classes=0)},
)
