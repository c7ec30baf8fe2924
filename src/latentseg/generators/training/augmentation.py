"""Differentiable augmentation of real and drawn images alike (Zhao et al. 2020), for small sets."""

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(x: Tensor, policy: tuple[str, ...], probability: float = 1.0) -> Tensor:
    """Applies the transforms named in `policy`, each to its own random share of the batch.

    Args:
        x: (B, 3, H, W) in [-1, 1].
        policy: Any of "color", "translation", "cutout".
        probability: Chance of each transform for each image; below 1 for adaptive augmentation.

    Returns:
        (B, 3, H, W), differentiable with respect to x. Random numbers come from torch's global
        generator of the CPU, so that a seeded step is reproducible on every device.

    Source: Zhao et al. 2020, DiffAugment; adaptive probability as Karras et al. 2020 (ADA).
    """
    for name in policy:
        changed = TRANSFORMS[name](x)
        if probability < 1:
            chosen = torch.rand(len(x)).to(x.device) < probability
            changed = torch.where(chosen[:, None, None, None], changed, x)
        x = changed
    return x


def _uniform(x: Tensor) -> Tensor:
    return torch.rand(len(x), 1, 1, 1).to(x.device)


def _color(x: Tensor) -> Tensor:
    """Brightness +-0.5, saturation x0-2, contrast x0.5-1.5."""
    x = x + (_uniform(x) - 0.5)
    gray = x.mean(dim=1, keepdim=True)
    x = gray + (x - gray) * (_uniform(x) * 2)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_uniform(x) + 0.5)


def _translation(x: Tensor) -> Tensor:
    """Moves by up to an eighth of the size; what enters is black, as in the source."""
    batch, _, height, width = x.shape
    reach_y, reach_x = height // 8, width // 8
    offset_y = torch.randint(-reach_y, reach_y + 1, (batch, 1)).to(x.device)
    offset_x = torch.randint(-reach_x, reach_x + 1, (batch, 1)).to(x.device)
    rows = torch.arange(height, device=x.device)[None] + offset_y + reach_y
    columns = torch.arange(width, device=x.device)[None] + offset_x + reach_x
    padded = F.pad(x, (reach_x, reach_x, reach_y, reach_y)).permute(0, 2, 3, 1)
    samples = torch.arange(batch, device=x.device)[:, None, None]
    return padded[samples, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cutout(x: Tensor) -> Tensor:
    """Blanks a square of half the size at a random place."""
    batch, _, height, width = x.shape
    center_y = torch.randint(0, height, (batch, 1)).to(x.device)
    center_x = torch.randint(0, width, (batch, 1)).to(x.device)
    rows = (torch.arange(height, device=x.device)[None] - center_y).abs() < height // 4
    columns = (torch.arange(width, device=x.device)[None] - center_x).abs() < width // 4
    hidden = rows[:, :, None] & columns[:, None, :]
    return x.masked_fill(hidden[:, None], 0)


TRANSFORMS = {"color": _color, "translation": _translation, "cutout": _cutout}
