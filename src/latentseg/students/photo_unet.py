"""A U-Net whose encoder has seen photos: EfficientNet-Lite0 of ImageNet, and a small decoder."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentseg.weights.efficientnet_lite0 import CHANNELS, STAGES, Convolution, EfficientNetLite0

SKIP_STAGES = (0, 1, 2, 4, 6)  # the last stage of strides 2, 4, 8, 16 and 32
SKIP_CHANNELS = (STAGES[0].channels, *CHANNELS)
DECODER_CHANNELS = (96, 64, 48, 32)
STRIDE = 32
GROUPS = 8  # of channels that are normalized together


class PhotoUNet(nn.Module):
    """EfficientNet-Lite0 at strides 2 to 32, and a decoder that goes back up to stride 2.

    There are no batch statistics, which would be those of generated images and wrong for photos:
    the encoder's of ImageNet are folded into its convolutions, which are trained as they are, and
    the decoder normalizes each image by itself, in groups of channels. Any height and width; edge
    pixels are repeated up to the next multiple of 32.

    Args:
        n_classes: Number of logits.

    Source: Ronneberger et al. 2015 (U-Net); Tan and Le 2019 (EfficientNet); Wu and He 2018 (group
    normalization).
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.encoder = Encoder()
        inputs = (SKIP_CHANNELS[-1], *DECODER_CHANNELS[:-1])
        skips = SKIP_CHANNELS[-2::-1]
        self.up = nn.ModuleList(
            _double_convolution(below + skip, outputs)
            for below, skip, outputs in zip(inputs, skips, DECODER_CHANNELS, strict=True)
        )
        self.exit = nn.Conv2d(DECODER_CHANNELS[-1], n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W) of images (B, 3, H, W) in [-1, 1]."""
        height, width = x.shape[-2:]
        # Sizes are products of 32: so an exported program proves that maps fit each other.
        size = [STRIDE * ((side + STRIDE - 1) // STRIDE) for side in (height, width)]
        x = functional.pad(x, (0, size[1] - width, 0, size[0] - height), mode="replicate")
        *skips, y = self.encoder(x)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            y = functional.interpolate(y, size=skip.shape[-2:], mode="bilinear")
            y = block(torch.cat([skip, y], dim=1))
        y = functional.interpolate(self.exit(y), size=size, mode="bilinear")
        return y[..., :height, :width]


class Encoder(nn.Module):
    """The stages of EfficientNet-Lite0, all of their weights to be trained."""

    def __init__(self) -> None:
        super().__init__()
        frozen = EfficientNetLite0()
        self.stem, self.stages = frozen.stem, frozen.stages
        for module in self.modules():
            if isinstance(module, Convolution):
                _make_trainable(module)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] to maps (B, C, H / S, W / S) at the strides S = 2 to 32."""
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in SKIP_STAGES:
                maps.append(x)
        return maps

    def load(self, frozen: EfficientNetLite0) -> None:
        """Takes the weights of the stages over."""
        self.stem.load_state_dict(frozen.stem.state_dict())
        self.stages.load_state_dict(frozen.stages.state_dict())


def _make_trainable(convolution: Convolution) -> None:
    for name, constant in list(convolution.named_buffers()):
        delattr(convolution, name)
        setattr(convolution, name, nn.Parameter(constant))


def _double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.GroupNorm(GROUPS, outputs),
        nn.ReLU(inplace=True),
    )
