"""Descriptions from strangers: documents changed at random, and every reader that opens them."""

import base64
import copy
import json
import random
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from latentseg import files
from latentseg.app.painting import Painting
from latentseg.datasets.conversion import convert_dataset
from latentseg.datasets.groupings import find_grouping
from latentseg.datasets.pairs import FolderPairs
from latentseg.datasets.real import open_dataset
from latentseg.errors import LatentsegError
from latentseg.generators import load_generator
from latentseg.generators.conversion import convert
from latentseg.images import encode
from latentseg.labelers import load_labeler
from latentseg.labelers.instances import read_boxes
from latentseg.labelers.naming import read_names
from latentseg.students.networks import build_network
from latentseg.students.prediction_records import Records
from latentseg.students.segmenter import Segmenter
from latentseg.synthesis.writers import read_records, synthesize
from latentseg.training_states import Checkpoints
from tests.app import painted
from tests.labelers.test_agreement import fitted
from tests.shard_world import Truth
from tests.world import World

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
ODD = [
    None, True, False, 0, 1, -1, 255, 65, 2**31, 2**62, 10**5, 0.5, -0.5, 1e-320, 1e308, "", "x",
    "0", "01", "-1", "a\0b", "..", "../../x", "/dev/zero", "/etc/passwd", "\u202e", "é" * 300,
    "\U0001f600", "\ud800", "\u0661", [], [[]], {}, {"": {}}, [0], ["x"], [None], {"x": 1},
    float("nan"), float("inf"), -float("inf"), [0.5, "x"], "none", 1.0,
]  # fmt: skip


@dataclass
class Reader:
    """A description on disk and what opens it.

    Attributes:
        folder: What is opened.
        path: The description that is changed.
        open: Opens the folder.
    """

    folder: Path
    path: Path
    open: Callable[[], object]


def changed(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """One to three changes of a document: of a value, a key or a byte."""
    if rng.random() < 0.2:
        return _torn(content, rng)
    try:
        if suffix == ".jsonl":
            lines = content.decode().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = json.dumps(_edited(json.loads(lines[at]), rng))
            return ("\n".join(lines) + "\n").encode()
        if suffix == ".yaml":
            value = _edited(yaml.safe_load(content), rng)
            return yaml.safe_dump(value, allow_unicode=True).encode(errors="surrogatepass")
        if suffix == ".json":
            return json.dumps(_edited(json.loads(content), rng)).encode()
    except yaml.YAMLError:
        pass
    return _torn(content, rng)


def _torn(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if rng.random() < 0.2:
            changed = changed[: rng.randrange(len(changed) + 1)]
        elif changed:
            at = rng.randrange(len(changed))
            changed[at : at + rng.randint(0, 2)] = rng.choice(
                [b"9", b"-", b"1e999", b"\xff", b"\0", b"[", b'"', b" ", b"[" * 5000, b"9" * 400]
            )
    return bytes(changed)


def _edited(value: Any, rng: random.Random) -> Any:
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return rng.choice(ODD)
        holder, key = rng.choice(places)
        other, its = rng.choice(places)
        change = rng.randrange(6)
        if change == 0:
            del holder[key]
        elif change == 1:
            holder[key] = copy.deepcopy(other[its])
        elif change == 2 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "é", "a\0b", "0", "format"])] = rng.choice(ODD)
        elif change == 3 and isinstance(holder, list):
            holder.append(copy.deepcopy(rng.choice(holder)))
        elif change == 4 and rng.random() < 0.2:
            for _ in range(rng.choice([10, 70, 300])):
                holder[key] = [holder[key]]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
    return rng.choice(ODD) if rng.random() < 0.03 else value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in list(keys) if isinstance(value, (dict, list)) else []:
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def leaks_of(reader: Reader, seeds: range) -> dict[str, str]:
    """Every exception but ours that opening a changed description raised, by its place."""
    content, manifest = reader.path.read_bytes(), reader.folder / files.MANIFEST
    sealed = manifest.read_bytes() if manifest.is_file() else None
    found = {}
    for seed in seeds:
        rng = random.Random(f"{reader.path.name} {seed}")
        reader.path.write_bytes(changed(content, reader.path.suffix, rng))
        if sealed is not None and reader.path != manifest:
            files.write_manifest(reader.folder)  # whoever forges a file forges its digest
        try:
            reader.open()
        except LatentsegError:
            pass
        except Exception as error:
            place = _last_own(error)
            found.setdefault(f"{place}: {type(error).__name__}", f"seed {seed}: {error!s:.150}")
    reader.path.write_bytes(content)
    if sealed is not None:
        manifest.write_bytes(sealed)
    return found


def _last_own(error: BaseException) -> str:
    place, step = "", error.__traceback__
    while step is not None:
        name = step.tb_frame.f_code.co_filename
        if "/latentseg/" in name:
            place = f"{name.rpartition('/latentseg/')[2]}:{step.tb_lineno}"
        step = step.tb_next
    return place


