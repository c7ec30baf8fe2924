"""What a student is taught by, and how well it answers a batch."""

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.images import IGNORE


def segmentation_loss(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, averaged over the pixels by their weights.

    Args:
        logits: (B, K + 1, H, W).
        masks: Class ids (B, H, W) uint8, 255 ignored; or probabilities (B, K + 1, H, W) float.
        weights: (B, H, W), at least 0; None: all alike.

    Returns:
        A float32 scalar; 0 if no pixel counts.
    """
    if masks.ndim == 3:
        losses = functional.cross_entropy(
            logits.float(), masks.long(), ignore_index=IGNORE, reduction="none"
        )
    else:
        losses = functional.cross_entropy(logits.float(), masks, reduction="none")
    counts = counted(masks, weights)
    return (losses * counts).sum() / total(counts)


def counted(masks: Tensor, weights: Tensor | None) -> Tensor:
    """How much each pixel counts, (B, H, W)."""
    counts = (masks != IGNORE).float() if masks.ndim == 3 else torch.ones_like(masks[:, 0])
    return counts if weights is None else counts * weights


def total(counts: Tensor) -> Tensor:
    """How much all pixels count together; never 0, as it is divided by."""
    return counts.sum().clamp(min=1e-6)


def foreground_iou(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> float:
    """IoU of everything that is not background, pooled over a batch; 1 if there is none of it.

    Arguments are those of `segmentation_loss`; pixels count fully, or with weight 0 not at all.
    """
    predicted, true = (ids > 0 for ids in _counted_ids(logits, masks, weights))
    union = (predicted | true).sum()
    return float((predicted & true).sum() / union) if union else 1.0


def mean_iou(logits: Tensor, masks: Tensor, weights: Tensor | None = None) -> float:
    """Mean of the IoU of each class, pooled over a batch, background included.

    Classes that are neither there nor predicted do not count; 1 if there are none at all.
    Arguments are those of `foreground_iou`.
    """
    n = logits.shape[1]
    predicted, true = _counted_ids(logits, masks, weights)
    pairs = torch.bincount(n * true + predicted, minlength=n * n).view(n, n)
    union = pairs.sum(0) + pairs.sum(1) - pairs.diag()
    ious = pairs.diag()[union > 0] / union[union > 0]
    return float(ious.mean()) if len(ious) else 1.0


def _counted_ids(logits: Tensor, masks: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The predicted and the true class of each pixel that counts, both (N,) int64."""
    true = masks.long() if masks.ndim == 3 else masks.argmax(1)
    is_counted = true != IGNORE
    if weights is not None:
        is_counted &= weights > 0
    return logits.argmax(1)[is_counted], true[is_counted]
