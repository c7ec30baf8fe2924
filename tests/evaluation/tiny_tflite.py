"""TensorFlow Lite files of one convolution and a logistic, written field by field."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

CONV_2D, LOGISTIC = 3, 14  # BuiltinOperator of schema.fbs
CONV_OPTIONS = 1  # BuiltinOptions
UOFFSET, INT32, BYTE = 4, 4, 1


class _Writer:
    """A flatbuffer under construction: tables by the numbers of their fields."""

    def __init__(self) -> None:
        import flatbuffers

        self.b = flatbuffers.Builder(0)

    def table(self, n_fields: int, **fields: tuple[str, int]) -> int:
        """A table; field 3 is `f3=("Int32", 7)`, or ("UOffset", offset) if it points."""
        self.b.StartObject(n_fields)
        for name, (kind, value) in fields.items():
            slot = int(name[1:])
            if kind == "UOffset":
                self.b.PrependUOffsetTRelativeSlot(slot, value, 0)
            else:
                getattr(self.b, f"Prepend{kind}Slot")(slot, value, None)
        return self.b.EndObject()

    def tables(self, offsets: Sequence[int]) -> int:
        self.b.StartVector(UOFFSET, len(offsets), UOFFSET)
        for offset in reversed(offsets):
            self.b.PrependUOffsetTRelative(offset)
        return self.b.EndVector()

    def integers(self, values: Sequence[int]) -> int:
        return self.b.CreateNumpyVector(np.array(values, np.int32))

    def bytes(self, content: bytes) -> int:
        return self.b.CreateNumpyVector(np.frombuffer(content, np.uint8))


def write_tflite(
    path: Path, weights: Sequence[float], bias: float, *, size: int = 8, is_probability: bool = True
) -> Path:
    """Writes a network of `size` px: the logistic of each pixel's weighted channels.

    Args:
        path: The file.
        weights: Of the channels, as many as the input has.
        bias: Added to their sum.
        size: Height and width of its input.
        is_probability: Ends in the logistic; otherwise in the sum.
    """
    w, channels = _Writer(), len(weights)
    contents = [
        np.array(weights, np.float32).tobytes(),
        np.array([bias], np.float32).tobytes(),
    ]
    filled = [w.bytes(content) for content in contents]
    buffers = w.tables([w.table(1), *(w.table(1, f0=("UOffset", data)) for data in filled)])
    pixels = (1, size, size)
    shapes = [(*pixels, channels), (1, 1, 1, channels), (1,), (*pixels, 1), (*pixels, 1)]
    of_buffers = [0, 1, 2, 0, 0]
    tensors = []
    for shape, buffer in zip(shapes, of_buffers, strict=True):
        dimensions = w.integers(shape)
        tensors.append(w.table(4, f0=("UOffset", dimensions), f2=("Uint32", buffer)))
    options = w.table(4, f1=("Int32", 1), f2=("Int32", 1))
    ends = [w.integers(ids) for ids in ((0, 1, 2), (3,), (3,), (4,))]
    conv = w.table(
        5,
        f0=("Uint32", 0),
        f1=("UOffset", ends[0]),
        f2=("UOffset", ends[1]),
        f3=("Uint8", CONV_OPTIONS),
        f4=("UOffset", options),
    )
    logistic = w.table(5, f0=("Uint32", 1), f1=("UOffset", ends[2]), f2=("UOffset", ends[3]))
    operators = w.tables([conv, logistic] if is_probability else [conv])
    inputs, outputs = w.integers([0]), w.integers([4 if is_probability else 3])
    listed = w.tables(tensors)
    graph = w.table(
        5,
        f0=("UOffset", listed),
        f1=("UOffset", inputs),
        f2=("UOffset", outputs),
        f3=("UOffset", operators),
    )
    codes = w.tables(
        [
            w.table(4, f0=("Int8", code), f2=("Int32", 1), f3=("Int32", code))
            for code in (CONV_2D, LOGISTIC)
        ]
    )
    graphs = w.tables([graph])
    model = w.table(
        5,
        f0=("Uint32", 3),
        f1=("UOffset", codes),
        f2=("UOffset", graphs),
        f4=("UOffset", buffers),
    )
    w.b.Finish(model, file_identifier=b"TFL3")
    path.write_bytes(bytes(w.b.Output()))
    return path
