"""A segmenter for other places, refused unless it answers there as it does here."""

import copy
import io
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from latentseg.errors import InputError
from latentseg.files import MANIFEST, remove_leftovers, write_bytes, write_manifest
from latentseg.generators import load_generator
from latentseg.images import Pixels, class_colors, cover, list_images, open_series, to_pixels
from latentseg.progress import Progress, say
from latentseg.students import onnx_model
from latentseg.students.graph import record
from latentseg.students.model_card import render_card
from latentseg.students.segmenter import Segmenter
from latentseg.version import __version__

Format = Literal["safetensors", "onnx", "torch"]
FORMATS = ("safetensors", "onnx", "torch")
SIZES = ((64, 64), (97, 61), (240, 320), (375, 500), (640, 427))
COMPARED = 16  # photos, each in every size
CALIBRATED = 64  # photos that show the ranges of activations
MAX_DIFFERENCE = 1e-3
MIN_EQUAL_LABELS = 0.9999
MAX_IOU_FALL = 0.005
SMALLEST = 1e-30  # of a probability whose logarithm is compared
_CONTENT = {"onnx": "model.onnx", "torch": "model.pt2"}
_PREDICTOR, _CARD, _RECORD = "predict.py", "README.md", "export.json"

Answer = Callable[[Pixels], tuple[Pixels, NDArray[np.float32]]]


class PhotoScorer(Protocol):
    """What `measure` measures."""

    def scores(self, image: Pixels) -> NDArray[np.float32]:
        """(K + 1, H, W) float32 class probabilities of an (H, W, 3) uint8 image."""
        ...


@dataclass(frozen=True)
class Agreement:
    """How far an export answers as its segmenter.

    Attributes:
        photos: Which were compared.
        n_photos: How many.
        sizes: (height, width) in each of which they were compared.
        max_difference: Of a logit (log probability), over all pixels, classes and photos.
        equal_labels: Share of the pixels that get the same class, in [0, 1].
    """

    photos: str
    n_photos: int
    sizes: tuple[tuple[int, int], ...]
    max_difference: float
    equal_labels: float


