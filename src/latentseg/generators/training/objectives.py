"""What discriminator and generator learn from: realness of images, or of their features."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from latentseg.devices import autocast
from latentseg.generators.families.stylegan2 import StyleGAN2Config
from latentseg.generators.training.augmentation import augment
from latentseg.generators.training.config import GeneratorTrainingConfig, feature_size
from latentseg.generators.training.discriminator import Discriminator
from latentseg.generators.training.projection import Features, ProjectedDiscriminator, Seen
from latentseg.weights.efficientnet_lite0 import EfficientNetLite0


class Objective(Protocol):
    """A discriminator and its losses.

    Attributes:
        network: What learns.
        lazy: Share of the learning rate: a penalty every n-th step is a step of its own.
    """

    network: nn.Module
    lazy: float

    def look(self, x: Tensor, step: int, strength: float) -> Any:
        """What the discriminator sees of drawn images (B, 3, H, W)."""
        ...

    def discriminator_losses(
        self, real: Tensor, seen: Any, labels: Tensor | None, step: int, strength: float
    ) -> "Losses":
        """Losses of the discriminator between photos (B, 3, H, W) and what it saw of drawn ones."""
        ...

    def generator_loss(self, seen: Any, labels: Tensor | None, strength: float) -> Tensor:
        """Loss of the generator."""
        ...


@dataclass(frozen=True)
class Losses:
    """What the discriminator is to lower, and what is told of it.

    Attributes:
        total: A scalar with a gradient.
        realness: Mean sign of the logits of the photos, -1 to 1.
        shown: Other scalars by name.
    """

    total: Tensor
    realness: Tensor
    shown: dict[str, Tensor] = field(default_factory=dict)


class LogisticObjective:
    """The non-saturating logistic loss with R1, on images: StyleGAN2 (Karras et al. 2020)."""

    def __init__(
        self, config: GeneratorTrainingConfig, network: StyleGAN2Config, dtype: torch.dtype
    ) -> None:
        self.config, self.dtype = config, dtype
        self.network: nn.Module = Discriminator(network)
        # The penalty is applied every r1_interval steps: Karras et al. 2020, appendix B.
        self.lazy = config.r1_interval / (config.r1_interval + 1)

    def look(self, x: Tensor, step: int, strength: float) -> Tensor:
        """The images themselves: each look at them is augmented anew."""
        return x

    def discriminator_losses(
        self, real: Tensor, seen: Tensor, labels: Tensor | None, step: int, strength: float
    ) -> Losses:
        """Logistic loss, and the penalty in its turn."""
        is_lazy_step = step % self.config.r1_interval == 0
        judged = self._judge(real.requires_grad_(is_lazy_step), labels, strength)
        drawn = self._judge(seen.detach(), labels, strength)
        total = F.softplus(drawn).mean() + F.softplus(-judged).mean()
        if not is_lazy_step:
            return Losses(total, judged.sign().mean())
        penalty = squared_gradient(judged, real)
        total = total + self.config.r1_weight / 2 * self.config.r1_interval * penalty
        return Losses(total, judged.sign().mean(), {"r1": penalty})

    def generator_loss(self, seen: Tensor, labels: Tensor | None, strength: float) -> Tensor:
        """The non-saturating loss."""
        return F.softplus(-self._judge(seen, labels, strength)).mean()

    def _judge(self, x: Tensor, labels: Tensor | None, strength: float) -> Tensor:
        x = augment(x, self.config.augmentation, strength)
        with autocast(x.device, self.dtype):
            return self.network(x, labels)


# Features of ImageNet hardly tell what lies outside [-1, 1], and nothing else binds the generator.
RANGE_WEIGHT = 10.0
BLUR_SHARE = 1 / 48  # std of the first blur as a share of the shorter side


class ProjectedObjective:
    """The hinge loss on frozen features of ImageNet: Projected GAN (Sauer et al. 2021).

    What it sees of drawn images serves both networks, so the features are computed once a step.
    """

    lazy = 1.0

    def __init__(
        self,
        config: GeneratorTrainingConfig,
        network: StyleGAN2Config,
        device: torch.device,
        dtype: torch.dtype,
        features: EfficientNetLite0,
    ) -> None:
        self.config, self.dtype = config, dtype
        # Photos and drawn images alike: heads would tell them apart by the rounding. On a CPU the
        # gradient through depthwise convolutions is no quicker in bfloat16.
        self.feature_dtype = torch.float32 if device.type == "cpu" else dtype
        size = feature_size(config.size, config.feature_px)
        self.features = Features(features, size)
        self.network: nn.Module = ProjectedDiscriminator(size, network.n_classes, network.w_dim)

    def look(self, x: Tensor, step: int, strength: float) -> tuple[Seen, Tensor]:
        """Features and colors, and how far the images leave [-1, 1], with the gradient to them."""
        x = x.float()
        excess = F.relu(x.abs() - 1).square().mean()
        x = augment(x, self.config.augmentation, strength)
        with autocast(x.device, self.feature_dtype):
            return self.features(x, self._blur(step)), excess

    def discriminator_losses(
        self,
        real: Tensor,
        seen: tuple[Seen, Tensor],
        labels: Tensor | None,
        step: int,
        strength: float,
    ) -> Losses:
        """The hinge loss, the sum over the heads."""
        with torch.no_grad():
            photos, _ = self.look(real, step, strength)
        # Both sets of features meet the same weights: one power iteration a step.
        with autocast(real.device, self.dtype), parametrize.cached():
            judged = self.network(photos, labels)
            drawn = self.network(seen[0].detach(), labels)
        total = _total(F.relu(1 - x) for x in judged) + _total(F.relu(1 + x) for x in drawn)
        signs = torch.stack([x.sign().mean() for x in judged])
        fooled = torch.stack([x.sign().mean() for x in drawn])
        return Losses(total, signs.mean(), {"fakeness": fooled.mean()})

    def generator_loss(
        self, seen: tuple[Seen, Tensor], labels: Tensor | None, strength: float
    ) -> Tensor:
        """Minus the mean logit, the sum over the heads, and the penalty on the range."""
        drawn, excess = seen
        with autocast(excess.device, self.dtype):
            return RANGE_WEIGHT * excess - _total(self.network(drawn, labels))

    def _blur(self, step: int) -> float:
        if not self.config.blur_images:
            return 0.0
        left = 1 - step * self.config.batch / self.config.blur_images
        return max(left, 0.0) * min(self.config.size) * BLUR_SHARE


def _total(terms: Iterable[Tensor]) -> Tensor:
    return torch.stack([term.mean() for term in terms]).sum()


def squared_gradient(realness: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of the gradient of `realness` at `images`: R1 (Mescheder et al. 2018)."""
    (gradient,) = torch.autograd.grad(realness.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
