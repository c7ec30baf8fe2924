"""Regions as COCO has them: run lengths, box and area."""

import importlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def encode_region(region: NDArray[np.bool_]) -> dict[str, Any]:
    """`segmentation` (compressed run lengths), `bbox` and `area` of a region (H, W)."""
    api = mask_api()
    encoded = api.encode(np.asfortranarray(region.astype(np.uint8)))
    return {
        "segmentation": {"size": [*region.shape], "counts": encoded["counts"].decode("ascii")},
        "bbox": [float(side) for side in api.toBbox(encoded)],
        "area": int(region.sum()),
    }


def mask_api() -> Any:
    """`pycocotools.mask`, imported when it is needed; it has no types."""
    return importlib.import_module("pycocotools.mask")
