"""Flags of self-training, which `train` and `run` share."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from latentseg.cli.flags import OfPreset

if TYPE_CHECKING:
    from latentseg.students.self_training_settings import SelfTrainingConfig

YesNo = Literal["yes", "no"]


@dataclass(frozen=True)
class SelfTrainingFlags:
    """How unlabelled photos are used."""

    max_photos: OfPreset[int] = None
    """At most so many photos, chosen at random."""
    photo_share: OfPreset[float] = None
    """Photos in a batch, as a share; the rest are synthetic pairs."""
    adapt: OfPreset[YesNo] = None
    """The first student labels photos by their own batch statistics."""
    area: OfPreset[float] = None
    """The share of all pixels that objects cover in the photos, if you know it."""
    area_from: OfPreset[Literal["student", "pairs"]] = None
    """What this share is taken from: what the first student saw, or the synthetic masks."""
    hold_last: OfPreset[YesNo] = None
    """The last student is shifted until objects cover that share in the photos."""
    agreement_smoothing: OfPreset[float] = None
    """Labels are this much smoother where the views of a photo disagree, 0 to 1."""
    mixing: OfPreset[Literal["none", "cutmix", "classmix"]] = None
    """Paste pieces of pictures over others: rectangles, or objects."""
    label_edges: OfPreset[int] = None
    """Labels end at edges of the photo within this many pixels (guided filter)."""

    def changed(self, base: "SelfTrainingConfig") -> "SelfTrainingConfig":
        """`base` with what was given."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        values = {n: v == "yes" if v in ("yes", "no") else v for n, v in given.items()}
        return replace(base, **{n: v for n, v in values.items() if v is not None})


SELF_TRAINING = SelfTrainingFlags()
OfSelfTraining = OmitArgPrefixes[SelfTrainingFlags]
