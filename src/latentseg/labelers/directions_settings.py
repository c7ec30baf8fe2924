"""How directions are searched and used: the settings of the paper, of its official code, and ours.

Nothing heavy is imported here, so that the command line can show them at once.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from latentseg.configs import check_choices, check_range
from latentseg.errors import InputError
from latentseg.labelers.kinds import LabelerKind, Story, deferred

Mode = Literal["light", "dark", "both"]
Loss = Literal["official", "paper"]


@dataclass(frozen=True)
class RefinementConfig:
    """Thresholds of the filters; all but `min_area` as in the official code, which has 0.

    Attributes:
        min_component: Components stay whose area exceeds this share of the largest one's.
        min_area: Least share of the image that a mask must cover. Above 0, empty masks do not pass.
        max_area: Largest share of the image that a mask may cover.
        bins: Bins of the histogram of the shifted image, over [-1, 1].
        smooth: Width of the box that smooths the histogram, in bins; odd.
        min_peaks: Least number of local maxima of the histogram; 0 turns the filter off.
        min_roundness: Least area / perimeter^2 of the largest component; 0 turns the filter off.
        min_overlap: Least share of pixels on which the light and the dark mask agree; 0 turns the
            filter off.
    """

    min_component: float = 0.2
    min_area: float = 0.01
    max_area: float = 0.5
    bins: int = 12
    smooth: int = 3
    min_peaks: int = 2
    min_roundness: float = 0.0
    min_overlap: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, ("min_component", "min_area", "max_area", "min_overlap"), 0, 1)
        check_range(self, ("bins", "smooth"), 1)
        check_range(self, ("min_peaks", "min_roundness"), 0)
        if self.smooth % 2 == 0:
            raise InputError(f"`smooth`: expected an odd number, found {self.smooth}.")


@dataclass(frozen=True)
class DirectionsConfig:
    """How directions are searched, and how masks are made with them.

    Attributes:
        loss: "official" (Sobel magnitude of gray, prior C) or "paper" (squared Sobel of RGB, r).
        contrast_weight: Weight of the contrast loss, lambda in the paper.
        structure_weight: Weight of the structure loss.
        radius: Length of the step during the search, in standard deviations of the latent.
        radius_std: Standard deviation of that length, which is drawn anew for every image.
        min_radius: Lower bound of the drawn lengths.
        per_coordinate: Draw a length for each coordinate of the latent, not one for all of it.
        steps: Most steps of the search.
        batch: Images per step of the search.
        lr: Learning rate of Adam.
        restarts: Random starts; the one with the lowest held-out loss is continued.
        restart_steps: Steps of each start before the starts are compared.
        tolerance: The search ends when the held-out loss has not fallen by this share of its
            size for 50 steps, and the direction with the lowest one is kept. With 0 all steps are
            made, and the last direction is kept.
        mode: "light" and "dark" take one direction, "both" takes the difference of the two.
        is_opposite: In mode "both", step along v and -v, where v is the normalized difference of
            the two directions, instead of along each of them. What the two share moves both images
            alike: sometimes it only spoils the mask, sometimes it keeps the object in place. Chosen
            without labels if it is not given.
        generation_radius: Length of the step that makes masks, in standard deviations of the
            latent. Chosen without labels if it is not given.
        refinement: Thresholds of the filters.
    """

    loss: Loss = "official"
    contrast_weight: float = 1.0
    structure_weight: float = 10.0
    radius: float = 2.0
    radius_std: float = 0.5
    min_radius: float = 0.1
    per_coordinate: bool = True
    steps: int = 300
    batch: int = 32
    lr: float = 5e-3
    restarts: int = 3
    restart_steps: int = 50
    tolerance: float = 0.01
    mode: Mode = "both"
    is_opposite: bool | None = None
    generation_radius: float | None = None
    refinement: RefinementConfig = field(default_factory=RefinementConfig)

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, ("steps", "batch", "restarts", "restart_steps"), 1)
        check_range(self, ("radius", "lr", "generation_radius"), above=0)
        check_range(self, ("contrast_weight", "structure_weight", "tolerance"), 0)
        check_range(self, ("radius_std", "min_radius"), 0)

    @property
    def signs(self) -> tuple[str, ...]:
        """The directions that `mode` needs."""
        return ("light", "dark") if self.mode == "both" else (self.mode,)


_AS_PUBLISHED = DirectionsConfig(
    contrast_weight=2.0,
    restarts=1,
    tolerance=0.0,
    is_opposite=False,
    generation_radius=5.0,
    refinement=RefinementConfig(min_area=0.0),
)
SETTINGS = {
    "ours": DirectionsConfig(),
    # one start and larger steps: a quarter of the time, no choice between starts
    "fast": DirectionsConfig(lr=0.02, restarts=1),
    "official": _AS_PUBLISHED,
    "paper": replace(
        _AS_PUBLISHED,
        loss="paper",
        contrast_weight=5.0,
        structure_weight=1.0,
        radius_std=0.0,
        per_coordinate=False,
    ),
}

KIND = LabelerKind(
    name="directions",
    title="Latent directions (Melas-Kyriazi et al. 2021)",
    config=DirectionsConfig,
    settings=SETTINGS,
    fit=deferred("latentseg.labelers.fit_directions:fit"),
    load=deferred("latentseg.labelers.directions:DirectionsLabeler.load"),
    can_vote=True,
    members=("light", "dark"),
    flags={
        "generation_radius": "radius",
        "refinement": "",
        **{
            name: f"search-{name.replace('_', '-')}"
            for name in (
                *("radius", "radius_std", "min_radius", "steps", "batch", "lr", "restarts"),
                *("restart_steps", "tolerance"),
            )
        },
    },
    renamed={"radius_spread": "radius_std"},
    story=Story(
        how="Fixed steps in latent space change the light and leave the shapes alone: what they "
        "light up is the foreground.",
        captions={
            "light": ("after a step along the light direction", "→"),
            "dark": ("after a step along the dark direction", "−"),
        },
    ),
)
