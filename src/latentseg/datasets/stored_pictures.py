"""What is asked of pictures and masks as they lie on disk: ranges, bands, pages, soft edges."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from latentseg.datasets.descriptions import read_description
from latentseg.datasets.listings import Listing, Pair, below, read_ids, read_photo
from latentseg.datasets.mask_values import single_class
from latentseg.errors import InputError, LatentsegError
from latentseg.images import (
    Pixels,
    Reading,
    is_stack,
    page_name,
    pages_of,
    read_halves,
    with_range,
)

FOREGROUND = "foreground"


def as_asked(listing: Listing, reading: Reading, *, binarize: bool) -> Listing:
    """`listing` with its photos read by `reading`, stacks as pages, and soft masks cut at half.

    Args:
        listing: A dataset as it was found.
        reading: How photos become images.
        binarize: Masks are black and white with soft edges: more than half of white is foreground.

    Raises:
        InputError: the masks of this layout are not pictures of their own, so that they cannot be
            cut; or they are said to have several classes.
    """
    if binarize:
        listing = _binarized(listing)
    if listing.read_image is not read_photo:
        return listing
    reading, note = with_range(reading, [pair.image for pair in listing.pairs])
    if listing.read_mask in (read_ids, _read_halves):
        listing = _with_pages(listing, reading)
    notes = (*listing.notes, f"photos: {note}") if note else listing.notes
    return replace(listing, read_image=partial(read_photo, reading=reading), notes=notes)


def _binarized(listing: Listing) -> Listing:
    if listing.read_mask is not read_ids:
        raise InputError(
            f"{listing.folder}: `binarize` is for masks that are black and white pictures; those "
            f"of {listing.name} are not."
        )
    stated = listing.meaning.classes if listing.meaning else None
    classes = stated or read_description(listing.folder).classes or (FOREGROUND,)
    if len(classes) > 1:
        raise InputError(
            f"{listing.folder}: `binarize` makes masks of one class; there are {len(classes)}: "
            f"{', '.join(classes)[:200]}."
        )
    return replace(listing, meaning=single_class(255, None, *classes), read_mask=_read_halves)


def _read_halves(pair: Pair) -> Pixels:
    return read_halves(pair.mask, pair.page)


def _with_pages(listing: Listing, reading: Reading) -> Listing:
    """A pair for each page of a stack whose mask is a stack as well."""
    pairs: list[Pair] = []
    problems: list[str] = []
    for pair in listing.pairs:
        pages, of_mask = _pages(pair.image, reading), _pages(pair.mask, reading)
        if len(pages) == len(of_mask):
            pairs += [replace(pair, name=pair.name + end, page=page) for page, end in pages]
        else:
            problems.append(
                f"{below(listing.folder, pair.mask)}: {_count(of_mask)}, but its image has "
                f"{_count(pages)}. They must agree, or one page be named: `page`."
            )
    return replace(listing, pairs=tuple(pairs), problems=(*listing.problems, *problems))


def _pages(path: Path, reading: Reading) -> list[tuple[int | None, str]]:
    """The pages of a file that are read, and how the name of each ends; of a photo one, "".

    What is wrong with a file is said when it is read.
    """
    if not is_stack(path):
        return [(None, "")]
    try:
        return [(page, page_name(page)) for page in pages_of(path, reading)]
    except LatentsegError:
        return [(None, "")]


def _count(pages: Sequence[object]) -> str:
    return "1 page" if len(pages) == 1 else f"{len(pages)} pages"
