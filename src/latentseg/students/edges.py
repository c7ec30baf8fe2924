"""Masks that end where the photo has an edge: the guided filter, without any label."""

from torch import Tensor
from torch.nn import functional

from latentseg.errors import InputError

EPSILON = 1e-3  # of the variance of gray in 0..1: fainter edges are smoothed over
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, of red, green and blue


def check_radius(radius: int | None, field: str = "edges") -> None:
    """Refuses windows of no pixels.

    Raises:
        InputError: the radius, which the field `field` holds, is below 1.
    """
    if radius is not None and radius < 1:
        raise InputError(f"`{field}`: expected a radius of at least 1 pixel, found {radius}.")


def gray(x: Tensor) -> Tensor:
    """The brightness (..., 1, H, W) in [0, 1] of images (..., 3, H, W) in [-1, 1]."""
    weights = x.new_tensor(LUMA).view(3, 1, 1)
    return ((x + 1) / 2 * weights).sum(-3, keepdim=True)


def guided_lines(
    guide: Tensor, maps: Tensor, *, radius: int, epsilon: float = EPSILON
) -> tuple[Tensor, Tensor]:
    """The line by which each pixel of a map follows the brightness around it: slope and offset.

    The filtered map is slope * guide + offset. Both vary slowly: they can be scaled up and applied
    to a larger guide, whose edges the map then takes over.

    Args:
        guide: (B, 1, H, W) in [0, 1].
        maps: (B, C, H, W), for example probabilities.
        radius: Of the square window, in pixels.
        epsilon: A variance of the guide; see `EPSILON`.

    Returns:
        Two (B, C, H, W).

    Source: He, Sun, Tang 2010, Guided image filtering, Eq. 5, 6 and 8; scaled up as in He and
    Sun 2015, Fast guided filter.
    """
    means = _window_mean(guide, radius), _window_mean(maps, radius)
    covariance = _window_mean(guide * maps, radius) - means[0] * means[1]
    variance = _window_mean(guide * guide, radius) - means[0] ** 2
    slope = covariance / (variance + epsilon)
    offset = means[1] - slope * means[0]
    return _window_mean(slope, radius), _window_mean(offset, radius)


def follow_edges(x: Tensor, probabilities: Tensor, *, radius: int) -> Tensor:
    """Class probabilities (B, C, H, W) that change where the images (B, 3, H, W) do."""
    guide = gray(x)
    slope, offset = guided_lines(guide, probabilities, radius=radius)
    return as_probabilities(slope * guide + offset)


def as_probabilities(maps: Tensor) -> Tensor:
    """Filtered class probabilities (..., C, H, W), which may leave [0, 1], back on the simplex."""
    kept = maps.clamp(min=1e-6)
    return kept / kept.sum(-3, keepdim=True)


def _window_mean(maps: Tensor, radius: int) -> Tensor:
    return functional.avg_pool2d(
        maps, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False
    )
