"""How variants are drawn, clustered and made into masks.

Nothing heavy is imported here, so that the command line can show the settings at once.
"""

from dataclasses import dataclass
from typing import Literal

from latentseg.configs import check_choices, check_range
from latentseg.labelers.kinds import LabelerKind, Story, deferred
from latentseg.labelers.memory import GIB

Meaning = Literal["shared", "matched"]
Rule = Literal["border", "center", "vote"]

MOST_SEGMENTS = 254  # class ids of a mask: 0 is the background, 255 is ignored


@dataclass(frozen=True)
class StyleMixingConfig:
    """How variants are drawn, clustered and made into masks.

    Attributes:
        k: Segments; 2 are foreground and background.
        n_variants: Variants of each image, itself included.
        first_mixed_layer: Layers from this one on take another style, those before it keep theirs.
            Chosen without labels if it is not given.
        restarts: Starts of the clustering.
        meaning: For k above 2, how classes keep their meaning: "shared" is one clustering of many
            images, "matched" matches the clusters of each image to prototypes.
        foreground: For k = 2, how the foreground is told: "center", "border" or "vote".
        min_component: Components stay whose area exceeds this share of the largest one's; 0 keeps
            all of them.
        fill_holes: Fill the holes of the foreground.
        min_area: Least share of the image that the foreground must cover.
        max_area: Largest share of the image that it may cover.
        min_confidence: Least confidence, in [0, 1].
        min_agreement: For k = 2, least IoU of the masks that either half of the variants gives; 0
            turns the filter off, which saves two clusterings. Halves of less than 8 variants seldom
            agree.
        resolution: Longest side, in pixels, at which clusters are sought. Larger images are
            reduced for it, then each of their pixels goes to the nearest center.
        memory: Bytes that may be used beside the generator's weights; the least that can be done
            is one image.
    """

    k: int = 2
    n_variants: int = 32
    first_mixed_layer: int | None = None
    restarts: int = 10
    meaning: Meaning = "shared"
    foreground: Rule = "center"
    min_component: float = 0.2
    fill_holes: bool = True
    min_area: float = 0.01
    max_area: float = 0.6
    min_confidence: float = 0.0
    min_agreement: float = 0.5
    resolution: int = 256
    memory: int = GIB

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, ("k",), 2, MOST_SEGMENTS)
        check_range(self, ("n_variants", "restarts", "resolution", "memory"), 1)
        check_range(self, ("min_area", "max_area"), 0, 1)
        least = ("first_mixed_layer", "min_component", "min_confidence", "min_agreement")
        check_range(self, least, 0)


SETTINGS = {"ours": StyleMixingConfig()}

KIND = LabelerKind(
    name="style-mixing",
    title="Style mixing (Feng et al. 2023)",
    config=StyleMixingConfig,
    settings=SETTINGS,
    can_vote=True,
    needs="variants",
    fit=deferred("latentseg.labelers.fit_style_mixing:fit"),
    load=deferred("latentseg.labelers.style_mixing:StyleMixingLabeler.load"),
    check=deferred("latentseg.labelers.fit_style_mixing:check"),
    flags={"n_variants": "variants"},
    respelled={"centre": "center"},
    retired={
        "colour": "rgb",
        "normalisation": "correlation",
        "spatial_weight": 0.0,
        "clustering": "kmeans",
    },
    story=Story(
        how="Other styles in its late layers change the look and leave the layout alone: pixels "
        "that change color together belong together.",
        captions={
            f"variant {number}": ("the same layout in another look", "~" if number > 1 else "→")
            for number in (1, 2, 3)
        },
    ),
)
