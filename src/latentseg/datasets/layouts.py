"""The layouts of labeled photos that can be opened, in the order in which they are looked for."""

import os
from collections.abc import Sequence
from pathlib import Path

from latentseg.datasets.folder import FOLDER, IMAGES
from latentseg.datasets.formats import (
    coco,
    foreign_shards,
    hf_datasets,
    labelme,
    parquet,
    sa1b,
    supervisely,
    voc,
    yolo,
)
from latentseg.datasets.groupings import Grouping
from latentseg.datasets.listings import Layout, Listing
from latentseg.datasets.published import LABELS, PUBLISHED
from latentseg.datasets.shard_listing import SHARDS
from latentseg.errors import InputError

LAYOUTS: tuple[Layout, ...] = (
    FOLDER,
    SHARDS,
    LABELS,
    coco.LAYOUT,
    yolo.LAYOUT,
    voc.LAYOUT,
    hf_datasets.LAYOUT,
    supervisely.LAYOUT,
    *PUBLISHED,
    parquet.LAYOUT,  # this and all below look into files
    foreign_shards.LAYOUT,
    labelme.LAYOUT,
    sa1b.LAYOUT,
)


def find_layout(path: Path | str, groupings: Sequence[Grouping] = ()) -> Listing:
    """Recognizes the layout of `path` by the names in it.

    Args:
        path: The dataset.
        groupings: Classes to make of its labels, one after the other.

    Raises:
        InputError: there is nothing, or nothing of a known layout, or it contradicts itself.
        CorruptFileError: a file that describes the dataset is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: there is no such folder.")
    for layout in LAYOUTS:
        listing = layout.find(path, groupings)
        if listing is not None:
            return listing
    raise InputError(f"{path}: {_unknown(path)}")


def _unknown(path: Path) -> str:
    known = "\n".join(f"  {layout.name}: {layout.looks_for}" for layout in LAYOUTS)
    if path.is_file():
        return f"not a file of labeled photos. Known are:\n{known}"
    entries = sorted(entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
    there = ", ".join(entries[:12]) + (", ..." if len(entries) > 12 else "")
    inner = sorted(each.parent.name for each in path.glob(f"*/{IMAGES}") if each.is_dir())
    hint = f" Perhaps one of the folders in it: {', '.join(inner)}?" if inner else ""
    return (
        f"not a dataset of a known layout. In it: {there or 'nothing'}.{hint} Known are, and by "
        f"these names they are recognized:\n{known}"
    )
