"""StyleGAN2 (Karras et al. 2020) in plain PyTorch, with the official parameter names.

Nothing is compiled. Modulation scales the activations instead of the weights: the same function,
and one ordinary convolution for the whole batch. Any channel plan, square or not.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.devices import is_mixed
from latentseg.errors import InputError
from latentseg.generators.feature_strips import Window, whole_maps
from latentseg.generators.protocols import Strip
from latentseg.generators.style_generator import StyleNetwork

SQRT_2 = math.sqrt(2)
ARCHITECTURES = ("skip", "orig", "resnet")
MARGIN = 6  # rows around a strip that are held or drawn with it
AT_WORK = 5  # strips' worth of memory that drawing one takes, beside one that each block holds


@dataclass(frozen=True)
class StyleGAN2Config:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        size: (height, width) of the images; both divisible by 2 to the power (blocks - 1).
        channels: Channels of each block, coarse to fine; one block per resolution.
        z_dim, w_dim: Size of the noise and of the style vector.
        n_classes: Number of class labels, 0 for none.
        mapping_layers: Layers of the mapping network.
        mapping_features, embed_features: Widths inside the mapping network; None for w_dim.
        mapping_lr_multiplier: Scale of its parameters (equalised learning rate).
        architecture: "skip" (official default), "orig" or "resnet".
        conv_clamp: Activations are clamped to this magnitude; None for no clamp. Changes images.
        resample_filter: The separable filter of the resampling, not normalised; symmetric, and of
            an even number of taps.
        img_channels: 3, or 1 for grey images, which are drawn with three equal channels.
    """

    size: tuple[int, int] = (64, 64)
    channels: tuple[int, ...] = (128, 96, 64, 32, 16)
    z_dim: int = 128
    w_dim: int = 128
    n_classes: int = 0
    mapping_layers: int = 2
    mapping_features: int | None = None
    embed_features: int | None = None
    mapping_lr_multiplier: float = 0.01
    architecture: str = "skip"
    conv_clamp: float | None = None
    resample_filter: tuple[float, ...] = (1, 3, 3, 1)
    img_channels: int = 3

    def __post_init__(self) -> None:
        scale = 2 ** (len(self.channels) - 1)
        if any(side % scale or side < scale for side in self.size):
            raise InputError(
                f"size {self.size}: with {len(self.channels)} blocks both sides must be multiples "
                f"of {scale}."
            )
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"`architecture`: expected one of {', '.join(ARCHITECTURES)}, "
                f"found {self.architecture!r}."
            )
        taps = self.resample_filter
        if len(taps) % 2 or taps != taps[::-1]:
            raise InputError(f"resample_filter {taps}: expected an even number, symmetric.")
        if self.img_channels not in (1, 3):
            raise InputError(f"`img_channels`: expected 1 or 3, found {self.img_channels}.")


