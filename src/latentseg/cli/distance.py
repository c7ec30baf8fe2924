"""The command that measures how far a generator's images are from photos."""

from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    Maybe,
    OfCheckpoint,
    console,
    open_generator,
    tell,
    write_result,
)

COLUMNS = ("images", "photos", "fd-lite0", "precision", "recall", "swd")
NOTE = (
    "fd-lite0 is a Frechet distance by features of EfficientNet-Lite0, no FID. It falls with more "
    "images: compare equal numbers only. The floor is the same between two halves of the photos."
)


def distance(
    generator: GeneratorName,
    photos: Annotated[Positional[Path], arg(metavar="PHOTOS")],
    *,
    images: Maybe[int] = None,
    feature_weights: Maybe[Path] = None,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """How far a generator's images are from photos: fd-lite0, precision, recall, swd.

    Args:
        photos: Folder of photos of its domain; best those that it did not learn from.
        images: Drawn images; by default as many as photos, at most 5 000.
        feature_weights: File of EfficientNet-Lite0; by default that of the installed package
            (extra `features`).
        seed: Seed of the latents.
    """
    from latentseg.generators.training.comparison import compare_with_photos

    opened = open_generator(generator, checkpoint, common)
    result = compare_with_photos(
        opened,
        photos,
        images=images,
        feature_weights=feature_weights,
        seed=seed,
        quiet=common.quiet,
    )
    console(common).print(_table(opened.info.name, result))
    tell(common, NOTE)
    write_result(common, {"generator": opened.info.to_json(), **result})


def _table(name: str, result: dict[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("", *COLUMNS):
        table.add_column(column, justify="right" if column else "left")
    for row_name, row in ((name, result), ("floor", result["floor"])):
        table.add_row(row_name, *(f"{row[column]:g}" for column in COLUMNS))
    return table
