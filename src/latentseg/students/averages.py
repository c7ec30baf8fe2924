"""The moving average of a network's weights, which answers better than the last of them."""

import copy

import torch
from torch import nn

WARM_UP = 10  # after n steps, at most n / (n + WARM_UP) of the average is kept


class Average:
    """A copy of a network whose weights and statistics follow it slowly.

    The first steps count for more than the decay says, so that the average soon forgets where the
    network began.

    Args:
        network: What is followed.
        decay: Share of the average that is kept at each step, below 1.

    Source: Tarvainen and Valpola 2017 (mean teacher); the ramp of TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Takes in the weights after step `step`, counted from 0."""
        kept = min(self.decay, (step + 1) / (step + 1 + WARM_UP))
        for mean, now in zip(
            self.network.state_dict().values(), network.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(now, 1 - kept)
            else:
                mean.copy_(now)