def upfirdn(x: Tensor, kernel: Tensor, *, up: int = 1, down: int = 1, gain: float = 1.0) -> Tensor:
    """Resamples (B, C, H, W) by 2 up or down, or filters it, as the official operator pads.

    Args:
        x: Activations or images.
        kernel: (k, k) filter that sums to 1.
        up, down: Factors, 1 or 2; not both 2.
        gain: Factor of the result.

    Source: Karras et al. 2019, appendix; padding as StyleGAN2's upsample2d and downsample2d.
    """
    channels, taps = x.shape[1], kernel.shape[-1]
    weight = (kernel * gain).to(x.dtype)[None, None].expand(channels, 1, taps, taps)
    if up == 2:
        # A transposed convolution with a symmetric filter is zero insertion followed by the filter.
        return F.conv_transpose2d(x, weight, stride=2, padding=(taps - 2) // 2, groups=channels)
    pad = taps - down
    x = F.pad(x, ((pad + 1) // 2, pad // 2, (pad + 1) // 2, pad // 2))
    return F.conv2d(x, weight, stride=down, groups=channels)


def filter_kernel(taps: Iterable[float]) -> Tensor:
    """The (k, k) filter of separable `taps`, normalised to sum 1."""
    line = torch.tensor(list(taps), dtype=torch.float32)
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


class FullyConnected(nn.Module):
    """A linear layer with equalised learning rate (Karras et al. 2018)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        is_activated: bool = False,
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
    ) -> None:
        super().__init__()
        self.is_activated = is_activated
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), bias_init / lr_multiplier))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_features) to (B, out_features)."""
        x = F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)
        return F.leaky_relu(x, 0.2) * SQRT_2 if self.is_activated else x


def normalise_second_moment(x: Tensor) -> Tensor:
    """Divides each row of (B, D) by its root mean square."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """Noise z (B, z_dim) and class to style w (B, w_dim); keeps the running mean of w."""

    w_avg: Tensor

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.n_layers, self.n_classes = config.mapping_layers, config.n_classes
        embedded = config.embed_features or config.w_dim
        if config.n_classes:
            self.embed = FullyConnected(config.n_classes, embedded)
        inner = [config.mapping_features or config.w_dim] * (config.mapping_layers - 1)
        widths = [config.z_dim + (embedded if config.n_classes else 0), *inner, config.w_dim]
        for index, (fewer, width) in enumerate(pairwise(widths)):
            layer = FullyConnected(
                fewer, width, is_activated=True, lr_multiplier=config.mapping_lr_multiplier
            )
            self.add_module(f"fc{index}", layer)
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """(B, z_dim) float32 and (B,) int64 to (B, w_dim)."""
        x = normalise_second_moment(z.float())
        if self.n_classes:
            if labels is None:
                raise InputError("A conditional generator needs class labels.")
            one_hot = F.one_hot(labels, self.n_classes).float()
            x = torch.cat([x, normalise_second_moment(self.embed(one_hot))], dim=1)
        for index in range(self.n_layers):
            x = self.get_submodule(f"fc{index}")(x)
        return x


def modulated_conv(x: Tensor, weight: Tensor, styles: Tensor, kernel: Tensor | None) -> Tensor:
    """Convolution of activations scaled by `styles`, and x2 upsampling if `kernel` is given.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in, k, k).
        styles: (B, C_in).
        kernel: Filter of the upsampling, or None for no upsampling.

    Source: Karras et al. 2020, Eq. 1; scaling activations or weights is the same function.
    """
    x, weight = x * styles.to(x.dtype)[:, :, None, None], weight.to(x.dtype)
    if kernel is None:
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    channels, taps = len(weight), kernel.shape[-1]
    x = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
    # Two rows and columns of zeros were inserted for each one, hence the gain 4.
    blur = (kernel * 4).to(x.dtype).expand(channels, 1, taps, taps)
    return F.conv2d(x, blur, padding=taps // 2 - 1, groups=channels)


def demodulation(weight: Tensor, styles: Tensor) -> Tensor:
    """Factors (B, C_out) that give each sample's scaled weights unit length.

    Source: Karras et al. 2020, Eq. 3.
    """
    return (styles.square() @ weight.square().sum(dim=(2, 3)).T + 1e-8).rsqrt()


class SynthesisLayer(nn.Module):
    """Modulated 3x3 convolution, noise, bias, leaky ReLU; one style."""

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self,
        config: StyleGAN2Config,
        in_channels: int,
        out_channels: int,
        *,
        size: tuple[int, int],
        is_upsampling: bool,
    ) -> None:
        super().__init__()
        self.size, self.is_upsampling, self.clamp = size, is_upsampling, config.conv_clamp
        self.affine = FullyConnected(config.w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", torch.randn(size))
        self.register_buffer("resample_filter", filter_kernel(config.resample_filter))

    @property
    def halo(self) -> int:
        """Rows of the input, above and below, on which a row of the result depends."""
        return (self.resample_filter.shape[-1] + 2) // 4 if self.is_upsampling else 1

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """(B, C_in, H, W), style (B, w_dim) and what `noise` gives to (B, C_out, H', W')."""
        kernel = self.resample_filter if self.is_upsampling else None
        weight, styles = self.weight, self.affine(w).float()
        if is_mixed(x.device):
            # Both normalisations cancel in the demodulation; they keep half precision in range.
            weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
            styles = styles * styles.square().mean().rsqrt()
        x = modulated_conv(x, weight, styles, kernel)
        # The gain of the activation is folded into factor and offset: fewer passes over the maps.
        gain = gain * SQRT_2
        factor = (demodulation(weight, styles) * gain).to(x.dtype)[:, :, None, None]
        x = torch.addcmul((self.bias * gain).to(x.dtype)[:, None, None], x, factor)
        if noise is not None:
            x = x + (noise * self.noise_strength * gain).to(x.dtype)
        x = F.leaky_relu(x, 0.2)
        if self.clamp is None:
            return x
        return x.clamp(-self.clamp * gain / SQRT_2, self.clamp * gain / SQRT_2)

    def rows(
        self, x: Window, w: Tensor, noise: Tensor | None, top: int, end: int, gain: float = 1.0
    ) -> Tensor:
        """Rows `top` to `end` - 1 of what `forward` gives, from the rows of its input in `x`."""

        def draw(part: Tensor, rows: slice) -> Tensor:
            return self(part, w, None if noise is None else noise[..., rows, :], gain)

        return x.through(draw, top, end, halo=self.halo, scale=2 if self.is_upsampling else 1)

    def noise(self, source: str, batch: int) -> Tensor | None:
        """Noise of unit strength, (H', W') or (B, 1, H', W'), from "const", "random" or "none"."""
        if source == "random":
            return torch.randn(batch, 1, *self.size, device=self.bias.device)
        return None if source == "none" else self.noise_const


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image channels, without demodulation."""

    def __init__(self, config: StyleGAN2Config, in_channels: int) -> None:
        super().__init__()
        self.clamp = config.conv_clamp
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(config.w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(config.img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.img_channels))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, C, H, W) and style (B, w_dim) to (B, img_channels, H, W)."""
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv(x, self.weight, styles, kernel=None)
        x = x + self.bias.to(x.dtype)[None, :, None, None]
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ResidualSkip(nn.Module):
    """The upsampling 1x1 shortcut of the "resnet" architecture."""

    resample_filter: Tensor

    def __init__(self, config: StyleGAN2Config, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.register_buffer("resample_filter", filter_kernel(config.resample_filter))

    def forward(self, x: Tensor, gain: float) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, 2H, 2W)."""
        x = F.conv2d(x, (self.weight * self.weight_gain).to(x.dtype))
        return upfirdn(x, self.resample_filter, up=2, gain=4 * gain)


