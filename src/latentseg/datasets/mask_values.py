"""What the values in mask files mean: said by options or a JSON file, or told by the masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.groupings import BACKGROUND, Grouping
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import IGNORE

MAX_CLASSES = 254  # ids are one byte: 0 is the background, 255 is ignored


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
            f"{len(classes)} classes; expected 1 to {MAX_CLASSES}, without the background."
        )
    if BACKGROUND in classes or len(set(classes)) < len(classes):
        raise InputError(
            f"classes {', '.join(classes)}: expected each name once, without the background, "
            "which is id 0."
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
        or not all(key.isdecimal() and int(key) < IGNORE for key in names)
        or not all(isinstance(name, str) and name for name in names.values())
        or len(names.keys() - {"0"}) == 0
        or len(set(names.values())) < len(names)
    ):
        raise CorruptFileError(
            f'{path}: expected the name of each mask value, each once, such as {{"1": "hair"}}.'
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
    description, where = _read_description(folder)
    if classes is None:
        classes = _class_names(description.get("classes"), where)
    if foreground is None:
        foreground = _value(description, "foreground", where)
    ignore = _value({"ignore": IGNORE, **description}, "ignore", where)
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


def _read_description(folder: Path) -> tuple[dict[str, Any], Path]:
    # A data set in parts (train/, test/) has one dataset.json above them.
    for path in (folder / "dataset.json", folder.absolute().parent / "dataset.json"):
        if path.is_file():
            description = read_json(path)
            if not isinstance(description, dict):
                raise InputError(
                    f'{path}: expected an object such as {{"classes": ["cat"], "ignore": 255}}.'
                )
            return description, path
    return {}, folder / "dataset.json"


def _class_names(names: Any, where: Path) -> tuple[str, ...] | None:
    if names is None:
        return None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
        raise InputError(
            f"{where}: classes is {names!r}; expected a list of names, without the background."
        )
    return tuple(names)


def _value(description: dict[str, Any], key: str, where: Path) -> int | None:
    value = description.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 255:
        raise InputError(f"{where}: {key} is {value!r}; expected a mask value in 0-255, or null.")
    return value