def export_segmenter(
    segmenter: Segmenter,
    out: Path | str,
    *,
    format: Format = "onnx",
    flip: bool = False,
    int8: bool = False,
    photos: Path | str | Sequence[Path | str] | None = None,
    measure: Callable[[PhotoScorer], float] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Writes a segmenter for use elsewhere, once its answers have been compared.

    - "safetensors": the folder that `Segmenter.from_pretrained` loads.
    - "onnx": model.onnx, in which everything is: a uint8 photo of any size in, mask and scores out;
      and predict.py, which needs numpy, Pillow and onnxruntime only. Extra `export`.
    - "torch": model.pt2, the same as a program of `torch.export`.

    The last two come with README.md and export.json, the record of what was compared. All carry
    card and licence. A folder without MANIFEST.json was not finished: export again.

    Args:
        segmenter: What is exported; it may lie on any device.
        out: New or empty, or the folder of an export, which is replaced.
        format: See above.
        flip: Average with the mirror image in the exported program.
        int8: Convolutions in 8 bits, for processors: a third of the size. "onnx" only; needs
            `photos` and `measure`.
        photos: A folder, or files: those on which answers are compared, and which show int8 its
            ranges. By default images drawn by the bundled generator.
        measure: IoU in [0, 1] of something that scores photos, on labelled photos.
        quiet: No progress line.

    Returns:
        The record: format, versions, what went in and out, and how far it agrees.

    Raises:
        InputError: the export answers otherwise: logits differ by more than 1e-3, or less than
            99.99 % of the labels are equal; int8 costs 0.005 of IoU or more; the folder holds
            other files; options that do not go together; the extra is missing.
    """
    out = Path(out)
    _check_options(format, flip=flip, int8=int8, photos=photos, measure=measure)
    if segmenter.device.type != "cpu":
        segmenter = copy.deepcopy(segmenter).to("cpu")
    paths = _paths(photos)
    if format == "safetensors":
        return _export_folder(segmenter, out, paths, quiet=quiet)
    _check_folder(out)
    if format == "onnx":
        onnx_model.require_onnx()
    say("export: recording the network takes up to a minute", quiet=quiet)
    program = record(segmenter, flip=flip)
    details: dict[str, Any] = {}
    if format == "torch":
        content = _saved_program(program)
        agreement = _agreement(segmenter, _program_answer(content), paths, flip=flip, quiet=quiet)
    else:
        from latentseg.students.onnx_predictor import Predictor

        model, metadata = onnx_model.to_onnx(program), _metadata(segmenter)
        content = onnx_model.with_metadata(model, metadata)
        exact = Predictor(content)
        agreement = _agreement(segmenter, exact.predict, paths, flip=flip, quiet=quiet)
        if int8 and measure is not None:
            calibration = _images(_spread(paths, CALIBRATED))
            model = onnx_model.quantize(model, calibration)
            content = onnx_model.with_metadata(model, metadata)
            details["int8"] = _checked_fall(measure(exact), measure(Predictor(content)))
    result = _record(segmenter, format, content, agreement, flip=flip) | details
    _write(out, _files(segmenter, format, content, result))
    return result


def _check_options(format: str, *, flip: bool, int8: bool, photos: object, measure: object) -> None:
    if format not in FORMATS:
        raise InputError(f"`format`: expected one of {', '.join(FORMATS)}, found {format}.")
    if flip and format == "safetensors":
        raise InputError(
            "`flip`: a model folder flips when it predicts, so it cannot be exported with it."
        )
    if int8 and format != "onnx":
        raise InputError(f"`int8`: only the format onnx has 8-bit convolutions, found {format}.")
    if int8 and (photos is None or measure is None):
        raise InputError(
            "`int8`: needs `photos`, which show the range of activations, and `measure`, an IoU "
            "that must not fall."
        )


def _check_folder(out: Path) -> None:
    ours = {*_CONTENT.values(), _PREDICTOR, _CARD, _RECORD, MANIFEST}
    if out.is_file():
        raise InputError(f"{out}: a file is in the way of this folder. Choose another.")
    remove_leftovers(out)
    if out.exists() and not {path.name for path in out.iterdir()} <= ours:
        raise InputError(f"{out}: holds files that are not an export's. Choose another folder.")


def _paths(photos: Path | str | Sequence[Path | str] | None) -> list[Path] | None:
    if photos is None:
        return None
    if isinstance(photos, Path | str):
        return list_images(photos)
    if not photos:
        raise InputError(
            "`photos`: expected at least one to compare on. Give some, or leave `photos` out."
        )
    return [Path(photo) for photo in photos]


def _spread(paths: Sequence[Path] | None, most: int) -> list[Path]:
    """At most `most` paths, evenly spread."""
    paths = paths or []
    return [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else [*paths]


def _images(paths: Sequence[Path]) -> Iterator[Pixels]:
    series = open_series(paths)
    return map(series.read, series.pictures)


def _export_folder(
    segmenter: Segmenter, out: Path, paths: list[Path] | None, *, quiet: bool
) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        segmenter.save(folder)
        loaded = Segmenter.from_pretrained(Path(folder), device="cpu")
        content = (Path(folder) / "model.safetensors").read_bytes()

    def answer(photo: Pixels) -> tuple[Pixels, NDArray[np.float32]]:
        prediction = loaded.predict(photo)
        return prediction.mask, prediction.scores

    agreement = _agreement(segmenter, answer, paths, flip=False, quiet=quiet)
    segmenter.save(out)
    return _record(segmenter, "safetensors", content, agreement, flip=False)


def _saved_program(program: torch.export.ExportedProgram) -> bytes:
    stream = io.BytesIO()
    with warnings.catch_warnings():  # torch calls weights incomplete that lie channels-last
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, stream)
    return stream.getvalue()


def _program_answer(content: bytes) -> Answer:
    module = torch.export.load(io.BytesIO(content)).module()

    def answer(photo: Pixels) -> tuple[Pixels, NDArray[np.float32]]:
        with torch.inference_mode():
            mask, scores = module(torch.from_numpy(photo.copy()))
        return mask.numpy(), scores.numpy()

    return answer


def _agreement(
    segmenter: Segmenter, answer: Answer, paths: list[Path] | None, *, flip: bool, quiet: bool
) -> Agreement:
    """Compares answers on photos in five sizes.

    Raises:
        InputError: they differ by more than is allowed.
    """
    images = [*_images(_spread(paths, COMPARED))] if paths else _drawn()
    largest, n_equal, n_pixels = 0.0, 0, 0
    pairs = [(image, size) for image in images for size in SIZES]
    with Progress("compare", total=len(pairs), quiet=quiet) as progress:
        for done, (image, size) in enumerate(pairs, start=1):
            photo = cover(image, size)
            expected = segmenter.predict(photo, flip=flip)
            mask, scores = answer(photo)
            largest = max(largest, _difference(scores, expected.scores))
            n_equal += int((mask == expected.mask).sum())
            n_pixels += mask.size
            progress.update(done, difference=largest)
    agreement = Agreement(
        photos="given" if paths else "drawn by the bundled generator pets64",
        n_photos=len(images),
        sizes=SIZES,
        max_difference=largest,
        equal_labels=n_equal / n_pixels,
    )
    if not (largest <= MAX_DIFFERENCE and agreement.equal_labels >= MIN_EQUAL_LABELS):
        raise InputError(
            f"The export answers otherwise than the segmenter: on {len(images)} photos in "
            f"{len(SIZES)} sizes logits differ by up to {largest:.2g} (allowed: "
            f"{MAX_DIFFERENCE:g}), and {agreement.equal_labels:.4%} of the labels are equal "
            f"(required: {MIN_EQUAL_LABELS:.2%}). Nothing was written. Keep the model folder: "
            "`format` safetensors."
        )
    return agreement


def _difference(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Largest difference of log probabilities; infinite if one of them is not a number."""
    if scores.shape != expected.shape:
        return np.inf
    difference = np.log(scores.clip(SMALLEST)) - np.log(expected.clip(SMALLEST))
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def _drawn() -> list[Pixels]:
    generator = load_generator("pets64", device="cpu")
    with torch.inference_mode():
        return list(to_pixels(generator(generator.sample(torch.arange(COMPARED)))))


def _checked_fall(before: float, after: float) -> dict[str, float]:
    """The record of what 8 bits cost.

    Raises:
        InputError: too much.
    """
    if not before - after < MAX_IOU_FALL:
        raise InputError(
            f"`int8`: the IoU falls from {before:.4f} to {after:.4f}, by {before - after:.4f}; "
            f"less than {MAX_IOU_FALL} is allowed. Nothing was written. Give more `photos`, like "
            "those of `measure`, or export without `int8`."
        )
    return {"iou": before, "iou_int8": after, "fall": before - after, "allowed": MAX_IOU_FALL}


def _metadata(segmenter: Segmenter) -> dict[str, str]:
    """What an ONNX file says about itself, and what predict.py needs from it."""
    return {
        "name": segmenter.card.get("name", "segmenter"),
        "classes": json.dumps(["background", *segmenter.classes]),
        "threshold": str(segmenter.threshold),
        "licence": segmenter.card.get("licence", "Not stated."),
        "card": render_card(segmenter.config, usage=_usage("onnx")),
        "palette": class_colors().tobytes().hex(),
        "latentseg": __version__,
        "weights": segmenter.digest,
    }


def _record(
    segmenter: Segmenter, format: str, content: bytes, agreement: Agreement, *, flip: bool
) -> dict[str, Any]:
    modules = onnx_model.MODULES if format == "onnx" else ()
    return {
        "format": format,
        "latentseg": __version__,
        "torch": torch.__version__,
        **{name: version(name) for name in modules},
        "weights": segmenter.digest,
        "classes": ["background", *segmenter.classes],
        "threshold": segmenter.threshold,
        "licence": segmenter.card.get("licence", "Not stated."),
        "input": "photo: uint8 (height, width, 3), RGB, any size",
        "output": "mask: uint8 (height, width); scores: float32 (classes, height, width)",
        "flip": flip,
        "size_bytes": len(content),
        "agreement": {**asdict(agreement), "sizes": [list(size) for size in agreement.sizes]},
    }


def _files(
    segmenter: Segmenter, format: str, content: bytes, result: dict[str, Any]
) -> dict[str, bytes]:
    files = {
        _CONTENT[format]: content,
        _CARD: render_card(segmenter.config, usage=_usage(format)).encode(),
        _RECORD: (json.dumps(result, indent=2, allow_nan=False) + "\n").encode(),
    }
    if format == "onnx":
        files[_PREDICTOR] = (Path(__file__).parent / "onnx_predictor.py").read_bytes()
    return files


def _usage(format: str) -> str:
    if format == "onnx":
        return (
            "```\npip install numpy 'Pillow>=11.3' onnxruntime\n"
            f"python {_PREDICTOR} {_CONTENT[format]} photo.jpg mask.png\n```\n\n"
            "`photo` is uint8 (height, width, 3), red green blue, of any size; `mask` is uint8 "
            "(height, width), `scores` float32 (classes, height, width)."
        )
    return (
        "```python\nimport torch\n\n"
        f'segment = torch.export.load("{_CONTENT[format]}").module()\n'
        "mask, scores = segment(photo)  # uint8 (height, width, 3), red green blue, any size\n```"
    )


def _write(out: Path, files: dict[str, bytes]) -> None:
    """Replaces the content of `out`; the manifest comes last."""
    (out / MANIFEST).unlink(missing_ok=True)
    if out.exists():
        for old in out.iterdir():
            if old.name not in files:
                old.unlink()
    for name, content in files.items():
        write_bytes(out / name, content)
    write_manifest(out)
