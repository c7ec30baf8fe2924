"""Results beside what they must be compared with: floors, ceiling, and the papers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from latentseg.evaluation.papers import published_name, published_parts
from latentseg.evaluation.protocols import PROTOCOLS
from latentseg.evaluation.results import FLOOR_NAMES


@dataclass(frozen=True)
class Row:
    """A line of the results, of the kind "floor", "ours", "ceiling" or "paper"."""

    label: str
    kind: str
    numbers: Mapping[str, Any]

    @property
    def iou(self) -> Any:
        """IoU per image, a float; None if it was not measured."""
        return self.numbers.get("iou")


@dataclass(frozen=True)
class Group:
    """All that was measured on one data set under one protocol."""

    dataset: str
    protocol: str
    rows: list[Row]

    @property
    def n_images(self) -> int:
        """How many images were measured."""
        return next(row.numbers["n_images"] for row in self.rows if row.kind == "ours")

    @property
    def summary(self) -> str:
        """The protocol's rules in a sentence."""
        return PROTOCOLS[self.protocol].summary if self.protocol in PROTOCOLS else ""

    @property
    def columns(self) -> Mapping[str, str]:
        """Headings of the numbers to show of each row, and their keys."""
        protocol = self.protocol if self.protocol in PROTOCOLS else "pooled"
        return PROTOCOLS[protocol].columns

    @property
    def classes(self) -> list[str]:
        """The classes whose IoU is to be shown of each row; none if there is only one."""
        ours = (row.numbers.get("class_iou") or {} for row in self.rows if row.kind == "ours")
        names = list(next(ours, {}))
        return names if len(names) > 1 else []

    def first(self, kind: str, label: str | None = None) -> Row | None:
        """The first row of a kind, and of a label if one is given, that has an IoU."""
        for row in self.rows:
            if row.kind == kind and label in (None, row.label) and row.iou is not None:
                return row
        return None


def group_results(entries: Sequence[Mapping[str, Any]]) -> list[Group]:
    """The entries of results.json by data set and protocol; floors first, the papers last."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault((entry["dataset"], entry["protocol"]), []).append(entry)
    return [Group(dataset, protocol, _rows(same)) for (dataset, protocol), same in found.items()]


def _rows(entries: Sequence[Mapping[str, Any]]) -> list[Row]:
    first = entries[0]
    floors = {name: row for entry in entries for name, row in (entry.get("floors") or {}).items()}
    ceilings = [entry["ceiling"] for entry in entries if entry.get("ceiling")]
    return [
        *(
            Row(label, "floor", floors[name])
            for name, label in FLOOR_NAMES.items()
            if name in floors
        ),
        *(Row(entry.get("setting") or "this segmenter", "ours", entry) for entry in entries),
        *(Row("the same student, trained on true masks", "ceiling", row) for row in ceilings[:1]),
        *(
            Row(paper.method, "paper", paper.numbers)
            for paper in published_parts(first["dataset"], first.get("class_iou") or {})
            if first["protocol"] == paper.protocol
        ),
    ]


@dataclass(frozen=True)
class Headline:
    """The one number of a run, beside what it must be compared with.

    Attributes:
        group: Where it was measured.
        ours: The first thing that was measured there.
        floor: The best fixed ellipse.
        share: Ours as a share of the ceiling.
        gain: Ours above the floor; negative below it.
    """

    group: Group
    ours: Row
    floor: Row | None
    share: float | None
    gain: float | None

    @property
    def bars(self) -> list[Row]:
        """The rows to show: all but the centre prior, which the ellipse stands for."""
        shown = (row for row in self.group.rows if row.label != FLOOR_NAMES["centre"])
        return [row for row in shown if row.iou is not None]


def headline(groups: Sequence[Group]) -> Headline | None:
    """What the first group says; None if nothing was measured."""
    group = groups[0] if groups else None
    ours = group.first("ours") if group else None
    if group is None or ours is None:
        return None
    floor, ceiling = group.first("floor", FLOOR_NAMES["ellipse"]), group.first("ceiling")
    return Headline(
        group,
        ours,
        floor,
        share=ours.iou / ceiling.iou if ceiling and ceiling.iou else None,
        gain=ours.iou - floor.iou if floor else None,
    )


def ours_among_papers(groups: Sequence[Group]) -> dict[str, float]:
    """Our IoU on the data sets that the papers measured too, under their protocol."""
    ours = {}
    for group in groups:
        name, row = published_name(group.dataset), group.first("ours")
        if name and row and group.protocol == "melas2021":
            ours[name] = row.iou
    return ours
