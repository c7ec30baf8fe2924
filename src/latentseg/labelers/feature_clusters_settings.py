"""How features are clustered.

Nothing heavy is imported here, so that the command line can show the settings at once.
"""

from dataclasses import dataclass

from latentseg.configs import check_range
from latentseg.labelers.kinds import LabelerKind, Story, deferred
from latentseg.labelers.memory import GIB

MOST_SEGMENTS = 254  # class ids of a mask: 0 is the background, 255 is ignored


@dataclass(frozen=True)
class FeatureClustersConfig:
    """How features are clustered.

    Attributes:
        k: Clusters; the paper takes 9 to 25.
        layer: The map whose features are clustered, by number. The finest one with at most a
            quarter of the image's height if not given (the paper takes layer 7 of StyleGAN2, 64 px
            of 1024).
        n_images: Images whose pixels are clustered together.
        restarts: Starts of the clustering.
        normalize: Bring channels to mean 0 and standard deviation 1; the paper does not.
        min_area: Least share of the image that the foreground must cover.
        max_area: Largest share of the image that it may cover.
        min_confidence: Least confidence, in [0, 1].
        memory: Bytes that may be used beside the generator's.
    """

    k: int = 9
    layer: int | None = None
    n_images: int = 50
    restarts: int = 10
    normalize: bool = False
    min_area: float = 0.01
    max_area: float = 1.0
    min_confidence: float = 0.0
    memory: int = GIB

    def __post_init__(self) -> None:
        check_range(self, ("k",), 2, MOST_SEGMENTS)
        check_range(self, ("n_images", "restarts", "memory"), 1)
        check_range(self, ("min_area", "max_area", "min_confidence"), 0, 1)


SETTINGS = {"ours": FeatureClustersConfig()}

KIND = LabelerKind(
    name="feature-clusters",
    title="Clusters of features (Pakhomov et al. 2021)",
    config=FeatureClustersConfig,
    settings=SETTINGS,
    needs="features",
    fit=deferred("latentseg.labelers.feature_clusters:fit"),
    load=deferred("latentseg.labelers.feature_clusters:FeatureClustersLabeler.load"),
    flags={"n_images": "images"},
    renamed={"normalise": "normalize"},
    story=Story(
        how="Its features fall into a few clusters that mean the same in every image; those at the "
        "border are background."
    ),
)
