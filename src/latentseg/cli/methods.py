"""Flags of the methods, and the configurations that they make."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import OmitArgPrefixes

from latentseg.cli.flags import changed
from latentseg.errors import InputError

if TYPE_CHECKING:
    from latentseg.labelers.directions import DirectionsConfig
    from latentseg.labelers.few_shot import FewShotConfig
    from latentseg.labelers.style_mixing import StyleMixingConfig


Variant = Literal["ours", "fast", "official", "paper"]


@dataclass(frozen=True)
class DirectionsFlags:
    """Of the method directions; by default as the preset or the variant has it."""

    variant: Variant | None = None
    """Settings of the search: ours, fast (one start, larger steps), of the official code, or of the
    paper."""
    mode: Literal["light", "dark", "both", "ensemble"] | None = None
    """Directions that make the mask; run can also average students of light and dark."""
    radius: float | None = None
    """Step that makes masks, in standard deviations of the latent; by default chosen."""
    contrast_weight: float | None = None
    """Weight of the contrast loss, lambda in the paper."""
    structure_weight: float | None = None
    """Weight of the structure loss."""
    search_radius: float | None = None
    """Step during the search."""
    search_steps: int | None = None
    """Most steps of the search."""
    search_restarts: int | None = None
    """Random starts of the search."""


@dataclass(frozen=True)
class StyleMixingFlags:
    """Of the method style-mixing; by default as measured best."""

    k: int | None = None
    """Segments; 2 are foreground and background."""
    variants: int | None = None
    """Variants of each image, itself included."""
    first_mixed_layer: int | None = None
    """Layers from this one on take another style; by default chosen."""
    colour: Literal["rgb", "lab"] | None = None
    """Colour space of the pixels."""
    normalisation: Literal["none", "plane", "correlation"] | None = None
    """What is made equal before pixels are compared."""
    clustering: Literal["kmeans", "spherical", "mixture"] | None = None
    """How pixels are clustered."""
    spatial_weight: float | None = None
    """Weight of the place of a pixel beside its colours."""
    meaning: Literal["shared", "matched"] | None = None
    """For k above 2: one clustering for all images, or clusters matched to prototypes."""
    foreground: Literal["border", "centre", "area", "vote"] | None = None
    """For k 2: which segment is the foreground."""
    memory: float | None = None
    """GiB that may be used beside the generator's weights."""


@dataclass(frozen=True)
class FewShotFlags:
    """Of the method few-shot."""

    labels: Path | None = None
    """Folder of the painter: the painted images."""
    settings: Literal["ours", "official", "bryandlee", "datasetgan"] | None = None
    """Head and training: ours, or those of published code."""
    head: Literal["mlp-small", "mlp", "cnn", "cnn-s", "cnn-m", "cnn-l", "ensemble"] | None = None
    """The network that segments the generator's features."""


DIRECTIONS, STYLE_MIXING, FEW_SHOT = DirectionsFlags(), StyleMixingFlags(), FewShotFlags()
OfFewShot = OmitArgPrefixes[FewShotFlags]
OfDirections = OmitArgPrefixes[DirectionsFlags]
OfStyleMixing = OmitArgPrefixes[StyleMixingFlags]


def directions_config(base: "DirectionsConfig", flags: DirectionsFlags) -> "DirectionsConfig":
    """`base`, or the variant asked for, with the flags that were given."""
    from latentseg.labelers.directions import VARIANTS

    return changed(
        VARIANTS[flags.variant] if flags.variant else base,
        mode=None if flags.mode == "ensemble" else flags.mode,
        generation_radius=flags.radius,
        contrast_weight=flags.contrast_weight,
        structure_weight=flags.structure_weight,
        radius=flags.search_radius,
        steps=flags.search_steps,
        restarts=flags.search_restarts,
    )


def style_mixing_config(base: "StyleMixingConfig", flags: StyleMixingFlags) -> "StyleMixingConfig":
    """`base` with the flags that were given."""
    given = {name: value for name, value in vars(flags).items() if value is not None}
    if "variants" in given:
        given["n_variants"] = given.pop("variants")
    if "memory" in given:
        given["memory"] = round(given["memory"] * 2**30)
    return replace(base, **given)


def few_shot_config(flags: FewShotFlags) -> "FewShotConfig":
    """The settings asked for, with the head that was given."""
    from latentseg.labelers.few_shot import VARIANTS

    return changed(VARIANTS[flags.settings or "ours"], head=flags.head)


def refuse_flags_of_others(used: Sequence[str | None], *flags: object) -> None:
    """Refuses flags of a method that does not take part.

    Raises:
        InputError: there are some; they are named.
    """
    methods = {
        DirectionsFlags: "directions",
        StyleMixingFlags: "style-mixing",
        FewShotFlags: "few-shot",
    }
    for each in flags:
        given = [
            f"--{name.replace('_', '-')}" for name, value in vars(each).items() if value is not None
        ]
        if given and methods[type(each)] not in used:
            raise InputError(
                f"{', '.join(given)}: of the method {methods[type(each)]}, which is not asked for."
            )
