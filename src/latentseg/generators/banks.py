"""Banks: stored latents, such as those of photos, that are drawn instead of a generator's own.

Source: Voynov et al. 2021, "Object Segmentation Without Labels with Large-Scale Generative Models":
E-BigBiGAN draws the embeddings of photos, with a little noise.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json, verify_manifest
from latentseg.generators.arrays import read_array, read_arrays

LATENTS, LABELS = "latents", "labels"  # names of the arrays in a file that has both
INVERTED, INVERSIONS = "latents.npy", "inversions.json"  # of `latentseg.inversion.folder.invert`


@dataclass(frozen=True)
class Bank:
    """Latents to draw from, all equally often.

    Attributes:
        latents: (N, *latent) float32 on the CPU, finite.
        labels: (N,) int64, the class of each; None: classes are drawn as without a bank.
        noise: Normal noise that is added to what is drawn, in units of the generator's `shift`.
        source: Where they come from, for messages.

    Raises:
        InputError: there are none, they are not finite, or noise or labels do not fit.
    """

    latents: Tensor
    labels: Tensor | None = None
    noise: float = 0.0
    source: str = "latents"

    def __post_init__(self) -> None:
        shape = tuple(self.latents.shape)
        if len(shape) < 2 or not self.latents.numel() or not self.latents.isfinite().all():
            raise InputError(
                f"{self.source}: has shape {shape}; expected finite numbers in (N, ...), one "
                "latent in each row."
            )
        if self.labels is not None and self.labels.shape != shape[:1]:
            raise InputError(
                f"{self.source}: labels of shape {tuple(self.labels.shape)}; expected "
                f"({shape[0]},), one for each latent."
            )
        if not 0 <= self.noise < math.inf:
            raise InputError(f"`latent_noise`: expected at least 0, found {self.noise}.")

    @property
    def description(self) -> str:
        """What tells this distribution from another: the numbers, wherever they lie, and noise."""
        digest = hashlib.sha256(repr(tuple(self.latents.shape)).encode())
        for tensor in (self.latents, self.labels):
            digest.update(b"" if tensor is None else tensor.contiguous().numpy().tobytes())
        return f"{len(self.latents)} latents, sha256 {digest.hexdigest()}, noise {self.noise}"

    def check(self, generator: str, shapes: Sequence[tuple[int, ...]], n_classes: int) -> None:
        """Raises `InputError` unless `generator` draws them: latents of `shapes`, `n_classes`."""
        if tuple(self.latents.shape[1:]) not in shapes:
            expected = " or ".join(f"(N, {', '.join(map(str, shape))})" for shape in shapes)
            raise InputError(
                f"{self.source}: has shape {tuple(self.latents.shape)}; generator {generator!r} "
                f"takes {expected}."
            )
        if self.labels is not None and not ((self.labels >= 0) & (self.labels < n_classes)).all():
            known = f"0 to {n_classes - 1}" if n_classes else "none: it is unconditional"
            raise InputError(
                f"{self.source}: has labels {int(self.labels.min())} to {int(self.labels.max())}; "
                f"the classes of generator {generator!r} are {known}."
            )

    def of_classes(self, classes: tuple[int, ...]) -> "Bank":
        """Only the latents of `classes`; all of them if that is () or they have no labels.

        Raises:
            InputError: there are none.
        """
        if self.labels is None or not classes:
            return self
        is_kept = torch.isin(self.labels, torch.tensor(classes))
        if not is_kept.any():
            raise InputError(f"{self.source}: has no latent of the classes {list(classes)}.")
        return Bank(self.latents[is_kept], self.labels[is_kept], self.noise, self.source)


def read_bank(path: Path | str, *, noise: float = 0.0) -> Bank:
    """Reads the latents of photos; nothing in the file is run.

    Args:
        path: A .npy file; a .npz or safetensors file with one array, or with two, "latents" and
            "labels"; or a folder of `latentseg invert`, whose latents have the labels with which
            they were found.
        noise: Of the bank.

    Raises:
        InputError: there is no such file, or it holds something else.
        CorruptFileError: it is damaged, or has numbers that are not finite.
    """
    path = Path(path)
    if path.is_dir():
        return _read_inverted(path, noise)
    arrays = read_arrays(path)
    labels = arrays.pop(LABELS, None) if LATENTS in arrays else None
    if len(arrays) != 1:
        raise InputError(
            f"{path}: {len(arrays)} arrays in it; expected one, or {LATENTS!r} and {LABELS!r}."
        )
    if labels is not None and not torch.equal(labels, labels.round()):
        raise InputError(f"{path}: labels must be whole numbers.")
    (latents,) = arrays.values()
    return Bank(latents, None if labels is None else labels.long(), noise, str(path))


def _read_inverted(folder: Path, noise: float) -> Bank:
    if not (folder / INVERTED).is_file():
        raise InputError(f"{folder}: not a folder of `latentseg invert`: no {INVERTED} in it.")
    verify_manifest(folder)
    latents = read_array(folder / INVERTED)
    try:
        labels = [photo["label"] for photo in read_json(folder / INVERSIONS)["photos"]]
        known = None if set(labels) == {None} else torch.tensor(labels, dtype=torch.int64)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise CorruptFileError(f"{folder / INVERSIONS}: not a record of inversions.") from error
    return Bank(latents, known, noise, str(folder / INVERTED))
