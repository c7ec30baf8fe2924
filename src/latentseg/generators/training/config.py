"""How a generator is trained."""

from dataclasses import dataclass

from latentseg.configs import check_choice, check_range
from latentseg.errors import InputError

# Those that may change when a training goes on.
CHANGEABLE = ("lr", "discriminator_lr", "ema_images", "augmentation")


@dataclass(frozen=True)
class GeneratorTrainingConfig:
    """How a generator is trained.

    Attributes:
        size: (height, width) of the images.
        channels: Channels of generator and discriminator, coarse to fine, one per resolution.
        latent_dim: Size of z and of w.
        images: Photos shown to the discriminator in all; may be raised later to go on.
        batch: Photos per step.
        lr: Learning rate of both networks (Adam, betas 0 and 0.99); may be changed to go on, as
            `discriminator_lr`, `ema_images` and `augmentation` may: lower rates at the end give
            cleaner images.
        discriminator_lr: Learning rate of the discriminator, if another; may be changed to go on.
        r1_weight, r1_interval: Gradient penalty on photos, every so many steps (lazy); not with
            features.
        style_mixing: Chance that an image is drawn from two styles.
        ema_images: Half-life of the averaged generator, in photos shown.
        augmentation: Differentiable augmentation: any of "color", "translation", "cutout".
        adaptive: Let the strength of the augmentation follow the discriminator's overfitting.
        features: "none": a discriminator learned from nothing. "efficientnet-lite0": light heads on
            frozen features of ImageNet (Sauer et al. 2021).
        feature_px: Shorter side at which the features see an image, in pixels.
        blur_images: Photos until which images are blurred for the features, less and less.
        seed: Step s depends only on (seed, s).
        precision: "auto", "fp32", "bf16" or "fp16".
        report_images: Photos between two reports: contact sheet, checkpoint, saved generator.
        distance_images: Images compared for the distance; at most as many as photos.
    """

    size: tuple[int, int] = (64, 64)
    channels: tuple[int, ...] = (256, 192, 96, 32, 16)
    latent_dim: int = 128
    images: int = 1_000_000
    batch: int = 32
    lr: float = 2.5e-3
    discriminator_lr: float | None = None
    r1_weight: float = 0.1
    r1_interval: int = 16
    style_mixing: float = 0.9
    ema_images: int = 10_000
    augmentation: tuple[str, ...] = ("color", "translation")
    adaptive: bool = False
    features: str = "none"
    feature_px: int = 96
    blur_images: int = 0
    seed: int = 0
    precision: str = "auto"
    report_images: int = 32_000
    distance_images: int = 1_000

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        counts = ("latent_dim", "images", "batch", "r1_interval", "ema_images", "feature_px")
        check_range(self, (*counts, "report_images", "distance_images"), 1)
        check_range(self, ("lr", "discriminator_lr"), above=0)
        check_range(self, ("r1_weight", "blur_images"), 0)
        check_range(self, ("style_mixing",), 0, 1)
        for name in ("size", "channels"):
            if min(getattr(self, name), default=0) < 1:
                raise InputError(f"`{name}`: expected at least 1, found {getattr(self, name)}.")


# What each kind of features is trained with, where nothing else is asked for.
DEFAULTS = {
    "none": GeneratorTrainingConfig(),
    # Rates and augmentation of Sauer et al. 2021. Small batches: more steps with as many images.
    "efficientnet-lite0": GeneratorTrainingConfig(
        features="efficientnet-lite0",
        batch=16,
        lr=2e-3,
        discriminator_lr=2e-4,
        augmentation=("color", "translation", "cutout"),
        style_mixing=0.5,
        blur_images=8_000,
    ),
}

FINE_TO_COARSE = (16, 32, 96, 192, 256)  # channels from the finest resolution down, then the last
COARSEST_PX = 4


def default_channels(size: tuple[int, int]) -> tuple[int, ...]:
    """Channels of each resolution, coarse to fine: `size` is halved down to about 4 px."""
    height, width = size
    n_blocks = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * COARSEST_PX:
        height, width, n_blocks = height // 2, width // 2, n_blocks + 1
    last = FINE_TO_COARSE[-1]
    return (*FINE_TO_COARSE, *[last] * n_blocks)[:n_blocks][::-1]


def default_feature_px(features: str, size: tuple[int, int]) -> int:
    """The shorter side at which features see images of `size`: half as much again, 96 at least."""
    if features == "none":
        return GeneratorTrainingConfig.feature_px
    return max(round(min(size) * 1.5), 96)


def feature_size(size: tuple[int, int], shorter: int) -> tuple[int, int]:
    """`size` scaled so that its shorter side is `shorter` pixels, in multiples of 32."""
    height, width = (max(round(side * shorter / min(size) / 32), 1) * 32 for side in size)
    return height, width
