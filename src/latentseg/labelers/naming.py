"""Names for classes that a labeler found by itself: a page to look at them, a small file to name.

classes.json says what each class is: {"1": "head", "2": "body", "3": "body"}. The same name makes
one class of several; "background" drops a class.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentseg.errors import InputError
from latentseg.files import check_keys, read_json, write_json, write_text
from latentseg.images import Pixels, class_colors, contact_sheet, encode, write_image
from latentseg.labelers.foreground import background_classes, places
from latentseg.labelers.losses import paper_prior

NAMES = "classes.json"
PAGE = "classes.html"
SHEET = "classes.png"
BACKGROUND = "background"
DIMMED = 0.25  # brightness of what is not in the class
LEAST_CELL_PX = 96


@dataclass(frozen=True)
class ClassNames:
    """What the segments 1 to K of a labeler are called.

    Attributes:
        given: Name of each segment, in order; equal names are one class.

    Raises:
        InputError: a name is empty, or every segment is background.
    """

    given: tuple[str, ...]

    def __post_init__(self) -> None:
        for number, name in enumerate(self.given, start=1):
            if not name.strip():
                raise InputError(
                    f"class {number}: has an empty name. Say {BACKGROUND!r} to drop it."
                )
        if not self.classes:
            raise InputError(f"every class is called {BACKGROUND!r}: at least one has to stay.")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names without the background, each once, in order."""
        return tuple(dict.fromkeys(name for name in self.given if name != BACKGROUND))

    @property
    def ids(self) -> NDArray[np.uint8]:
        """(K,) uint8: the class id that each segment has in a mask, 0 for background."""
        order = {BACKGROUND: 0} | {name: i for i, name in enumerate(self.classes, start=1)}
        return np.array([order[name] for name in self.given], np.uint8)

    def write(self, folder: Path | str) -> None:
        """Writes classes.json into `folder`."""
        values = {str(i): name for i, name in enumerate(self.given, start=1)}
        write_json(Path(folder) / NAMES, values)


def default_names(segments: Tensor, k: int) -> ClassNames:
    """Names of k classes: "background" for what lies at the border, "part-1" ... for the rest.

    Args:
        segments: Classes of the pixels of many images, (B, H, W) int64 in [0, k).
        k: Number of classes.
    """
    size = (segments.shape[1], segments.shape[2])
    mean_prior = float(paper_prior(size).mean())
    is_background = background_classes(places(segments, k), mean_prior).tolist()
    numbers = np.cumsum(~np.array(is_background))
    return ClassNames(
        tuple(
            BACKGROUND if behind else f"part-{number}"
            for behind, number in zip(is_background, numbers, strict=True)
        )
    )


def read_names(folder: Path | str, *, n: int) -> ClassNames:
    """Reads the classes.json of `folder`.

    Args:
        folder: A labeler's.
        n: How many segments the labeler has.

    Raises:
        InputError: there is no such file, a segment is unknown or missing, a name is not a text,
            or no class is left.
        CorruptFileError: it is not JSON.
    """
    path = Path(folder) / NAMES
    values = read_json(path)
    numbers = [str(i) for i in range(1, n + 1)]
    expected = f'expected an object like {{"1": "head", "2": "{BACKGROUND}"}}'
    if not isinstance(values, dict):
        raise InputError(f"{path}: {expected}, found {type(values).__name__}.")
    check_keys(values, set(numbers), path)
    for number in numbers:
        if number not in values:
            raise InputError(f"{path}: class {number} is missing; {expected}, with 1 to {n}.")
        if not isinstance(values[number], str):
            raise InputError(f"{path}: class {number} is {values[number]!r}; expected a name.")
    try:
        return ClassNames(tuple(values[number].strip() for number in numbers))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_class_page(
    folder: Path | str,
    images: Pixels,
    segments: NDArray[np.int64],
    names: ClassNames,
    *,
    title: str,
) -> None:
    """Writes classes.html, which needs nothing else, and classes.png: each class over many images.

    Args:
        folder: The labeler's.
        images: (N, H, W, 3) uint8.
        segments: (N, H, W), 1 to K; 0 belongs to none.
        names: Names of the K segments.
        title: Title of the page.
    """
    folder = Path(folder)
    scale = max(1, round(LEAST_CELL_PX / max(images.shape[1:3])))
    cell = (images.shape[1] * scale, images.shape[2] * scale)
    strips = [highlighted(images, segments == number) for number in range(1, len(names.given) + 1)]
    colours = class_colors()
    rows = [
        {
            "id": number,
            "name": name,
            "area": float((segments == number).mean()),
            "colour": "#{:02x}{:02x}{:02x}".format(*colours[number]),
            "picture": _embedded(contact_sheet([strip], cell=cell)),
        }
        for number, (name, strip) in enumerate(zip(names.given, strips, strict=True), start=1)
    ]
    page = _TEMPLATE.render(rows=rows, title=title, background=BACKGROUND, n_images=len(images))
    write_text(folder / PAGE, page)
    write_image(folder / SHEET, contact_sheet([list(images), *strips], cell=cell))


def highlighted(images: Pixels, is_inside: NDArray[np.bool_]) -> Sequence[Pixels]:
    """The images (N, H, W, 3), dark wherever `is_inside` (N, H, W) does not hold."""
    dark = (images * DIMMED).round().astype(np.uint8)
    return list(np.where(is_inside[..., None], images, dark))


def _embedded(picture: Pixels) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(encode(picture, ".jpg")).decode()


_TEMPLATE = jinja2.Environment(
    loader=jinja2.PackageLoader("latentseg.labelers"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
).get_template("classes.html.jinja")
