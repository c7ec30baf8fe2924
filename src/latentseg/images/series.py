"""Pictures that are read together: all of a folder, stacks as their pages, with one range."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentseg.errors import LatentsegError
from latentseg.images.folders import is_stack, list_images, list_pictures, name_of, page_name
from latentseg.images.headers import pages_of
from latentseg.images.kinds import Pixels
from latentseg.images.reading import PLAIN, Reading, read_image
from latentseg.images.shared_range import with_range


@dataclass(frozen=True)
class Picture:
    """A picture of a series.

    Attributes:
        path: Its file.
        page: Which page of the file, from 0; None where there are no pages.
    """

    path: Path
    page: int | None = None

    @property
    def name(self) -> str:
        """Its path without suffix, with the number of its page."""
        return name_of(self.path) + page_name(self.page)


@dataclass(frozen=True)
class Series:
    """Pictures, and how all of them are read.

    Attributes:
        pictures: In order.
        reading: How; with the range of all.
        notes: What a user should be told: the range, and what was left out.
    """

    pictures: tuple[Picture, ...]
    reading: Reading
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, picture: Picture) -> Pixels:
        """A picture as `read_image` reads it; raises what that raises."""
        return read_image(picture.path, self.reading, picture.page)


def open_series(source: Path | str | Sequence[Path | str], reading: Reading = PLAIN) -> Series:
    """The pictures of a folder and of those inside it, or those that are named.

    Raises:
        InputError: `source` is a folder without pictures, or no folder.
    """
    notes: list[str] = []
    if isinstance(source, Path | str):
        paths = list_images(source)
        if left_out := list_pictures(source).left_out:
            kinds = ", ".join(sorted({path.suffix.lower() for path in left_out}))
            notes.append(f"{source}: {len(left_out)} files were left out; {kinds} are not read.")
    else:
        paths = [Path(path) for path in source]
    reading, note = with_range(reading, paths)
    pictures = (Picture(path, page) for path in paths for page in _pages(path, reading))
    return Series(tuple(pictures), reading, (*notes, note) if note else tuple(notes))


def _pages(path: Path, reading: Reading) -> list[int | None]:
    """The pages of a file; what is wrong with it is said when it is read."""
    if not is_stack(path):
        return [None]
    try:
        return pages_of(path, reading)
    except LatentsegError:
        return [None]