READERS: dict[str, Callable[[Path], Reader]] = {}


def reader(make: Callable[[Path], Reader]) -> Callable[[Path], Reader]:
    """Enters a maker of a reader under its name."""
    READERS[make.__name__.removeprefix("_")] = make
    return make


def _dataset(folder: Path) -> Path:
    world = World()
    synthesize(world, Truth(), count=2, out=folder, block=2, quiet=True)
    return folder


@reader
def _manifest(folder: Path) -> Reader:
    files.write_json(folder / "a.json", 1)
    files.write_text(folder / "b" / "c.txt", "x")
    files.write_manifest(folder)
    return Reader(folder, folder / files.MANIFEST, lambda: files.verify_manifest(folder))


@reader
def _claim(folder: Path) -> Reader:
    asked = {"generator": {"size": [4, 4]}, "options": {"lr": 0.1, "steps": 3}, "classes": ["a"]}
    files.claim(folder, asked)
    return Reader(
        folder, folder / "config.json", lambda: files.claim(folder, asked, free=("options.lr",))
    )


@reader
def _dataset_json(folder: Path) -> Reader:
    _dataset(folder)
    return Reader(folder, folder / "dataset.json", lambda: FolderPairs(folder))


@reader
def _dataset_as_real(folder: Path) -> Reader:
    _dataset(folder)
    return Reader(folder, folder / "dataset.json", lambda: open_dataset(folder))


@reader
def _samples_jsonl(folder: Path) -> Reader:
    _dataset(folder)
    return Reader(folder, folder / "samples.jsonl", lambda: read_records(folder))


@reader
def _resumed_samples(folder: Path) -> Reader:
    whole = _dataset(folder.with_name(f"{folder.name}-whole"))

    def resume() -> None:
        content = (folder / "samples.jsonl").read_bytes()
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        (folder / files.MANIFEST).unlink()
        (folder / "samples.jsonl").write_bytes(content)
        world = World()
        synthesize(world, Truth(), count=2, out=folder, block=2, quiet=True)

    shutil.copytree(whole, folder, dirs_exist_ok=True)
    (folder / files.MANIFEST).unlink()
    return Reader(folder, folder / "samples.jsonl", resume)


@reader
def _labels_json(folder: Path) -> Reader:
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(folder / kind / "a.png")
    files.write_json(folder / "labels.json", {"0": "background", "1": "pet", "255": "ignore"})
    return Reader(folder, folder / "labels.json", lambda: open_dataset(folder))


def _converted(folder: Path, format: str) -> Path:
    source = _dataset(folder.with_name(f"{folder.name}-source"))
    convert_dataset(source, folder, format=format, quiet=True)
    return folder


def _opened(folder: Path) -> None:
    dataset = open_dataset(folder, examine=False)
    for index in range(len(dataset)):
        dataset[index]


@reader
def _coco(folder: Path) -> Reader:
    _converted(folder, "coco")
    path = next(
        path for path in sorted(folder.rglob("*.json")) if b'"annotations"' in path.read_bytes()
    )
    return Reader(folder, path, lambda: _opened(folder))


@reader
def _labelme(folder: Path) -> Reader:
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "a.png")
    shapes = [
        {"label": "cat", "shape_type": kind, "points": points}
        for kind, points in (
            ("polygon", [[1, 1], [9, 1], [5, 9]]),
            ("circle", [[8, 8], [8, 10.5]]),
            ("rectangle", [[1, 2], [3, 4]]),
        )
    ]
    size = {"imageHeight": 16, "imageWidth": 16}
    files.write_json(folder / "a.json", {"imagePath": "a.png", "shapes": shapes, **size})
    return Reader(folder, folder / "a.json", lambda: _opened(folder))


def _supervisely(folder: Path) -> Path:
    """A project of one photo; gives the file of its annotation."""
    for name in ("img", "ann"):
        (folder / "ds" / name).mkdir(parents=True)
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "ds" / "img" / "a.png")
    files.write_json(folder / "meta.json", {"classes": [{"title": "cat", "shape": "any"}]})
    points = {"exterior": [[1, 1], [9, 1], [5, 9]], "interior": [[[2, 2], [4, 2], [4, 4]]]}
    packed = base64.b64encode(zlib.compress(encode(np.eye(4, dtype=np.uint8)))).decode()
    objects = [
        {"classTitle": "cat", "geometryType": "polygon", "points": points},
        {
            "classTitle": "cat",
            "geometryType": "bitmap",
            "bitmap": {"data": packed, "origin": [1, 2]},
        },
    ]
    files.write_json(folder / "ds" / "ann" / "a.png.json", {"objects": objects})
    return folder / "ds" / "ann" / "a.png.json"


@reader
def _supervisely_annotation(folder: Path) -> Reader:
    return Reader(folder, _supervisely(folder), lambda: _opened(folder))


@reader
def _supervisely_classes(folder: Path) -> Reader:
    _supervisely(folder)
    return Reader(folder, folder / "meta.json", lambda: _opened(folder))


