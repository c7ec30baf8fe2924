"""Activation maps in strips of rows, of which only the rows are held that are still needed.

A row of what a convolution gives depends on few rows of what it is given. So layers can hand strips
to one another, from the coarsest to the finest, and no large map needs to exist as a whole.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from latentseg.generators.protocols import Strip


def whole_maps(maps: list[Tensor]) -> Iterator[Strip]:
    """Maps (B, C_l, H_l, W_l) as one strip each; the list forgets each as it is handed out."""
    maps.reverse()
    for layer in range(len(maps)):
        yield Strip(layer, 0, maps[-1].shape[2], maps.pop())


class Window:
    """The rows of a map that are still needed, while new ones come below.

    Args:
        height: Rows of the whole map.

    Attributes:
        top: Row of the map at which the window begins.
        end: Row before which it ends.
    """

    def __init__(self, height: int) -> None:
        self.height, self.top, self.end = height, 0, 0
        self.values = torch.empty(0, 0, 0, 0)

    def add(self, rows: Tensor) -> None:
        """Appends (B, C, n, W), the rows that follow."""
        self.values = rows if self.end == 0 else torch.cat([self.values, rows], dim=2)
        self.end += rows.shape[2]

    def forget(self, top: int) -> None:
        """Gives up the rows before row `top`, and their memory."""
        if top > self.top:
            self.values = self.values[:, :, top - self.top :].clone()
            self.top = top

    def rows(self, top: int, end: int) -> Tensor:
        """Rows `top` to `end` - 1 of the map, (B, C, end - top, W), all of them in the window."""
        return self.values[:, :, top - self.top : end - self.top]

    def through(
        self,
        layer: Callable[[Tensor, slice], Tensor],
        top: int,
        end: int,
        *,
        halo: int,
        scale: int = 1,
    ) -> Tensor:
        """Rows `top` to `end` - 1 of what a layer makes of the map, (B, C', end - top, W').

        Args:
            layer: Takes rows of the map and the rows of the result that it makes of them, `scale`
                for each. Zeros lie beyond the rows, as they lie beyond the map.
            top, end: Of the result.
            halo: Rows of the map, on either side of those that a row of the result lies in, on
                which it depends.
            scale: Rows of the result for each row of the map.
        """
        low = max(top // scale - halo, 0)
        high = min(-(-end // scale) + halo, self.height)
        made = layer(self.rows(low, high), slice(scale * low, scale * high))
        return made[:, :, top - scale * low : end - scale * low]
