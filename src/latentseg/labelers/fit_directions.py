"""Fits directions: searches them, chooses the radius at which they make masks, and reports."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.generators.protocols import Generator
from latentseg.images import Pixels, to_pixels
from latentseg.labelers.direction_search import Direction, find_direction
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import KIND, SETTINGS, DirectionsConfig
from latentseg.labelers.fitting import fit_labeler
from latentseg.labelers.kinds import Fitted
from latentseg.labelers.losses import center_minus_border, edges
from latentseg.labelers.mask_measures import Masks, area_share, edge_alignment, mask_iou
from latentseg.labelers.overview import sample_counts, samples_sheet
from latentseg.progress import say

RADII = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)


def fit_directions(
    generator: Generator,
    *,
    config: DirectionsConfig = SETTINGS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> DirectionsLabeler:
    """Searches the directions that the mode needs, chooses the generation radius, and reports.

    Args:
        generator: Differentiable with respect to its latents.
        config: How to search and to label; `SETTINGS` has the published settings.
        seed: Seeds all random numbers.
        out: Where labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned.
        quiet: Print no progress.

    Raises:
        InputError: the generator is not differentiable, or `out` holds other work.
        DivergedError: a loss became NaN or infinite.
    """
    return fit_labeler(KIND, generator, config=config, seed=seed, out=out, quiet=quiet)


def fit(
    generator: Generator,
    *,
    config: DirectionsConfig,
    seed: int,
    folder: Path | None,
    quiet: bool,
) -> Fitted[DirectionsLabeler]:
    """The labeler with its directions and its radius; see `LabelerKind.fit`."""
    directions = {
        sign: find_direction(generator, sign, config=config, seed=seed, quiet=quiet)
        for sign in config.signs
    }
    for sign, direction in directions.items():
        if not direction.has_right_sign(sign):
            say(
                f"The {sign} direction changes the center's brightness the wrong way by "
                f"{direction.brightness_change:.3f}. Masks will be poor: raise steps or the "
                "contrast weight, or try another seed.",
                quiet=quiet,
            )
    values = {sign: direction.values for sign, direction in directions.items()}
    labeler, radii = _choose(generator, values, config, seed)
    chosen = labeler.config
    pairing = " along opposite steps" if chosen.is_opposite and chosen.mode == "both" else ""
    say(f"generation radius {chosen.generation_radius:g}{pairing}", quiet=quiet)
    return Fitted(
        labeler,
        quality=partial(quality_report, labeler, directions, radii),
        sheet=partial(contact_sheet, labeler),
    )


def _choose(
    generator: Generator, values: Mapping[str, Tensor], config: DirectionsConfig, seed: int
) -> tuple[DirectionsLabeler, list[dict[str, Any]]]:
    """The most reliable labeler among what `config` leaves open, and the curves over its radius."""
    is_open = config.is_opposite is None and config.mode == "both"
    tried = []
    for is_opposite in (False, True) if is_open else (bool(config.is_opposite),):
        radius = config.generation_radius or config.radius
        fixed = replace(config, is_opposite=is_opposite, generation_radius=radius)
        labeler = DirectionsLabeler(generator, values, config=fixed, seed=seed)
        rows = measure_radii(labeler, tuple(sorted({*RADII, radius})))
        allowed = [row for row in rows if config.generation_radius in (None, row["radius"])]
        best = max(allowed, key=reliability)
        chosen = replace(fixed, generation_radius=best["radius"])
        tried.append((reliability(best), labeler.with_config(chosen), rows))
    _, labeler, rows = max(tried, key=lambda entry: entry[0])
    return labeler, rows


def measure_radii(
    labeler: DirectionsLabeler, radii: tuple[float, ...] = RADII, *, n: int = 64
) -> list[dict[str, Any]]:
    """What images and masks do as the generation radius grows.

    Args:
        labeler: Its own radius does not matter.
        radii: Radii to try, rising.
        n: Number of latents, the same for every radius.

    Returns:
        For each radius: `edge_change`, by sign, the mean change of edge strength as a share of its
        mean; `brightness_change`, by sign, of the center against the border; `kept`, the share of
        samples that pass the filters; the mean `area` and `edge_alignment` of the masks;
        `agreement`, the mean IoU with the masks of the other radii.
    """
    latents = labeler.own_latents(n)
    with torch.no_grad():
        x = labeler.generator(latents)
    strength, contrast = edges(x), center_minus_border(x)
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
                    sign: float((center_minus_border(y) - contrast).mean())
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
        row["agreement"] = float(np.mean([mask_iou(masks, other).mean() for other in others]))
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
    labeler: DirectionsLabeler,
    directions: Mapping[str, Direction],
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


def contact_sheet(labeler: DirectionsLabeler, *, n: int = 12) -> Pixels:
    """A picture with one row per sample: image, light, dark, mask, mask over the image.

    The samples are the first ones, not the best; a mask that the filters refuse is shown gray.
    """
    latents = labeler.own_latents(n)
    with torch.no_grad():
        x = labeler.generator(latents)
    shifted = labeler.shifted(latents)
    labelled = labeler.judge(x, shifted)
    return samples_sheet(labelled, {sign: list(to_pixels(y)) for sign, y in shifted.items()})
