"""Labelled photos in the formats of other tools: COCO, YOLO-seg, indexed PNG, Hugging Face."""

from latentseg.synthesis.formats.conversion import (
    FORMATS,
    convert_dataset,
    find_format,
    open_labelled,
)
from latentseg.synthesis.formats.layout import StoredDataset
from latentseg.synthesis.formats.streams import StreamedImages

__all__ = [
    "FORMATS",
    "StoredDataset",
    "StreamedImages",
    "convert_dataset",
    "find_format",
    "open_labelled",
]
