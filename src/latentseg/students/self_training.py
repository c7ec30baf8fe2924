"""Unlabelled photos help: a student labels them, and a new student learns from these labels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentseg.configs import check_range
from latentseg.datasets.pairs import Batch, Pairs, from_levels
from latentseg.devices import autocast, pick_device, pick_precision
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, claim, locked, write_json, write_manifest
from latentseg.images import IGNORE, Pixels, cover, list_images, read_image, to_tensor
from latentseg.labelers.components import large_components
from latentseg.labelers.mask_measures import area_share
from latentseg.progress import Progress, say
from latentseg.students.segmenter import Segmenter
from latentseg.students.training import PRESETS, TrainConfig, train
from latentseg.training_states import load_state, save_state

LABEL_BATCH = 64  # photos that the teacher labels together
AREA_SAMPLES = 512  # synthetic masks from which the likely areas are learned


@dataclass(frozen=True)
class SelfTrainingConfig:
    """How unlabelled photos are used."""

    rounds: int = 3  # at most; each trains one student
    train: TrainConfig = PRESETS["quick"]  # of the student of a round
    photo_share: float = 0.75  # of a batch; the rest are synthetic pairs
    scales: tuple[float, ...] = (1.0, 1.5)  # at which the teacher sees each photo; averaged
    temperature: float = 0.5  # of the labels: 1 as the teacher says, towards 0: hard
    confidence_power: float = 1.0  # weight of a pixel: its confidence to this power; 0: all alike
    hold_area: bool = True  # let objects cover, on average, the share that the first student saw
    min_component: float = 0.2  # components stay above this share of the largest one's area
    min_consistency: float = 0.5  # least IoU of the masks of one photo over scales and mirror image
    stop_agreement: float = 0.95  # mean IoU of successive students' masks at which to stop
    warm_start: bool = False  # begin with the weights of the student before
    max_photos: int = 20_000  # the first ones by a random order are used

    def __post_init__(self) -> None:
        check_range(self, ("rounds", "max_photos"), 1)
        check_range(self, ("photo_share",), above=0, most=1)
        check_range(self, ("temperature",), above=0)
        check_range(self, ("confidence_power", "min_consistency", "stop_agreement"), 0)
        check_range(self, ("min_component",), 0, 1)
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise InputError(f"`scales`: expected numbers above 0, found {self.scales}.")


@dataclass(frozen=True)
class PhotoLabels:
    """What a student sees in the photos.

    Attributes:
        probabilities: (N, K, H, W) uint8, 0..255 for 0..1, of the classes without the background.
        consistency: (N,) float32, mean IoU of each photo's mask over scales and mirror image.
        is_kept: (N,) bool, whether students learn from the photo.
    """

    probabilities: Tensor
    consistency: Tensor
    is_kept: Tensor

    @property
    def foreground(self) -> NDArray[np.bool_]:
        """(N, H, W): where the classes together are more likely than the background."""
        return _foreground(self.probabilities).numpy() > 127

    @property
    def areas(self) -> NDArray[np.float64]:
        """(N,): the share of each photo that is foreground."""
        return area_share(self.foreground)


class PhotoPairs:
    """Photos with a student's labels, mixed with synthetic pairs; the step decides which.

    Args:
        photos: (N, H, W, 3) uint8.
        labels: Of these photos. Those that are kept are gone through in epochs.
        synthetic: The rest of each batch.
        config: Shares, temperature and weights.
        seed: Of the order.

    Raises:
        InputError: no label is kept.
    """

    def __init__(
        self,
        photos: Pixels,
        labels: PhotoLabels,
        synthetic: Pairs,
        config: SelfTrainingConfig,
        *,
        seed: int,
    ) -> None:
        self.photos, self.labels, self.synthetic = photos, labels, synthetic
        self.config, self.seed = config, seed
        self.kept = torch.nonzero(labels.is_kept)[:, 0].numpy()
        self.order = lru_cache(maxsize=2)(self._order)
        if not len(self.kept):
            raise InputError(
                f"None of the {len(photos)} photos got a likely label. Expected photos of the "
                "generator's domain. If they are, train the first student for longer."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.synthetic.classes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images and masks."""
        return self.synthetic.size

    def batch(self, step: int, size: int) -> Batch:
        """The pairs of a step: photos first, then synthetic ones; masks as probabilities."""
        n_photos = max(1, round(size * self.config.photo_share))
        photos = self._photo_batch(step, n_photos)
        if n_photos == size:
            return Batch(*photos)
        synthetic = self.synthetic.batch(step, size - n_photos).to("cpu")
        parts = zip(photos, (synthetic.images, *soft_labels(synthetic, self.classes)), strict=True)
        return Batch(*(torch.cat([first, second]) for first, second in parts))

    def _photo_batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = range(step * size, (step + 1) * size)
        indices = [self.order(p // len(self.kept))[p % len(self.kept)] for p in positions]
        masks = from_levels(self.labels.probabilities[indices])
        weights = confidence(masks) ** self.config.confidence_power
        return to_tensor(self.photos[indices]), sharpen(masks, self.config.temperature), weights

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.kept)


def self_train(
    segmenter: Segmenter,
    photos: Path | str | Sequence[Path],
    pairs: Pairs,
    *,
    out: Path | str,
    config: SelfTrainingConfig | None = None,
    card: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Segmenter:
    """Improves a segmenter with unlabelled photos of its domain; no label is ever read.

    In each round the photos are labelled by the last student and a new one learns from these labels
    and synthetic pairs. It stops after `config.rounds`, or when two students in succession agree,
    or when a student finds no likely object in photos where the one before did (it is dropped).
    The same call again continues, and so does one with more rounds.

    Args:
        segmenter: The first labeller of the photos: a student of the synthetic pairs.
        photos: A folder of photos, or their paths.
        pairs: The synthetic pairs; photos are scaled and cut to their size.
        out: Folder of the work: round-N/ (see `train`), labels-N/, rounds.json, model/.
        config: How.
        card: For the new segmenter; by default that of `segmenter`, without its results.
        device: "auto", "cpu", "cuda", "mps".
        quiet: No progress lines.

    Returns:
        The student of the last round that counts, read from `out`/model.

    Raises:
        InputError: photos cannot be read (all are named), none gets a likely label, or `out` holds
            other work.
        DivergedError: see `train`.
    """
    out, config = Path(out), config or SelfTrainingConfig()
    if segmenter.classes != tuple(pairs.classes):
        raise InputError(
            f"The segmenter knows the classes {segmenter.classes}, but the pairs have "
            f"{tuple(pairs.classes)}. They must agree."
        )
    pictures = read_photos(photos, pairs.size, limit=config.max_photos, seed=config.train.seed)
    digest = sha256(pictures.data).hexdigest()
    if card is None:
        card = {name: value for name, value in segmenter.card.items() if name != "results"}
    with locked(out):
        record = {**asdict(config), "segmenter": segmenter.digest, "photos_sha256": digest}
        (out / MANIFEST).unlink(missing_ok=True)  # more rounds may be asked for
        claim(out, record, free=("rounds",))
        areas = likely_areas(pairs)
        student = segmenter.to(pick_device(device))
        labels = _labels(student, pictures, config, areas, folder=out / "labels-0", quiet=quiet)
        rounds = [{"round": 0, **_summary(labels)}]
        share = float(labels.areas.mean()) if config.hold_area else None
        for index in range(1, config.rounds + 1):
            _report(rounds, out, quiet=quiet)
            seed = config.train.seed + index
            used = {"n_photos": len(pictures), "sha256": digest, "round": index}
            new_student = train(
                PhotoPairs(pictures, labels, pairs, config, seed=seed),
                out=out / f"round-{index}",
                config=replace(config.train, seed=seed),
                card={**card, "photos": used},
                start=student if config.warm_start else None,
                device=device,
                quiet=quiet,
            )
            folder = out / f"labels-{index}"
            new_labels = _labels(
                new_student, pictures, config, areas, share=share, folder=folder, quiet=quiet
            )
            agreement = mean_iou(new_labels.foreground, labels.foreground)
            stop = _reason_to_stop(labels, new_labels, agreement, config)
            summary = _summary(new_labels)
            rounds.append({"round": index, **summary, "agreement": agreement, "stop": stop})
            if stop == "collapsed":
                break
            student, labels = new_student, new_labels
            if stop == "agreed":
                break
        _report(rounds, out, quiet=quiet)
        student.save(out / "model")
        write_manifest(out)
    return Segmenter.from_pretrained(out / "model", device=device)


def read_photos(
    photos: Path | str | Sequence[Path], size: tuple[int, int], *, limit: int, seed: int
) -> Pixels:
    """Reads photos, scaled to cover `size` and cut at the centre.

    Args:
        photos: A folder, or paths.
        size: (height, width).
        limit: At most so many, chosen at random by `seed`.
        seed: Of the choice.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        InputError: there are none, or some cannot be read; all of these are named.
    """
    paths = list_images(photos) if isinstance(photos, Path | str) else list(photos)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(paths))[:limit])
    pictures, problems = np.empty((len(chosen), *size, 3), np.uint8), []
    for row, index in enumerate(chosen):
        try:
            pictures[row] = cover(read_image(paths[index]), size)
        except (InputError, CorruptFileError) as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} photos cannot be read:\n" + "\n".join(problems))
    if not len(pictures):
        raise InputError("No photos to learn from. Name a folder that holds some.")
    return pictures


