import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentseg.app.exchange import export_painting, import_masks
from latentseg.app.painting import ClassChange, Painting
from latentseg.errors import InputError
from latentseg.files import locked
from latentseg.images import Pixels, read_image, read_mask, write_image, write_mask
from tests.app.painted import SIZE, begin, noise


@pytest.fixture
def painting(tmp_path: Path) -> Painting:
    painting = begin(tmp_path / "p")
    for key, mask in enumerate(painting.masks.values()):
        mask.paint(noise(key), "brush")
    return painting


def masks(folder: Path) -> list[Pixels]:
    return [mask.pixels for mask in Painting(folder).masks.values()]


def exported(tmp_path: Path) -> dict[str, Path]:
    export_painting(tmp_path / "p", tmp_path / "out")
    return {path.stem: path for path in sorted((tmp_path / "out/masks").iterdir())}


def in_colours(mask: Pixels, painting: Painting) -> Pixels:
    """The mask (H, W, 3) as someone paints it by the colours of the page."""
    picture = np.full((*mask.shape, 3), 255, np.uint8)
    picture[mask == 0] = 0
    for number, part in enumerate(painting.classes, start=1):
        picture[mask == number] = tuple(bytes.fromhex(part.colour[1:]))
    return picture


def test_export_when_imported_as_it_is_then_nothing_changes(
    tmp_path: Path, painting: Painting
) -> None:
    files = exported(tmp_path)
    assert list(files) == list(painting.images)
    table = json.loads((tmp_path / "out/classes.json").read_text())["classes"]
    assert [(row["id"], row["name"]) for row in table] == [
        (0, "background"),
        (1, "hair"),
        (2, "skin"),
        (3, "shoes"),
        (255, "not painted"),
    ]
    for key, path in enumerate(files.values()):
        np.testing.assert_array_equal(read_mask(path), noise(key))
        np.testing.assert_array_equal(read_image(path), in_colours(noise(key), painting))
    before = [mask.revision for mask in Painting(tmp_path / "p").masks.values()]
    done = import_masks(tmp_path / "p", tmp_path / "out")
    assert done.names == tuple(painting.images)
    assert [mask.revision for mask in Painting(tmp_path / "p").masks.values()] == before


@pytest.mark.parametrize(
    "kind", ["grey ids", "colours", "colours over nothing", "other palette", "own palette"]
)
def test_import_when_masks_come_in_another_coding_then_the_classes_are_the_same(
    tmp_path: Path, painting: Painting, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    for key, name in enumerate(painting.images):
        mask, path = noise(key + 5), tmp_path / f"in/{name}.png"
        coloured = in_colours(mask, painting)
        if kind == "grey ids":
            write_image(path, mask)
        elif kind == "colours":
            write_image(path, coloured)
        elif kind == "colours over nothing":
            write_image(path, np.dstack([coloured, np.where(mask == 255, 0, 255).astype(np.uint8)]))
        elif kind == "other palette":
            Image.fromarray(coloured).quantize(8).save(path)
        else:
            write_mask(path, mask)
    import_masks(tmp_path / "p", tmp_path / "in")
    for key, mask in enumerate(masks(tmp_path / "p")):
        np.testing.assert_array_equal(mask, noise(key + 5))
    first = next(iter(Painting(tmp_path / "p").masks.values()))
    first.undo()
    np.testing.assert_array_equal(first.pixels, noise(0))


def test_import_when_classes_were_reordered_since_then_names_tell(
    tmp_path: Path, painting: Painting
) -> None:
    exported(tmp_path)
    wish = [ClassChange(painting.classes[i - 1], i) for i in (3, 1, 2)]
    painting.change_classes(wish)
    for mask in painting.masks.values():
        mask.paint(np.full(SIZE, 255, np.uint8), "clear")
    import_masks(tmp_path / "p", tmp_path / "out")
    ids = np.full(256, 255, np.uint8)
    ids[[0, 1, 2, 3]] = 0, 2, 3, 1
    for key, mask in enumerate(masks(tmp_path / "p")):
        np.testing.assert_array_equal(mask, ids[noise(key)])


def test_import_when_things_do_not_fit_then_all_are_listed_and_nothing_changes(
    tmp_path: Path, painting: Painting
) -> None:
    exported(tmp_path)
    first, second = painting.images
    place = tmp_path / "out/masks"
    wrong = in_colours(noise(8), painting)
    wrong[4, 7] = 1, 2, 3
    wrong[5] = 9, 9, 200
    write_image(place / f"{first}.png", wrong)
    write_image(place / f"{second}.png", np.zeros((5, 6), np.uint8))
    write_image(place / "stranger.png", np.zeros(SIZE, np.uint8))
    write_image(place / "photo.jpg", np.zeros((*SIZE, 3), np.uint8))
    table = json.loads((tmp_path / "out/classes.json").read_text())
    table["classes"].append({"id": 4, "name": "bag", "colour": "#102030"})
    (tmp_path / "out/classes.json").write_text(json.dumps(table))
    with pytest.raises(InputError) as refusal:
        import_masks(tmp_path / "p", tmp_path / "out")
    for expected in (
        "6 problems, so nothing was changed",
        "classes.json: the painting has no class 'bag', but hair, skin, shoes.",
        f"masks/{first}.png: colour #0909c8 is no class (first at pixel (5, 0), 32 in all)",
        f"masks/{first}.png: colour #010203 is no class (first at pixel (4, 7), 1 in all)",
        f"masks/{second}.png: 5 x 6 pixels; its image has 24 x 32",
        "masks/stranger.png: the painting has no image stranger",
        "masks/photo.jpg: not a PNG",
    ):
        assert expected in str(refusal.value)
    for key, mask in enumerate(masks(tmp_path / "p")):
        np.testing.assert_array_equal(mask, noise(key))


def test_import_when_grey_values_are_no_ids_then_they_are_named(
    tmp_path: Path, painting: Painting
) -> None:
    (tmp_path / "in").mkdir()
    mask = noise(3)
    mask[2, 3] = 77
    write_image(tmp_path / f"in/{next(iter(painting.images))}.png", mask)
    with pytest.raises(InputError, match=r"value 77 is no class \(first at pixel \(2, 3\), 1 in"):
        import_masks(tmp_path / "p", tmp_path / "in")


def test_import_when_a_brush_was_soft_then_the_cause_is_said(
    tmp_path: Path, painting: Painting
) -> None:
    (tmp_path / "in").mkdir()
    soft = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    write_image(tmp_path / f"in/{next(iter(painting.images))}.png", soft)
    with pytest.raises(InputError, match="hard pencil"):
        import_masks(tmp_path / "p", tmp_path / "in")


def test_exchange_when_the_painting_is_in_use_or_missing_then_refused(
    tmp_path: Path, painting: Painting
) -> None:
    with locked(tmp_path / "p"), pytest.raises(InputError, match="in use"):
        export_painting(tmp_path / "p", tmp_path / "out")
    for call in (export_painting, import_masks):
        with pytest.raises(InputError, match="no such painting"):
            call(tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/letter.txt").write_text("precious")
    with pytest.raises(InputError, match="no earlier export"):
        export_painting(tmp_path / "p", tmp_path / "out")
    with pytest.raises(InputError, match="no masks"):
        import_masks(tmp_path / "p", tmp_path / "out")
