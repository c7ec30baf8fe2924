"""WebDataset: tar files of others, in which photo and mask stand under one key."""

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from latentseg.datasets.descriptions import read_description
from latentseg.datasets.listings import Listing, Pair, below, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError
from latentseg.files import open_regular
from latentseg.images import Pixels, decode_image, decode_mask

PHOTOS = ("jpg", "jpeg", "image.jpg", "image.png", "img.jpg", "img.png", "webp", "png")
MASKS = ("mask.png", "seg.png", "label.png", "segmentation.png", "annotation.png", "gt.png", "png")


@dataclass(frozen=True)
class _Member:
    """Where a file lies in a tar file, in bytes."""

    tar: Path
    start: int
    length: int

    def read(self) -> bytes:
        """Its content."""
        with open_regular(self.tar) as stream:
            stream.seek(self.start)
            return stream.read(self.length)


def _find(path: Path) -> Listing | None:
    """All tar files of a folder, or one, as soon as one of them holds photo and mask of a key.

    Raises:
        CorruptFileError: a file is no tar file, or is cut off.
    """
    files = [path] if path.suffix == ".tar" else sorted(path.rglob("*.tar"))
    if not files:
        return None
    root = path.parent if path.is_file() else path
    found: dict[str, tuple[_Member, _Member]] = {}
    problems: list[str] = []
    for file in files:
        prefix = f"{below(root, file.with_suffix(''))}/" if len(files) > 1 else ""
        for key, members in _samples(file).items():
            photo, mask = _photo_and_mask(members)
            if photo and mask:
                found[prefix + key] = photo, mask
            elif photo or mask:
                known = ", ".join(members)
                problems.append(f"{below(root, file)}: {key}: no photo with mask in {known}.")
    if not found:
        return None
    description = read_description(root)

    def photo_of(pair: Pair) -> Pixels:
        return decode_image(found[pair.name][0].read(), f"{pair.name}: image")

    def mask_of(pair: Pair) -> Pixels:
        return decode_mask(found[pair.name][1].read(), f"{pair.name}: mask")

    return Listing(
        path.absolute().name,
        root,
        tuple(Pair(name, photo.tar, mask.tar) for name, (photo, mask) in found.items()),
        tuple(problems),
        meaning=None if description.classes is None else class_ids(description.classes),
        facts=description.facts,
        read_image=photo_of,
        read_mask=mask_of,
        copies_photos=False,
    )


def _samples(file: Path) -> dict[str, dict[str, _Member]]:
    """The files of each key by what follows the first dot of their names, as WebDataset has it."""
    samples: dict[str, dict[str, _Member]] = {}
    try:
        with open_regular(file) as stream, tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                key, _, extension = name.partition(".")
                if member.isreg() and key and extension:
                    where = f"{folder}/{key}" if folder else key
                    place = _Member(file, member.offset_data, member.size)
                    samples.setdefault(where, {})[extension.lower()] = place
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise CorruptFileError(f"{file}: not a readable tar file ({error}).") from error
    return samples


def _photo_and_mask(members: Mapping[str, _Member]) -> tuple[_Member | None, _Member | None]:
    mask = next((name for name in MASKS if name in members), None)
    photo = next((name for name in PHOTOS if name in members and name != mask), None)
    if photo is None and mask == "png":  # alone it is a photo
        photo, mask = mask, None
    return (members[photo] if photo else None, members[mask] if mask else None)


LAYOUT = plain_layout(
    "WebDataset", "*.tar with KEY.jpg and KEY.png (or KEY.mask.png, KEY.seg.png, ...)", _find
)
