"""What papers report on the public data sets, for the tables that put a result into its context."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from latentseg.datasets.groupings import BACKGROUND, GROUPINGS

DATASETS = ("CUB", "Flowers", "DUT-OMRON", "DUTS", "ECSSD")


@dataclass(frozen=True)
class Published:
    """A row of published numbers.

    Attributes:
        method: Name of the method.
        source: Where the numbers are printed.
        note: What it needs beyond a generator, or how it differs.
        iou: IoU per image and data set, in [0, 1].
    """

    method: str
    source: str
    note: str
    iou: dict[str, float] = field(default_factory=dict)


_OURS = "Melas-Kyriazi et al. 2021"
PUBLISHED = (
    Published(
        "BigBiGAN, light direction",
        f"{_OURS}, Table 3",
        "one direction",
        {"CUB": 0.601, "Flowers": 0.479, "DUT-OMRON": 0.451, "DUTS": 0.486, "ECSSD": 0.663},
    ),
    Published(
        "BigBiGAN, dark direction",
        f"{_OURS}, Table 3",
        "one direction",
        {"CUB": 0.631, "Flowers": 0.572, "DUT-OMRON": 0.442, "DUTS": 0.478, "ECSSD": 0.672},
    ),
    Published(
        "BigBiGAN, both directions",
        f"{_OURS}, Table 3",
        "no labels at all",
        {"CUB": 0.664, "Flowers": 0.541, "DUT-OMRON": 0.509, "DUTS": 0.528, "ECSSD": 0.713},
    ),
    Published(
        "BigBiGAN, ensemble",
        f"{_OURS}, Table 3",
        "two students",
        {"CUB": 0.650, "Flowers": 0.544, "DUT-OMRON": 0.492, "DUTS": 0.524, "ECSSD": 0.713},
    ),
    Published(
        "SelfCondGAN, light direction",
        f"{_OURS}, Table 2",
        "a weaker generator",
        {"CUB": 0.459, "Flowers": 0.238, "DUT-OMRON": 0.280, "DUTS": 0.297, "ECSSD": 0.412},
    ),
    Published(
        "BigBiGAN",
        "Voynov et al. 2020",
        "direction picked by hand",
        {"CUB": 0.683, "Flowers": 0.540, "DUT-OMRON": 0.453, "DUTS": 0.498, "ECSSD": 0.672},
    ),
    Published(
        "TokenCut",
        "Wang et al. 2022",
        "a pretrained transformer, no generator",
        {"DUT-OMRON": 0.533, "DUTS": 0.576, "ECSSD": 0.712},
    ),
    Published(
        "FOUND",
        "Siméoni et al. 2023, Table 2",
        "a pretrained transformer, no generator",
        {"DUT-OMRON": 0.578, "DUTS": 0.645, "ECSSD": 0.807},
    ),
    Published(
        "Supervised U-Net",
        "Dombrowski et al. 2023, Table 1",
        "true masks",
        {"CUB": 0.883},
    ),
)


def published_name(dataset: str) -> str | None:
    """The data set of `DATASETS` that a result's data set is, or None.

    >>> published_name("CUB (train_val_test_split)"), published_name("pets128/test")
    ('CUB', None)
    """
    return next((name for name in DATASETS if dataset.split(" ")[0] == name), None)


@dataclass(frozen=True)
class PublishedParts:
    """A row of published numbers of parts, pooled over a data set, in [0, 1].

    Attributes:
        method: Name of the method.
        source: Where the numbers are printed.
        note: How it was taught.
        dataset: How the name of the data set starts.
        grouping: The classes, a name of `GROUPINGS`.
        mean_iou: As printed; the background counts.
        class_iou: Of each class and the background; empty where it is not known.
    """

    method: str
    source: str
    note: str
    dataset: str
    grouping: str
    mean_iou: float
    class_iou: dict[str, float] = field(default_factory=dict)
    protocol: str = "tritrong2021"

    @property
    def numbers(self) -> dict[str, Any]:
        """The row as `Result.to_json` would have it."""
        note = f"{self.source}; {self.note}"
        return {"mean_iou": self.mean_iou, "class_iou": self.class_iou, "note": note}


_SLIME = "Khani et al. 2024 (SLiMe), Tables 2-4"
_FACE = ("CelebAMask-HQ", "celebamask-10")
_CAR = ("PASCAL-Part (car)", "pascal-car")
_HORSE = ("PASCAL-Part (horse)", "pascal-horse")
PUBLISHED_PARTS = (
    PublishedParts(
        "Tritrong et al. 2021, auto-shot",
        _SLIME,
        "10 painted images; the ten numbers average 0.707, not the 0.699 printed",
        *_FACE,
        0.699,
        {
            **{BACKGROUND: 0.847, "hair": 0.840, "eyebrow": 0.682, "eye": 0.754, "lip": 0.865},
            **{"nose": 0.846, "skin": 0.900, "ear": 0.373, "neck": 0.803, "clothes": 0.155},
        },
    ),
    PublishedParts("SegDDPM", _SLIME, "10 painted images, a diffusion model", *_FACE, 0.780),
    PublishedParts("SLiMe", _SLIME, "10 painted images, Stable Diffusion", *_FACE, 0.757),
    PublishedParts(
        "Tritrong et al. 2021, auto-shot",
        _SLIME,
        "10 painted images",
        *_CAR,
        0.5215,
        {
            **{BACKGROUND: 0.707, "light": 0.293, "plate": 0.178, "wheel": 0.572},
            **{"window": 0.624, "body": 0.755},
        },
    ),
    PublishedParts(
        "CNN",
        _SLIME,
        "supervised",
        *_CAR,
        0.587,
        {
            **{BACKGROUND: 0.674, "light": 0.422, "plate": 0.417, "wheel": 0.663},
            **{"window": 0.610, "body": 0.734},
        },
    ),
    PublishedParts(
        "CNN + CRF",
        _SLIME,
        "supervised",
        *_CAR,
        0.570,
        {
            **{BACKGROUND: 0.687, "light": 0.361, "plate": 0.358, "wheel": 0.643},
            **{"window": 0.618, "body": 0.754},
        },
    ),
    PublishedParts("SLiMe", _SLIME, "10 painted images, Stable Diffusion", *_CAR, 0.683),
    PublishedParts(
        "Tritrong et al. 2021, auto-shot",
        _SLIME,
        "10 painted images",
        *_HORSE,
        0.543,
        {BACKGROUND: 0.816, "head": 0.501, "leg": 0.496, "tail": 0.199, "body": 0.705},
    ),
    PublishedParts("SegDDPM", _SLIME, "10 painted images, a diffusion model", *_HORSE, 0.587),
    PublishedParts("SLiMe", _SLIME, "10 painted images, Stable Diffusion", *_HORSE, 0.633),
)


def published_parts(dataset: str, classes: Iterable[str]) -> list[PublishedParts]:
    """The rows of a data set, if it was measured with the same classes.

    >>> [row.method for row in published_parts("PASCAL-Part (horse)", ["head", "leg"])]
    []
    """
    return [
        row
        for row in PUBLISHED_PARTS
        if dataset.startswith(row.dataset)
        and set(GROUPINGS[row.grouping].classes) == set(classes) - {BACKGROUND}
    ]
