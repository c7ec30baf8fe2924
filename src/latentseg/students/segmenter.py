"""A trained student with its preprocessing: photo in, mask out."""

import difflib
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from latentseg.devices import pick_device
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    MANIFEST,
    check_keys,
    read_json,
    read_safetensors,
    remove_leftovers,
    verify_manifest,
    write_json,
    write_manifest,
    write_safetensors,
    write_text,
)
from latentseg.images import (
    Pixels,
    cut_out,
    encode,
    overlay,
    read_image,
    resize,
    to_image,
    to_tensor,
    write_mask,
)
from latentseg.students import hub
from latentseg.students.edges import as_probabilities, check_radius, gray, guided_lines
from latentseg.students.model_card import check_card, html_card, render_card, usage_of
from latentseg.students.networks import build_network
from latentseg.students.tiling import OVERLAP, blend, by_strips, check_tiling, upscale
from latentseg.version import __version__

ASSETS = Path(__file__).parent / "assets"
FORMAT = 1
WHOLE = (1.0,)  # scales: a photo at the input size only
SCALES = (0.25, 4.0)  # the least and the largest that make sense
LONGEST_RATIO = 16  # of the sides, as the network sees a photo: a 1 x 100 000 strip is squeezed
MAX_BATCH = 32
MAX_BATCH_PIXELS = 2**19  # 32 pictures of 128 px, 2 of 512 px
_FILES = _CONFIG, _WEIGHTS, _CARD = "config.json", "model.safetensors", "README.md"
_NORMALISATION = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}  # uint8 / 255 to [-1, 1]

