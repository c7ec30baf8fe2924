"""A recorded segmenter as an ONNX file, in floating point or with 8-bit convolutions."""

import contextlib
import importlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from latentseg.errors import InputError
from latentseg.images import Pixels

if TYPE_CHECKING:
    import onnx

OPSET = 18
MODULES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuses to go on without the extra `export`.

    Raises:
        InputError: a module is missing or broken; the message says how to install it.
    """
    for name in MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise InputError(
                f"ONNX needs the module {name}, which cannot be imported ({error}). "
                "Run: pip install 'latentseg[export]'"
            ) from error


def to_onnx(program: torch.export.ExportedProgram) -> "onnx.ModelProto":
    """The graph `photo` (height, width, 3) uint8 to `mask` and `scores`, weights inside.

    Raises:
        InputError: an operation of the network does not exist in ONNX.
    """
    with _quiet_exporter():
        try:
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=["photo"],
                output_names=["mask", "scores"],
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise InputError(
                f"The network cannot be written as ONNX ({error}). Export it in the `format` torch."
            ) from error
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    _forget_origin(model)
    return model


def quantize(model: "onnx.ModelProto", photos: Iterable[Pixels]) -> "onnx.ModelProto":
    """Convolutions in 8 bits: weights signed, one scale per channel; activations unsigned.

    Weights use 7 bits: processors without VNNI add two products in 16 bits, which 8 would overflow.

    Args:
        model: Of `to_onnx`.
        photos: (H, W, 3) uint8 of any sizes; they show the range of each activation.

    Source: Jacob et al. 2018, as onnxruntime implements it (static, QDQ, smallest and largest).
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Calibration(quantization.CalibrationDataReader):  # it asks for this base class
        remaining = iter(photos)

        def get_next(self) -> dict[str, Pixels] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            photo = next(self.remaining, None)
            return None if photo is None else {"photo": photo}

    with tempfile.TemporaryDirectory() as folder, _quiet_exporter():
        source, folded, out = (Path(folder) / name for name in ("in.onnx", "folded.onnx", "q.onnx"))
        onnx.save(model, source)
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        quantization.quantize_static(
            folded,
            out,
            Calibration(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return onnx.load(out)


def with_metadata(model: "onnx.ModelProto", metadata: Mapping[str, str]) -> bytes:
    """The file's content, which carries `metadata`; byte-identical for equal input."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without remarks on modules that are not needed, and on how torch calls itself."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _forget_origin(model: "onnx.ModelProto") -> None:
    """Removes what the exporter notes down of Python: names of files and lines of this machine."""
    graph = model.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer, graph, model):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
    for value, first in ((graph.input[0], 0), (graph.output[0], 0), (graph.output[1], 1)):
        height, width = value.type.tensor_type.shape.dim[first : first + 2]
        height.dim_param, width.dim_param = "height", "width"
