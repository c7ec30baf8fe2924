"""Photos per second and peak memory of `predict`: python benchmarks/prediction.py."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import tyro

from measuring import Row, finish, in_fresh_process, show

SMALL, LARGE, HUGE = (375, 500), (3000, 4000), (8000, 10000)


def write_photos(folder: Path, size: tuple[int, int], count: int) -> None:
    """JPEGs with shapes and some noise: they compress as photos do."""
    import numpy as np

    from latentseg.images import resize, write_image

    for index in range(count):
        rng = np.random.default_rng(index)
        image = resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), size)
        image[::2, ::2] ^= rng.integers(0, 8, image[::2, ::2].shape, dtype=np.uint8)
        write_image(folder / f"{index:05d}.jpg", image)


def predict_folder(
    what: str, model: str, folder: Path, device: str, outputs: tuple[str, ...], tile: int | None
) -> Row:
    """The whole command on a folder: reading, segmenting, writing."""
    from latentseg.images import list_images, size_of
    from latentseg.students.prediction import predict_files
    from latentseg.students.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)
    photos = list_images(folder)
    segmenter.predict(photos[0])
    with TemporaryDirectory() as out:
        began = time.perf_counter()
        predict_files(segmenter, photos, out, outputs=outputs, tile=tile, quiet=True)
        taken = time.perf_counter() - began
    height, width = size_of(photos[0])
    return {
        "what": what,
        "pixels": f"{height} x {width}",
        "photos": len(photos),
        "outputs": ", ".join(outputs),
        "photos/s": len(photos) / taken,
    }


def predict_singly(model: str, folder: Path, device: str) -> Row:
    """`Segmenter.predict` of one photo after the other: nothing overlaps, nothing is written."""
    from latentseg.images import list_images, size_of
    from latentseg.students.segmenter import Segmenter

    segmenter = Segmenter.from_pretrained(model, device=device)
    photos = list_images(folder)
    segmenter.predict(photos[0])
    began = time.perf_counter()
    for photo in photos:
        segmenter.predict(photo)
    finish(segmenter.device)
    taken = time.perf_counter() - began
    height, width = size_of(photos[0])
    return {
        "what": "in Python, singly",
        "pixels": f"{height} x {width}",
        "photos": len(photos),
        "outputs": "",
        "photos/s": len(photos) / taken,
    }


def main(
    model: str = "pets64",
    small: int = 200,
    large: int = 8,
    huge: int = 1,
    tile: int = 1024,
    device: str = "auto",
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures folders of photos, each setting in a process of its own.

    Args:
        model: The segmenter.
        small: Number of photos of 375 x 500 px.
        large: Number of photos of 12 megapixels.
        huge: Number of photos of 80 megapixels.
        tile: Side of the windows, in photo pixels, where large photos are tiled.
        device: auto, cpu, cuda, ...
        json: File for the numbers.
    """
    pictures = ("masks", "overlays", "cutouts")
    with TemporaryDirectory() as name:
        folders = {size: Path(name) / str(size[1]) for size in (SMALL, LARGE, HUGE)}
        for (size, folder), count in zip(folders.items(), (small, large, huge), strict=True):
            write_photos(folder, size, count)
        rows = [in_fresh_process(predict_singly, model, folders[SMALL], device)]
        for size, outputs, side in [
            (SMALL, ("masks",), None),
            (SMALL, pictures, None),
            (SMALL, ("coco",), None),
            (LARGE, ("masks",), None),
            (LARGE, pictures, None),
            (LARGE, ("masks",), tile),
            (HUGE, ("masks",), None),
            (HUGE, ("masks", "scores"), None),
        ]:
            what = "predict" if side is None else f"predict --tile {side}"
            rows.append(
                in_fresh_process(predict_folder, what, model, folders[size], device, outputs, side)
            )
    show("Prediction", rows, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
