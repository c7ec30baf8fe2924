"""COCO: regions as run lengths with box and area, and files that need not fit into memory."""

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.files import atomic


def encode_region(region: NDArray[np.bool_]) -> dict[str, Any]:
    """`segmentation` (compressed run lengths), `bbox` and `area` of a region (H, W)."""
    api = mask_api()
    encoded = api.encode(np.asfortranarray(region.astype(np.uint8)))
    return {
        "segmentation": {"size": [*region.shape], "counts": encoded["counts"].decode("ascii")},
        "bbox": [float(side) for side in api.toBbox(encoded)],
        "area": int(region.sum()),
    }


def write_document(
    path: Path | str,
    head: Mapping[str, Any],
    *,
    images: Iterable[Mapping[str, Any]],
    annotations: Iterable[Mapping[str, Any]],
) -> None:
    """Writes a COCO file atomically and row by row.

    Args:
        path: The JSON file.
        head: `info`, `licenses` and `categories`.
        images: Each with its id.
        annotations: Each with its id.
    """
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as content:
        content.write(json.dumps(dict(head), allow_nan=False)[:-1])
        for name, rows in (("images", images), ("annotations", annotations)):
            content.write(f',\n"{name}": [')
            for number, row in enumerate(rows):
                content.write((",\n" if number else "\n") + json.dumps(dict(row), allow_nan=False))
            content.write("\n]")
        content.write("}\n")


def mask_api() -> Any:
    """`pycocotools.mask`, imported when it is needed; it has no types."""
    return importlib.import_module("pycocotools.mask")