Photo = Path | str | Image.Image | Pixels | Tensor
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What a segmenter sees in one photo.

    Attributes:
        mask: (H, W) uint8, 0 background, 1..K classes.
        scores: (K + 1, H, W) float32, the probability of each class; sums to 1 over the classes.
        image: The photo, upright, (H, W, 3) uint8.
    """

    mask: Pixels
    scores: Scores
    image: Pixels

    def save(self, path: Path | str) -> None:
        """Writes the mask as a PNG of class ids, with a palette of colors for people."""
        write_mask(path, self.mask)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return f"Prediction({height} x {width} px, {(self.mask > 0).mean():.0%} foreground)"

    def _repr_png_(self) -> bytes:
        """The overlay, which a notebook shows."""
        return encode(self.overlay())

    def overlay(self) -> Pixels:
        """(H, W, 3) uint8: the classes in color over the photo."""
        return by_strips(overlay, self.image, self.mask)

    def cut_out(self) -> Pixels:
        """(H, W, 4) uint8: the foreground of the photo, transparent elsewhere."""
        return by_strips(cut_out, self.image, self.mask)


@dataclass(frozen=True)
class View:
    """A photo as the networks see it.

    Attributes:
        picture: (h, w, 3) uint8, scaled.
        size: (H, W) of the photo.
        overlap: Of the windows in which the picture is seen; None if it is seen whole.
        guide: The photo, whose edges masks shall follow; None: they need not.
        edges: Within how many pixels of `picture`.
    """

    picture: Pixels
    size: tuple[int, int]
    overlap: float | None = None
    guide: Pixels | None = None
    edges: int | None = None


class Segmenter:
    """Networks that answer together, with all that is needed to give them photos of any size.

    A photo is scaled until its shorter side is that of `input_size`; the logits are scaled back to
    the photo, bilinearly; then softmax. Several networks, and mirror images, are averaged as
    probabilities.

    Large photos with small objects can be tiled: scaled by less, and seen in overlapping windows of
    the size that the networks were trained on, whose probabilities are blended. It is done on
    demand only, as a student that learnt whole objects mostly finds nothing in a part of one.

    Args:
        members: One network, or the networks of an ensemble, all built by
            `build_network(network, len(classes) + 1, width=width)`.
        classes: Names, without the background.
        input_size: (height, width) of the pictures that the networks were trained on.
        network: Name of the networks.
        width: Their width factor.
        threshold: With one class, a pixel is foreground where its probability is above this.
        card: Where the segmenter comes from; see `model_card.FIELDS`.

    Raises:
        InputError: no members, no classes, or an unknown field in the card.
    """

    def __init__(
        self,
        members: Sequence[nn.Module],
        *,
        classes: Sequence[str],
        input_size: tuple[int, int],
        network: str = "unet",
        width: float = 1.0,
        threshold: float = 0.5,
        card: Mapping[str, Any] | None = None,
    ) -> None:
        if not members or not classes:
            raise InputError("A segmenter needs at least one network and one class.")
        self.members = nn.ModuleList(members).eval().requires_grad_(False)
        self.members.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.classes, self.input_size = tuple(classes), (input_size[0], input_size[1])
        self.network, self.width, self.threshold = network, width, threshold
        self.card: dict[str, Any] = dict(card or {})
        check_card(self.card)

    def __repr__(self) -> str:
        height, width = self.input_size
        return (
            f"Segmenter({self.card.get('name', 'unnamed')}: {', '.join(self.classes)}; "
            f"{self.network}, {height} x {width} px, {self.device})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: what it finds, what it is, how good it was on real photos."""
        return html_card(self.config)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.members.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights; returns the segmenter itself."""
        self.members.to(device)
        return self

    def with_members(
        self,
        members: Sequence[nn.Module],
        *,
        threshold: float | None = None,
        card: Mapping[str, Any] | None = None,
    ) -> "Segmenter":
        """Another segmenter of networks of the same kind; threshold and card are its own if None.

        Its members are made ready for answering only: they are no longer trained.
        """
        return Segmenter(
            members,
            classes=self.classes,
            input_size=self.input_size,
            network=self.network,
            width=self.width,
            threshold=self.threshold if threshold is None else threshold,
            card=self.card if card is None else card,
        )

    @property
    def digest(self) -> str:
        """The sha256 of the weights in memory, as 64 hexadecimal digits."""
        hashed = sha256()
        for name, tensor in self.members.state_dict().items():
            hashed.update(name.encode())
            hashed.update(tensor.cpu().contiguous().numpy().tobytes())
        return hashed.hexdigest()

    @property
    def config(self) -> dict[str, Any]:
        """All but the weights, as JSON values: the config.json of its folder."""
        return {
            "format": FORMAT,
            "latentseg": __version__,
            "network": self.network,
            "width": self.width,
            "members": len(self.members),
            "classes": list(self.classes),
            "input_size": list(self.input_size),
            **_NORMALISATION,
            "threshold": self.threshold,
            "card": self.card,
        }

    @torch.inference_mode()
    def logits(self, x: Tensor, *, flip: bool = False, scales: Sequence[float] = WHOLE) -> Tensor:
        """Logits of images, averaged as probabilities over the members.

        Args:
            x: (B, 3, H, W) float32 in [-1, 1], any size, on the segmenter's device.
            flip: Average with the answer to the mirror images, too.
            scales: Average over the images at these multiples of their size.

        Returns:
            (B, K + 1, H, W) float32: log probabilities.

        Raises:
            InputError: no scale, or one that is not in [0.25, 4].
        """
        check_scales(scales)
        answers = [answer for scale in scales for answer in self._seen_at(scale, x, flip)]
        log_probabilities = torch.stack([a.float().log_softmax(1) for a in answers])
        return log_probabilities.logsumexp(0) - math.log(len(answers))

    def _seen_at(self, scale: float, x: Tensor, flip: bool) -> list[Tensor]:
        """The answers (B, K + 1, H, W) of each member to images that are scaled for it."""
        size, whole = x.shape[-2:], scale == 1
        if not whole:
            scaled = [max(1, round(side * scale)) for side in size]
            x = functional.interpolate(x, size=scaled, mode="bilinear", antialias=True)
        x = x.contiguous(memory_format=torch.channels_last)
        answers = [member(x) for member in self.members]
        if flip:
            mirrored = x.flip(-1)
            answers += [member(mirrored).flip(-1) for member in self.members]
        if whole:
            return answers
        return [functional.interpolate(a.float(), size=size, mode="bilinear") for a in answers]

    def with_options(
        self, *, flip: bool = False, scales: Sequence[float] = WHOLE, edges: int | None = None
    ) -> "SegmenterWithOptions":
        """The same segmenter, which always answers with these options of `predict`."""
        return SegmenterWithOptions(self, flip=flip, scales=tuple(scales), edges=edges)

    def scores(
        self,
        image: Pixels,
        *,
        flip: bool = False,
        scales: Sequence[float] = WHOLE,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> Scores:
        """Class probabilities (K + 1, H, W) float32 of an (H, W, 3) uint8 image, at its size."""
        return self.scores_batch(
            [image], flip=flip, scales=scales, edges=edges, tile=tile, tile_overlap=tile_overlap
        )[0]

    def scores_batch(
        self,
        images: Sequence[Pixels],
        *,
        flip: bool = False,
        scales: Sequence[float] = WHOLE,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> list[Scores]:
        """The scores of each image, as `scores` gives them; images seen equally large go together.

        Raises:
            InputError: something is not an (H, W, 3) uint8 image, or as in `check_tiling`.
        """
        views = [
            self.view(image, edges=edges, tile=tile, tile_overlap=tile_overlap) for image in images
        ]
        scores = [np.empty((len(self.classes) + 1, *view.size), np.float32) for view in views]
        for index, strips in self.strips(views, flip=flip, scales=scales):
            top = 0
            for strip in strips:
                scores[index][:, top : top + strip.shape[1]] = strip.cpu().numpy()
                top += strip.shape[1]
        return scores

    @overload
    def predict(
        self,
        photo: Photo,
        *,
        flip: bool = False,
        scales: Sequence[float] = WHOLE,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> Prediction: ...
    @overload
    def predict(
        self,
        photo: Sequence[Photo],
        *,
        flip: bool = False,
        scales: Sequence[float] = WHOLE,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> list[Prediction]: ...
    def predict(
        self,
        photo: Photo | Sequence[Photo],
        *,
        flip: bool = False,
        scales: Sequence[float] = WHOLE,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> Prediction | list[Prediction]:
        """The mask of a photo, or of each photo of a sequence.

        Args:
            photo: A path, a PIL image, an (H, W, 3) uint8 array, or a (3, H, W) uint8 tensor, of
                any size; or several.
            flip: Average with the mirror image: a little better, twice the time.
            scales: Average over the photo seen at these multiples of the input size.
            edges: Let masks end where the brightness of the photo changes, within this many pixels
                as the networks see the photo; see `edges.guided_lines`.
            tile: Side in photo pixels of the windows in which a photo is seen whose shorter side is
                longer; about the size of an object with its surroundings. None: seen whole.
            tile_overlap: Share of a window that its neighbour shows again, from 0 to 0.9.

        Raises:
            InputError: no such file, an array or a tensor that is not such an image, scales or
                edges out of range, or windows smaller than what the networks were trained on.
            CorruptFileError: a file cannot be decoded.
        """
        is_one = isinstance(photo, Path | str | Image.Image | np.ndarray | Tensor)
        images = [_read(one) for one in ([photo] if is_one else photo)]
        scores = self.scores_batch(
            images, flip=flip, scales=scales, edges=edges, tile=tile, tile_overlap=tile_overlap
        )
        predictions = [
            Prediction(self.decide(torch.from_numpy(s)).numpy(), s, image)
            for s, image in zip(scores, images, strict=True)
        ]
        return predictions[0] if is_one else predictions

    def view(
        self,
        image: Pixels,
        *,
        edges: int | None = None,
        tile: int | None = None,
        tile_overlap: float = OVERLAP,
    ) -> View:
        """An (H, W, 3) uint8 image as the networks see it; for `strips`.

        Raises:
            InputError: not such an image, or as in `check_tiling` and `check_radius`.
        """
        _check_image(image)
        check_radius(edges)
        side = min(self.input_size)
        check_tiling(tile, tile_overlap, side)
        height, width = image.shape[:2]
        if tile is None or min(height, width) <= tile:
            scaled, overlap = _input_size((height, width), side), None
        else:
            scaled = (round(height * side / tile), round(width * side / tile))
            overlap = tile_overlap
        guide = None if edges is None else image
        return View(resize(image, scaled), (height, width), overlap, guide, edges)

    def strips(
        self, views: Sequence[View], *, flip: bool = False, scales: Sequence[float] = WHOLE
    ) -> Iterator[tuple[int, Iterator[Tensor]]]:
        """Class probabilities of photos, never in memory as a whole.

        Args:
            views: Of `view`; those of equally large pictures go through the networks together.
            flip: Average with the mirror images.
            scales: Average over the pictures at these multiples of their size.

        Yields:
            The index of a view, each once, in any order; and the probabilities (K + 1, n, W)
            float32 of the photo from top to bottom, on the segmenter's device.
        """
        alike: dict[tuple[int, ...], list[int]] = {}
        for index, view in enumerate(views):
            if view.overlap is None:
                alike.setdefault(view.picture.shape, []).append(index)
            else:
                bands = blend(
                    view.picture,
                    lambda windows: self._answers(windows, flip, scales),
                    side=min(self.input_size),
                    overlap=view.overlap,
                )
                yield index, _strips(bands, view)
        for indices in alike.values():
            answers = self._answers([views[i].picture for i in indices], flip, scales)
            for index, answer in zip(indices, answers, strict=True):
                yield index, _strips([answer], views[index])

    def decide(self, scores: Tensor) -> Tensor:
        """Probabilities (K + 1, H, W) to class ids (H, W) uint8, by threshold or by the largest."""
        if len(self.classes) == 1:
            return (scores[1] > self.threshold).byte()
        return scores.argmax(0).byte()

    def save(
        self, folder: Path | str, *, card: Mapping[str, Any] | None = None, half: bool = False
    ) -> None:
        """Writes config.json, model.safetensors, README.md and MANIFEST.json into `folder`.

        Args:
            folder: New or empty, or a segmenter's, which is replaced.
            card: Replaces the segmenter's own card.
            half: Store the weights of convolutions in half precision: half the size on disk.

        Raises:
            InputError: the folder holds other files, or the card has an unknown field.
        """
        folder, card = Path(folder), dict(self.card if card is None else card)
        check_card(card)
        ours = {*_FILES, MANIFEST}
        remove_leftovers(folder)
        if folder.exists() and not {path.name for path in folder.iterdir()} <= ours:
            raise InputError(
                f"{folder}: holds files that are not a segmenter's. Choose another folder."
            )
        (folder / MANIFEST).unlink(missing_ok=True)
        config = {**self.config, "card": card}
        write_json(folder / _CONFIG, config)
        write_safetensors(folder / _WEIGHTS, _stored(self.members.state_dict(), half=half))
        write_text(folder / _CARD, render_card(config))
        write_manifest(folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | None = None,
        private: bool = False,
        card: Mapping[str, Any] | None = None,
    ) -> str:
        """Puts the segmenter on the Hugging Face Hub, where `from_pretrained(repo_id)` finds it.

        Args:
            repo_id: "user/name"; made if missing.
            token: That may write; by default the one of `hf auth login`.
            private: Only for those who may read the repository, if it is made now.
            card: Replaces the segmenter's own card.

        Returns:
            The address of the commit.

        Raises:
            InputError: the card has an unknown field, the Hub refused, or there is no network.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder, card=card)
            config = read_json(Path(folder) / _CONFIG)
            write_text(Path(folder) / _CARD, render_card(config, usage=usage_of(repo_id)))
            write_manifest(folder)
            return hub.push(Path(folder), repo_id, token=token, private=private)

    @classmethod
    def from_pretrained(
        cls, name: Path | str, *, device: str = "auto", revision: str | None = None
    ) -> Self:
        """Loads a segmenter; no code of the folder is run, and every file is verified.

        Args:
            name: A bundled segmenter, for example "pets64"; the folder of a segmenter; the run
                folder that holds it; or, if there is no such folder, "user/name" on the Hugging
                Face Hub. A folder that is called like a bundled one: "./pets64".
            device: "auto", "cpu", "cuda", "mps".
            revision: Branch, tag or commit of a repository on the Hub; by default the newest.

        Raises:
            InputError: no such segmenter; the nearest names are given.
            CorruptFileError: a file is damaged, or the weights do not fit the configuration.
        """
        if hub.is_repository(name):
            folder = hub.fetch(str(name), (*_FILES, MANIFEST), revision=revision)
        else:
            folder = _find(name)
        verify_manifest(folder)
        config = _read_config(folder / _CONFIG)
        segmenter = cls(
            _build_members(config),
            classes=config["classes"],
            input_size=(config["input_size"][0], config["input_size"][1]),
            network=config["network"],
            width=config["width"],
            threshold=config["threshold"],
            card=config["card"],
        )
        segmenter._load_weights(folder / _WEIGHTS)
        return segmenter.to(pick_device(device))

    def _load_weights(self, path: Path) -> None:
        tensors = read_safetensors(path)
        expected = self.members.state_dict()
        wrong = sorted(expected.keys() ^ tensors.keys())
        wrong += [
            n for n in expected.keys() & tensors.keys() if expected[n].shape != tensors[n].shape
        ]
        if wrong:
            raise CorruptFileError(
                f"{path}: {len(wrong)} tensors do not fit {self.network} of width {self.width:g}, "
                f"first {wrong[0]!r}. {_CONFIG} and {_WEIGHTS} belong to different segmenters."
            )
        if broken := [name for name in sorted(tensors) if not tensors[name].isfinite().all()]:
            raise CorruptFileError(
                f"{path}: {len(broken)} tensors hold NaN or infinity, first {broken[0]!r}. "
                "Take the segmenter of another training."
            )
        self.members.load_state_dict(tensors)

    def _answers(
        self, pictures: Sequence[Pixels], flip: bool, scales: Sequence[float]
    ) -> Iterator[Tensor]:
        """Logits (K + 1, h, w) of pictures of one size, as many at a time as memory bears."""
        height, width = pictures[0].shape[:2]
        batch = min(MAX_BATCH, max(1, MAX_BATCH_PIXELS // (height * width)))
        for start in range(0, len(pictures), batch):
            x = to_tensor(np.stack(pictures[start : start + batch]))
            yield from self.logits(x.to(self.device), flip=flip, scales=scales)


@dataclass(frozen=True)
class SegmenterWithOptions:
    """Scores photos by a segmenter with options of `Segmenter.predict`, as `evaluate` takes it."""

    segmenter: Segmenter
    flip: bool = False
    scales: tuple[float, ...] = WHOLE
    edges: int | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, without the background."""
        return self.segmenter.classes

    def scores(self, image: Pixels) -> Scores:
        """Class probabilities (K + 1, H, W) of an (H, W, 3) image."""
        return self.scores_batch([image])[0]

    def scores_batch(self, images: Sequence[Pixels]) -> list[Scores]:
        """The scores of each image."""
        return self.segmenter.scores_batch(
            images, flip=self.flip, scales=self.scales, edges=self.edges
        )


def ensemble(
    segmenters: Sequence[Segmenter], *, card: Mapping[str, Any] | None = None
) -> Segmenter:
    """One segmenter that averages the probabilities of several, on the device of the first.

    Args:
        segmenters: Of equal classes, input size and network.
        card: Of the new segmenter; by default that of the first, without its results.

    Raises:
        InputError: they differ, or there are none; the fields that differ are named.
    """
    if not segmenters:
        raise InputError("An ensemble of no segmenters. Give at least one.")
    first = segmenters[0]
    for other in segmenters[1:]:
        for field in ("classes", "input_size", "network", "width"):
            mine, its = getattr(first, field), getattr(other, field)
            if mine != its:
                raise InputError(
                    f"An ensemble of segmenters that differ in {field}: {mine} and {its}."
                )
    if card is None:
        card = {name: value for name, value in first.card.items() if name != "results"}
    members = [member.to(first.device) for one in segmenters for member in one.members]
    return first.with_members(members, card=card)


def list_segmenters() -> list[str]:
    """Names of the bundled segmenters."""
    return sorted(path.parent.name for path in ASSETS.glob(f"*/{MANIFEST}"))


def _find(name: Path | str) -> Path:
    if str(name) in list_segmenters():
        return ASSETS / str(name)
    folder = Path(name)
    if (folder / "model" / _CONFIG).is_file():
        return folder / "model"
    if (folder / _CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise InputError(
            f"{name}: no segmenter in this folder (no {_CONFIG}, no model/{_CONFIG}). "
            "An unfinished training continues when its command is given again."
        )
    bundled = list_segmenters()
    near = difflib.get_close_matches(str(name), bundled, n=3, cutoff=0.4) or bundled
    hint = f" Bundled: {', '.join(near)}." if near else ""
    raise InputError(f"{name}: no segmenter and no folder has this name.{hint}")


def _read_config(path: Path) -> dict[str, Any]:
    """The configuration of a saved segmenter, with every field checked."""
    config = read_json(path)
    kinds: dict[str, type | tuple[type, ...]] = {
        "format": int,
        "latentseg": str,
        "network": str,
        "width": (int, float),
        "members": int,
        "classes": list,
        "input_size": list,
        "mean": list,
        "std": list,
        "threshold": (int, float),
        "card": dict,
    }
    if not isinstance(config, dict):
        raise CorruptFileError(f"{path}: not the configuration of a segmenter.")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {config.get('format')}; this is latentseg {__version__}, "
            f"which reads format {FORMAT}. Install version {config.get('latentseg')}."
        )
    check_keys(config, set(kinds), path)
    for name, kind in kinds.items():
        if not isinstance(config.get(name), kind):
            raise CorruptFileError(f"{path}: field {name!r} is {config.get(name)!r}.")
    sides = config["input_size"]
    if len(sides) != 2 or not all(isinstance(side, int) and 1 <= side <= 4096 for side in sides):
        raise CorruptFileError(f"{path}: 'input_size' is {sides}; expected [height, width].")
    if not config["classes"] or not all(isinstance(name, str) for name in config["classes"]):
        raise CorruptFileError(f"{path}: 'classes' is {config['classes']}; expected names.")
    if not 1 <= config["members"] <= 64:
        raise CorruptFileError(f"{path}: 'members' is {config['members']}; expected 1 to 64.")
    if {name: config[name] for name in _NORMALISATION} != _NORMALISATION:
        raise InputError(f"{path}: only mean and std of 0.5 are known.")
    return config


def _build_members(config: dict[str, Any]) -> list[nn.Module]:
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are replaced
        return [
            build_network(config["network"], len(config["classes"]) + 1, width=config["width"])
            for _ in range(config["members"])
        ]


def _stored(tensors: Mapping[str, Tensor], *, half: bool) -> dict[str, Tensor]:
    """Tensors as they are written; biases and normalisation keep their precision and range."""
    return {
        name: tensor.half() if half and tensor.ndim > 1 else tensor
        for name, tensor in tensors.items()
    }


def _input_size(size: tuple[int, ...], shorter: int) -> tuple[int, int]:
    """The size at which the network sees a photo of `size`: same aspect, given shorter side.

    >>> _input_size((480, 640), 64), _input_size((1, 100_000), 64)
    ((64, 85), (64, 1024))
    """
    height, width = size
    longer = min(shorter * max(size) // min(size), shorter * LONGEST_RATIO)
    return (shorter, longer) if height <= width else (longer, shorter)


def _strips(bands: Iterable[Tensor], view: View) -> Iterator[Tensor]:
    """Probabilities at the size of the photo: logits are upscaled, then softmax."""
    if view.guide is not None and view.edges is not None:
        yield from _guided_strips(bands, view, view.guide, view.edges)
        return
    for strip in upscale(bands, len(view.picture), view.size):
        yield strip.softmax(0)


def _guided_strips(
    bands: Iterable[Tensor], view: View, photo: Pixels, radius: int
) -> Iterator[Tensor]:
    """The same with the edges of the photo: the lines of the guided filter are upscaled."""
    probabilities = torch.cat(list(bands), dim=1).softmax(0)
    guide = gray(to_tensor(view.picture).to(probabilities.device))
    slope, offset = guided_lines(guide[None], probabilities[None], radius=radius)
    lines, top = torch.cat([slope[0], offset[0]]), 0
    for strip in upscale([lines], len(view.picture), view.size):
        rows = photo[top : top + strip.shape[1]]
        slope, offset = strip.chunk(2)
        yield as_probabilities(slope * gray(to_tensor(rows).to(strip.device)) + offset)
        top += len(rows)


def _read(photo: Photo) -> Pixels:
    if isinstance(photo, Path | str):
        return read_image(photo)
    if isinstance(photo, Image.Image):
        return to_image(photo)
    if isinstance(photo, Tensor):
        return _from_tensor(photo)
    _check_image(photo)
    return photo


def _check_image(image: Pixels) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InputError(
            f"An array of shape {image.shape} and type {image.dtype}. Expected an image "
            "(height, width, 3) of uint8, red green blue."
        )


def _from_tensor(photo: Tensor) -> Pixels:
    """A (3, H, W) uint8 tensor, as torchvision reads a photo, as an image."""
    if photo.dtype != torch.uint8 or photo.ndim != 3 or len(photo) != 3 or 0 in photo.shape:
        raise InputError(
            f"A tensor of shape {tuple(photo.shape)} and type {photo.dtype}. Expected a photo "
            "(3, height, width) of torch.uint8, red green blue. Scale floating-point colors to "
            "0..255 and round them; give several photos as a list."
        )
    return np.ascontiguousarray(photo.movedim(0, -1).cpu().numpy())


def check_scales(scales: Sequence[float]) -> None:
    """Refuses scales at which nothing is seen.

    Raises:
        InputError: `scales` is empty, or holds one that is not in `SCALES`.
    """
    if not scales or not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
        raise InputError(
            f"`scales`: expected one or more from {SCALES[0]:g} to {SCALES[1]:g}, found "
            f"{', '.join(f'{scale:g}' for scale in scales) or 'none'}."
        )
