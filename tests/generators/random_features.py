"""The network of features with random weights: the real ones are not part of the project."""

import torch

from latentseg.weights.efficientnet_lite0 import EfficientNetLite0


def random_features() -> EfficientNetLite0:
    """The same network at every call."""
    network, drawn = EfficientNetLite0(), torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if name.endswith("weight"):
            fan = buffer[0].numel()
            buffer.copy_(torch.randn(buffer.shape, generator=drawn) * (2 / fan) ** 0.5)
    return network.eval()
