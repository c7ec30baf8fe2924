"""StyleGAN (Karras et al. 2019) in plain PyTorch, as its two PyTorch ports compute it.

All constants of the ports are folded into the weights by the readers: the layers are ordinary ones.
Any channel plan, square or not.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import InputError
from latentseg.generators.style_generator import StyleNetwork

BLUR = (1.0, 2.0, 1.0)


@dataclass(frozen=True)
class StyleGAN1Config:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        size: (height, width) of the images; both divisible by 2 to the power (blocks - 1).
        channels: Channels of each block, coarse to fine; one block per resolution.
        z_dim, w_dim: Size of the noise and of the style vector.
        mapping_layers: Layers of the mapping network.
        is_bias_blurred: The bias of an upsampling convolution is added before the blur, which
            lowers it at the border of the image; otherwise after it.
        is_noise_shared: Both layers of a block take the same noise.
    """

    size: tuple[int, int] = (64, 64)
    channels: tuple[int, ...] = (128, 96, 64, 32, 16)
    z_dim: int = 128
    w_dim: int = 128
    mapping_layers: int = 8
    is_bias_blurred: bool = False
    is_noise_shared: bool = False

    def __post_init__(self) -> None:
        scale = 2 ** (len(self.channels) - 1)
        if not self.channels or any(side % scale or side < scale for side in self.size):
            raise InputError(
                f"size {self.size}: with {len(self.channels)} blocks both sides must be multiples "
                f"of {scale}."
            )

    @property
    def n_classes(self) -> int:
        """None: both ports are unconditional."""
        return 0


class MappingNetwork(nn.Module):
    """Noise z (B, z_dim) to style w (B, w_dim); keeps the mean of w."""

    w_avg: Tensor

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.n_layers = config.mapping_layers
        widths = [config.z_dim] + [config.w_dim] * config.mapping_layers
        for index, (fewer, width) in enumerate(pairwise(widths)):
            self.add_module(f"dense{index}", nn.Linear(fewer, width))
        self.register_buffer("w_avg", torch.zeros(config.w_dim))

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_dim) to (B, w_dim)."""
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for index in range(self.n_layers):
            x = F.leaky_relu(self.get_submodule(f"dense{index}")(x), 0.2)
        return x


class Epilogue(nn.Module):
    """What follows each convolution: noise, leaky ReLU, adaptive instance normalisation."""

    def __init__(self, channels: int, w_dim: int) -> None:
        super().__init__()
        self.noise_strength = nn.Parameter(torch.zeros(channels))
        self.style = nn.Linear(w_dim, 2 * channels)
        with torch.no_grad():
            self.style.bias[:channels] += 1

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C, H, W), style (B, w_dim) and noise (1 or B, 1, H, W) to (B, C, H, W)."""
        if noise is not None:
            x = torch.addcmul(x, noise, self.noise_strength[:, None, None])
        x = F.leaky_relu(x, 0.2)
        variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
        scale, offset = self.style(w)[:, :, None, None].chunk(2, dim=1)
        scale = scale * (variance + 1e-5).rsqrt()
        return torch.addcmul(offset - mean * scale, x, scale)


class SynthesisBlock(nn.Module):
    """Both layers of one resolution; the first block starts from a learned constant."""

    noise_const: Tensor
    blur: Tensor

    def __init__(
        self, config: StyleGAN1Config, in_channels: int, channels: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.is_bias_blurred = config.is_bias_blurred
        if in_channels == 0:
            self.const = nn.Parameter(torch.randn(channels, *size))
        else:
            self.conv1 = nn.ConvTranspose2d(in_channels, channels, 4, stride=2, padding=1)
        self.epilogue1 = Epilogue(channels, config.w_dim)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.epilogue2 = Epilogue(channels, config.w_dim)
        self.register_buffer("noise_const", torch.randn(1 if config.is_noise_shared else 2, *size))
        line = torch.tensor(BLUR) / sum(BLUR)
        self.register_buffer("blur", torch.outer(line, line), persistent=False)

    def forward(self, x: Tensor | None, ws: Tensor, noise: str) -> tuple[Tensor, Tensor]:
        """Draws one resolution.

        Args:
            x: Activations of the block below, None in the first block.
            ws: (B, 2, w_dim), the style of each layer.
            noise: Source of the noise.

        Returns:
            The activations of the block, (B, C, H, W), and those after its last convolution,
            before noise and leaky ReLU.
        """
        first, second = self._noises(noise, len(ws))
        x = self.const.expand(len(ws), -1, -1, -1) if x is None else self._upsampled(x)
        convolved = self.conv2(self.epilogue1(x, ws[:, 0], first))
        return self.epilogue2(convolved, ws[:, 1], second), convolved

    def _upsampled(self, x: Tensor) -> Tensor:
        bias = self.conv1.bias
        before, after = (bias, None) if self.is_bias_blurred else (None, bias)
        x = F.conv_transpose2d(x, self.conv1.weight, before, stride=2, padding=1)
        channels = x.shape[1]
        return F.conv2d(x, self.blur.expand(channels, 1, -1, -1), after, padding=1, groups=channels)

    def _noises(self, noise: str, batch: int) -> tuple[Tensor | None, Tensor | None]:
        if noise == "none":
            return None, None
        maps = self.noise_const[None]
        if noise == "random":
            maps = torch.randn(batch, *self.noise_const.shape, device=maps.device)
        return maps[:, :1], maps[:, -1:]


class SynthesisNetwork(nn.Module):
    """Styles (B, layers, w_dim) to images, coarse to fine."""

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.n_blocks = len(config.channels)
        for index, (fewer, channels) in enumerate(pairwise((0, *config.channels))):
            scale = 2 ** (self.n_blocks - 1 - index)
            size = (config.size[0] // scale, config.size[1] // scale)
            self.add_module(f"block{index}", SynthesisBlock(config, fewer, channels, size))
        self.to_rgb = nn.Conv2d(config.channels[-1], 3, 1)

    def forward(self, ws: Tensor, noise: str = "const") -> tuple[Tensor, list[Tensor]]:
        """Draws images.

        Args:
            ws: (B, layers, w_dim), one style for each layer.
            noise: "const" (the stored noise), "random", or "none".

        Returns:
            Images (B, 3, H, W), nominally in [-1, 1], not clamped; and two activation maps of each
            block, in the order in which DatasetGAN concatenates them.
        """
        x, features = None, []
        for index in range(self.n_blocks):
            block = self.get_submodule(f"block{index}")
            x, convolved = block(x, ws[:, 2 * index : 2 * index + 2], noise)
            features += [x, convolved]
        return self.to_rgb(x), features


class StyleGAN1(StyleNetwork):
    """Mapping and synthesis."""

    config: StyleGAN1Config

    def __init__(self, config: StyleGAN1Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(config)
        self.synthesis = SynthesisNetwork(config)

    @property
    def n_layers(self) -> int:
        """One style for each layer, of which a block has two."""
        return 2 * len(self.config.channels)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Two maps of each block: its output, and its last convolution alone."""
        return tuple(channels for channels in self.config.channels for _ in range(2))

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, z_dim) to styles (B, w_dim)."""
        return self.mapping(z)

    def centre(self, labels: Tensor | None) -> Tensor:
        """The mean of w, (w_dim,)."""
        return self.mapping.w_avg

    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and two activation maps of each block, coarse to fine."""
        return self.synthesis(ws, noise)