class SynthesisBlock(nn.Module):
    """All layers of one resolution; the first block starts from a learned constant."""

    resample_filter: Tensor

    def __init__(
        self,
        config: StyleGAN2Config,
        in_channels: int,
        out_channels: int,
        *,
        size: tuple[int, int],
        is_last: bool,
    ) -> None:
        super().__init__()
        self.is_residual = in_channels > 0 and config.architecture == "resnet"
        self.gain = math.sqrt(0.5) if self.is_residual else 1.0
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(out_channels, *size))
        else:
            self.conv0 = SynthesisLayer(
                config, in_channels, out_channels, size=size, is_upsampling=True
            )
            if self.is_residual:
                self.skip = ResidualSkip(config, in_channels, out_channels)
        self.conv1 = SynthesisLayer(
            config, out_channels, out_channels, size=size, is_upsampling=False
        )
        self.has_rgb = is_last or config.architecture == "skip"
        if self.has_rgb:
            self.torgb = ToRGB(config, out_channels)
        self.register_buffer("resample_filter", filter_kernel(config.resample_filter))

    def forward(
        self,
        x: Tensor | None,
        image: Tensor | None,
        styles: Iterator[Tensor],
        last: Tensor,
        noise: str,
    ) -> tuple[list[Tensor], Tensor | None]:
        """Draws one resolution.

        Args:
            x: Activations of the block below, None in the first block.
            image: RGB drawn so far, or None.
            styles: Gives one (B, w_dim) style for each convolution.
            last: The style of this block's RGB, which is that of the convolution after it.
            noise: Source of the noise.

        Returns:
            The activations of its convolutions, and the image so far.
        """
        activations: list[Tensor] = []
        if x is None:
            lower = self.const[None].expand(len(last), -1, -1, -1)
        else:
            lower = self.conv0(x, next(styles), self.conv0.noise(noise, len(x)))
            activations.append(lower)
        drawn = self.conv1.noise(noise, len(last))
        upper = self.conv1(lower, next(styles), drawn, gain=self.gain)
        if self.is_residual:
            upper = self.skip(x, self.gain) + upper
        activations.append(upper)
        if image is not None:
            image = upfirdn(image, self.resample_filter, up=2, gain=4)
        if self.has_rgb:
            rgb = self.torgb(upper, last).float()
            image = rgb if image is None else image + rgb
        return activations, image

    def strips(
        self,
        below: Iterator[Strip],
        layer: int,
        styles: Sequence[Tensor],
        noise: Sequence[Tensor | None],
        memory: int,
    ) -> Iterator[Strip]:
        """Passes on the strips of the layers below, and draws its own two layers from the last.

        Args:
            below: Strips of layers 0 to `layer` - 1.
            layer: Number of the first of the two.
            styles: (B, w_dim) for each of them.
            noise: For each of them, as `SynthesisLayer.noise` gives it.
            memory: Bytes of a strip with the rows around it.
        """
        height, width = self.conv1.size
        n_values = max(self.conv1.weight.shape[0], self.conv0.weight.shape[1] // 2) * width
        n = max(1, memory // (4 * len(styles[0]) * n_values) - MARGIN)
        x, lower, drawn = Window(height // 2), Window(height), 0

        def upper_rows(top: int, end: int) -> Tensor:
            upper = self.conv1.rows(lower, styles[1], noise[1], top, end, self.gain)
            lower.forget(end - 1)
            if self.is_residual:
                upper = x.through(self._skip_rows, top, end, halo=self.conv0.halo, scale=2) + upper
            return upper

        for strip in below:
            yield strip
            if strip.layer == layer - 1:
                x.add(strip.values)
            del strip  # or it would be held while the next one is drawn
            ready = height if x.end == x.height else 2 * (x.end - self.conv0.halo)
            while lower.end < ready:
                top, end = lower.end, min(lower.end + n, ready)
                lower.add(self.conv0.rows(x, styles[0], noise[0], top, end))
                yield Strip(layer, top, height, lower.rows(top, end))
                top, drawn = drawn, height if end == height else end - 1
                if top < drawn:
                    yield Strip(layer + 1, top, height, upper_rows(top, drawn))
            x.forget(drawn // 2 - self.conv0.halo)

    def _skip_rows(self, part: Tensor, rows: slice) -> Tensor:
        return self.skip(part, self.gain)


class SynthesisNetwork(nn.Module):
    """Styles (B, layers, w_dim) to images, coarse to fine."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        n_blocks = len(config.channels)
        for index, (fewer, channels) in enumerate(pairwise((0, *config.channels))):
            scale = 2 ** (n_blocks - 1 - index)
            size = (config.size[0] // scale, config.size[1] // scale)
            block = SynthesisBlock(
                config, fewer, channels, size=size, is_last=index == n_blocks - 1
            )
            self.add_module(f"b{4 * 2**index}", block)

    @property
    def blocks(self) -> list[SynthesisBlock]:
        """Coarse to fine."""
        return [block for block in self.children() if isinstance(block, SynthesisBlock)]

    def forward(self, ws: Tensor, noise: str = "const") -> tuple[Tensor, list[Tensor]]:
        """Draws images.

        Args:
            ws: (B, layers, w_dim), one style for each layer.
            noise: "const" (the stored noise), "random", or "none".

        Returns:
            Images (B, 3, H, W) float32, nominally in [-1, 1], not clamped; and the activations
            after each convolution, coarse to fine.
        """
        x, image, features, used = None, None, [], 0
        for block in self.blocks:
            styles = iter(ws[:, used:].unbind(dim=1))
            used += 1 if x is None else 2
            activations, image = block(x, image, styles, ws[:, used], noise)
            x = activations[-1]
            features += activations
        if image is None:
            raise InputError("A synthesis network needs at least one block.")
        return image if image.shape[1] == 3 else image.repeat(1, 3, 1, 1), features

    def strips(self, ws: Tensor, noise: str, memory: int) -> Iterator[Strip]:
        """The activations of `forward` in strips of rows; no image is drawn.

        Args:
            ws: (B, layers, w_dim).
            noise: As for `forward`.
            memory: As `HasFeatureStrips` has it; drawn noise is not counted.
        """
        first, *blocks = self.blocks
        share = memory // (len(self.blocks) + AT_WORK)
        const = first.const[None].expand(len(ws), -1, -1, -1)
        x = first.conv1(const, ws[:, 0], first.conv1.noise(noise, len(ws)))
        strips: Iterator[Strip] = whole_maps([x])
        for i, block in enumerate(blocks):
            drawn = [layer.noise(noise, len(ws)) for layer in (block.conv0, block.conv1)]
            styles = ws[:, 2 * i + 1 : 2 * i + 3].unbind(dim=1)
            strips = block.strips(strips, 2 * i + 1, styles, drawn, share)
        yield from strips


class StyleGAN2(StyleNetwork):
    """Mapping and synthesis; the state dict has the official names (`mapping.fc0.weight`, ...)."""

    config: StyleGAN2Config

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @property
    def n_layers(self) -> int:
        """One style for each convolution, and one for the last RGB."""
        return 2 * len(self.config.channels)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each convolution."""
        first, *rest = self.config.channels
        return (first, *(channels for channels in rest for _ in range(2)))

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, z_dim) and classes (B,) to styles (B, w_dim)."""
        return self.mapping(z, labels)

    def centre(self, labels: Tensor | None) -> Tensor:
        """The running mean of w, (w_dim,), for all classes alike."""
        return self.mapping.w_avg

    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and the activations after each convolution, coarse to fine."""
        return self.synthesis(ws, noise)

    def strips(self, ws: Tensor, noise: str, memory: int) -> Iterator[Strip]:
        """The activations of `draw` in strips of rows; see `SynthesisNetwork.strips`."""
        return self.synthesis.strips(ws, noise, memory)

    def forward(self, ws: Tensor, noise: str = "const") -> Tensor:
        """Styles (B, n_layers, w_dim) to images (B, 3, H, W) float32."""
        return self.synthesis(ws, noise)[0]
