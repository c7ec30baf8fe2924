"""Masks of folders of photos; a bad photo does not stop the rest."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from latentseg.errors import InputError, LatentsegError
from latentseg.images import list_images, write_image
from latentseg.progress import Progress
from latentseg.students.segmenter import Segmenter


def predict_files(
    segmenter: Segmenter,
    photos: Sequence[Path | str],
    out: Path | str,
    *,
    flip: bool = False,
    quiet: bool = False,
) -> tuple[list[Path], list[str]]:
    """Segments photos one by one, whatever their number and size.

    Each photo NAME.* gives NAME_mask.png (class ids, with a palette), NAME_overlay.jpg, and
    NAME_cutout.png, transparent where there is background.

    Args:
        segmenter: What finds the masks.
        photos: Photos, or folders of photos.
        out: Folder of the results, made if missing.
        flip: Average with the mirror image.
        quiet: No progress line.

    Returns:
        The masks written, and a message for each photo that could not be read.

    Raises:
        InputError: a folder without photos, results that would lie among the photos, or two photos
            whose results would have one name.
    """
    out = Path(out)
    if any(Path(photo).resolve() == out.resolve() for photo in photos):
        raise InputError(f"{out}: holds the photos. Give another folder for the results.")
    paths = [path for photo in photos for path in _expanded(Path(photo))]
    _refuse_equal_names(paths)
    written, problems = [], []
    with Progress("predict", total=len(paths), quiet=quiet) as progress:
        for done, path in enumerate(paths, start=1):
            try:
                prediction = segmenter.predict(path, flip=flip)
            except LatentsegError as error:
                problems.append(str(error))
                continue
            prediction.save(out / f"{path.stem}_mask.png")
            write_image(out / f"{path.stem}_overlay.jpg", prediction.overlay())
            write_image(out / f"{path.stem}_cutout.png", prediction.cut_out())
            written.append(out / f"{path.stem}_mask.png")
            progress.update(done)
    return written, problems


def _expanded(photo: Path) -> Iterator[Path]:
    if photo.is_dir():
        yield from list_images(photo)
    else:
        yield photo


def _refuse_equal_names(paths: Sequence[Path]) -> None:
    by_stem: dict[str, Path] = {}
    for path in paths:
        other = by_stem.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{other} and {path}: their results would have one name. Give them one by one, "
                "with different output folders."
            )
