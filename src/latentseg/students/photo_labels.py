"""What a student sees in unlabelled photos: labels for the next one, held to a known area."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from latentseg.datasets.pairs import Batch, Pairs
from latentseg.devices import autocast, pick_precision
from latentseg.images import IGNORE, Pixels, to_tensor
from latentseg.labelers.components import large_components
from latentseg.labelers.mask_measures import area_share
from latentseg.progress import Progress
from latentseg.students.edges import follow_edges
from latentseg.students.segmenter import Segmenter
from latentseg.students.self_training_settings import SelfTrainingConfig

LABEL_BATCH = 64  # photos that the teacher labels together
LEVELS = 1_000  # of a probability, where a threshold is searched
HELD = (0.05, 0.95)  # probabilities beyond are never shifted to one half
AREA_SAMPLES = 512  # synthetic masks from which the likely areas are learned


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


def object_areas(pairs: Pairs) -> NDArray[np.float64]:
    """The share of the image that the objects of synthetic masks cover, (AREA_SAMPLES,)."""
    shares = []
    for step in range(AREA_SAMPLES // LABEL_BATCH):
        masks, weights = soft_labels(pairs.batch(step, LABEL_BATCH), pairs.classes)
        covered = ((1 - masks[:, 0]) * weights).sum(dim=(1, 2))
        shares.append(covered / weights.sum(dim=(1, 2)).clamp(min=1))
    return torch.cat(shares).cpu().double().numpy()


def likely_areas(areas: NDArray[np.float64]) -> tuple[float, float]:
    """Least and largest share of a photo that an object may cover, from those of synthetic masks.

    From half of their 1 % quantile to halfway between their 99 % quantile and the whole image:
    generated objects are likely to be more alike than real ones.
    """
    low, high = np.quantile(areas, [0.01, 0.99])
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
        config: Settings of the self-training.
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
            mean = views.mean(dim=0)
            masks, whole = (views[:, :, 0] < 0.5).cpu().numpy(), (mean[:, 0] < 0.5).cpu().numpy()
            consistency.append([_ious(view, whole) for view in masks])
            if config.label_edges is not None:
                mean = follow_edges(x, mean, radius=config.label_edges)
            answers.append((mean[:, 1:] * 255).round().to(torch.uint8).cpu())
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


@torch.inference_mode()
def hold_area(segmenter: Segmenter, photos: Pixels, share: float) -> Segmenter:
    """The same segmenter with the odds of the background shifted, alike for all pixels.

    They are shifted until the foreground is more likely than not in `share` of the pixels.

    Args:
        segmenter: Networks whose last convolution gives their logits.
        photos: (N, H, W, 3) uint8, at the size of the student's training.
        share: Of all pixels together, in (0, 1).
    """
    counts = torch.zeros(LEVELS, dtype=torch.int64)
    for start in range(0, len(photos), LABEL_BATCH):
        x = to_tensor(photos[start : start + LABEL_BATCH]).to(segmenter.device)
        levels = ((1 - segmenter.logits(x).exp()[:, 0]) * LEVELS).long().clamp(0, LEVELS - 1)
        counts += torch.bincount(levels.flatten().cpu(), minlength=LEVELS)
    above = counts.flip(0).cumsum(0).flip(0) / counts.sum()
    low, high = HELD
    threshold = min(max(int((above >= share).sum()) / LEVELS, low), high)
    members = [copy.deepcopy(member) for member in segmenter.members]
    for member in members:
        bias = [m for m in member.modules() if isinstance(m, nn.Conv2d)][-1].bias
        assert bias is not None  # of logits
        bias[0] += math.log(threshold / (1 - threshold))
    return segmenter.with_members(members)


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
