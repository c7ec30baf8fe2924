"""What a labeler makes of samples: how many pass its filters, and a sheet of pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentseg.files import write_json
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import Pixels, contact_sheet, overlay, to_pixels, write_image
from latentseg.labelers.mask_measures import area_share
from latentseg.labelers.protocols import Labeler, Labelled
from latentseg.seeds import derive_seeds

LEAST_CELL_PX = 96
REPORTED, SHOWN = 256, 12  # samples that are counted, and that are shown
SAMPLES_KEY = 0x0E71  # keeps these latents apart from those of data sets
PASSED, REFUSED = 255, 110  # brightness of a mask in the sheet


def sample_latents(generator: Generator, n: int, *keys: int) -> Latents:
    """`n` latents that depend only on `keys`."""
    return generator.sample(derive_seeds(*keys, np.arange(n)).to(generator.device))


def sample_counts(labelled: Labelled, filters: Sequence[str]) -> dict[str, Any]:
    """How the filters judge samples, and how large the masks are that pass, as JSON values.

    Args:
        labelled: The samples.
        filters: Names of the labeler's filters.
    """
    rejections = torch.bincount(labelled.rejected_by, minlength=len(filters) + 1).tolist()
    masks = labelled.masks.numpy()[labelled.rejected_by.numpy() == 0]
    counts, bounds = np.histogram(area_share(masks > 0), bins=20, range=(0, 1))
    return {
        "samples": len(labelled.masks),
        "kept": rejections[0],
        "removed": dict(zip(filters, rejections[1:], strict=True)),
        "confidence": float(labelled.confidence.mean()),
        "areas": {"bounds": bounds.tolist(), "counts": counts.tolist()},
    }


def samples_sheet(labelled: Labelled, steps: Mapping[str, Sequence[Pixels]]) -> Pixels:
    """A picture with one row per sample: image, steps to the mask, mask, mask over the image.

    A mask that the filters refuse is shown gray.

    Args:
        labelled: The samples.
        steps: By title, a picture (H, W, 3) of each sample.
    """
    images = to_pixels(labelled.images)
    rows = []
    for i, mask in enumerate(labelled.masks.numpy()):
        brightness = PASSED if labelled.rejected_by[i] == 0 else REFUSED
        white = np.repeat(np.where(mask > 0, brightness, 0).astype(np.uint8)[..., None], 3, axis=2)
        shown = [pictures[i] for pictures in steps.values()]
        rows.append([images[i], *shown, white, overlay(images[i], mask)])
    height, width = images.shape[1:3]
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    titles = ["image", *steps, "mask", "overlay"]
    return contact_sheet(rows, titles=titles, cell=(height * scale, width * scale))


def write_overview(labeler: Labeler, folder: Path | str, *, seed: int) -> None:
    """Writes quality.json and contact_sheet.png: what any labeler makes of its first samples.

    Args:
        labeler: It draws and labels them.
        folder: Where they are written.
        seed: Of their latents.
    """
    labelled = labeler.label(sample_latents(labeler.generator, REPORTED, seed, SAMPLES_KEY))
    write_json(Path(folder) / "quality.json", sample_counts(labelled, labeler.filters))
    write_image(Path(folder) / "contact_sheet.png", samples_sheet(labelled[:SHOWN], {}))
