"""What was measured, as numbers, as a table for people, and as JSON."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from latentseg.evaluation.protocols import PROTOCOLS

FLOOR_NAMES = {
    "everything": "everything is foreground",
    "centre": "center prior",
    "ellipse": "best fixed ellipse",
    "background": "everything is background",
    "places": "most frequent class of each place",
}


@dataclass(frozen=True)
class ImageScore:
    """The numbers of one photo: accuracy and IoU, both in [0, 1]."""

    name: str
    acc: float
    iou: float


@dataclass(frozen=True, repr=False)
class Result:
    """What was measured on one data set under one protocol; all numbers lie in [0, 1].

    `print(result)` shows a table with the floors, as a notebook does.

    Attributes:
        dataset: Name of the data set.
        protocol: Name of the rules.
        n_images: Number of photos that were measured.
        n_unlabelled: Number of photos left out because every pixel of them is ignored.
        acc: Accuracy.
        iou: IoU of each image, averaged over the images.
        iou_error: Standard error of `iou` over the images.
        iou_pooled: IoU over all pixels together, averaged over the classes without the background;
            NaN if there is no foreground.
        iou_background: IoU of the background over all pixels together.
        mean_iou: The average of `iou_pooled` with the background as one of the classes.
        weighted_iou: The same, each class weighed by its share of the true pixels.
        f_half: F-beta at the threshold 0.5.
        max_f: The largest F-beta of any threshold.
        threshold: That threshold; NaN if each image has its own.
        mean_f: F-beta averaged over the thresholds.
        adaptive_f: F-beta of each image at twice its mean probability, averaged over the images.
        one_minus_mae: 1 minus the mean absolute difference between the foreground's probability
            and the truth, averaged over the images.
        class_iou: Pooled IoU of each class, and of the background if the protocol counts it; NaN
            where the class is neither true nor predicted.
        per_image: The numbers of each photo.
        trimap_foreground, trimap_background, trimap_mean: Pooled IoU within 3 px of the true
            boundary; NaN if the protocol does not see boundaries.
        trimap_narrow: That mean within 1.5 px.
        boundary_f: `boundaries.boundary_f` averaged over the images; NaN likewise.
        note: What a reader must know about it, for example that the truth was used.
        floors: What can be had without looking at the photos, by name; {} if it was not measured.
    """

    dataset: str
    protocol: str
    n_images: int
    n_unlabelled: int
    acc: float
    iou: float
    iou_error: float
    iou_pooled: float
    iou_background: float
    mean_iou: float
    weighted_iou: float
    f_half: float
    max_f: float
    threshold: float
    mean_f: float
    adaptive_f: float
    one_minus_mae: float
    class_iou: dict[str, float]
    per_image: tuple[ImageScore, ...]
    trimap_foreground: float = math.nan
    trimap_background: float = math.nan
    trimap_mean: float = math.nan
    trimap_narrow: float = math.nan
    boundary_f: float = math.nan
    note: str = ""
    floors: dict[str, "Result"] = field(default_factory=dict)

    def to_json(self, *, per_image: bool = False) -> dict[str, Any]:
        """The result as strict JSON values, NaN as null; of each photo only if `per_image`."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values = {
            name: _finite(value) if isinstance(value, float) else value
            for name, value in values.items()
        }
        values["class_iou"] = {name: _finite(value) for name, value in self.class_iou.items()}
        values["per_image"] = [
            {"name": each.name, "acc": each.acc, "iou": _finite(each.iou)}
            for each in self.per_image
        ]
        values["floors"] = {name: floor.to_json() for name, floor in self.floors.items()}
        if not per_image:
            del values["per_image"]
        if not self.floors:
            del values["floors"]
        return values

    def __repr__(self) -> str:
        numbers = ", ".join(
            f"{heading} {shown(getattr(self, name))}" for heading, name in self._columns.items()
        )
        return f"Result({self.dataset}, {self.protocol}, {self.n_images} images: {numbers})"

    def __str__(self) -> str:
        rows = self._rows
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        ]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        heading, *rows = ([html.escape(cell) for cell in row] for row in self._rows)
        head = "".join(f"<th>{cell}</th>" for cell in heading)
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows
        )
        title = html.escape(self._title)
        return f"<table><caption>{title}</caption><tr>{head}</tr>{body}</table>"

    @property
    def _columns(self) -> Mapping[str, str]:
        return PROTOCOLS[self.protocol].columns

    @property
    def _title(self) -> str:
        return f"{self.dataset}, {self.protocol}, {self.n_images} images"

    @property
    def _rows(self) -> list[list[str]]:
        """Headings, the floors, this result, and its classes if there are several."""
        results = {
            **{FLOOR_NAMES.get(name, name): floor for name, floor in self.floors.items()},
            "this segmenter": self,
        }
        rows = [["", *self._columns]]
        for label, result in results.items():
            numbers = [getattr(result, name) for name in self._columns.values()]
            rows.append([label, *map(shown, numbers)])
        return rows


def shown(number: float | None) -> str:
    """A number for a table: three digits, or a dash where there is none.

    >>> shown(0.12345), shown(None), shown(float("nan"))
    ('0.123', '-', '-')
    """
    return "-" if number is None or math.isnan(number) else f"{number:.3f}"


def mean_known(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
