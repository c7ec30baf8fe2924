"""What papers report on the public data sets, for the tables that put a result into its context."""

from dataclasses import dataclass, field

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
