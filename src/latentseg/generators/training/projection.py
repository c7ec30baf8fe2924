"""The projected discriminator (Sauer et al. 2021): light heads on frozen, mixed features."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from latentseg.generators.families.stylegan2 import FullyConnected, normalise_second_moment
from latentseg.generators.training.discriminator import minibatch_std
from latentseg.weights.efficientnet_lite0 import CHANNELS, STRIDES, EfficientNetLite0

MIXED_CHANNELS = (32, 64, 128, 256)  # after cross-channel mixing; half of Sauer et al. 2021
WIDEST = 128
COLOR_PX = 16  # shorter side of the image that the head on colors sees
COLOR_CHANNELS = 16
LOGITS_PX = 4  # heads halve their maps down to this
SLOPE = 0.2
GAIN = 2.0  # of each layer: spectral norms of 1 alone let the signal of random weights fade


class RandomMixing(nn.Module):
    """Cross-channel and cross-scale mixing by random weights that never learn.

    So no head can rely on a few features alone: Sauer et al. 2021, section 3.2. Channels are mixed
    by 1x1 convolutions; then, from coarse to fine, each scale is added to the one below and mixed
    by a 3x3 convolution that halves the channels.
    """

    def __init__(self) -> None:
        super().__init__()
        for scale, (known, mixed) in enumerate(zip(CHANNELS, MIXED_CHANNELS, strict=True)):
            self.register_buffer(f"channels{scale}", _random_weight(mixed, known, 1))
            self.register_buffer(f"scales{scale}", _random_weight(mixed // 2, mixed, 3))

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        """Maps of the features, fine to coarse, to as many mixed maps of the same sizes."""
        mixed: list[Tensor] = []
        coarser: Tensor | None = None
        for scale in reversed(range(len(maps))):
            x = F.conv2d(maps[scale], self.get_buffer(f"channels{scale}"))
            if coarser is not None:
                x = x + F.interpolate(coarser, size=x.shape[2:], mode="bilinear")
            coarser = F.conv2d(x, self.get_buffer(f"scales{scale}"), padding=1)
            mixed.append(coarser)
        return mixed[::-1]


def _random_weight(out_channels: int, in_channels: int, size: int) -> Tensor:
    weight = torch.empty(out_channels, in_channels, size, size)
    return nn.init.kaiming_normal_(weight)


class Head(nn.Module):
    """A light discriminator of one scale: halvings down to 4 px, then a map of logits.

    The std among samples stands beside the last maps, so that drawn images that are all alike
    are found out. Batch normalization, which the paper has, would hide just that, and free the
    layers from the bound of their spectral norms: the heads then win, and layouts collapse.
    """

    def __init__(self, channels: int, shorter_px: int, n_classes: int, w_dim: int) -> None:
        super().__init__()
        halvings = max(round(math.log2(shorter_px / LOGITS_PX)), 0)
        widths = [min(channels * 2**index, WIDEST) for index in range(halvings + 1)]
        self.layers = nn.ModuleList(
            spectral_norm(nn.Conv2d(narrow, wide, 4, stride=2, padding=1))
            for narrow, wide in pairwise(widths)
        )
        last = widths[-1]
        self.layers.append(spectral_norm(nn.Conv2d(last, last, 3, padding=1)))
        self.n_classes = n_classes
        self.out = spectral_norm(nn.Conv2d(last + 1, w_dim if n_classes else 1, 3, padding=1))
        if n_classes:
            self.embed = FullyConnected(n_classes, w_dim)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """(B, C, H, W) to logits (B, positions) float32."""
        for layer in self.layers:
            x = GAIN * F.leaky_relu(layer(x), SLOPE)
        x = self.out(minibatch_std(x)).float().flatten(2)
        if not self.n_classes or labels is None:
            return x[:, 0]
        embedded = self.embed(F.one_hot(labels, self.n_classes).float())
        return (x * normalise_second_moment(embedded)[..., None]).sum(1) / math.sqrt(x.shape[1])


class ProjectedDiscriminator(nn.Module):
    """What is seen of images to the logits of one head per scale, and of one on colors.

    Args:
        size: (height, width) at which the features see an image.
        n_classes: Of the images; 0 if they have none.
        w_dim: Width of the class embedding.
    """

    def __init__(self, size: tuple[int, int], n_classes: int, w_dim: int) -> None:
        super().__init__()
        self.mixing = RandomMixing()
        self.heads = nn.ModuleList(
            Head(mixed // 2, math.ceil(min(size) / stride), n_classes, w_dim)
            for mixed, stride in zip(MIXED_CHANNELS, STRIDES, strict=True)
        )
        self.register_buffer("colors", _random_weight(COLOR_CHANNELS, 3, 1))
        self.color_head = Head(COLOR_CHANNELS, COLOR_PX, n_classes, w_dim)

    colors: Tensor

    def forward(self, seen: "Seen", labels: Tensor | None = None) -> list[Tensor]:
        """Logits (B, positions) of each head."""
        mixed = self.mixing(seen.maps)
        logits = [head(x, labels) for head, x in zip(self.heads, mixed, strict=True)]
        return [*logits, self.color_head(F.conv2d(seen.small, self.colors), labels)]


@dataclass(frozen=True)
class Seen:
    """What the heads look at.

    Attributes:
        maps: Of the frozen features, fine to coarse.
        small: The image itself (B, 3, h, w), its shorter side 16 px: features of ImageNet hardly
            tell colors, which a generator then leaves wild.
    """

    maps: tuple[Tensor, ...]
    small: Tensor

    def detach(self) -> "Seen":
        """The same without a gradient to the images."""
        return Seen(tuple(x.detach() for x in self.maps), self.small.detach())


class Features(nn.Module):
    """Images as the heads see them: blurred, enlarged, through the frozen network; and small."""

    def __init__(self, network: EfficientNetLite0, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor, blur: float) -> Seen:
        """(B, 3, H, W) in [-1, 1] ; `blur` is the std of a Gaussian in pixels or 0."""
        scale = COLOR_PX / min(x.shape[2:])
        height, width = (max(round(side * scale), 1) for side in x.shape[2:])
        small = F.adaptive_avg_pool2d(x, (height, width))
        if blur > 0.1:
            x = blurred(x, blur)
        if x.shape[2:] != self.size:
            x = F.interpolate(x, size=self.size, mode="bilinear", antialias=False)
        return Seen(self.network(x), small)


def blurred(x: Tensor, std: float) -> Tensor:
    """Convolves (B, C, H, W) with a Gaussian of `std` pixels; the border is repeated."""
    radius = math.ceil(3 * std)
    kernel = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = torch.softmax(-kernel.square() / (2 * std**2), dim=0)
    channels = x.shape[1]
    x = F.pad(x, (radius, radius, radius, radius), mode="replicate")
    x = F.conv2d(x, kernel.view(1, 1, 1, -1).expand(channels, -1, -1, -1), groups=channels)
    return F.conv2d(x, kernel.view(1, 1, -1, 1).expand(channels, -1, -1, -1), groups=channels)
