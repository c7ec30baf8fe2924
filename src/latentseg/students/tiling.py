"""Large photos piece by piece: windows for the networks, strips for what they answer."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.images import Pixels

OVERLAP = 0.5  # as nnU-Net's sliding window
MOST_OVERLAP = 0.9
STRIP_VALUES = 2**22  # of a strip: 16 MB


def check_tiling(tile: int | None, overlap: float, side: int) -> None:
    """Refuses windows that networks for pictures of `side` px cannot use.

    Raises:
        InputError: `tile` is less than `side`, or the overlap is out of range.
    """
    if tile is not None and tile < side:
        raise InputError(
            f"`tile`: expected at least {side}, found {tile}. The networks were trained on "
            f"pictures of {side} px, and smaller windows would only be enlarged."
        )
    if not 0 <= overlap <= MOST_OVERLAP:
        raise InputError(f"`tile_overlap`: expected 0 to {MOST_OVERLAP:g}, found {overlap:g}.")


def window_starts(length: int, side: int, overlap: float) -> list[int]:
    """Where windows of `side` begin that cover `length` evenly, neighbours sharing `overlap`.

    >>> window_starts(100, 64, 0.5), window_starts(64, 64, 0.5)
    ([0, 18, 36], [0])
    """
    stride = max(1, round(side * (1 - overlap)))
    steps = math.ceil((length - side) / stride)
    return [i * (length - side) // max(steps, 1) for i in range(steps + 1)]


def blend(
    picture: Pixels,
    answers: Callable[[Sequence[Pixels]], Iterable[Tensor]],
    *,
    side: int,
    overlap: float = OVERLAP,
) -> Iterator[Tensor]:
    """What networks answer to overlapping square windows of a picture, averaged without seams.

    Probabilities are averaged, each window with weights that fall to zero towards its edge, so that
    a window fades in where another fades out. Only one row of windows is held at a time.

    Args:
        picture: (H, W, 3) uint8, both sides at least `side`.
        answers: Windows, (side, side, 3) each, to their log probabilities (C, side, side) each.
        side: Of the windows, in pixels.
        overlap: Share of a window that the next one shows again, at least.

    Yields:
        Log probabilities (C, n, W) float32 of all rows from top to bottom, n at a time.
    """
    height, width = picture.shape[:2]
    tops, lefts = (window_starts(length, side, overlap) for length in (height, width))
    fading = _fading(side).log()
    carried = torch.empty(0)
    for top, following in zip(tops, [*tops[1:], height], strict=True):
        windows = [picture[top : top + side, left : left + side] for left in lefts]
        answered = torch.stack(list(answers(windows)))
        fading = fading.to(answered)
        # Sums of probabilities and, last, of weights, as logarithms: nothing underflows.
        sums = answered.new_full((answered.shape[1] + 1, side, width), -math.inf)
        if top > 0:
            sums[:, : carried.shape[1]] = carried
        for left, answer in zip(lefts, answered, strict=True):
            place = sums[:, :, left : left + side]
            place[:-1] = torch.logaddexp(place[:-1], answer + fading)
            place[-1] = torch.logaddexp(place[-1], fading)
        finished, carried = sums[:, : following - top], sums[:, following - top :]
        yield finished[:-1] - finished[-1]


def _fading(side: int) -> Tensor:
    """(side, side) weights: a squared sine in each direction, nowhere zero."""
    row = torch.sin((torch.arange(side) + 0.5) * (math.pi / side)) ** 2
    return row[:, None] * row


def upscale(bands: Iterable[Tensor], height: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Resizes maps bilinearly, strip by strip: the whole is never in memory.

    Args:
        bands: The maps from top to bottom, (C, n, w) each, of `height` rows together.
        height: Of the maps, in rows.
        size: (H, W) of the result.

    Yields:
        (C, n, W), together what `functional.interpolate(mode="bilinear", align_corners=False)`
        makes of the maps.
    """
    source = (torch.arange(size[0], dtype=torch.float64) + 0.5) * (height / size[0]) - 0.5
    source = source.clamp(0, height - 1)
    above = source.long()
    below = (above + 1).clamp(max=height - 1)
    share = (source - above)[:, None]
    known, first, done = None, 0, 0
    for band in bands:
        known = band if known is None else torch.cat([known, band], dim=1)
        end = first + known.shape[1]
        stop = int((below < end).sum())
        rows = max(1, STRIP_VALUES // (len(known) * size[1]))
        for top in range(done, stop, rows):
            part = slice(top, min(top + rows, stop))
            i, j = ((index[part] - first).to(known.device) for index in (above, below))
            strip = torch.lerp(known[:, i], known[:, j], share[part].to(known))
            strip_size = (strip.shape[1], size[1])
            yield functional.interpolate(
                strip[None], size=strip_size, mode="bilinear", align_corners=False
            )[0]
        done = stop
        kept = min(int(above[stop]), end) if stop < size[0] else end
        known, first = known[:, kept - first :], kept


def by_strips(compose: Callable[[Pixels, Pixels], Pixels], image: Pixels, mask: Pixels) -> Pixels:
    """Composes an (H, W, 3) image and an (H, W) mask, uint8, in the memory of a strip.

    Args:
        compose: Image and mask to a picture (H, W, C) uint8, of which a pixel depends on its row
            and on the row above: outlines do.
        image: The photo.
        mask: Its class ids.
    """
    rows = max(1, STRIP_VALUES // image[0].size)
    strips = []
    for top in range(0, len(image), rows):
        above = min(top, 1)
        part = slice(top - above, top + rows)
        strips.append(compose(image[part], mask[part])[above:])
    return np.concatenate(strips)
