"""SA-1B: beside each photo a JSON file of masks that have no class. Each one is an object.

Source: Kirillov et al. 2023, Segment Anything; the layout is that of its published files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentseg.datasets.descriptions import read_description
from latentseg.datasets.formats.photo_places import PhotoPlaces
from latentseg.datasets.formats.regions import decode
from latentseg.datasets.listings import Listing, Pair, below, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import Pixels, size_of

CLASS = "object"
LOOKED_AT = 20  # files; where none of them is of SA-1B, none is
NOTE = (
    f"masks without classes: what any of them covers is the one class {CLASS!r}. In SA-1B that is "
    "most of a photo."
)


def _find(folder: Path) -> Listing | None:
    """All files of masks below a folder."""
    if not folder.is_dir():
        return None
    files = [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")]
    if not any(_is_of_sa1b(path) for path in files[:LOOKED_AT]):
        return None
    problems: list[str] = []
    pairs: list[Pair] = []
    for file in files:
        try:
            photo = _read(file)["image"]["file_name"]
        except (CorruptFileError, InputError) as error:
            problems.append(str(error))
            continue
        place = PhotoPlaces(folder, (file.parent,)).find(photo)
        if isinstance(place, str):
            problems.append(f"{below(folder, file)}: {place}")
        else:
            name = file.relative_to(folder).with_suffix("").as_posix()
            pairs.append(Pair(name, place.path, file))
    return Listing(
        folder.absolute().name,
        folder,
        tuple(pairs),
        tuple(problems),
        meaning=class_ids((CLASS,)),
        facts=read_description(folder).facts,
        notes=(NOTE,),
        read_mask=_read_mask,
    )


def _is_of_sa1b(path: Path) -> bool:
    try:
        _read(path)
    except (CorruptFileError, InputError):
        return False
    return True


def _read(file: Path) -> Mapping[str, Any]:
    """What a file says.

    Raises:
        InputError, CorruptFileError: it is no file of SA-1B, or damaged.
    """
    content = read_json(file)
    match content:
        case {"image": {"file_name": str(name)}, "annotations": list()} if name.isprintable():
            return content
    raise CorruptFileError(f"{file}: not a file of SA-1B; expected one image and annotations.")


def _read_mask(pair: Pair) -> Pixels:
    size = size_of(pair.image)
    mask = np.zeros(size, np.uint8)
    for number, annotation in enumerate(_read(pair.mask)["annotations"]):
        try:
            region = annotation.get("segmentation") if isinstance(annotation, dict) else None
            mask[decode(region, size)] = 1
        except CorruptFileError as error:
            raise CorruptFileError(f"{pair.mask}: annotation {number}: {error}") from error
    return mask


LAYOUT = plain_layout("SA-1B", "JSON files with image and annotations, one for each photo", _find)
