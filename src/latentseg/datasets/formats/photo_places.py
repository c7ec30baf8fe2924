"""Where the photos lie that an export names: by its own paths, or by name, and never outside."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from latentseg.datasets.listings import is_inside
from latentseg.images import is_picture, name_of


@dataclass(frozen=True)
class Place:
    """A photo that was found.

    Attributes:
        path: The file.
        name: What the photo is called: its path in the export, without suffix.
    """

    path: Path
    name: str


class PhotoPlaces:
    """Finds the photos of an export.

    Exports carry the paths of the machine that wrote them: with backslashes, from the root of a
    disk, up through the folders of a server. A path that leads to no file below the export is
    looked up by the name at its end, among the photos below the export's own folder.

    Args:
        folder: The export's folder.
        roots: Folders from which its paths may go out, in this order; `folder` by default.
    """

    def __init__(self, folder: Path, roots: Sequence[Path] = ()) -> None:
        self.folder, self.roots = folder, tuple(roots) or (folder,)

    def find(self, name: str) -> Place | str:
        """The photo that an export calls `name`, or what is wrong with it."""
        path = name.replace("\\", "/")
        if is_inside(path):
            for root in self.roots:
                if os.path.isfile(root / path):
                    return Place(root / path, _without_suffix(path))
        parts = PurePosixPath(path).parts
        found = self._by_name.get(parts[-1], []) if parts else []
        if len(found) > 1:  # the folders in the path tell them apart, if anything does
            rated = [(_common_end(place.parts, parts), place) for place in found]
            longest = max(length for length, _ in rated)
            found = [place for length, place in rated if length == longest]
        if len(found) == 1:
            return Place(found[0], _without_suffix(found[0].relative_to(self.folder).as_posix()))
        if found:
            shown = ", ".join(place.relative_to(self.folder).as_posix() for place in found[:3])
            return f"{name}: is listed, but could be any of {shown}."
        return f"{name}: is listed, but missing."

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if is_picture(path):
                found.setdefault(path.name, []).append(path)
        return found


def _without_suffix(path: str) -> str:
    return name_of(PurePosixPath(path.removeprefix("images/")))


def _common_end(one: Sequence[str], other: Sequence[str]) -> int:
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
