"""Few-shot parts (Tritrong 2021): one to ten painted images teach a head on generator features."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    MANIFEST,
    check_keys,
    claim,
    locked,
    read_json,
    read_safetensors,
    write_json,
    write_manifest,
    write_safetensors,
)
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import (
    IGNORE,
    Pixels,
    overlay,
    read_image,
    read_mask,
    resize_mask,
    to_pixels,
    write_image,
)
from latentseg.images import contact_sheet as compose
from latentseg.labelers.descriptions import DESCRIPTION, read_description
from latentseg.labelers.features import GIB, Hypercolumns, Resize, check_features
from latentseg.labelers.head_training import (
    BRYANDLEE,
    DATASETGAN,
    OFFICIAL,
    OURS,
    HeadTrainConfig,
    HeadTraining,
    PaintedFeatures,
)
from latentseg.labelers.heads import (
    Ensemble,
    build_heads,
    class_probabilities,
    entropy,
    head_kind,
    jensen_shannon,
)
from latentseg.labelers.overview import sample_counts
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.refinement import area_share, first_refusal
from latentseg.progress import say
from latentseg.seeds import derive_seeds
from latentseg.training_states import Checkpoints

FORMAT = 1
PAINTING = "painting.json"
PAINTING_FORMAT = 1
WEIGHTS = "head.safetensors"
FILTERS = ("area", "confidence", "uncertainty")
OWN = 1  # keeps the latents on which a labeler is judged apart from others of the same seed
JUDGED = 128  # samples whose most uncertain ones set the limit
SHOWN, SHEET_COLUMNS, LEAST_CELL_PX = 64, 8, 96
SAME_IMAGE = 2.0  # mean difference of pixel values that rounding on another device may cause
UNSURE_SHARE = 0.1  # DatasetGAN: of the pixels, the least sure of which tell how sure an image is
AT_ONCE = 8  # images per pass, where memory allows


@dataclass(frozen=True)
class FewShotConfig:
    """Which head is taught, on which features, and which samples are kept.

    Attributes:
        head: Of `HEADS`.
        training: How it is taught.
        resize: How maps are enlarged; see `Resizing`.
        size: (height, width) of the hypercolumns; None: that of the images.
        layers: The maps that are used; None: all.
        max_uncertainty_share: The worst share of samples, by uncertainty, that is refused; the
            limit is set once, on samples of the labeler's own. 0: none.
        min_confidence: Least mean probability of the classes that pixels are given.
        min_area: Least share of the image that all classes but the background must cover.
        max_area: Largest share that they may cover.
        memory: Bytes that may be used beside the generator's and the results.
    """

    head: str = "mlp-small"
    training: HeadTrainConfig = field(default_factory=HeadTrainConfig)
    resize: Resize = "bilinear"
    size: tuple[int, int] | None = None
    layers: tuple[int, ...] | None = None
    max_uncertainty_share: float = 0.1
    min_confidence: float = 0.0
    min_area: float = 0.0
    max_area: float = 1.0
    memory: int = GIB

    def __post_init__(self) -> None:
        head_kind(self.head)
        for name in ("max_uncertainty_share", "min_confidence", "min_area", "max_area"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: expected 0 to 1.")
        if self.memory < 1:
            raise InputError(f"memory {self.memory}: must be at least 1.")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return json.loads(json.dumps(asdict(self)))

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "FewShotConfig":
        """Reads what `to_json` gave.

        Raises:
            InputError: a field is unknown, or a value is out of its range.
        """
        check_keys(values, {field.name for field in fields(FewShotConfig)}, where)
        read: dict[str, Any] = dict(values)
        read["training"] = HeadTrainConfig.from_json(values.get("training", {}), where)
        for name in ("size", "layers"):
            if values.get(name) is not None:
                read[name] = tuple(values[name])
        return FewShotConfig(**read)


VARIANTS = {
    "ours": FewShotConfig(training=OURS),
    # Of a StyleGAN2 of 1024 px the official code takes all maps but the first, at 512 px.
    "official": FewShotConfig(head="cnn", training=OFFICIAL, resize="aligned"),
    "bryandlee": FewShotConfig(head="cnn-l", training=BRYANDLEE, resize="nearest"),
    "datasetgan": FewShotConfig(head="ensemble", training=DATASETGAN),
}


@dataclass(frozen=True)
class PaintedImages:
    """Generated images that a person painted.

    Attributes:
        classes: Names, without the background.
        names: Of the images, for messages.
        seeds: Image i is that of `generator.sample(seeds[i : i + 1])`.
        masks: (N, H, W) uint8: 0 background, 1..K classes, 255 not painted.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    masks: Pixels

    @property
    def digest(self) -> str:
        """The sha256 of all that is painted, as 64 hexadecimal digits."""
        hashed = hashlib.sha256(json.dumps([self.classes, self.seeds]).encode())
        hashed.update(np.ascontiguousarray(self.masks).tobytes())
        return hashed.hexdigest()

    def pixel_counts(self) -> list[int]:
        """How many pixels are painted with each class, the background first."""
        counts = np.bincount(self.masks.ravel(), minlength=256)
        return counts[: len(self.classes) + 1].tolist()

    def check(self, size: tuple[int, int]) -> None:
        """Raises an error unless a head can learn all classes from it.

        Raises:
            InputError: nothing is painted, a class is painted nowhere, an id has no class, or the
                masks are not of `size` = (height, width).
        """
        self.check_ids(size)
        counts = self.pixel_counts()
        if not sum(counts):
            raise InputError("no pixel is painted. Paint every class once in at least one image.")
        named = ("background", *self.classes)
        missing = [name for name, n in zip(named, counts, strict=True) if not n]
        if missing:
            raise InputError(
                f"painted nowhere: {', '.join(missing)}. Paint some of it in at least one image, "
                "or take the class out."
            )

    def check_ids(self, size: tuple[int, int]) -> None:
        """Raises an error unless all masks are of `size` = (height, width) and hold known ids.

        Raises:
            InputError: they do not.
        """
        if self.masks.shape[1:] != size:
            raise InputError(
                f"masks of {self.masks.shape[1]} x {self.masks.shape[2]} pixels, but the "
                f"generator's images have {size[0]} x {size[1]} (height x width). They must agree."
            )
        for name, mask in zip(self.names, self.masks, strict=True):
            wrong = (mask > len(self.classes)) & (mask != IGNORE)
            if wrong.any():
                y, x = np.argwhere(wrong)[0]
                raise InputError(
                    f"{name}: pixel ({y}, {x}) has the class id {mask[y, x]}; expected 0 to "
                    f"{len(self.classes)}, or {IGNORE} for not painted."
                )


