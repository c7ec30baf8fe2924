"""Where latents come from: a normal distribution, or a bank of stored latents; and the classes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.banks import Bank

SQRT_2 = math.sqrt(2)


@dataclass(frozen=True)
class Prior:
    """The distribution of a generator's noise z and of its class labels.

    Attributes:
        shape: Of one z.
        n_classes: Number of class labels; 0 for none.
        scale: z is multiplied by it.
        limit: Before that, z is drawn from a normal distribution cut off at +-limit; None: not cut.
        bank: (N, *shape) latents on the CPU that are drawn instead of normal ones; None: none.
        bank_noise: Noise added to a latent of the bank, in `unit`.
        bank_labels: (N,) int64, the class of each latent of the bank; None: classes are drawn.
        unit: Of that noise and of a step, broadcasts to `shape`; None: the standard deviation of
            what is drawn.
        classes: The labels that occur; () for all.
        class_weights: How often each of the `n_classes` occurs, not normalised; () for equally.
    """

    shape: tuple[int, ...]
    n_classes: int = 0
    scale: float = 1.0
    limit: float | None = None
    bank: Tensor | None = None
    bank_noise: float = 0.0
    bank_labels: Tensor | None = None
    unit: Tensor | None = None
    classes: tuple[int, ...] = ()
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.scale <= 0 or (self.limit is not None and self.limit <= 0):
            raise InputError("The scale and the limit of z must be greater than 0.")
        if self.bank is not None and (
            self.bank.shape[1:] != self.shape
            or not len(self.bank)
            or not self.bank.isfinite().all()
        ):
            raise InputError(
                f"A bank of latents of shape {tuple(self.bank.shape)}: expected finite numbers in "
                f"(N, {', '.join(map(str, self.shape))})."
            )
        if self.class_weights and len(self.class_weights) != self.n_classes:
            raise InputError(
                f"{len(self.class_weights)} class weights for {self.n_classes} classes."
            )
        if wrong := [label for label in self.classes if not 0 <= label < self.n_classes]:
            known = f"0 to {self.n_classes - 1}" if self.n_classes else "none: it is unconditional"
            raise InputError(f"`classes`: this generator's classes are {known}, found {wrong}.")
        weights = (
            [self.class_weights[label] for label in self._labels] if self.class_weights else [1]
        )
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
            raise InputError(f"Class weights {weights}: expected some above 0, none below.")

    def drawn_from(self, bank: Bank, unit: Tensor) -> "Prior":
        """The same classes with the latents of `bank`, of any shape, its noise in `unit`.

        Raises:
            InputError: there are classes to be drawn, and the bank has latents of none of them.
        """
        bank = bank.of_classes(self.classes)
        return replace(
            self,
            shape=tuple(bank.latents.shape[1:]),
            bank=bank.latents,
            bank_noise=bank.noise,
            bank_labels=bank.labels,
            unit=unit.cpu(),
        )

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        """z (B, *shape) float32 and labels (B,) int64 or None, on the CPU.

        Row i depends on `seeds[i]` only.
        """
        rows = [self._draw(int(seed)) for seed in seeds]
        z = torch.stack([z for z, _ in rows]) if rows else torch.empty(0, *self.shape)
        labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
        return z, labels if self.n_classes else None

    @property
    def spread(self) -> Tensor:
        """(*shape): the unit of a step, by default the standard deviation of each coordinate."""
        if self.unit is not None:
            return self.unit.expand(self.shape)
        if self.bank is not None:
            deviation = self._bank_deviation * math.hypot(1, self.bank_noise)
            # A coordinate that never changes in the bank moves with the others' scale.
            return torch.where(deviation > 0, deviation, deviation.mean().clamp(min=1e-6))
        return torch.full(self.shape, self.scale * _cut_deviation(self.limit))

    def _draw(self, seed: int) -> tuple[Tensor, int]:
        drawn = torch.Generator().manual_seed(seed)
        if self.bank is None:
            return self._draw_z(drawn), self._draw_label(drawn)
        row = int(torch.randint(len(self.bank), (), generator=drawn))
        unit = self._bank_deviation if self.unit is None else self.unit
        z = self.bank[row] + self.bank_noise * unit * torch.randn(self.shape, generator=drawn)
        if self.bank_labels is None:
            return z, self._draw_label(drawn)
        return z, int(self.bank_labels[row])

    def _draw_z(self, drawn: torch.Generator) -> Tensor:
        if self.limit is None:
            return self.scale * torch.randn(self.shape, generator=drawn)
        # The inverse of the distribution function maps a uniform number to a truncated normal one.
        edge = math.erf(self.limit / SQRT_2)
        uniform = torch.rand(self.shape, generator=drawn, dtype=torch.float64) * 2 - 1
        return self.scale * (SQRT_2 * torch.erfinv(edge * uniform)).float()

    def _draw_label(self, drawn: torch.Generator) -> int:
        if not self.class_weights:
            return self._labels[int(torch.randint(len(self._labels), (), generator=drawn))]
        weights = [self.class_weights[label] for label in self._labels]
        chosen = torch.multinomial(torch.tensor(weights, dtype=torch.float64), 1, generator=drawn)
        return self._labels[int(chosen)]

    @cached_property
    def _bank_deviation(self) -> Tensor:
        return self.bank.std(dim=0, correction=0) if self.bank is not None else torch.ones(())

    @property
    def _labels(self) -> Sequence[int]:
        return self.classes or range(max(self.n_classes, 1))


def _cut_deviation(limit: float | None) -> float:
    """Standard deviation of a standard normal distribution cut off at +-limit."""
    if limit is None:
        return 1.0
    density = math.exp(-(limit**2) / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * limit * density / math.erf(limit / SQRT_2))
