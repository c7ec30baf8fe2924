"""Photos per second of a segmenter and of its exports: python benchmarks/export.py."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import tyro

from measuring import Row, in_fresh_process, seconds_each, show

if TYPE_CHECKING:
    from latentseg.images import Pixels

MB = 1e6


def exported(model: str, out: str, format: str, photos: str, data: str | None) -> Row:
    """Writes an export; 8-bit ONNX if there are labelled photos."""
    from latentseg.evaluation.real_photos import evaluate
    from latentseg.students.export import export_segmenter
    from latentseg.students.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(model, device="cpu")
    record = export_segmenter(
        segmenter,
        out,
        format="torch" if format == "torch.export" else "onnx",
        int8=data is not None,
        photos=photos,
        measure=lambda scorer: evaluate(scorer, data or "", quiet=True).iou,
        quiet=True,
    )
    return {"IoU lost": record["int8"]["fall"] if data else 0.0}


def _images(photos: str, size: tuple[int, int]) -> "list[Pixels]":
    from latentseg.images import cover, list_images, read_image

    return [cover(read_image(path), size) for path in list_images(photos)[:16]]


def torch_model(model: str, photos: str, size: tuple[int, int], seconds: float, cores: int) -> Row:
    """The segmenter itself."""
    import torch

    from latentseg.students.segmenter import ASSETS, Segmenter

    torch.set_num_threads(cores)
    segmenter = Segmenter.from_pretrained(model, device="cpu")
    images = iter(_images(photos, size) * 100_000)
    each = seconds_each(
        lambda: segmenter.predict(next(images)), torch.device("cpu"), seconds=seconds
    )
    folder = ASSETS / model if (ASSETS / model).is_dir() else Path(model)
    return _row("torch", size, each, folder / "model.safetensors")


def torch_export(out: str, photos: str, size: tuple[int, int], seconds: float, cores: int) -> Row:
    """A program of torch.export."""
    import torch

    torch.set_num_threads(cores)
    segment = torch.export.load(Path(out) / "model.pt2").module()
    images = iter([torch.from_numpy(image) for image in _images(photos, size)] * 100_000)
    with torch.inference_mode():
        each = seconds_each(lambda: segment(next(images)), torch.device("cpu"), seconds=seconds)
    return _row("torch.export", size, each, Path(out) / "model.pt2")


def onnx(
    name: str, out: str, photos: str, size: tuple[int, int], seconds: float, cores: int
) -> Row:
    """ONNX as predict.py runs it; torch is not imported, so that memory is onnxruntime's."""
    import importlib.util
    import time
    from itertools import cycle

    import numpy as np
    from PIL import Image

    spec = importlib.util.spec_from_file_location("predict", Path(out) / "predict.py")
    assert spec is not None
    assert spec.loader is not None
    predict = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(predict)
    predictor = predict.Predictor(Path(out) / "model.onnx", threads=cores)
    paths = sorted(Path(photos).iterdir())[:16]
    height, width = size
    images = cycle(
        [
            np.array(Image.fromarray(predict.read_photo(path)).resize((width, height)))
            for path in paths
        ]
    )
    predictor.predict(next(images))
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        began = time.perf_counter()
        predictor.predict(next(images))
        times.append(time.perf_counter() - began)
    return _row(name, size, sorted(times)[len(times) // 2], Path(out) / "model.onnx")


def _row(name: str, size: tuple[int, int], seconds: float, file: Path) -> Row:
    return {
        "runs on": name,
        "photo": f"{size[0]} x {size[1]}",
        "photos/s": 1 / seconds,
        "ms": 1e3 * seconds,
        "file MB": file.stat().st_size / MB,
    }


def main(
    photos: Annotated[Path, tyro.conf.Positional],
    model: str = "pets64",
    data: Path | None = None,
    sizes: tuple[tuple[int, int], ...] = ((128, 128), (375, 500), (3000, 4000)),
    seconds: float = 5.0,
    cores: int = 1,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures one photo at a time, on the CPU, each in a process of its own.

    Args:
        photos: Folder of photos, which are brought to each size.
        model: What `Segmenter.from_pretrained` takes.
        data: Labelled photos; with them ONNX in 8 bits is measured, too.
        sizes: Height and width of the photos.
        seconds: Time spent on each row.
        cores: Threads.
        json: File for the numbers.
    """
    rows: list[Row] = []
    with TemporaryDirectory() as folder:
        kinds = {"torch.export": None, "ONNX": None} | ({"ONNX, int8": str(data)} if data else {})
        lost: dict[object, float | int | str] = {"torch": 0.0}
        for kind, labelled in kinds.items():
            out = str(Path(folder) / kind)
            made = in_fresh_process(exported, model, out, kind, str(photos), labelled)
            lost[kind] = made["IoU lost"]
        for size in sizes:
            rows.append(in_fresh_process(torch_model, model, str(photos), size, seconds, cores))
            out = str(Path(folder) / "torch.export")
            rows.append(in_fresh_process(torch_export, out, str(photos), size, seconds, cores))
            for kind in list(kinds)[1:]:
                out = str(Path(folder) / kind)
                rows.append(in_fresh_process(onnx, kind, out, str(photos), size, seconds, cores))
    rows = [{**row, "IoU lost": lost[row["runs on"]]} for row in rows]
    show(f"Photos through {model}, {cores} core(s)", rows, device="cpu", json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
