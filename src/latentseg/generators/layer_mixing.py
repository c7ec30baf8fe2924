"""Mixing the layers of two latents: coarse ones of the one, fine ones of the other."""

import torch
from torch import Tensor


def mix_layers(own: Tensor, others: Tensor, keep: int) -> Tensor:
    """(B * N, layers, D): the first `keep` layers of `own`, the rest of each of `others`.

    Args:
        own: (B, layers, D).
        others: (N, layers, D).
        keep: How many layers stay, 0 to all.
    """
    is_kept = (torch.arange(own.shape[1], device=own.device) < keep)[:, None]
    return torch.where(is_kept, own[:, None], others[None]).flatten(0, 1)