def read_painting(folder: Path | str, generator: Generator) -> PaintedImages:
    """Reads what the painter wrote: images/NAME.png, masks/NAME.png, dataset.json, painting.json.

    Images without any painted pixel are left out.

    Args:
        folder: Of the painter.
        generator: Whose images were painted.

    Raises:
        InputError: a file is missing, the images are another generator's, a mask has another
            size, nothing is painted, or a class is painted nowhere.
        CorruptFileError: a file cannot be read.
    """
    folder = Path(folder)
    path = folder / PAINTING
    if not path.is_file():
        raise InputError(
            f"{folder}: no painted images (no {PAINTING}). "
            f"Paint some with: latentseg paint {generator.info.name} {folder}"
        )
    painting, dataset = read_json(path), read_json(folder / "dataset.json")
    _check_painting(painting, path)
    classes = tuple(one["name"] for one in painting["classes"])
    if not isinstance(dataset, dict) or tuple(dataset.get("classes", ())) != classes:
        raise InputError(f"{folder}: dataset.json and {PAINTING} name different classes.")
    names, seeds, masks = [], [], []
    for image in painting["images"]:
        name, mask_path = image["name"], folder / "masks" / f"{image['name']}.png"
        if not mask_path.is_file():
            continue  # not begun
        mask = read_mask(mask_path)
        if mask.shape != generator.info.size:
            height, width = generator.info.size
            raise InputError(
                f"{mask_path}: {mask.shape[0]} x {mask.shape[1]} pixels, but its image has "
                f"{height} x {width} (height x width). They must agree."
            )
        if (mask != IGNORE).any():
            _check_drawn(folder / "images" / f"{name}.png", image, generator)
            names.append(name)
            seeds.append(int(image["seed"]))
            masks.append(mask)
    if not masks:
        raise InputError(
            f"{folder}: no pixel is painted. "
            f"Paint with: latentseg paint {generator.info.name} {folder}"
        )
    found = PaintedImages(classes, tuple(names), tuple(seeds), np.stack(masks))
    try:
        found.check(generator.info.size)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return found


