"""How far drawn images are from photos by features of ImageNet: fd-lite0, precision and recall."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.training.config import feature_size
from latentseg.weights.efficientnet_lite0 import EfficientNetLite0

PX = 128  # shorter side at which images are compared
BATCH = 64
NEIGHBOR = 3  # Kynkaanniemi et al. 2019


class FeatureDistances:
    """Compares sets of images with photos by the pooled features of EfficientNet-Lite0.

    The Frechet distance has the formula of the FID and other features: it is named `fd-lite0`, and
    its values compare with each other only. The 320 means of the last map are taken, not the 1 280
    that the classifier makes of them: of few images the covariance is better known.

    Args:
        network: The frozen features, on the device that computes.
        photos: (N, 3, H, W) uint8, at the size of the images that are compared; N > 3.
    """

    def __init__(self, network: EfficientNetLite0, photos: Tensor) -> None:
        self.network = network
        self.photos = feature_vectors(network, photos)
        self.gaussian = Gaussian.of(self.photos)

    def __call__(self, images: Tensor) -> dict[str, float]:
        """Distances of (M, 3, H, W) uint8 images; `fd-lite0` falls with M: compare equal M only."""
        drawn = feature_vectors(self.network, images)
        n = min(len(drawn), len(self.photos))
        precision, recall = precision_and_recall(self.photos[_spread(self.photos, n)], drawn[:n])
        return {
            "fd-lite0": round(frechet_distance(Gaussian.of(drawn), self.gaussian), 3),
            "precision": round(precision, 4),
            "recall": round(recall, 4),
        }


def _spread(x: Tensor, n: int) -> Tensor:
    """n rows of x, evenly spread: neighbors in a folder are often alike."""
    return torch.linspace(0, len(x) - 1, n).round().long()


@torch.no_grad()
def feature_vectors(network: EfficientNetLite0, images: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 to features (N, 320) float32 on the CPU, at 128 px for any size."""
    device = network.stem.weight.device
    size = feature_size((images.shape[2], images.shape[3]), PX)
    vectors = []
    for batch in images.split(BATCH):
        x = batch.to(device).float() / 127.5 - 1
        x = F.interpolate(x, size=size, mode="bilinear", antialias=True)
        vectors.append(network.vectors(x.contiguous(memory_format=torch.channels_last)).cpu())
    return torch.cat(vectors)


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and a root (R, D) of the covariance, root.T @ root, in float64."""

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """Fits features (N, D).

        Raises:
            InputError: there are fewer than two.
        """
        if len(features) < 2:
            raise InputError(f"a distance needs at least 2 images, found {len(features)}.")
        features = features.double()
        mean = features.mean(dim=0)
        root = torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R
        return cls(mean, root)


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)): Dowson and Landau 1982, Heusel et al. 2017, Eq. 6.

    The trace of the root is the sum of the singular values of root_a root_b^T, which stays exact
    where there are fewer images than features and the covariances are singular.
    """
    shared = torch.linalg.svdvals(a.root @ b.root.T).sum()
    spread = a.root.square().sum() + b.root.square().sum() - 2 * shared
    return float((a.mean - b.mean).square().sum() + spread)


def precision_and_recall(
    photos: Tensor, drawn: Tensor, neighbor: int = NEIGHBOR
) -> tuple[float, float]:
    """Share of drawn images among the photos, and of photos among the drawn images.

    A set's region is the union of the balls around its members, each as wide as the distance to the
    member's third nearest neighbor in the set.

    Args:
        photos: Features (N, D).
        drawn: Features (M, D); N = M where they are to be compared with each other.
        neighbor: Which neighbor fixes the radius.

    Raises:
        InputError: a set has no more members than `neighbor`.

    Source: Kynkaanniemi et al. 2019, Eq. 1 and 2.
    """
    if min(len(photos), len(drawn)) <= neighbor:
        raise InputError(
            f"precision and recall need more than {neighbor} images, "
            f"found {len(photos)} photos and {len(drawn)} drawn."
        )
    between = torch.cdist(photos.double(), drawn.double())
    precision = (between <= _radii(photos, neighbor)[:, None]).any(dim=0)
    recall = (between <= _radii(drawn, neighbor)[None]).any(dim=1)
    return precision.double().mean().item(), recall.double().mean().item()


def _radii(features: Tensor, neighbor: int) -> Tensor:
    features = features.double()
    distances = torch.cdist(features, features)
    return distances.kthvalue(neighbor + 1, dim=1).values  # the nearest is the member itself
