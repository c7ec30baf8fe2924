"""What was found in each photo, a line for each, and all of it as COCO annotations."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Self

from latentseg.datasets.coco_files import encode_region, write_document
from latentseg.files import open_in_place
from latentseg.images import Pixels
from latentseg.plain_data import parse_json
from latentseg.students.photo_names import NamedPhoto
from latentseg.version import __version__

FIELDS: dict[str, Any] = {
    "name": str,
    "photo": str,
    "stamp": (list, NoneType),
    "settings": str,
    "size": list,
    "files": list,
    "annotations": (list, NoneType),
}

Record = dict[str, Any]


class Records:
    """A JSON Lines file of records, each complete or forgotten; the last one of a name holds.

    Only places in the file are kept in memory, not the records.

    Args:
        path: The file, made if missing. What follows a line that a kill cut off is dropped.
    """

    def __init__(self, path: Path | str) -> None:
        self.stream = open_in_place(path, "a+b")  # closed by __exit__
        self.places: dict[str, int] = {}
        self.stream.seek(0)
        self.end = 0
        for line in self.stream:
            record = _parse(line)
            if record is None:
                break
            self._place(record, line)
        self.stream.truncate(self.end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def find(self, name: str) -> Record | None:
        """The record of the photo called `name`, if there is one."""
        if name not in self.places:
            return None
        self.stream.seek(self.places[name])
        return _parse(self.stream.readline())

    def enter(self, record: Record) -> None:
        """Appends a record."""
        line = json.dumps(record).encode() + b"\n"
        self.stream.write(line)
        self.stream.flush()
        self._place(record, line)

    def _place(self, record: Record, line: bytes) -> None:
        self.places[record["name"]] = self.end
        self.end += len(line)


def _parse(line: bytes) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    is_whole = (
        line.endswith(b"\n")
        and isinstance(record, dict)
        and record.keys() == FIELDS.keys()
        and all(isinstance(record[name], kind) for name, kind in FIELDS.items())
        and len(record["size"]) == 2
        and all(type(side) is int for side in record["size"])
        and all(type(file) is str for file in record["files"])
        and all(type(annotation) is dict for annotation in record["annotations"] or [])
    )
    return record if is_whole else None


def annotate(mask: Pixels, certainty: Mapping[int, float]) -> list[Record]:
    """A COCO annotation of each class in a mask, without the ids of image and annotation.

    Args:
        mask: (H, W) uint8 class ids; 0 is background.
        certainty: The score of each class that occurs.
    """
    return [
        {"category_id": k, **encode_region(mask == k), "iscrowd": 0, "score": round(score, 6)}
        for k, score in sorted(certainty.items())
    ]


def write_coco(
    path: Path | str, photos: Sequence[NamedPhoto], records: Records, classes: Sequence[str]
) -> None:
    """Writes the annotations of `photos` in COCO's format, atomically, holding one at a time.

    Args:
        path: The JSON file.
        photos: In this order, numbered from 1; each with its record.
        records: Where the annotations are.
        classes: Names, without the background; categories are numbered from 1.
    """
    head = {
        "info": {"description": f"Segmented by latentseg {__version__}"},
        "licenses": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(classes, start=1)],
    }
    write_document(
        path, head, images=_images(photos, records), annotations=_annotations(photos, records)
    )


def _images(photos: Sequence[NamedPhoto], records: Records) -> Iterator[Record]:
    for number, photo in enumerate(photos, start=1):
        height, width = _record(photo, records)["size"]
        yield {"id": number, "file_name": photo.file_name, "height": height, "width": width}


def _annotations(photos: Sequence[NamedPhoto], records: Records) -> Iterator[Record]:
    count = 0
    for number, photo in enumerate(photos, start=1):
        for annotation in _record(photo, records)["annotations"]:
            count += 1
            yield {"id": count, "image_id": number, **annotation}


def _record(photo: NamedPhoto, records: Records) -> Record:
    record = records.find(photo.name)
    if record is None:
        raise KeyError(photo.name)
    return record
