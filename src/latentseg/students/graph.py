"""A segmenter as one program on tensors: uint8 photo of any size in, mask and scores out."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.students.segmenter import LONGEST_RATIO, Segmenter

EXAMPLE = (97, 61)  # height and width that the program is recorded with; they do not stay in it
FIXED_POINT = 2.0**22  # Pillow's scale of the weights that resize 8-bit channels


class SegmenterGraph(nn.Module):
    """What `Segmenter.predict` does, without Python and Pillow: it can be recorded as a graph.

    Args:
        segmenter: On the CPU.
        flip: Average with the mirror image.
    """

    def __init__(self, segmenter: Segmenter, *, flip: bool = False) -> None:
        super().__init__()
        self.members = segmenter.members
        self.segmenter, self.flip = segmenter, flip

    def forward(self, photo: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and scores of a photo.

        Args:
            photo: (H, W, 3) uint8.

        Returns:
            The mask (H, W) uint8, and the probability of each class (K + 1, H, W) float32.
        """
        size = photo.shape[:2]
        seen = resize(photo.permute(2, 0, 1), self._seen_size(photo))
        logits = self.segmenter.logits(seen[None] / 127.5 - 1, flip=self.flip)
        logits = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0]
        odds = (logits - logits.amax(0)).exp()  # five times as fast in onnxruntime as its softmax
        scores = odds / odds.sum(0)
        return self.segmenter.decide(scores), scores

    def _seen_size(self, photo: Tensor) -> tuple[int, int]:
        """The size at which the network sees the photo: same aspect, the segmenter's short side."""
        shorter = min(self.segmenter.input_size)
        size = torch.tensor(photo.shape[:2])
        seen = (shorter * size // size.min()).clamp(max=shorter * LONGEST_RATIO)
        height, width = seen.tolist()
        for side in (height, width):  # bounds by which the recorder decides comparisons
            torch._check(side >= shorter)
            torch._check(side <= shorter * LONGEST_RATIO)
        return height, width


def resize(channels: Tensor, size: tuple[int, int]) -> Tensor:
    """`latentseg.images.resize` as two products of matrices, equal in every bit.

    Args:
        channels: (3, H, W) uint8.
        size: (height, width) of the result.

    Returns:
        (3, height, width) float32 of whole numbers from 0 to 255.
    """
    height, width = channels.shape[-2:]
    narrowed = _rounded(channels.double() @ _weights(width, size[1]).T)
    return _rounded(_weights(height, size[0]) @ narrowed).float()


def _weights(length: int, resized: int) -> Tensor:
    """Weights of `length` pixels in each of `resized`, (resized, length) float64, fixed point.

    Source: Pillow, src/libImaging/Resample.c, triangle filter with antialiasing.
    """
    scale = torch.tensor(length, dtype=torch.float64) / resized
    reach = scale.clamp(min=1)
    centre = (torch.arange(resized, dtype=torch.float64)[:, None] + 0.5) * scale
    pixel = torch.arange(length, dtype=torch.float64)
    is_near = (pixel >= (centre - reach + 0.5).floor()) & (pixel < (centre + reach + 0.5).floor())
    weights = (1 - ((pixel - centre + 0.5) / reach).abs()).clamp(min=0) * is_near
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * FIXED_POINT + 0.5).floor()


def _rounded(products: Tensor) -> Tensor:
    return (products / FIXED_POINT + 0.5).floor().clamp(0, 255)


def record(segmenter: Segmenter, *, flip: bool = False) -> torch.export.ExportedProgram:
    """The graph of a segmenter for photos of any height and width; no Python is left in it.

    Args:
        segmenter: On the CPU.
        flip: Average with the mirror image.

    Raises:
        InputError: its network asks for the size of the photo before it computes.
    """
    photo = torch.zeros(*EXAMPLE, 3, dtype=torch.uint8)
    sides = {0: torch.export.Dim("height"), 1: torch.export.Dim("width")}
    graph = SegmenterGraph(segmenter, flip=flip).eval()
    try:
        with torch.no_grad():
            program = torch.export.export(graph, (photo,), dynamic_shapes=(sides,))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"The network {segmenter.network} with input size {segmenter.input_size}: cannot be "
            f"recorded for photos of any size ({reason}). Export a U-Net, or keep the model "
            "folder: `format` safetensors."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program
