"""Hugging Face parquet: tables with a column of photos and one of masks, as the Hub stores them."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from latentseg.datasets.descriptions import read_description
from latentseg.datasets.listings import Listing, Pair, below, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import open_regular
from latentseg.images import Pixels, decode_image, decode_mask
from latentseg.images.extras import needed

PHOTO_COLUMNS = ("image", "img", "photo", "pixel_values")
MASK_COLUMNS = ("label", "mask", "annotation", "segmentation", "semantic_mask", "gt", "labels")
ENCODED = {"bytes"}  # the field that a column of pictures has; beside it may stand a path
HELD_GROUPS = 2  # groups of rows that stay in memory; readers go through them in order

Row = tuple[Path, int, int]  # the file, the group of rows, the row in it


def _find(folder: Path) -> Listing | None:
    """All tables below a folder, or one table.

    Raises:
        InputError: pyarrow is not installed, or no column is known to hold photos or masks.
        CorruptFileError: a table cannot be read.
    """
    files = [folder] if folder.suffix == ".parquet" else sorted(folder.rglob("*.parquet"))
    if not files:
        return None
    root = folder.parent if folder.is_file() else folder
    rows: dict[str, Row] = {}
    columns: dict[Path, tuple[str, str]] = {}
    for file in files:
        columns[file] = _columns(file)
        stem = below(root, file.with_suffix(""))
        rows |= {f"{stem}_{number:06d}": row for number, row in enumerate(_rows(file))}
    read = lru_cache(maxsize=HELD_GROUPS)(_read_group)

    def cell(pair: Pair, column: int) -> bytes:
        file, group, row = rows[pair.name]
        name = columns[file][column]
        return _encoded(read(file, group, columns[file])[name][row], f"{file}: row {pair.name}")

    def photo(pair: Pair) -> Pixels:
        return decode_image(cell(pair, 0), f"{pair.name}: image")

    def mask(pair: Pair) -> Pixels:
        return decode_mask(cell(pair, 1), f"{pair.name}: mask")

    description = read_description(root)
    return Listing(
        folder.absolute().name,
        root,
        tuple(Pair(name, file, file) for name, (file, _, _) in rows.items()),
        meaning=None if description.classes is None else class_ids(description.classes),
        facts=description.facts,
        read_image=photo,
        read_mask=mask,
        copies_photos=False,
    )


def _table(file: Path, stream: Any) -> Any:
    """The table, opened; what its library raises becomes ours."""
    needed("pyarrow", "parquet")
    parquet = needed("pyarrow.parquet", "parquet")
    try:
        return parquet.ParquetFile(stream)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptFileError(f"{file}: not a readable table ({error!s:.200}).") from error


def _columns(file: Path) -> tuple[str, str]:
    """The names of the columns of photos and of masks."""
    with open_regular(file) as stream:
        schema = _table(file, stream).schema_arrow
    pictures = [
        each.name
        for each in schema
        if ENCODED.issubset(each.type.field(k).name for k in range(each.type.num_fields))
    ]
    photo = next((name for name in PHOTO_COLUMNS if name in pictures), None)
    mask = next((name for name in MASK_COLUMNS if name in pictures), None)
    if photo is None or mask is None:
        raise InputError(
            f"{file}: expected a column of photos ({', '.join(PHOTO_COLUMNS)}) and one of masks "
            f"({', '.join(MASK_COLUMNS)}). Columns of pictures are: {', '.join(pictures)}."
        )
    return photo, mask


def _rows(file: Path) -> Iterator[Row]:
    with open_regular(file) as stream:
        metadata = _table(file, stream).metadata
        for group in range(metadata.num_row_groups):
            for row in range(metadata.row_group(group).num_rows):
                yield file, group, row


def _read_group(file: Path, group: int, columns: tuple[str, str]) -> Mapping[str, list[Any]]:
    with open_regular(file) as stream:
        table = _table(file, stream)
        try:
            return table.read_row_group(group, columns=list(columns)).to_pydict()
        except (OSError, ValueError) as error:
            raise CorruptFileError(f"{file}: not a readable table ({error!s:.200}).") from error


def _encoded(value: Any, where: str) -> bytes:
    match value:
        case {"bytes": bytes(content)}:
            return content
    raise InputError(f"{where}: the picture is not stored in the table, only its path.")


LAYOUT = plain_layout(
    "Hugging Face parquet", "*.parquet with the columns image and label (or mask)", _find
)
