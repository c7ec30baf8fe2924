"""Our own dataset folder, written: masks as indexed PNG beside the photos. `folder` reads it."""

from collections.abc import Collection

from latentseg.datasets.descriptions import Facts
from latentseg.datasets.folder import IMAGES, MASKS
from latentseg.datasets.formats.writing import Format, Record, Sample, Target
from latentseg.images import write_mask


def _write(target: Target, sample: Sample) -> Record:
    write_mask(target.folder / MASKS / f"{sample.name}.png", sample.mask)
    return {"name": sample.name}


def _finish(target: Target, records: Collection[Record]) -> Facts:
    return {}  # dataset.json, which every format gets, says all


FORMAT = Format("folder", IMAGES, _write, _finish)
