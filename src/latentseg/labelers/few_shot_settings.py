"""Which head learns from painted images, and how: published settings, and ours.

Nothing heavy is imported here, so that the command line can show the settings at once.
"""

from dataclasses import dataclass, field
from typing import Literal

from latentseg.configs import check_choices, check_range
from latentseg.errors import InputError
from latentseg.labelers.kinds import LabelerKind, Story, deferred
from latentseg.labelers.memory import GIB

HeadName = Literal["mlp-small", "mlp", "cnn", "cnn-s", "cnn-m", "cnn-l", "ensemble"]
Resize = Literal["bilinear", "aligned", "bicubic", "nearest"]
Schedule = Literal["step", "cosine"]
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class HeadTrainConfig:
    """How a head is trained.

    Attributes:
        steps: Steps of every member; `epochs` of them if not given.
        epochs: How often every painted image (every painted pixel, for pixel-wise heads) is seen.
        pixels: Pixels of a batch, for pixel-wise heads; others see one image at a time.
        lr: Learning rate of Adam.
        weight_decay: Added to the gradient, as Adam does it.
        schedule: "cosine" to 0, or "step": the rate is multiplied by `decay` every `decay_every`
            epochs.
        decay: Factor of the learning rate; see the schedule.
        decay_every: Epochs between two decays; see the schedule.
        patience: A member stops after so many steps without a new least loss, past its third
            epoch; 0 lets it make all steps.
        normalize: Bring features to mean 0 and standard deviation 1 per channel, measured on the
            painted images.
        flip: Show maps and mask in a mirror in half of the steps. The features of a mirrored image
            are not its mirrored features, so this shows the head what no generator makes;
            pixel-wise heads do not notice it.
        class_weights: "none", or "balanced": each class counts by the inverse of its share of the
            painted pixels, at most 10 times the mean.
        checkpoint_every: Steps between two states on disk.
    """

    steps: int | None = 200
    epochs: int = 1
    pixels: int = 1024
    lr: float = 3e-3
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    decay: float = 0.9
    decay_every: int = 50
    patience: int = 0
    normalize: bool = True
    flip: bool = False
    class_weights: ClassWeights = "none"
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, ("steps", "epochs", "decay_every", "checkpoint_every"), 1)
        check_range(self, ("pixels",), 2)  # batch normalization needs two
        check_range(self, ("lr", "decay"), above=0)
        check_range(self, ("weight_decay", "patience"), 0)


# Chosen on pets64, one and five images painted by a segmenter: 200 units or dropout did not help;
# less weight decay, or half of the steps and pixels, was slightly worse.
OURS = HeadTrainConfig()
# Official code of Tritrong et al. 2021: 1000 epochs of one image a step, x0.9 every 50.
OFFICIAL = HeadTrainConfig(
    steps=None, epochs=1000, lr=1e-3, weight_decay=1e-3, schedule="step", normalize=False
)
# The public re-implementation: 100 epochs, x0.1 every 50.
BRYANDLEE = HeadTrainConfig(
    steps=None,
    epochs=100,
    lr=1e-3,
    weight_decay=1e-3,
    schedule="step",
    decay=0.1,
    normalize=False,
)
DATASETGAN = HeadTrainConfig(
    steps=None,
    epochs=100,
    pixels=64,
    lr=1e-3,
    weight_decay=0.0,
    schedule="step",
    decay=1.0,
    patience=50,
    normalize=False,
)


@dataclass(frozen=True)
class FewShotConfig:
    """Which head learns, on which features, and which samples are kept.

    Attributes:
        head: The network that segments the generator's features.
        training: How it is trained.
        resize: How smaller maps are enlarged: "bilinear" (between pixel centers), "aligned"
            (official code: bilinear, corner on corner), "bicubic" or "nearest".
        size: Height and width of the hypercolumns; those of the images if not given.
        layers: The maps that are used, by number; all of them if not given.
        max_uncertainty_share: The worst share of samples, by uncertainty, that is refused; the
            limit is set once, on samples of the labeler's own. 0 turns the filter off.
        min_confidence: Least mean probability of the classes that pixels are given.
        min_area: Least share of the image that all classes but the background must cover.
        max_area: Largest share of the image that they may cover.
        memory: Bytes that may be used beside the generator's and the results.
    """

    head: HeadName = "mlp-small"
    training: HeadTrainConfig = field(default_factory=HeadTrainConfig)
    resize: Resize = "bilinear"
    size: tuple[int, int] | None = None
    layers: tuple[int, ...] | None = None
    max_uncertainty_share: float = 0.1
    min_confidence: float = 0.0
    min_area: float = 0.0
    max_area: float = 1.0
    memory: int = GIB

    def __post_init__(self) -> None:
        check_choices(self)
        shares = ("max_uncertainty_share", "min_confidence", "min_area", "max_area")
        check_range(self, shares, 0, 1)
        check_range(self, ("memory",), 1)
        if self.size is not None and min(self.size) < 1:
            raise InputError(f"`size`: expected at least 1 pixel, found {self.size}.")


SETTINGS = {
    "ours": FewShotConfig(training=OURS),
    # Of a StyleGAN2 of 1024 px the official code takes all maps but the first, at 512 px.
    "official": FewShotConfig(head="cnn", training=OFFICIAL, resize="aligned"),
    "bryandlee": FewShotConfig(head="cnn-l", training=BRYANDLEE, resize="nearest"),
    "datasetgan": FewShotConfig(head="ensemble", training=DATASETGAN),
}

KIND = LabelerKind(
    name="few-shot",
    title="Parts from a few painted images (Tritrong et al. 2021)",
    config=FewShotConfig,
    settings=SETTINGS,
    needs="features",
    takes_painted=True,
    fit=deferred("latentseg.labelers.few_shot:fit"),
    load=deferred("latentseg.labelers.few_shot:FewShotLabeler.load"),
    renamed={"training.normalise": "normalize"},
    story=Story(
        how="A head on its features says which part each pixel belongs to; it has learned that "
        "from painted images."
    ),
)
