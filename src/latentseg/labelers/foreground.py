"""Which segment of an image is the foreground, told from where the segments lie.

The paper names this step and does not describe it. Objects stand in the middle of a photo and
leave its border to the background.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentseg.configs import check_choice
from latentseg.labelers.losses import paper_prior
from latentseg.labelers.style_mixing_settings import Rule

TIE = 1e-6  # weight of the prior r where the rule itself does not decide


@dataclass(frozen=True)
class Places:
    """Where the segments of B images lie; every field is (B, k) float32, 0 for an empty segment.

    Attributes:
        area: Share of the image that a segment covers.
        border: Share of the image's border pixels that it covers.
        prior: Mean of the radial prior r over the segment: 1 at the center, -1 at the corners.
        y: Mean height of its pixels, -1 (top) to 1.
        x: Mean of their places from left, -1, to right, 1.
        std: Root mean square distance of its pixels from their mean place.
    """

    area: Tensor
    border: Tensor
    prior: Tensor
    y: Tensor
    x: Tensor
    std: Tensor


def places(labels: Tensor, k: int) -> Places:
    """Where each of k segments lies: labels (B, H, W) int64 in [0, k)."""
    height, width = labels.shape[1:]
    device = labels.device
    y = torch.linspace(-1, 1, height, device=device)[:, None].expand(height, width)
    x = torch.linspace(-1, 1, width, device=device).expand(height, width)
    prior = paper_prior((height, width), device) if height * width > 1 else torch.ones_like(y)
    border = torch.ones_like(y)
    border[1:-1, 1:-1] = 0
    maps = torch.stack([torch.ones_like(y), border, prior, y, x, y.square() + x.square()])
    ids = torch.arange(k, device=device)[:, None]
    members = (labels.flatten(1)[:, None] == ids).to(maps.dtype)
    sums = members @ maps.flatten(1).T
    count = sums[..., 0].clamp(min=1)
    mean_y, mean_x = sums[..., 3] / count, sums[..., 4] / count
    variance = sums[..., 5] / count - mean_y.square() - mean_x.square()
    return Places(
        area=sums[..., 0] / (height * width),
        border=sums[..., 1] / border.sum(),
        prior=sums[..., 2] / count,
        y=mean_y,
        x=mean_x,
        std=variance.clamp(min=0).sqrt(),
    )


def _border(found: Places) -> Tensor:
    return TIE * found.prior - found.border


def _center(found: Places) -> Tensor:
    return found.prior


def _area(found: Places) -> Tensor:
    return TIE * found.prior - found.area


def _connectivity(found: Places) -> Tensor:
    # Zhu et al. 2014, boundary connectivity: length on the border over the root of the area.
    return TIE * found.prior - found.border / found.area.clamp(min=1e-12).sqrt()


def _vote(found: Places) -> Tensor:
    votes = torch.zeros_like(found.area)
    for score in (_center, _area, _connectivity):
        value = score(found)
        votes += (value == value.amax(dim=1, keepdim=True)).to(votes)
    return votes + TIE * found.prior


RULES: dict[Rule, Callable[[Places], Tensor]] = {
    "border": _border,
    "center": _center,
    "vote": _vote,
}


def foreground_segment(labels: Tensor, k: int, *, rule: Rule = "border") -> Tensor:
    """The segment of each image that is most likely the foreground, (B,) int64.

    Args:
        labels: Segment of each pixel, (B, H, W) int64 in [0, k).
        k: Number of segments; empty ones are never chosen.
        rule: "border": covers the smallest share of the border, of equals the one with the larger
            mean prior r; "center": the largest mean prior r; "vote": most votes of center, smallest
            area and boundary connectivity.

    Raises:
        InputError: no such rule.

    Source: ours. The prior r is that of Melas-Kyriazi et al. 2021; boundary connectivity that
    of Zhu et al. 2014.
    """
    check_choice("foreground", rule, tuple(RULES))
    found = places(labels, k)
    return RULES[rule](found).masked_fill(found.area == 0, -torch.inf).argmax(dim=1)


def background_classes(found: Places, mean_prior: float) -> Tensor:
    """Which of k classes belong to the background, (k,) bool, seen over many images.

    A class is background if its pixels lie farther out than those of an image do, by the prior r;
    at least one class is, and one is not.

    Args:
        found: Where the classes lie in each image.
        mean_prior: Mean of the prior r over an image.
    """
    area = found.area.sum(dim=0)
    prior = (found.prior * found.area).sum(dim=0) / area.clamp(min=1e-12)
    is_background = (prior < mean_prior) | (area == 0)
    is_background[prior.argmin()] = True
    is_background[prior.masked_fill(area == 0, -torch.inf).argmax()] = False
    return is_background