@reader
def _sa1b(folder: Path) -> Reader:
    Image.fromarray(np.eye(16, dtype=np.uint8)).save(folder / "a.png")
    region = {"size": [16, 16], "counts": [100, 20, 136]}
    annotations = [{"id": 1, "segmentation": region}]
    files.write_json(
        folder / "a.json", {"image": {"file_name": "a.png"}, "annotations": annotations}
    )
    return Reader(folder, folder / "a.json", lambda: _opened(folder))


@reader
def _yolo_data(folder: Path) -> Reader:
    _converted(folder, "yolo")
    return Reader(folder, folder / "data.yaml", lambda: _opened(folder))


@reader
def _yolo_labels(folder: Path) -> Reader:
    _converted(folder, "yolo")
    path = next(iter(sorted((folder / "labels").rglob("*.txt"))))
    return Reader(folder, path, lambda: _opened(folder))


@reader
def _hf(folder: Path) -> Reader:
    _converted(folder, "hf")
    return Reader(
        folder, next(iter(sorted(folder.rglob("metadata.jsonl")))), lambda: _opened(folder)
    )


@reader
def _segmenter(folder: Path) -> Reader:
    network = build_network("unet", 2, width=0.125)
    Segmenter(
        [network], classes=["pet"], input_size=(8, 8), network="unet", width=0.125,
        card={"licence": "MIT"},
    ).save(folder)  # fmt: skip
    return Reader(
        folder, folder / "config.json", lambda: Segmenter.from_pretrained(folder, device="cpu")
    )


@reader
def _predictions(folder: Path) -> Reader:
    record = {
        "name": "a", "photo": "a.png", "stamp": [1, 2], "settings": "", "size": [4, 4],
        "files": ["a.png"], "annotations": [{"category_id": 1, "score": 0.5}],
    }  # fmt: skip
    path = folder / "predictions.jsonl"
    path.write_text(json.dumps(record) + "\n" + json.dumps({**record, "name": "b"}) + "\n")

    def read() -> None:
        with Records(path) as records:
            for name in list(records.places):
                records.find(name)

    return Reader(folder, path, read)


@reader
def _painting(folder: Path) -> Reader:
    painted.begin(folder)
    return Reader(folder, folder / "painting.json", lambda: Painting(folder))


@reader
def _gallery(folder: Path) -> Reader:
    painted.begin(folder)
    files.write_json(folder / "gallery.json", {"format": 1, "drawn": 3, "seeds": [1, 2, 3]})
    return Reader(folder, folder / "gallery.json", lambda: Painting(folder))


@reader
def _strokes(folder: Path) -> Reader:
    painting = painted.begin(folder)
    name = next(iter(painting.masks))
    for key in range(3):
        painting.masks[name].paint(painted.noise(key), "brush")
    painting.masks[name].undo()
    mask = folder / "masks" / f"{name}.png"
    content = mask.read_bytes()

    def read() -> None:
        mask.write_bytes(content)
        opened = Painting(folder).masks[name]
        opened.redo()
        opened.undo()

    return Reader(folder, folder / "strokes" / f"{name}.jsonl", read)


@reader
def _training_state(folder: Path) -> Reader:
    state = {"network.a": torch.ones(3), "optimizer.a.step": torch.tensor(1.0)}
    Checkpoints(folder).save(5, state)
    kept = folder.with_name(f"{folder.name}-kept")
    shutil.copytree(folder, kept)
    path = folder / "step-0000005" / files.MANIFEST

    def read() -> None:
        content = path.read_bytes()
        Checkpoints(folder).load()
        if not path.exists():  # a damaged one was deleted
            shutil.copytree(kept, folder, dirs_exist_ok=True)
        path.write_bytes(content)

    return Reader(folder, path, read)


@reader
def _directions_labeler(folder: Path) -> Reader:
    labeler = fitted()
    labeler.save(folder)
    return Reader(folder, folder / "labeler.json", lambda: load_labeler(folder, World()))


@reader
def _names(folder: Path) -> Reader:
    files.write_json(folder / "classes.json", {"1": "hair", "2": "skin"})
    return Reader(folder, folder / "classes.json", lambda: read_names(folder, n=2))


@reader
def _grouping(folder: Path) -> Reader:
    files.write_json(folder / "group.json", {"head": ["hair", "skin"], "body": ["arm"]})
    return Reader(folder, folder / "group.json", lambda: find_grouping(folder / "group.json"))


@reader
def _boxes(folder: Path) -> Reader:
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}],
    }
    files.write_json(folder / "boxes.json", content)
    return Reader(folder, folder / "boxes.json", lambda: read_boxes(folder / "boxes.json"))


@reader
def _generator(folder: Path) -> Reader:
    convert(GOLDEN / "dcgan" / "rgb64" / "netG_epoch_24.pth", folder, quiet=True)
    return Reader(folder, folder / "config.json", lambda: load_generator(folder, device="cpu"))