def likely_areas(pairs: Pairs) -> tuple[float, float]:
    """Least and largest share of a photo that an object may cover, learned from synthetic masks.

    From half of their 1 % quantile to halfway between their 99 % quantile and the whole image:
    generated objects are likely to be more alike than real ones.
    """
    shares = []
    for step in range(AREA_SAMPLES // LABEL_BATCH):
        masks, weights = soft_labels(pairs.batch(step, LABEL_BATCH), pairs.classes)
        covered = ((1 - masks[:, 0]) * weights).sum(dim=(1, 2))
        shares.append(covered / weights.sum(dim=(1, 2)).clamp(min=1))
    low, high = np.quantile(torch.cat(shares).cpu().numpy(), [0.01, 0.99])
    return float(low / 2), float((1 + high) / 2)


@torch.inference_mode()
def label_photos(
    segmenter: Segmenter,
    photos: Pixels,
    config: SelfTrainingConfig,
    areas: tuple[float, float],
    *,
    share: float | None = None,
    quiet: bool = False,
) -> PhotoLabels:
    """Labels photos by a student: averaged over scales and mirror images, cleaned, judged.

    Args:
        segmenter: The student.
        photos: (N, H, W, 3) uint8, all at the size of the student's training.
        config: How.
        areas: Least and largest share of a photo that its object may cover.
        share: Of all photos together that the objects shall cover, see `match_area`; None: as the
            student says.
        quiet: No progress line.
    """
    device = segmenter.device
    dtype = pick_precision("auto", device)
    answers, consistency = [], []
    with Progress("label photos", total=len(photos), quiet=quiet) as progress:
        for start in range(0, len(photos), LABEL_BATCH):
            x = to_tensor(photos[start : start + LABEL_BATCH]).to(device)
            with autocast(device, dtype):
                views = _views(segmenter, x, config.scales)
            mean = views.mean(dim=0).cpu()
            masks = (views[:, :, 0] < 0.5).cpu().numpy()
            consistency.append([_ious(view, mean[:, 0].numpy() < 0.5) for view in masks])
            answers.append((mean[:, 1:] * 255).round().to(torch.uint8))
            progress.update(start + len(x))
    probabilities = torch.cat(answers)
    if share is not None:
        probabilities = match_area(probabilities, share)
    labels = PhotoLabels(
        _without_small_components(probabilities, config.min_component),
        torch.from_numpy(np.concatenate(consistency, axis=1).mean(axis=0)).float(),
        torch.ones(len(photos), dtype=torch.bool),
    )
    shares = torch.from_numpy(labels.areas)
    is_likely = (shares >= areas[0]) & (shares <= areas[1])
    return replace(labels, is_kept=is_likely & (labels.consistency >= config.min_consistency))


def match_area(probabilities: Tensor, share: float) -> Tensor:
    """Shifts the odds of the foreground, alike for all pixels, until it covers `share` of them.

    Without this, what a student draws too large is learned by the next one and grows from round
    to round.

    Args:
        probabilities: (N, K, H, W) uint8, 0..255 for 0..1, of the classes without the background.
        share: Of all pixels together, in (0, 1).

    Source: distribution alignment, Berthelot et al. 2020 (ReMixMatch).
    """
    levels = torch.arange(256, dtype=torch.float64)
    foreground = _foreground(probabilities)
    above = torch.bincount(foreground.flatten().long(), minlength=256).flip(0).cumsum(0).flip(0)
    reached = int((above >= share * foreground.numel()).sum())
    threshold = min(max(reached - 1.5, 0.5), 254.5)
    odds = (levels + 0.5) / (255.5 - levels) * (255.5 - threshold) / (threshold + 0.5)
    factors = (255 * odds / (1 + odds) / levels.clamp(min=1)).float()
    return torch.cat(
        [
            (some * factors[_foreground(some).long()][:, None]).round().to(torch.uint8)
            for some in probabilities.split(LABEL_BATCH)
        ]
    )


def _foreground(probabilities: Tensor) -> Tensor:
    """The classes together, (N, K, H, W) to (N, H, W) uint8."""
    return probabilities.sum(dim=1, dtype=torch.int32).clamp(max=255).to(torch.uint8)


def _without_small_components(probabilities: Tensor, min_component: float) -> Tensor:
    cleaned = []
    for some in probabilities.split(LABEL_BATCH):
        mask = _foreground(some).numpy() > 127
        removed = torch.from_numpy(mask & ~large_components(mask, min_component))
        cleaned.append(some * ~removed[:, None])
    return torch.cat(cleaned)


def soft_labels(batch: Batch, classes: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The masks of a batch as probabilities (B, K + 1, H, W), and its weights (B, H, W)."""
    if batch.masks.ndim == 4:
        masks, weights = batch.masks, torch.ones_like(batch.masks[:, 0])
    else:
        weights = (batch.masks != IGNORE).float()
        ids = batch.masks.long() * (batch.masks != IGNORE)
        masks = functional.one_hot(ids, len(classes) + 1).movedim(-1, 1).float()
    return masks, weights if batch.weights is None else weights * batch.weights


def confidence(probabilities: Tensor) -> Tensor:
    """How far the most likely class is above chance: (B, C, H, W) to (B, H, W) in [0, 1].

    >>> confidence(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)).item()
    0.0
    """
    chance = 1 / probabilities.shape[1]
    return ((probabilities.amax(1) - chance) / (1 - chance)).clamp(0, 1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, C, H, W) as if logits had been divided by `temperature`."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def mean_iou(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> float:
    """Mean over the images of the IoU of two masks, both (N, H, W); 1 where both are empty."""
    return float(_ious(masks, others).mean())


def _ious(masks: NDArray[np.bool_], others: NDArray[np.bool_]) -> NDArray[np.float64]:
    union = (masks | others).sum(axis=(1, 2))
    return np.where(union > 0, (masks & others).sum(axis=(1, 2)) / np.maximum(union, 1), 1.0)


def _views(segmenter: Segmenter, x: Tensor, scales: Sequence[float]) -> Tensor:
    """Class probabilities (V, B, K + 1, H, W) of photos at each scale, as such and mirrored."""
    size = x.shape[-2:]
    views = []
    for scale in scales:
        seen = [max(1, round(side * scale)) for side in size]
        scaled = functional.interpolate(x, size=seen, mode="bilinear", antialias=True)
        for is_mirrored in (False, True):
            answer = segmenter.logits(scaled.flip(-1) if is_mirrored else scaled)
            answer = answer.flip(-1) if is_mirrored else answer
            views.append(functional.interpolate(answer, size=size, mode="bilinear").softmax(1))
    return torch.stack(views)


def _labels(
    segmenter: Segmenter,
    photos: Pixels,
    config: SelfTrainingConfig,
    areas: tuple[float, float],
    *,
    share: float | None = None,
    folder: Path,
    quiet: bool,
) -> PhotoLabels:
    """`label_photos`, done once: what lies in `folder`, complete and undamaged, is read again."""
    try:
        return PhotoLabels(**load_state(folder))
    except (InputError, CorruptFileError):
        labels = label_photos(segmenter, photos, config, areas, share=share, quiet=quiet)
    save_state(folder, vars(labels))
    return labels


def _reason_to_stop(
    labels: PhotoLabels, new_labels: PhotoLabels, agreement: float, config: SelfTrainingConfig
) -> str | None:
    if new_labels.is_kept.sum() < labels.is_kept.sum() / 2:
        return "collapsed"
    return "agreed" if agreement >= config.stop_agreement else None


def _summary(labels: PhotoLabels) -> dict[str, float | int]:
    """What can be said about labels without knowing the truth."""
    return {
        "n_photos": len(labels.is_kept),
        "n_kept": int(labels.is_kept.sum()),
        "area": float(labels.areas.mean()),
        "consistency": float(labels.consistency.mean()),
    }


def _report(rounds: list[dict[str, Any]], out: Path, *, quiet: bool) -> None:
    write_json(out / "rounds.json", rounds)
    last = rounds[-1]
    line = f"round {last['round']}: {last['n_kept']} of {last['n_photos']} photos kept"
    if "agreement" in last:
        line += f", agreement with the round before {last['agreement']:.3f}"
    say(line + (f", {last['stop']}" if last.get("stop") else ""), quiet=quiet)
