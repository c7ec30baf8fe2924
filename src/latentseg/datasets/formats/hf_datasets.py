"""Hugging Face: a folder that `datasets.load_dataset` opens, of plain pictures and a card."""

import json
import os
import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from latentseg.datasets.descriptions import Facts, read_description
from latentseg.datasets.formats.writing import Format, Record, Sample, Target, classes_in
from latentseg.datasets.listings import Listing, Pair, below, is_inside, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError
from latentseg.files import atomic, read_text, write_text
from latentseg.images import write_mask
from latentseg.plain_data import parse_json

SPLIT = "train"
METADATA = "metadata.jsonl"
MASK_COLUMNS = ("label_file_name", "mask_file_name", "annotation_file_name")
CARD = "README.md"
LICENSES = {  # as the Hub calls them; every other one is "other" with a name
    "apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "openrail", "creativeml-openrail-m",
}  # fmt: skip


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
        **_license(target.facts.get("licence")),
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


def _license(licence: Any) -> dict[str, str]:
    if not licence:
        return {}
    slug = re.sub(r"[^a-z0-9.]+", "-", str(licence).lower()).strip("-")
    return {"license": slug} if slug in LICENSES else {"license": "other", "license_name": slug}


def _magnitude(count: int) -> str:
    if count < 1000:
        return "n<1K"
    bounds = ("1K", "10K", "100K", "1M", "10M")
    step = min(len(str(count)) - 4, len(bounds) - 2)
    return f"{bounds[step]}<n<{bounds[step + 1]}"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Reading


def _find(folder: Path) -> Listing | None:
    """Folders of pictures with metadata.jsonl: ours, or others' with a column of mask files."""
    listings = sorted([*folder.glob(METADATA), *folder.glob(f"*/{METADATA}")])
    if not listings:
        return None
    problems: list[str] = []
    pairs: list[Pair] = []
    for listing in listings:
        split = f"{listing.parent.name}/" if len(listings) > 1 else ""
        for number, photo, mask in _rows(listing):
            if photo is None or mask is None:
                problems.append(
                    f"{below(folder, listing)}: line {number}: expected file_name and one of "
                    f"{', '.join(MASK_COLUMNS)}, inside of this folder."
                )
                continue
            files = listing.parent / photo, listing.parent / mask
            problems += [
                f"{below(folder, file)}: is listed, but missing."
                for file in files
                if not os.path.isfile(file)
            ]
            name = PurePosixPath(photo).with_suffix("").as_posix().removeprefix("images/")
            pairs.append(Pair(split + name, *files))
    description = read_description(folder)
    classes = description.classes
    return Listing(
        folder.absolute().name,
        folder,
        tuple(pairs),
        tuple(problems),
        meaning=None if classes is None else class_ids(classes),
        facts=description.facts,
    )


def _rows(path: Path) -> list[tuple[int, str | None, str | None]]:
    """For each line its number, the file of the photo and that of the mask."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise CorruptFileError(f"{path}: line {number}: not JSON ({error}).") from error
        if not isinstance(row, dict):
            raise CorruptFileError(f"{path}: not one JSON object in each line: line {number}.")
        named = [row.get("file_name"), next(filter(None, map(row.get, MASK_COLUMNS)), None)]
        photo, mask = (n if isinstance(n, str) and is_inside(n) else None for n in named)
        rows.append((number, photo, mask))
    return rows


LAYOUT = plain_layout(
    "Hugging Face folder", f"{METADATA} with file_name and {MASK_COLUMNS[0]}, or in folders", _find
)
FORMAT = Format("hf", f"{SPLIT}/images", _write, _finish)
