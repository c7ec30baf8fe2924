"""How good directions are, seen without labels: what a step changes, and what masks it makes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.images import Pixels, to_pixels
from latentseg.labelers.losses import centre_minus_border, edges
from latentseg.labelers.overview import sample_counts, samples_sheet
from latentseg.labelers.refinement import Masks, area_share

if TYPE_CHECKING:
    from latentseg.labelers.directions import Direction, DirectionsLabeler

RADII = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def outline(masks: Masks) -> Masks:
    """Pixels of (B, H, W) masks that have a neighbour of the other kind, on either side."""
    found = np.zeros_like(masks)
    across = masks[:, 1:] != masks[:, :-1]
    found[:, 1:] |= across
    found[:, :-1] |= across
    along = masks[:, :, 1:] != masks[:, :, :-1]
    found[:, :, 1:] |= along
    found[:, :, :-1] |= along
    return found


def edge_alignment(masks: Masks, strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much stronger an image's edges are on its mask's outline than elsewhere, (B,).

    The mean of `strength` (B, H, W) on the outline over its mean in the image: 1 for an outline
    that ignores the image; 0 where there is no outline.
    """
    on = outline(masks)
    sums, counts = (strength * on).sum(axis=(1, 2)), on.sum(axis=(1, 2))
    return sums / np.maximum(counts, 1) / np.maximum(strength.mean(axis=(1, 2)), 1e-12)


def agreement(masks: Masks, others: Masks) -> NDArray[np.float64]:
    """Intersection over union of each mask (B, H, W) with its other, (B,); 1 if both are empty."""
    union = (masks | others).sum(axis=(1, 2))
    return np.where(union == 0, 1.0, (masks & others).sum(axis=(1, 2)) / np.maximum(union, 1))


def measure_radii(
    labeler: "DirectionsLabeler", radii: tuple[float, ...] = RADII, *, n: int = 64
) -> list[dict[str, Any]]:
    """What images and masks do as the generation radius grows.

    Args:
        labeler: Its own radius does not matter.
        radii: Radii to try, rising.
        n: Number of latents, the same for every radius.

    Returns:
        For each radius: `edge_change`, by sign, the mean change of edge strength as a share of its
        mean; `brightness_change`, by sign, of the centre against the border; `kept`, the share of
        samples that pass the filters; the mean `area` and `edge_alignment` of the masks;
        `agreement`, the mean IoU with the masks of the other radii.
    """
    latents = labeler.own_latents(n)
    with torch.no_grad():
        x = labeler.generator(latents)
    strength, contrast = edges(x), centre_minus_border(x)
    rows: list[dict[str, Any]] = []
    all_masks: list[Masks] = []
    for radius in radii:
        moved = labeler.with_config(replace(labeler.config, generation_radius=radius))
        shifted = moved.shifted(latents)
        labelled = moved.judge(x, shifted)
        masks = labelled.masks.numpy().astype(bool)
        rows.append(
            {
                "radius": radius,
                "edge_change": {
                    sign: float((edges(y) - strength).abs().mean() / strength.mean())
                    for sign, y in shifted.items()
                },
                "brightness_change": {
                    sign: float((centre_minus_border(y) - contrast).mean())
                    for sign, y in shifted.items()
                },
                "kept": float((labelled.rejected_by == 0).float().mean()),
                "area": float(area_share(masks).mean()),
                "edge_alignment": float(edge_alignment(masks, strength.cpu().numpy()).mean()),
            }
        )
        all_masks.append(masks)
    for row, masks in zip(rows, all_masks, strict=True):
        others = [other for other in all_masks if other is not masks] or [masks]
        row["agreement"] = float(np.mean([agreement(masks, other).mean() for other in others]))
    return rows


def reliability(row: dict[str, Any]) -> float:
    """How far masks made at a radius can be trusted, without labels, in [0, 1].

    Their agreement with the masks of the other radii times the root of the share that passes the
    filters: a mask that depends on the length of the step, or that the filters refuse, is a chance
    result. The root, because that share rises with the step by itself.

    Args:
        row: What `measure_radii` saw at the radius.
    """
    return row["agreement"] * row["kept"] ** 0.5


def quality_report(
    labeler: "DirectionsLabeler",
    directions: "Mapping[str, Direction]",
    radii: list[dict[str, Any]],
    *,
    n: int = 256,
) -> dict[str, Any]:
    """What the search did and what the labeler makes of `n` samples, as JSON values.

    Args:
        labeler: With its final radius.
        directions: What the searches found.
        radii: What `measure_radii` saw.
        n: Number of samples that the filters and the areas are counted on.
    """
    labelled = labeler.label(labeler.own_latents(n))
    return {
        "directions": {
            sign: {
                "losses": {
                    name: [losses[name] for losses in direction.losses]
                    for name in direction.losses[0]
                },
                "starts": direction.starts,
                "held_out_loss": direction.held_out,
                "steps": len(direction.losses),
                "is_converged": direction.is_converged,
                "brightness_change": direction.brightness_change,
                "has_right_sign": direction.has_right_sign(sign),
            }
            for sign, direction in directions.items()
        },
        "cosine": cosine(*(direction.values for direction in directions.values())),
        "radii": radii,
        "generation_radius": labeler.radius,
        **sample_counts(labelled, labeler.filters),
    }


def cosine(*directions: Tensor) -> float | None:
    """The cosine of the angle between two directions of length 1; None for a single one."""
    return float(torch.vdot(*(d.flatten() for d in directions))) if len(directions) == 2 else None


def contact_sheet(labeler: "DirectionsLabeler", *, n: int = 12) -> Pixels:
    """A picture with one row per sample: image, light, dark, mask, mask over the image.

    The samples are the first ones, not the best; a mask that the filters refuse is shown grey.
    """
    latents = labeler.own_latents(n)
    with torch.no_grad():
        x = labeler.generator(latents)
    shifted = labeler.shifted(latents)
    labelled = labeler.judge(x, shifted)
    return samples_sheet(labelled, {sign: list(to_pixels(y)) for sign, y in shifted.items()})
