"""Datasets as they are published: where their photos and masks lie, and which are the test photos.

CUB's test photos are those of `train_val_test_split.txt` (Chen et al. 2019: the 1 000 photos of the
papers) where that file is present, else of the official `train_test_split.txt`. Flowers' are
`trnid` of `setid.mat` (1 020 photos, the test set of Chen et al. 2019). CelebAMask-HQ and
PASCAL-Part are in `published_parts`.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from latentseg.datasets.listings import (
    Layout,
    Listing,
    Pair,
    below,
    pair_by_stem,
    plain_layout,
    read_columns,
)
from latentseg.datasets.mask_values import class_ids, listed_labels
from latentseg.datasets.published_parts import celebamask, pascal_part
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import Pixels, read_image

FLOWERS_BACKGROUND = (0, 0, 254)  # RGB of what is not flower in segmim/
FLOWERS_TOLERANCE = 40  # segmim/ is JPEG: near edges the colour is only roughly kept
FOREGROUND = class_ids(("foreground",))


def _labels(folder: Path) -> Listing | None:
    """Clothing Co-Parsing (Yang et al. 2014) with label ids as pictures, and others like it."""
    if not (folder / "images").is_dir() or not (folder / "labels").is_dir():
        return None
    place = folder.absolute()
    names = {place / "labels.json": place.name}
    names[place.parent / "labels.json"] = f"{place.parent.name}/{place.name}"
    for path, name in names.items():
        if path.is_file():
            pairs, problems = pair_by_stem(folder, folder / "images", folder / "labels")
            return Listing(name, folder, pairs, problems, meaning=listed_labels(path))
    return None


def _ecssd(folder: Path) -> Listing | None:
    return _published(folder, "ECSSD", "images", "ground_truth_mask")


def _duts(folder: Path) -> Listing | None:
    for root in (folder, folder / "DUTS-TE"):
        listing = _published(root, "DUTS", "DUTS-TE-Image", "DUTS-TE-Mask")
        if listing:
            return listing
    return _published(folder, "DUTS-TR", "DUTS-TR-Image", "DUTS-TR-Mask")


def _omron(folder: Path) -> Listing | None:
    # The archives unpack into a folder of their own with some programs and not with others.
    for images in ("DUT-OMRON-image/DUT-OMRON-image", "DUT-OMRON-image"):
        for masks in ("pixelwiseGT-new-PNG", "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG"):
            listing = _published(folder, "DUT-OMRON", images, masks)
            if listing:
                return listing
    return None


def _cub(folder: Path) -> Listing | None:
    for root in (folder, folder / "CUB_200_2011"):
        # The segmentations are an archive of their own, unpacked inside or beside.
        beside = [root / "segmentations", root.parent / "segmentations"]
        masks = next((path for path in beside if path.is_dir()), None)
        if masks and (root / "images.txt").is_file() and (root / "images").is_dir():
            split, names = _cub_test_photos(root)
            pairs = [
                Pair(name, root / "images" / f"{name}.jpg", masks / f"{name}.png") for name in names
            ]
            found = _present(folder, pairs)
            return Listing(
                f"CUB ({split})",
                folder,
                *found,
                crops=True,
                meaning=FOREGROUND,
                read_mask=_above_half,
            )
    return None


def _cub_test_photos(root: Path) -> tuple[str, list[str]]:
    redo, official = root / "train_val_test_split.txt", root / "train_test_split.txt"
    split, test = (redo, "2") if redo.is_file() else (official, "0")
    part, files = read_columns(split), read_columns(root / "images.txt")
    photos = [file for number, file in files.items() if part.get(number) == test]
    return split.stem, sorted(file.removesuffix(".jpg") for file in photos)


def _flowers(folder: Path) -> Listing | None:
    images, masks, split = folder / "jpg", folder / "segmim", folder / "setid.mat"
    if not images.is_dir() or not masks.is_dir():
        return None
    if not split.is_file():
        raise InputError(f"{split}: there is no such file; it is part of the published dataset.")
    try:
        numbers = sorted(int(number) for number in loadmat(split)["trnid"].ravel())
    except Exception as error:  # scipy raises many types for damaged files
        raise CorruptFileError(f"{split}: not a readable list of photos ({error}).") from error
    pairs = [
        Pair(f"image_{n:05d}", images / f"image_{n:05d}.jpg", masks / f"segmim_{n:05d}.jpg")
        for n in numbers
    ]
    found = _present(folder, pairs)
    return Listing("Flowers", folder, *found, crops=True, meaning=FOREGROUND, read_mask=_not_blue)


def _prepared(folder: Path) -> Listing | None:
    """CUB and Flowers as the official code of Melas-Kyriazi 2021 wants them."""
    name = {"CUB_200_2011": "CUB"}.get(folder.absolute().name, folder.absolute().name)
    return _published(folder, name, "test_images", "test_segmentations", crops=True)


def _published(
    folder: Path, name: str, images: str, masks: str, *, crops: bool = False
) -> Listing | None:
    if not (folder / images).is_dir() or not (folder / masks).is_dir():
        return None
    pairs, problems = pair_by_stem(folder, folder / images, folder / masks)
    return Listing(
        name, folder, pairs, problems, crops=crops, meaning=FOREGROUND, read_mask=_above_half
    )


def _above_half(pair: Pair) -> Pixels:
    # As the official code does it: to RGB, channel 0, value / 255 > 0.5.
    return (read_image(pair.mask)[..., 0] > 127).astype(np.uint8)


def _not_blue(pair: Pair) -> Pixels:
    distance = np.abs(read_image(pair.mask).astype(np.int16) - np.array(FLOWERS_BACKGROUND))
    return (distance.max(axis=-1) > FLOWERS_TOLERANCE).astype(np.uint8)


def _present(root: Path, pairs: Iterable[Pair]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    complete, problems = [], []
    for pair in pairs:
        missing = [path for path in (pair.image, pair.mask) if not path.is_file()]
        problems.extend(f"{below(root, path)}: is listed, but missing." for path in missing)
        if not missing:
            complete.append(pair)
    return tuple(complete), tuple(problems)


LABELS = plain_layout("labels by name", "images, labels, and labels.json beside or above", _labels)
PUBLISHED = (
    plain_layout("ECSSD", "images and ground_truth_mask", _ecssd),
    plain_layout("DUTS", "DUTS-TE-Image and DUTS-TE-Mask", _duts),
    plain_layout("DUT-OMRON", "DUT-OMRON-image and pixelwiseGT-new-PNG", _omron),
    plain_layout("CUB-200-2011", "images, images.txt, and segmentations inside or beside", _cub),
    plain_layout("Oxford Flowers", "jpg, segmim and setid.mat", _flowers),
    plain_layout("CUB or Flowers as prepared", "test_images and test_segmentations", _prepared),
    Layout("CelebAMask-HQ", "CelebA-HQ-img and CelebAMask-HQ-mask-anno", celebamask),
    Layout("PASCAL-Part", "Annotations_Part, and JPEGImages of VOC 2010", pascal_part),
)
