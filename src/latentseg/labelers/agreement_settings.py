"""How two labelers are combined. Nothing heavy is imported here."""

from dataclasses import dataclass

from latentseg.configs import check_range


@dataclass(frozen=True)
class AgreementConfig:
    """How two labelers are combined.

    Attributes:
        min_agreement: Least IoU of the masks of the two labelers.
        min_component: Of a voted mask, components stay whose area exceeds this share of the
            largest one's.
        min_area: Least share of the image that a voted mask must cover.
        max_area: Largest share of the image that a voted mask may cover.
    """

    min_agreement: float = 0.5
    min_component: float = 0.2
    min_area: float = 0.01
    max_area: float = 0.6

    def __post_init__(self) -> None:
        check_range(self, ("min_agreement", "min_component", "min_area", "max_area"), 0, 1)
