"""Labelled photos in the formats of other tools: COCO, YOLO-seg, indexed PNG, Hugging Face."""

from latentseg.datasets.formats.conversion import (
    FORMATS,
    convert_dataset,
    find_format,
    open_labelled,
)
from latentseg.datasets.formats.layout import StoredDataset

__all__ = [
    "FORMATS",
    "StoredDataset",
    "convert_dataset",
    "find_format",
    "open_labelled",
]
