import torch
from torch import nn

from latentseg.students.photo_unet import PhotoUNet
from latentseg.students.segmenter import Segmenter
from latentseg.students.statistics import adapt_statistics


def make_normalized():
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 2, 1))
    return Segmenter([network], classes=("a",), input_size=(8, 8))


def test_photos_are_normalized_by_their_own_mean_and_variance():
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 8, 8, generator=rng) * 0.2 + 0.3 for _ in range(3)]
    segmenter = make_normalized()
    before = segmenter.digest
    adapted = adapt_statistics(segmenter, batches)
    norm = next(m for m in adapted.members.modules() if isinstance(m, nn.BatchNorm2d))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    means = torch.stack([b.mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    torch.testing.assert_close(norm.running_var, variances)
    assert not norm.training
    assert norm.momentum == 0.1
    assert segmenter.digest == before


def test_a_network_that_normalizes_each_image_stays_as_it_is():
    torch.manual_seed(0)
    segmenter = Segmenter(
        [PhotoUNet(2)], classes=("a",), input_size=(32, 32), network="unet:efficientnet-lite0"
    )
    assert adapt_statistics(segmenter, [torch.zeros(2, 3, 32, 32)]).digest == segmenter.digest
