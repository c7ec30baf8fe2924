"""Where images and masks lie: dataset folders, and data sets as they are published."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from latentseg.datasets.groupings import Grouping
from latentseg.datasets.listings import Listing, Pair, below, read_columns
from latentseg.datasets.mask_values import class_ids, listed_labels
from latentseg.datasets.published_parts import celebamask, pascal_part
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import SUFFIXES, Pixels, read_image

FLOWERS_BACKGROUND = (0, 0, 254)  # RGB of what is not flower in segmim/
FLOWERS_TOLERANCE = 40  # segmim/ is JPEG: near edges the colour is only roughly kept
FOREGROUND = class_ids(("foreground",))


def find_layout(folder: Path | str, groupings: Sequence[Grouping] = ()) -> Listing:
    """Recognises the layout of `folder` by the names of the folders in it.

    ECSSD, DUTS (its test part), DUT-OMRON, CUB-200-2011 and Oxford Flowers are read as published.
    CUB's test photos are those of `train_val_test_split.txt` (Chen et al. 2019: the 1 000 photos
    of the papers) where that file is present, else of the official `train_test_split.txt`.
    Flowers' are `trnid` of `setid.mat` (1 020 photos, the test set of Chen et al. 2019).
    CelebAMask-HQ and PASCAL-Part are read as `part_layouts` says.

    Args:
        folder: The data set.
        groupings: Classes to make of its labels, one after the other.

    Raises:
        InputError: there is no such folder, or it has none of these layouts.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    for layout in (_dataset_folder, _labels, _ecssd, _duts, _omron, _cub, _flowers, _prepared):
        listing = layout(folder)
        if listing is not None:
            return replace(listing, groupings=tuple(groupings))
    for layout in (celebamask, pascal_part):
        listing = layout(folder, groupings)
        if listing is not None:
            return listing
    inner = sorted(path.name for path in folder.glob("*/") if (path / "images").is_dir())
    hint = f" Perhaps one of the folders in it: {', '.join(inner)}?" if inner else ""
    raise InputError(
        f"{folder}: not a data set. Expected the folders images and masks (or labels, with "
        "labels.json), or the published layout of ECSSD, DUTS, DUT-OMRON, CUB-200-2011, Oxford "
        f"Flowers, CelebAMask-HQ or PASCAL-Part.{hint}"
    )


def _dataset_folder(folder: Path) -> Listing | None:
    if not (folder / "images").is_dir() or not (folder / "masks").is_dir():
        return None
    place = folder.absolute()
    is_part = place.name in ("train", "val", "test")
    name = f"{place.parent.name}/{place.name}" if is_part else place.name
    return Listing(name, *_pair(folder, folder / "images", folder / "masks"))


def _labels(folder: Path) -> Listing | None:
    """Clothing Co-Parsing (Yang et al. 2014) with label ids as pictures, and others like it."""
    if not (folder / "images").is_dir() or not (folder / "labels").is_dir():
        return None
    place = folder.absolute()
    names = {place / "labels.json": place.name}
    names[place.parent / "labels.json"] = f"{place.parent.name}/{place.name}"
    for path, name in names.items():
        if path.is_file():
            found = _pair(folder, folder / "images", folder / "labels")
            return Listing(name, *found, meaning=listed_labels(path))
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
            name = f"CUB ({split})"
            return Listing(name, *found, crops=True, meaning=FOREGROUND, read_mask=_above_half)
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
        raise InputError(f"{split}: there is no such file; it is part of the published data set.")
    try:
        numbers = sorted(int(number) for number in loadmat(split)["trnid"].ravel())
    except Exception as error:  # scipy raises many types for damaged files
        raise CorruptFileError(f"{split}: not a readable list of photos ({error}).") from error
    pairs = [
        Pair(f"image_{n:05d}", images / f"image_{n:05d}.jpg", masks / f"segmim_{n:05d}.jpg")
        for n in numbers
    ]
    found = _present(folder, pairs)
    return Listing("Flowers", *found, crops=True, meaning=FOREGROUND, read_mask=_not_blue)


def _prepared(folder: Path) -> Listing | None:
    """CUB and Flowers as the official code of Melas-Kyriazi 2021 wants them."""
    name = {"CUB_200_2011": "CUB"}.get(folder.absolute().name, folder.absolute().name)
    return _published(folder, name, "test_images", "test_segmentations", crops=True)


def _published(
    folder: Path, name: str, images: str, masks: str, *, crops: bool = False
) -> Listing | None:
    if not (folder / images).is_dir() or not (folder / masks).is_dir():
        return None
    found = _pair(folder, folder / images, folder / masks)
    return Listing(name, *found, crops=crops, meaning=FOREGROUND, read_mask=_above_half)


def _above_half(pair: Pair) -> Pixels:
    # As the official code does it: to RGB, channel 0, value / 255 > 0.5.
    return (read_image(pair.mask)[..., 0] > 127).astype(np.uint8)


def _not_blue(pair: Pair) -> Pixels:
    distance = np.abs(read_image(pair.mask).astype(np.int16) - np.array(FLOWERS_BACKGROUND))
    return (distance.max(axis=-1) > FLOWERS_TOLERANCE).astype(np.uint8)


def _pair(root: Path, images: Path, masks: Path) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    photos, doubled_photos = _by_stem(root, images)
    truths, doubled_truths = _by_stem(root, masks)
    problems = doubled_photos + doubled_truths
    if not photos:
        problems.append(f"{below(root, images)}: no images ({', '.join(SUFFIXES)}) in it.")
    same_letters = {stem.lower(): path for stem, path in truths.items()}
    for stem in sorted(photos.keys() - truths.keys()):
        near = same_letters.get(stem.lower())
        hint = f"; {below(root, near)} differs in case" if near else ""
        problems.append(
            f"{below(root, photos[stem])}: has no mask {below(root, masks)}/{stem}.png{hint}."
        )
    problems.extend(
        f"{below(root, truths[stem])}: has no image of that name in {below(root, images)}."
        for stem in sorted(truths.keys() - photos.keys())
    )
    both = sorted(photos.keys() & truths.keys())
    return tuple(Pair(stem, photos[stem], truths[stem]) for stem in both), tuple(problems)


def _by_stem(root: Path, folder: Path) -> tuple[dict[str, Path], list[str]]:
    found: dict[str, Path] = {}
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            earlier = found.setdefault(stem, path)
            if earlier != path:
                problems.append(
                    f"{below(root, path)}: has the same name as {earlier.name}. Keep one of them."
                )
    return found, problems


def _present(root: Path, pairs: Iterable[Pair]) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    complete, problems = [], []
    for pair in pairs:
        missing = [path for path in (pair.image, pair.mask) if not path.is_file()]
        problems.extend(f"{below(root, path)}: is listed, but missing." for path in missing)
        if not missing:
            complete.append(pair)
    return tuple(complete), tuple(problems)
