"""Batch statistics of photos in place of those of generated images."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from latentseg.students.segmenter import Segmenter

BatchNorm = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def adapt_statistics(segmenter: Segmenter, batches: Iterable[Tensor]) -> Segmenter:
    """The same segmenter with batch normalization by the mean and variance of these photos.

    A student that learned from generated images normalizes photos by the statistics of generated
    images, although they differ; no label is needed to mend that. Networks without batch
    normalization come back unchanged. The weights are shared with nothing.

    Args:
        segmenter: Of any network.
        batches: Photos (B, 3, H, W) float32 in [-1, 1] at the size of the training, in batches of
            at least 2; each counts alike.

    Source: Li, Wang, Shi, Liu, Hou 2016, Revisiting batch normalization for practical domain
    adaptation (AdaBN).
    """
    members = [copy.deepcopy(member) for member in segmenter.members]
    norms = [m for member in members for m in member.modules() if isinstance(m, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
        norm.train()
    if norms:
        for x in batches:
            for member in members:
                member(x.to(segmenter.device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return segmenter.with_members(members)
