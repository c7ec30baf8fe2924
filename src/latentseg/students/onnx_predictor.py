"""Masks of photos by a segmenter in ONNX: python predict.py model.onnx photo.jpg mask.png

It stands alone: numpy, Pillow (11.3 or newer) and onnxruntime are all it needs. In Python:

    from predict import Predictor, read_photo

    mask, scores = Predictor("model.onnx").predict(read_photo("photo.jpg"))
"""

import argparse
import io
import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Of all that Pillow opens: EPS, for one, would start a program. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
MAX_PIXELS = 89_000_000

Pixels = NDArray[np.uint8]
Scores = NDArray[np.float32]


class Predictor:
    """A segmenter as `latentseg export --format onnx` writes it, on the CPU.

    Args:
        model: The file, or its content.
        threads: Cores to use; 0 takes all.

    Attributes:
        classes: Names; their positions are the ids in masks, 0 is the background.
        licence: Of the weights.
        card: Where the segmenter comes from and how good it is, Markdown.

    Raises:
        ValueError: not a segmenter in ONNX.
    """

    def __init__(self, model: Path | str | bytes, *, threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Threads that spin while they wait are slow where cores are shared.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            content = model if isinstance(model, bytes) else Path(model).read_bytes()
            self._session = onnxruntime.InferenceSession(
                content, options, providers=["CPUExecutionProvider"]
            )
            described = self._session.get_modelmeta().custom_metadata_map
            self.classes = tuple(json.loads(described["classes"]))
            self.licence, self.card = described["licence"], described["card"]
            self._palette = bytes.fromhex(described["palette"])
        except OSError:
            raise
        except Exception as error:  # onnxruntime raises a dozen kinds of its own
            name = "the model" if isinstance(model, bytes) else model
            raise ValueError(f"{name}: not a segmenter in ONNX ({error}).") from error

    def predict(self, image: Pixels) -> tuple[Pixels, Scores]:
        """Mask (H, W) uint8 and class probabilities (K + 1, H, W) float32 of an image.

        Args:
            image: (H, W, 3) uint8, red green blue, upright, any size.

        Raises:
            ValueError: it is not such an image.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                f"An array of shape {image.shape} and type {image.dtype}. Expected an image "
                "(height, width, 3) of uint8, red green blue."
            )
        mask, scores = self._session.run(["mask", "scores"], {"photo": image})
        return np.asarray(mask), np.asarray(scores)

    def scores(self, image: Pixels) -> Scores:
        """Class probabilities (K + 1, H, W) of an (H, W, 3) image."""
        return self.predict(image)[1]

    def save(self, path: Path | str, mask: Pixels) -> None:
        """Writes a mask as a PNG of class ids, with a palette of colours for people.

        Raises:
            ValueError: `path` does not end with .png.
        """
        path = Path(path)
        if path.suffix.lower() != ".png":
            raise ValueError(f"{path}: masks are written as .png; others may change class ids.")
        picture = Image.fromarray(mask)
        picture.putpalette(self._palette)
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        temporary = path.with_name(f".{path.name}-{os.getpid()}.tmp")
        try:
            temporary.write_bytes(buffer.getvalue())
            os.replace(temporary, path)  # nobody sees half a mask
        finally:
            temporary.unlink(missing_ok=True)


def read_photo(path: Path | str) -> Pixels:
    """Reads a photo upright (EXIF applied), transparency laid over white.

    Of an animation the first frame is read. 16-bit grey is divided by 257.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        OSError: no such file.
        ValueError: not a picture, damaged, or larger than is safe to decode.
    """
    with open(path, "rb") as stream:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(stream, formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"more than {MAX_PIXELS} pixels")
            return _upright(picture)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises a dozen kinds
            raise ValueError(f"{path}: not a readable image ({error}).") from error


def _upright(picture: Image.Image) -> Pixels:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} are not colours")
        return np.dstack([(values / 257).round().astype(np.uint8)] * 3)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def main() -> None:
    """The command line; exit 1 with a sentence if something is wrong."""
    parser = argparse.ArgumentParser(description="The mask of a photo.")
    parser.add_argument("model", help="model.onnx")
    parser.add_argument("photo", help="any picture")
    parser.add_argument("mask", help="PNG to write: class ids, 0 is the background")
    arguments = parser.parse_args()
    try:
        predictor = Predictor(arguments.model)
        mask, _ = predictor.predict(read_photo(arguments.photo))
        predictor.save(arguments.mask, mask)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