def _check_painting(painting: Any, path: Path) -> None:
    """Raises an error unless painting.json has the fields that are read."""
    if not isinstance(painting, dict):
        raise CorruptFileError(f"{path}: expected a JSON object.")
    if painting.get("format") != PAINTING_FORMAT:
        raise InputError(
            f"{path}: format {painting.get('format')}; this version reads {PAINTING_FORMAT}."
        )
    kinds = {"classes": {"name": str}, "images": {"name": str, "seed": int}}
    for part, expected in kinds.items():
        entries = painting.get(part)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: {part!r} is empty or missing.")
        for entry in entries:
            for name, kind in expected.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                    raise CorruptFileError(f"{path}: {part!r} holds {entry!r}; {name!r} is wrong.")
            if part == "images" and Path(entry["name"]).name != entry["name"]:
                raise CorruptFileError(f"{path}: {entry['name']!r} is not the name of a file.")


def _check_drawn(path: Path, image: Mapping[str, Any], generator: Generator) -> None:
    """Raises an error unless `generator` draws the image that was painted."""
    there = read_image(path)
    latents = generator.sample(torch.tensor([image["seed"]], device=generator.device))
    with torch.no_grad():
        drawn = to_pixels(generator(latents))[0]
    label = None if latents.labels is None else int(latents.labels[0])
    is_same_class = image.get("label") in (None, label)
    is_same_size = there.shape == drawn.shape
    if not is_same_size or not is_same_class or _difference(there, drawn) > SAME_IMAGE:
        raise InputError(
            f"{path}: generator {generator.info.name!r} draws another image from seed "
            f"{image['seed']}. Give the generator whose images were painted."
        )


def _difference(image: Pixels, other: Pixels) -> float:
    """The mean absolute difference of two images, 0 to 255."""
    return float(np.abs(image.astype(np.int16) - other).mean())


@dataclass(frozen=True)
class Answer:
    """What a head says of some images.

    Attributes:
        probabilities: (B, K + 1, H, W) float32 at the size of the images.
        confidence: (B,) in [0, 1]: the mean probability of the class that each pixel is given.
        uncertainty: (B,) in [0, 1]: the mean over the least sure tenth of the pixels of the
            members' disagreement, or of the entropy of a single head.
    """

    probabilities: Tensor
    confidence: Tensor
    uncertainty: Tensor


