"""Hugging Face: a folder that `datasets.load_dataset` opens, of plain pictures and a card."""

import json
import re
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from latentseg.datasets.formats.layout import (
    DESCRIPTION,
    Facts,
    Format,
    Record,
    Sample,
    StoredDataset,
    Target,
    check_classes,
    classes_in,
    facts_in,
    is_inside,
    problems_in,
    read_description,
)
from latentseg.datasets.formats.png_folders import meaning, read_values
from latentseg.errors import CorruptFileError
from latentseg.files import atomic, write_text
from latentseg.images import write_mask

SPLIT = "train"
METADATA = "metadata.jsonl"
MASK_COLUMNS = ("label_file_name", "mask_file_name", "annotation_file_name")
CARD = "README.md"
LICENCES = {  # as the Hub calls them; every other one is "other" with a name
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "creativeml-openrail-m",
}  # fmt: skip


def _is_in(path: Path) -> bool:
    return bool(_metadata(path))


def _metadata(folder: Path) -> list[Path]:
    return sorted([*folder.glob(METADATA), *folder.glob(f"*/{METADATA}")])


def _write(target: Target, sample: Sample) -> Record:
    write_mask(target.folder / SPLIT / "masks" / f"{sample.name}.png", sample.mask)
    return {
        "file_name": f"images/{sample.name}{sample.suffix}",
        "label_file_name": f"masks/{sample.name}.png",
        "name": sample.name,
        "classes": [k - 1 for k in classes_in(sample.mask)],
    }


def _finish(target: Target, records: Collection[Record]) -> Facts:
    path = target.folder / SPLIT / METADATA
    with atomic(path) as temporary, open(temporary, "w", encoding="utf-8") as rows:
        rows.writelines(json.dumps(record) + "\n" for record in records)
    write_text(target.folder / CARD, _card(target, len(records)))
    return {}


def _card(target: Target, count: int) -> str:
    header = {
        **_licence(target.facts.get("licence")),
        "task_categories": ["image-segmentation"],
        "size_categories": [_magnitude(count)],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": SPLIT, "path": f"{SPLIT}/**"}],
                "features": [
                    {"name": "image", "dtype": "image"},
                    {"name": "label", "dtype": "image"},
                    {"name": "name", "dtype": "string"},
                    {"name": "classes", "list": {"class_label": {"names": _ids(target.classes)}}},
                ],
            }
        ],
    }
    ids = [f"| {k} | {name} |" for k, name in enumerate(("background", *target.classes))]
    facts = [f"- {key}: {_shown(value)}" for key, value in target.facts.items()]
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header, sort_keys=False, allow_unicode=True).strip(),
            "---",
            "",
            f"# {target.folder.absolute().name}",
            "",
            f"{count} photos with masks, written by latentseg. `label` is a picture of class ids:",
            "",
            "| value | class |",
            "|---|---|",
            *ids,
            "| 255 | ignored |",
            "",
            "`classes` are the classes that occur in the mask, from 0, without the background.",
            "",
            "## Origin",
            "",
            *(facts or ["Not stated."]),
            "",
        ]
    )


def _ids(classes: tuple[str, ...]) -> dict[str, str]:
    return {str(index): name for index, name in enumerate(classes)}


def _licence(licence: Any) -> dict[str, str]:
    if not licence:
        return {}
    slug = re.sub(r"[^a-z0-9.]+", "-", str(licence).lower()).strip("-")
    return {"license": slug} if slug in LICENCES else {"license": "other", "license_name": slug}


def _magnitude(count: int) -> str:
    if count < 1000:
        return "n<1K"
    bounds = ("1K", "10K", "100K", "1M", "10M")
    step = min(len(str(count)) - 4, len(bounds) - 2)
    return f"{bounds[step]}<n<{bounds[step + 1]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Reading


def _read(folder: Path) -> StoredDataset:
    """Folders of pictures with metadata.jsonl: ours, or others' with a column of mask files."""
    problems: list[str] = []
    names, images, masks = [], [], []
    listings = _metadata(folder)
    for listing in listings:
        for row, photo, mask in _rows(listing):
            if photo is None or mask is None:
                problems.append(
                    f"{listing}: line {row}: expected file_name and one of "
                    f"{', '.join(MASK_COLUMNS)}, inside of this folder."
                )
                continue
            photo, mask = listing.parent / photo, listing.parent / mask
            problems += [f"{p}: is listed, but missing." for p in (photo, mask) if not p.is_file()]
            name = photo.relative_to(listing.parent).with_suffix("").as_posix()
            split = f"{listing.parent.name}/" if len(listings) > 1 else ""
            names.append(split + name.removeprefix("images/"))
            images.append(photo)
            masks.append(mask)
    if problems:
        raise problems_in(folder, problems)
    description = read_description(folder)
    classes = check_classes(description.get("classes"), folder / DESCRIPTION)
    return StoredDataset(
        folder=folder,
        classes=classes,
        facts=facts_in(description),
        names=tuple(names),
        images=tuple(images),
        read_mask=partial(read_values, meaning(len(classes)), masks),
    )


def _rows(path: Path) -> list[tuple[int, str | None, str | None]]:
    """For each line its number, the file of the photo and that of the mask."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                row = json.loads(line)
                named = [row.get("file_name"), next(filter(None, map(row.get, MASK_COLUMNS)), None)]
                photo, mask = (n if isinstance(n, str) and is_inside(n) else None for n in named)
                rows.append((number, photo, mask))
    except (ValueError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not one JSON object in each line ({error}).") from error
    return rows


FORMAT = Format("hf", f"{SPLIT}/images", _is_in, _read, _write, _finish)
