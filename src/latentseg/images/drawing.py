"""Masks shown to people: overlays, cut-outs, sheets, and the color of each class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from latentseg.images.kinds import IGNORE, Pixels


def overlay(image: Pixels, mask: Pixels, *, strength: float = 0.55) -> Pixels:
    """Lays the classes of `mask` over `image` in color, with a bright outline.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8, 0 background; 255 is left out.
        strength: Share of the color inside a class, in [0, 1].
    """
    colors = class_colors()
    painted = image.astype(np.float32)
    inside = (mask > 0) & (mask != IGNORE)
    painted[inside] = (1 - strength) * painted[inside] + strength * colors[mask[inside]]
    edge = np.zeros_like(inside)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:, :] |= mask[1:, :] != mask[:-1, :]
    painted[edge & inside] = 255
    return painted.round().astype(np.uint8)


def cut_out(image: Pixels, mask: Pixels) -> Pixels:
    """(H, W, 4) uint8: the foreground of `image`, transparent elsewhere."""
    alpha = np.where((mask > 0) & (mask != IGNORE), 255, 0).astype(np.uint8)
    return np.dstack([image, alpha])


def class_colors() -> NDArray[np.uint8]:
    """(256, 3) uint8: a color for each class id; neighboring ids differ strongly in hue."""
    hues = (0.52 + 0.61803398875 * (np.arange(256) - 1)) % 1  # the golden ratio spreads hues evenly
    hsv = np.stack([hues, np.full(256, 0.75), np.full(256, 0.95)], axis=-1)
    picture = Image.frombytes("HSV", (256, 1), (hsv * 255).astype(np.uint8).tobytes())
    colors = np.array(picture.convert("RGB"))[0]
    colors[0] = 0
    return colors


def contact_sheet(
    rows: Sequence[Sequence[Pixels]],
    *,
    titles: Sequence[str] = (),
    cell: tuple[int, int] | None = None,
    gap_px: int = 2,
) -> Pixels:
    """Composes a grid of pictures.

    Args:
        rows: Rows of (H, W, 3) or (H, W) uint8 pictures; a (H, W) mask of ids is shown as 0 / 255.
        titles: A heading for each column.
        cell: (height, width) of a cell; by default the size of the first picture.
        gap_px: White space between cells.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = cell or rows[0][0].shape[:2]
    heading_px = 14 if titles else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) + gap_px, len(rows) * (height + gap_px) + gap_px + heading_px),
        "white",
    )
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (width + gap_px) + gap_px, 1), title, fill="black")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            shown = np.where(picture > 0, 255, 0).astype(np.uint8) if picture.ndim == 2 else picture
            tile = Image.fromarray(shown).convert("RGB")
            if tile.size != (width, height):
                tile = tile.resize((width, height), Image.Resampling.BILINEAR)
            corner = (gap_px + x * (width + gap_px), heading_px + gap_px + y * (height + gap_px))
            sheet.paste(tile, corner)
    return np.array(sheet)
