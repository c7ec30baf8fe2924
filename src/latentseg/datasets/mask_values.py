"""What the values in mask files mean: said by options or a JSON file, or told by the masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.descriptions import is_name, read_description
from latentseg.datasets.groupings import BACKGROUND, Grouping
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import IGNORE

MAX_CLASSES = 254  # ids are one byte: 0 is the background, 255 is ignored
MASK_VALUES = {str(value) for value in range(IGNORE)}  # as the keys of labels.json: no "01"


@dataclass(frozen=True)
class Meaning:
    """What the values in mask files mean.

    Attributes:
        classes: Names of the classes, without the background.
        ids: (256,) int16: the class id of each value; 255 where it is ignored, -1 where it is
            wrong.
        allowed: The right values in words, for messages.
    """

    classes: tuple[str, ...]
    ids: NDArray[np.int16]
    allowed: str


def class_ids(classes: Sequence[str], ignore: int | None = IGNORE) -> Meaning:
    """Masks that hold class ids: 0 is the background, k is `classes[k - 1]`, `ignore` is ignored.

    Raises:
        InputError: there are no classes or too many, two of one name or one called "background",
            or `ignore` is one of their ids.
    """
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise InputError(
            f"`classes`: {len(classes)} classes; expected 1 to {MAX_CLASSES}, without the "
            "background."
        )
    if BACKGROUND in classes or len(set(classes)) < len(classes):
        raise InputError(
            f"`classes`: {', '.join(classes)[:200]}: expected each name once, without the "
            "background, which is id 0."
        )
    if ignore is not None and ignore <= len(classes):
        raise InputError(
            f"ignore {ignore} is the id of a class; expected more than {len(classes)}."
        )
    ids = np.full(256, -1, dtype=np.int16)
    ids[: len(classes) + 1] = np.arange(len(classes) + 1)
    allowed = f"class ids 0-{len(classes)}"
    if ignore is not None:
        ids[ignore] = IGNORE
        allowed += f", and {ignore} for ignored"
    return Meaning(tuple(classes), ids, allowed)


def check_classes(names: Sequence[object], where: Path) -> tuple[str, ...]:
    """Names of classes, without the background, as a file has them.

    Raises:
        CorruptFileError: they are not 1 to 254 different names.
    """
    found = tuple(name for name in names if isinstance(name, str) and is_name(name))
    is_sound = len(found) == len(names) == len(set(found)) and BACKGROUND not in found
    if not is_sound or not 1 <= len(found) <= MAX_CLASSES:
        raise CorruptFileError(
            f"{where}: classes are {str([*names])[:200]}; expected 1 to {MAX_CLASSES} different "
            "names, without the background."
        )
    return found


def number_classes(names: Sequence[object], where: Path) -> tuple[tuple[str, ...], list[int]]:
    """The classes among names in a file, and the class id of each name: 0 for the background.

    Names that occur twice are one class.

    Raises:
        CorruptFileError: they are not 1 to 254 names besides the background.
    """
    texts = [name for name in names if isinstance(name, str)]
    if len(texts) < len(names):
        raise CorruptFileError(f"{where}: classes are {str([*names])[:200]}; expected names.")
    classes = check_classes([name for name in dict.fromkeys(texts) if name != BACKGROUND], where)
    ids = {BACKGROUND: 0, **{name: k for k, name in enumerate(classes, start=1)}}
    return classes, [ids[text] for text in texts]


def single_class(foreground: int, ignore: int | None, name: str = "foreground") -> Meaning:
    """Masks of one class: 0 is the background, `foreground` the class, `ignore` is ignored.

    Raises:
        InputError: `foreground` is 0 or no mask value.
    """
    if not 1 <= foreground <= 255:
        raise InputError(f"`foreground`: expected a mask value in 1-255, found {foreground}.")
    ids = np.full(256, -1, dtype=np.int16)
    if ignore is not None:
        ids[ignore] = IGNORE
    ids[0], ids[foreground] = 0, 1
    return Meaning((name,), ids, f"0 for background and {foreground} for foreground")


def inverted(meaning: Meaning) -> Meaning:
    """The same masks of one class with foreground and background exchanged.

    Raises:
        InputError: there are several classes.
    """
    if len(meaning.classes) != 1:
        raise InputError(
            f"`invert`: is for masks of one class; there are {len(meaning.classes)}: "
            f"{', '.join(meaning.classes)[:200]}."
        )
    exchanged = np.where(np.isin(meaning.ids, (0, 1)), 1 - meaning.ids, meaning.ids)
    return Meaning(meaning.classes, exchanged.astype(np.int16), meaning.allowed)


def regrouped(meaning: Meaning, grouping: Grouping) -> Meaning:
    """What the same values mean when the classes are the labels of `grouping`.

    Raises:
        InputError: the grouping does not fit the classes.
    """
    id_of = grouping.ids(meaning.classes)
    new = np.array([0, *(id_of[name] for name in meaning.classes)], np.int16)
    is_labelled = (meaning.ids >= 0) & (meaning.ids != IGNORE)
    ids = meaning.ids.copy()
    ids[is_labelled] = new[meaning.ids[is_labelled]]
    return Meaning(grouping.classes, ids, meaning.allowed)


def listed_labels(path: Path) -> Meaning:
    """What labels.json says: {"0": ..., "1": "hair", ...}; 0 is the background, 255 is ignored.

    Raises:
        InputError: it does not exist.
        CorruptFileError: it is not such a list.
    """
    names = read_json(path)
    if (
        not isinstance(names, dict)
        or not all(key in MASK_VALUES for key in names)
        or not all(map(is_name, names.values()))
        or len(names.keys() - {"0"}) == 0
        or len(set(names.values())) < len(names)
    ):
        raise CorruptFileError(
            f"{path}: expected the name of each mask value from 0 to 254, each once, such as "
            '{"1": "hair"}.'
        )
    values = sorted(int(key) for key in names if key != "0")
    ids = np.full(256, -1, dtype=np.int16)
    ids[IGNORE], ids[0] = IGNORE, 0
    ids[values] = np.arange(1, len(values) + 1)
    allowed = f"the values in {path.name}, and {IGNORE} for ignored"
    return Meaning(tuple(names[str(value)] for value in values), ids, allowed)


def stated_meaning(
    folder: Path, classes: Sequence[str] | None, foreground: int | None
) -> Meaning | None:
    """What the options say, or dataset.json in `folder` or the one above; None if nothing does.

    Raises:
        InputError: they are wrong, or contradict each other.
    """
    description = read_description(folder)
    if classes is None:
        classes = description.classes
    if foreground is None:
        foreground = description.mask_value("foreground")
    ignore = description.mask_value("ignore", IGNORE)
    if foreground is not None:
        if classes is not None and len(classes) != 1:
            raise InputError(
                f"{folder}: foreground {foreground} means one class, but there are {len(classes)}: "
                f"{', '.join(classes)}. Give either the classes or the foreground."
            )
        return single_class(foreground, ignore, *(classes or ()))
    return None if classes is None else class_ids(classes, ignore)


def guess_meaning(values: Sequence[NDArray[np.bool_]]) -> Meaning | None:
    """What masks mean of which nothing is known but the values in them; None if they do not tell.

    Only {0, 255}: 255 is the foreground. {0, 1, 255}: 255 is ignored. Where most masks keep to one
    of these and a few do not, those few are wrong, not the rule.

    Args:
        values: For each mask (256,): which values occur in it.
    """
    meanings = (single_class(255, None), class_ids(("foreground",)))
    fitting = [[bool((meaning.ids[seen] >= 0).all()) for seen in values] for meaning in meanings]
    for required in (len(values), len(values) / 2 + 0.5):
        for meaning, fits in zip(meanings, fitting, strict=True):
            if sum(fits) >= required:
                return meaning
    return None
