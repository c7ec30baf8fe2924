"""The discriminator: that of StyleGAN2 (Karras et al. 2020), halving by average pooling."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.generators.families.stylegan2 import (
    SQRT_2,
    FullyConnected,
    StyleGAN2Config,
    normalise_second_moment,
)

GROUP = 4  # samples compared by the minibatch std; Karras et al. 2020


class Convolution(nn.Module):
    """A convolution with equalized learning rate, bias and leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, size, size))
        self.weight_gain = 1 / math.sqrt(in_channels * size * size)
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W)."""
        # The gain of the activation is folded into weights and bias: fewer passes over the maps.
        weight, bias = self.weight * (self.weight_gain * SQRT_2), self.bias * SQRT_2
        return F.leaky_relu(F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2), 0.2)


class Block(nn.Module):
    """Two convolutions and a halving, beside a 1x1 shortcut.

    The halving is average pooling (Miyato et al. 2018), which is quicker on a CPU than the
    strided convolution of StyleGAN2.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv0 = Convolution(in_channels, in_channels, size=3)
        self.conv1 = Convolution(in_channels, out_channels, size=3)
        self.skip = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H/2, W/2)."""
        gain = 1 / math.sqrt(x.shape[1])
        shortcut = F.conv2d(F.avg_pool2d(x, 2), (self.skip * gain).to(x.dtype))
        x = F.avg_pool2d(self.conv1(self.conv0(x)), 2)
        return (x + shortcut) * math.sqrt(0.5)


def minibatch_std(x: Tensor) -> Tensor:
    """Appends the std within groups of samples, averaged: (B, C, H, W) to (B, C + 1, H, W).

    Source: Karras et al. 2018, section 3.
    """
    batch, channels, height, width = x.shape
    group = math.gcd(batch, GROUP)
    grouped = x.float().reshape(group, -1, channels, height, width)
    std = (grouped.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    plane = std.repeat(group)[:, None, None, None].expand(-1, 1, height, width)
    return torch.cat([x, plane.to(x.dtype)], dim=1)


class Discriminator(nn.Module):
    """Images (B, 3, H, W), and classes if conditional, to realness logits (B,).

    Args:
        config: The generator it is trained against; size, channels and classes are mirrored.
    """

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        fine_to_coarse = config.channels[::-1]
        self.fromrgb = Convolution(3, fine_to_coarse[0], size=1)
        self.blocks = nn.ModuleList(
            Block(wide, narrow) for wide, narrow in pairwise(fine_to_coarse)
        )
        channels = fine_to_coarse[-1]
        scale = 2 ** (len(config.channels) - 1)
        positions = (config.size[0] // scale) * (config.size[1] // scale)
        self.conv = Convolution(channels + 1, channels, size=3)
        self.hidden = FullyConnected(channels * positions, channels, is_activated=True)
        self.n_classes = config.n_classes
        self.out = FullyConnected(channels, config.w_dim if config.n_classes else 1)
        if config.n_classes:
            self.embed = FullyConnected(config.n_classes, config.w_dim)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, 3, H, W) in [-1, 1] and (B,) int64 to (B,) float32."""
        x = self.fromrgb(x)
        for block in self.blocks:
            x = block(x)
        x = self.conv(minibatch_std(x))
        x = self.out(self.hidden(x.float().flatten(1)))
        if not self.n_classes or labels is None:
            return x[:, 0].float()
        embedded = self.embed(F.one_hot(labels, self.n_classes).float())
        projected = (x * normalise_second_moment(embedded)).sum(dim=1)
        return projected.float() / math.sqrt(x.shape[1])
