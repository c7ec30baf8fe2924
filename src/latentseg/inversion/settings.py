"""How latents are searched: our own constants, and those of the official projector."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from latentseg.configs import check_choice, check_choices, check_range

Space = Literal["w", "w+", "z"]


@dataclass(frozen=True)
class InversionConfig:
    """How latents are searched; `SETTINGS` has the published constants.

    Attributes:
        steps: Number of steps of Adam.
        space: "w" (one style), "w+" (one style for each layer) or "z" (the generator's own
            latent). None takes "w+" for a generator with styles and "z" for any other.
        noise: Whether the noise maps are searched as well, where the generator has them.
        start: Whether the search starts at the "mean" of the latents or at the nearest of
            `candidates` "drawn" ones.
        candidates: Number of latents that are drawn for `start`.
        mean_samples: Number of latents from which the mean and the std are estimated.
        unit: What `lr` is measured in: "raw" latents, or the "std" of each coordinate.
        lr: The highest learning rate.
        ramp_up: Share of the steps during which the rate rises linearly.
        ramp_down: Share of the steps during which it falls as a cosine.
        jitter: Noise added to the latent at the beginning, in stds of the latent: of the whole
            vector if `unit` is "raw", as in the official code, and of each coordinate if it is
            "std".
        jitter_until: Share of the steps after which no noise is added.
        noise_weight: Weight of `noise_correlation` in the loss.
        pixel_weight: Weight of the mean squared error beside a perceptual loss.
        batch: Number of photos that are searched together; fewer, if they are large.

    Raises:
        InputError: a value is outside its range; the field is named.
    """

    steps: int = 300
    space: Space | None = None
    noise: bool = True
    start: Literal["mean", "drawn"] = "mean"
    candidates: int = 256
    mean_samples: int = 10_000
    unit: Literal["raw", "std"] = "std"
    lr: float = 0.2
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    jitter: float = 0.05
    jitter_until: float = 0.75
    noise_weight: float = 1e5
    pixel_weight: float = 0.0
    batch: int = 8

    def __post_init__(self) -> None:
        check_choices(self)
        check_choice("space", self.space, (*get_args(Space), None))
        check_range(self, ("steps", "candidates", "mean_samples", "batch"), 1)
        check_range(self, ("lr", "ramp_up", "ramp_down", "jitter_until"), above=0, most=1)
        check_range(self, ("jitter", "noise_weight", "pixel_weight"), 0)

    def learning_rate(self, t: float) -> float:
        """The learning rate of a step before which the share `t` in [0, 1) of the steps lies.

        Source: Karras et al. 2020, appendix D, with the constants of the official projectors.
        """
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / self.ramp_down))
        return self.lr * fall * min(1.0, t / self.ramp_up)

    def jitter_at(self, t: float) -> float:
        """The strength of the noise at a step before which the share `t` of the steps lies."""
        return self.jitter * max(0.0, 1 - t / self.jitter_until) ** 2


SETTINGS = {
    "ours": InversionConfig(),
    "official": InversionConfig(steps=1000, space="w", unit="raw", lr=0.1),
}