@torch.no_grad()
def answer(heads: Ensemble, columns: Hypercolumns, latents: Latents) -> Answer:
    """What `heads` say of the images of `latents`, a few at a time.

    Source: Zhang et al. 2021 (DatasetGAN) for the uncertainty of an ensemble.
    """
    height, width = columns.size
    n_values = 2 * heads.heads[0].first.out_channels
    at_once = max(1, min(AT_ONCE, columns.memory // (4 * n_values * height * width)))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(latents), at_once):
        found = class_probabilities(heads, columns, latents[start : start + at_once])
        mean = found.mean(dim=0)
        doubt = jensen_shannon(found) if len(found) > 1 else entropy(mean)
        worst = doubt.flatten(1).topk(max(1, int(UNSURE_SHARE * doubt[0].numel())), dim=1).values
        full = _enlarged(mean, columns.generator.info.size)
        sure = full.amax(dim=1).mean(dim=(1, 2))
        parts.append((full, sure, worst.mean(dim=1)))
    full, sure, worst = zip(*parts, strict=True)
    return Answer(torch.cat(full), torch.cat(sure), torch.cat(worst))


def _enlarged(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities at the size of the images; between pixels they are means."""
    if probabilities.shape[2:] == size:
        return probabilities
    return functional.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)


class FewShotLabeler:
    """Labels generated images by a head on their features.

    Args:
        generator: It has features.
        heads: Trained on them.
        config: Features and filters are used.
        classes: Names, without the background.
        seed: Of the training, for the record.
        max_uncertainty: Above it, a sample is refused; 1: never.
        painting: Digest of what was painted, for the record.

    Raises:
        InputError: the generator has no features.

    Source: Tritrong 2021; the filter by uncertainty is that of DatasetGAN, Zhang et al. 2021.
    """

    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        heads: Ensemble,
        *,
        config: FewShotConfig,
        classes: tuple[str, ...],
        seed: int,
        max_uncertainty: float = 1.0,
        painting: str = "",
    ) -> None:
        self.generator, self.heads, self.config = generator, heads, config
        self.names, self.seed = classes, seed
        self.max_uncertainty, self.painting = max_uncertainty, painting
        self.columns = hypercolumns(generator, config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.names

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": "few-shot",
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": self.config.to_json(),
            "classes": list(self.names),
            "painting": self.painting,
            "max_uncertainty": self.max_uncertainty,
        }

    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        return self.label_softly(latents)[0]

    @torch.no_grad()
    def label_softly(self, latents: Latents) -> tuple[Labelled, Tensor]:
        """What `label` gives, and the class probabilities (B, K + 1, H, W) float32 of the head."""
        found = answer(self.heads, self.columns, latents)
        masks = found.probabilities.argmax(dim=1).to(torch.uint8).cpu()
        labelled = Labelled(
            images=self.generator(latents),
            masks=masks,
            confidence=found.confidence.clamp(0, 1).cpu(),
            rejected_by=self._verdict(masks, found),
        )
        return labelled, found.probabilities

    def own_latents(self, n: int) -> Latents:
        """`n` latents on which the labeler may be judged; the first are those of any larger n."""
        seeds = derive_seeds(self.seed, OWN, np.arange(n)).to(self.generator.device)
        return self.generator.sample(seeds)

    def with_limit(self) -> "FewShotLabeler":
        """The same labeler, which refuses the worst share of its own samples, and their like."""
        share = self.config.max_uncertainty_share
        limit = 1.0
        if share > 0:
            doubts = answer(self.heads, self.columns, self.own_latents(JUDGED)).uncertainty
            limit = float(doubts.quantile(1 - share))
        return FewShotLabeler(
            self.generator,
            self.heads,
            config=self.config,
            classes=self.names,
            seed=self.seed,
            max_uncertainty=limit,
            painting=self.painting,
        )

    def save(self, folder: Path | str) -> None:
        """Writes head.safetensors, labeler.json and, last, the manifest of `folder`."""
        folder = Path(folder)
        write_safetensors(folder / WEIGHTS, self.heads.state_dict())
        write_json(folder / "labeler.json", {"format": FORMAT, **self.info})
        write_manifest(folder)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "FewShotLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        folder = Path(folder)
        description = read_description(folder, generator, format=FORMAT)
        config = FewShotConfig.from_json(description["options"], folder / DESCRIPTION)
        classes = tuple(description["classes"])
        columns = hypercolumns(generator, config)
        heads = build_heads(config.head, columns.n_channels, len(classes) + 1)
        tensors = read_safetensors(folder / WEIGHTS)
        expected = heads.state_dict()
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
            raise CorruptFileError(
                f"{folder / WEIGHTS}: the weights do not fit a head {config.head!r} on "
                f"{columns.n_channels} channels."
            )
        heads.load_state_dict(tensors)
        return FewShotLabeler(
            generator,
            heads.to(generator.device).eval().requires_grad_(False),
            config=config,
            classes=classes,
            seed=description["seed"],
            max_uncertainty=description["max_uncertainty"],
            painting=description["painting"],
        )

    def _verdict(self, masks: Tensor, found: Answer) -> Tensor:
        """(B,) int64: the first of the filters that refuses each sample, from 1, or 0."""
        area = area_share(masks.numpy() > 0)
        refused = np.stack(
            [
                (area < self.config.min_area) | (area > self.config.max_area),
                (found.confidence.cpu() < self.config.min_confidence).numpy(),
                (found.uncertainty.cpu() > self.max_uncertainty).numpy(),
            ]
        )
        return torch.from_numpy(first_refusal(~refused))


def hypercolumns(generator: Generator, config: FewShotConfig) -> Hypercolumns:
    """The features that `config` asks for."""
    return Hypercolumns(
        generator,
        size=config.size,
        resize=config.resize,
        layers=config.layers,
        memory=config.memory,
    )


def fit_few_shot(
    generator: Generator,
    painted: Path | str | PaintedImages,
    *,
    config: FewShotConfig = VARIANTS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> FewShotLabeler:
    """Teaches a head from painted images, and reports on it.

    Args:
        generator: It has features.
        painted: A folder of the painter, or what was painted.
        config: Head, training, features and filters; `VARIANTS` has the published settings.
        seed: Of everything random.
        out: Where labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned; an interrupted training is continued.
        quiet: Print no progress.

    Raises:
        InputError: the generator has no features, the painted images cannot be used, or `out`
            holds other work.
        DivergedError: the loss became NaN or infinite.
        KeyboardInterrupt: after the state was saved.
    """
    check_features(generator, "few-shot")
    if not isinstance(painted, PaintedImages):
        painted = read_painting(painted, generator)
    painted.check(generator.info.size)
    if out is None:
        return _fit(generator, painted, config, seed, None, quiet)
    out = Path(out)
    asked = {
        "method": "few-shot",
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": config.to_json(),
        "painting": painted.digest,
    }
    with locked(out):
        claim(out, asked)
        if not (out / MANIFEST).is_file():
            checkpoints = Checkpoints(out / "checkpoints")
            began = time.monotonic()
            labeler = _fit(generator, painted, config, seed, checkpoints, quiet)
            quality = quality_report(labeler, painted)
            quality["seconds"] = round(time.monotonic() - began, 1)
            write_json(out / "quality.json", quality)
            write_image(out / "contact_sheet.png", contact_sheet(labeler))
            checkpoints.delete()
            labeler.save(out)
    return FewShotLabeler.load(out, generator)


def _fit(
    generator: Generator,
    painted: PaintedImages,
    config: FewShotConfig,
    seed: int,
    checkpoints: Checkpoints | None,
    quiet: bool,
) -> FewShotLabeler:
    training = HeadTraining(
        painted_features(hypercolumns(generator, config), painted),
        config.head,
        len(painted.classes) + 1,
        config=config.training,
        seed=seed,
        checkpoints=checkpoints,
    )
    say(_plan(training, painted, config), quiet=quiet)
    training.run(quiet=quiet)
    labeler = FewShotLabeler(
        generator,
        training.heads,
        config=config,
        classes=painted.classes,
        seed=seed,
        painting=painted.digest,
    )
    return labeler.with_limit()


def _plan(training: HeadTraining, painted: PaintedImages, config: FewShotConfig) -> str:
    n_parameters = sum(parameter.numel() for parameter in training.heads.parameters())
    return (
        f"few-shot: {config.head} of {n_parameters / 1e6:.2f} M parameters on "
        f"{training.painted.columns.n_channels} channels, {len(painted.names)} painted images"
    )


def painted_features(columns: Hypercolumns, painted: PaintedImages) -> PaintedFeatures:
    """Painted images as a head learns from them, their masks at the size of `columns`."""
    device = columns.generator.device
    latents = columns.generator.sample(torch.tensor(painted.seeds, device=device))
    is_at_size = painted.masks.shape[1:] == columns.size
    masks = [mask if is_at_size else resize_mask(mask, columns.size) for mask in painted.masks]
    return PaintedFeatures(columns, latents, torch.from_numpy(np.stack(masks)))


def quality_report(labeler: FewShotLabeler, painted: PaintedImages) -> dict[str, Any]:
    """What was learned from, what is reached on it, and what the labeler makes of new samples.

    Args:
        labeler: With its limit.
        painted: What it was fitted to.
    """
    named = ("background", *labeler.classes)
    latents = labeler.generator.sample(torch.tensor(painted.seeds, device=labeler.generator.device))
    masks = labeler.label(latents).masks.numpy()
    labelled = labeler.label(labeler.own_latents(JUDGED))
    kept = labelled.masks.numpy()[labelled.rejected_by.numpy() == 0]
    return {
        "painted_images": list(painted.names),
        "painted_pixels": dict(zip(named, painted.pixel_counts(), strict=True)),
        "iou_on_painted_pixels": {
            name: _painted_iou(masks, painted.masks, i) for i, name in enumerate(named)
        },
        **sample_counts(labelled, FILTERS),
        "max_uncertainty": labeler.max_uncertainty,
        "class_areas": {
            name: float((kept == i).mean()) if len(kept) else 0.0 for i, name in enumerate(named)
        },
    }


def _painted_iou(masks: Pixels, painted: Pixels, i: int) -> float:
    """IoU of class i over the painted pixels; 1 if it is on none of them."""
    counted = painted != IGNORE
    union = (((masks == i) | (painted == i)) & counted).sum()
    return float(((masks == i) & (painted == i)).sum() / union) if union else 1.0


def contact_sheet(labeler: FewShotLabeler, *, n: int = SHOWN) -> Pixels:
    """A picture of `n` new images, each beside its mask in colour; refused ones are dimmed.

    The samples are the first ones, not the best.
    """
    labelled = labeler.label(labeler.own_latents(n))
    images = to_pixels(labelled.images)
    rows: list[list[Pixels]] = []
    for i, (image, mask) in enumerate(zip(images, labelled.masks.numpy(), strict=True)):
        if i % SHEET_COLUMNS == 0:
            rows.append([])
        painted = overlay(image, mask)
        rows[-1] += [image, painted if labelled.rejected_by[i] == 0 else painted // 3]
    height, width = labeler.generator.info.size
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    return compose(rows, cell=(height * scale, width * scale))
