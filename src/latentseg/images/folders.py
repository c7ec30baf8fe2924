"""Folders of pictures: which files in them are photos, and what the photos are called."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePath

from latentseg.errors import InputError
from latentseg.images.kinds import OTHER_SUFFIXES, STACK_SUFFIXES, SUFFIXES


def is_picture(path: PurePath) -> bool:
    """Whether the name of a file says that it is a picture that can be read; hidden ones are not.

    >>> is_picture(PurePath("scan.nii.gz")), is_picture(PurePath("notes.txt"))
    (True, False)
    """
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def name_of(path: PurePath) -> str:
    """What a photo is called: its path without suffix, with "/" between folders.

    >>> name_of(PurePath("summer/cat.JPG")), name_of(PurePath("scan.nii.gz"))
    ('summer/cat', 'scan')
    """
    shorter = path.with_suffix("") if path.name.lower().endswith(".nii.gz") else path
    return shorter.with_suffix("").as_posix()


def is_stack(path: PurePath) -> bool:
    """Whether the name of a file says that it may hold many pictures: see `pages_of`."""
    return path.name.lower().endswith(STACK_SUFFIXES)


def page_name(page: int | None) -> str:
    """What is added to the name of a file for one of its pages, from 0; "" for None: no pages.

    >>> page_name(11)
    '_0012'
    """
    return "" if page is None else f"_{page + 1:04d}"


@dataclass(frozen=True)
class PictureFolder:
    """The pictures in a folder and in the folders inside.

    Attributes:
        paths: Those that can be read, in order.
        left_out: Those of other formats, in order.
    """

    paths: tuple[Path, ...]
    left_out: tuple[Path, ...]

    @property
    def problems(self) -> list[str]:
        """A message for each picture that was left out."""
        return [
            f"{path}: {path.suffix} files are not read. Save it as TIFF, PNG or JPEG."
            for path in self.left_out
        ]


def list_pictures(folder: Path | str, *, without: Path | str | None = None) -> PictureFolder:
    """All pictures in a folder and in those inside it, folder by folder; hidden ones are left out.

    Args:
        folder: Where to look.
        without: A folder inside it that is left out.

    Raises:
        InputError: `folder` is not a folder, or cannot be listed.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: there is no such folder.")
    excluded = None if without is None else Path(without).resolve()
    paths, left_out = [], []
    for place, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(place, name).resolve() != excluded
        )
        for name in sorted(files):
            path = Path(place, name)
            if is_picture(path):
                paths.append(path)
            elif name.lower().endswith(OTHER_SUFFIXES) and not name.startswith("."):
                left_out.append(path)
    return PictureFolder(tuple(paths), tuple(left_out))


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}).") from error


def list_images(folder: Path | str) -> list[Path]:
    """All picture files in `folder` and in those inside it, in order; hidden ones are left out.

    Raises:
        InputError: `folder` is not a folder or holds no picture.
    """
    found = list_pictures(folder)
    if not found.paths:
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)}) in it.")
    return [*found.paths]
