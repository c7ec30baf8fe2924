"""How unlabelled photos are used."""

import math
from dataclasses import dataclass
from typing import Literal

from latentseg.configs import check_choices, check_range
from latentseg.errors import InputError
from latentseg.students.edges import check_radius
from latentseg.students.training import PRESETS, TrainConfig


@dataclass(frozen=True)
class SelfTrainingConfig:
    """How unlabelled photos are used."""

    rounds: int = 3  # at most; each trains one student
    train: TrainConfig = PRESETS["quick"]  # of the student of a round
    photo_share: float = 0.75  # of a batch; the rest are synthetic pairs
    scales: tuple[float, ...] = (1.0, 1.5)  # at which the teacher sees each photo; averaged
    adapt: bool = False  # the first teacher takes the batch statistics of the photos
    temperature: float = 0.5  # of the labels: 1 as the teacher says, towards 0: hard
    confidence_power: float = 1.0  # weight of a pixel: its confidence to this power; 0: all alike
    agreement_smoothing: float = 0.0  # a label is this much smoother where its views disagree
    label_edges: int | None = None  # labels end at edges of the photo within so many pixels
    mixing: Literal["none", "cutmix", "classmix"] = "classmix"  # of the pictures in a batch
    hold_area: bool = True  # let objects cover, on average, a share of the photos that is known
    area: float | None = None  # this share of all pixels; None: see `area_from`
    area_from: Literal["student", "pairs"] = "pairs"  # what the first one saw; synthetic masks
    hold_last: bool = True  # the odds of the last student are shifted until it holds the area, too
    min_component: float = 0.2  # components stay above this share of the largest one's area
    min_consistency: float = 0.5  # least IoU of the masks of one photo over scales and mirror image
    stop_agreement: float = 0.95  # mean IoU of successive students' masks at which to stop
    warm_start: bool = False  # begin with the weights of the student before
    max_photos: int = 20_000  # the first ones by a random order are used

    def __post_init__(self) -> None:
        check_choices(self)
        check_range(self, ("rounds", "max_photos"), 1)
        check_range(self, ("photo_share",), above=0, most=1)
        check_range(self, ("temperature",), above=0)
        check_range(self, ("confidence_power", "min_consistency", "stop_agreement"), 0)
        check_range(self, ("min_component", "agreement_smoothing"), 0, 1)
        check_range(self, ("area",), 0.001, 0.999)
        check_radius(self.label_edges, "label_edges")
        if self.area is not None and not self.hold_area:
            raise InputError("`area`: is not held, as `hold_area` is false.")
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"`scales`: expected numbers above 0, found {self.scales}.")
