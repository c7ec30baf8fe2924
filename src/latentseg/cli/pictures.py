"""Flags of the commands that read pictures, and of those that read masks beside them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes

from latentseg.cli.flags import Maybe, Several

if TYPE_CHECKING:
    from latentseg.images import Reading


@dataclass(frozen=True)
class PictureFlags:
    """How pictures become images where there is a choice."""

    range: Maybe[tuple[float, float]] = None
    """Values that become black and white in pictures of more than 8 bits; by default one range for
    all of them: that of the bits which the brightest needs, or what the files themselves say."""
    bands: Several[int] = ()
    """Bands of TIFFs that are red, green and blue, such as 4 3 2, or the only one; the first is 1.
    By default the first three of up to four."""
    page: Maybe[int] = None
    """Page of TIFF stacks and volumes; the first is 1. By default all of them, each as a photo."""

    @property
    def reading(self) -> "Reading":
        """As the library takes them."""
        from latentseg.images import Reading

        return Reading(self.range, self.bands or None, self.page)


@dataclass(frozen=True)
class MaskFlags:
    """How masks are read where there is a choice."""

    binarize: bool = False
    """Masks are black and white with soft edges, or saved as JPEG: cut them at half of white."""
    invert: bool = False
    """Masks of one class show the background: exchange it with the foreground."""


PICTURES = PictureFlags()
MASKS = MaskFlags()
OfPictures = OmitArgPrefixes[PictureFlags]
OfMasks = OmitArgPrefixes[MaskFlags]
