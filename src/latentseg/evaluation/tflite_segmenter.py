"""A segmenter of another project in a TensorFlow Lite file, as something that can be measured."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from latentseg.errors import CorruptFileError, InputError
from latentseg.evaluation.tally import Scores
from latentseg.images import Pixels, resize

SUFFIX = ".tflite"


class TfliteSegmenter:
    """A network that takes an RGB image in [0, 1] and gives one map: the foreground's probability.

    The image is resized to the network's input, without keeping its aspect; the map is resized
    back, bilinearly. A file holds a graph and weights; no code in it is run.

    Args:
        path: The file: input (1, h, w, 3) float32, output (1, h, w, 1) or (1, h, w) float32.

    Raises:
        InputError: ai-edge-litert is not installed, there is no such file, or the network has other
            inputs or outputs.
        CorruptFileError: it is not a TensorFlow Lite file.
    """

    def __init__(self, path: Path | str) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise InputError(
                f"A {SUFFIX} file needs the extra `judge`, which is not installed ({error}). Run: "
                "pip install 'latentseg[judge]'"
            ) from error
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file.")
        try:
            self.network: Any = Interpreter(model_path=str(path))
            self.network.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise CorruptFileError(f"{path}: not a TensorFlow Lite file ({error}).") from error
        inputs, outputs = self.network.get_input_details(), self.network.get_output_details()
        shapes = [tuple(map(int, each["shape"])) for each in (*inputs, *outputs)]
        types = {each["dtype"] for each in (*inputs, *outputs)}
        is_known = len(shapes) == 2 and len(shapes[0]) == 4 and shapes[0][3] == 3
        if not is_known or types != {np.float32} or shapes[1][3:] not in ((), (1,)):
            raise InputError(
                f"{path}: the network has inputs and outputs {shapes}; expected an image "
                "(1, h, w, 3) in and one map (1, h, w, 1) out, both float32."
            )
        self.path, self.size = path, (shapes[0][1], shapes[0][2])
        self.input, self.output = inputs[0]["index"], outputs[0]["index"]

    def scores(self, image: Pixels) -> Scores:
        """(2, H, W): probability of the background and of the foreground in an (H, W, 3) image.

        Raises:
            InputError: the network's answer is no probability.
            CorruptFileError: the network does not run.
        """
        x = resize(image, self.size).astype(np.float32) / 255
        try:
            self.network.set_tensor(self.input, x[None])
            self.network.invoke()
        except (ValueError, RuntimeError) as error:
            raise CorruptFileError(f"{self.path}: the network does not run ({error}).") from error
        answer = self.network.get_tensor(self.output).squeeze()
        if not (answer >= 0).all() or not (answer <= 1).all():
            raise InputError(f"{self.path}: its map is no probability; expected values in [0, 1].")
        foreground = functional.interpolate(
            torch.from_numpy(answer)[None, None], size=image.shape[:2], mode="bilinear"
        )[0, 0].numpy()
        return np.stack([1 - foreground, foreground])
