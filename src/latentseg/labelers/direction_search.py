"""The search for a latent direction: Eq. 1 of Melas-Kyriazi et al. 2021.

One direction in latent space makes the center of every image lighter against its border and keeps
the edges; it is found by gradient descent through the frozen generator. Another one makes it
darker.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import DivergedError, InputError
from latentseg.generators.chunks import parts
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers.directions import HELD_OUT
from latentseg.labelers.directions_settings import SETTINGS, DirectionsConfig
from latentseg.labelers.losses import LOSSES, center_minus_border
from latentseg.labelers.overview import sample_latents
from latentseg.progress import Progress
from latentseg.seeds import random_generator

START_SCALE = 0.1  # official code


LOSS_NAMES: tuple[str, ...] = ("loss", "contrast", "structure")  # what is reported of each step


CHECK_EVERY = 25


PATIENCE = 2  # checks


@dataclass(frozen=True)
class Direction:
    """A direction that was found, and the way to it.

    Attributes:
        values: (*latent) float32, of length 1 over the whole latent.
        losses: Total, contrast and structure loss of each step, each before its weight.
        starts: Held-out loss of every start when they were compared.
        held_out: Held-out loss of the direction.
        is_converged: Whether the search ended before its last step.
        brightness_change: By how much the held-out images' center lightened against the border.
    """

    values: Tensor
    losses: list[dict[str, float]]
    starts: list[float]
    held_out: float
    is_converged: bool
    brightness_change: float

    def has_right_sign(self, sign: str) -> bool:
        """Whether the light direction lightened, or the dark one darkened, the center."""
        return self.brightness_change > 0 if sign == "light" else self.brightness_change < 0


class _Search:
    """The descent of one direction from one start; step s uses the latents of (seed, s)."""

    def __init__(
        self, generator: Generator, sign: str, config: DirectionsConfig, seed: int, start: int
    ) -> None:
        self.generator, self.config, self.seed = generator, config, seed
        self.contrast_weight = config.contrast_weight * (1 if sign == "light" else -1)
        rng = random_generator(seed, HELD_OUT, start)
        values = START_SCALE * torch.randn(generator.info.latent, generator=rng)
        self.values = values.to(generator.device).requires_grad_()
        self.optimizer = torch.optim.Adam([self.values], lr=config.lr)
        self.losses: list[dict[str, float]] = []

    @property
    def direction(self) -> Tensor:
        """The direction with length 1 over the whole latent, differentiable."""
        return self.values / self.values.norm()

    def step(self) -> None:
        """One step of Adam, after which the direction is normalised again."""
        s = len(self.losses)
        latents = sample_latents(self.generator, self.config.batch, self.seed, s)
        lengths = draw_lengths(self.config, self.generator.info.latent, self.seed, s)
        gradient = torch.zeros_like(self.values)
        means: dict[str, float] = dict.fromkeys(LOSS_NAMES, 0.0)
        # The losses are means over images: those of parts of the batch, weighted, add up.
        for part in parts(len(latents), self.generator.info.size):
            share = len(latents[part]) / len(latents)
            loss, numbers = self._chunk_loss(latents[part], lengths[part])
            if not math.isfinite(numbers["loss"]):
                raise DivergedError(
                    f"step {s} of the search for a direction: the loss became {numbers['loss']}. "
                    "Nothing was written. Check the generator, or lower the learning rate."
                )
            (found,) = torch.autograd.grad(loss, self.values)
            gradient += share * found
            means = {name: means[name] + share * numbers[name] for name in LOSS_NAMES}
        self.values.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.values /= self.values.norm()
        self.losses.append(means)

    def _chunk_loss(self, latents: Latents, lengths: Tensor) -> tuple[Tensor, dict[str, float]]:
        with torch.no_grad():
            x = self.generator(latents)
        step = lengths.to(self.direction) * self.direction
        loss, numbers = self.loss(self.generator(self.generator.shift(latents, step)), x)
        if not loss.requires_grad:
            raise InputError(
                f"generator {self.generator.info.name!r}: its images have no gradient with respect "
                "to the latents, which the search for directions needs."
            )
        return loss, numbers

    def loss(self, shifted: Tensor, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        """The total loss, and its parts as numbers."""
        losses = LOSSES[self.config.loss]
        contrast, structure = losses.contrast(shifted), losses.structure(shifted, x)
        total = self.contrast_weight * contrast + self.config.structure_weight * structure
        numbers = zip(LOSS_NAMES, (total, contrast, structure), strict=True)
        return total, {name: float(value.detach()) for name, value in numbers}


class _HeldOut:
    """Images that no step learns from; every direction is judged on the same ones."""

    def __init__(self, generator: Generator, config: DirectionsConfig, seed: int) -> None:
        self.generator, self.radius = generator, config.radius
        self.latents = sample_latents(generator, 2 * config.batch, seed, HELD_OUT)
        with torch.no_grad():
            self.x = generator(self.latents)

    @torch.no_grad()
    def loss(self, search: _Search) -> float:
        """The loss of a search's direction, all steps being of the mean length."""
        return search.loss(self._shifted(search.direction), self.x)[1]["loss"]

    @torch.no_grad()
    def brightness_change(self, direction: Tensor) -> float:
        """By how much the center lightens against the border."""
        change = center_minus_border(self._shifted(direction)) - center_minus_border(self.x)
        return float(change.mean())

    def _shifted(self, direction: Tensor) -> Tensor:
        return self.generator(self.generator.shift(self.latents, self.radius * direction))


def draw_lengths(config: DirectionsConfig, latent: tuple[int, ...], seed: int, step: int) -> Tensor:
    """Lengths of a search step, (B, *latent) or (B, 1, ..., 1): normal, with a lower bound."""
    shape = latent if config.per_coordinate else (1,) * len(latent)
    # The last key keeps these numbers apart from those of the step's latents.
    noise = torch.randn((config.batch, *shape), generator=random_generator(seed, step, HELD_OUT))
    return (config.radius + config.radius_std * noise).clamp(min=config.min_radius)


def find_direction(
    generator: Generator,
    sign: str,
    *,
    config: DirectionsConfig = SETTINGS["ours"],
    seed: int = 0,
    quiet: bool = False,
) -> Direction:
    """Searches the direction that lightens, or darkens, the center of images and keeps their edges.

    Several starts make a few steps each. The one with the lowest loss on held-out images goes on
    until that loss stops falling. No label is used.

    Args:
        generator: Differentiable with respect to its latents.
        sign: "light" or "dark".
        config: How to search.
        seed: The latents of step s depend only on (seed, s).
        quiet: Print no progress.

    Raises:
        InputError: the images have no gradient.
        DivergedError: the loss became NaN or infinite.

    Source: Melas-Kyriazi et al. 2021, Eq. 1, and the official code; starts and stop are ours.
    """
    held_out = _HeldOut(generator, config, seed)
    searches = [_Search(generator, sign, config, seed, start) for start in range(config.restarts)]
    first_steps = min(config.restart_steps, config.steps)
    total = config.steps + (config.restarts - 1) * first_steps
    with Progress(f"search {sign}", total=total, unit="step", quiet=quiet) as progress:

        def advance(search: _Search, steps: int) -> None:
            while len(search.losses) < steps:
                search.step()
                done = sum(len(search.losses) for search in searches)
                progress.update(done, loss=search.losses[-1]["loss"])

        for search in searches:
            advance(search, first_steps)
        starts = [held_out.loss(search) for search in searches]
        search = searches[int(np.argmin(starts))]
        best, values = _descend(search, held_out, advance)
    return Direction(
        values=values.cpu(),
        losses=search.losses,
        starts=starts,
        held_out=best,
        is_converged=len(search.losses) < config.steps,
        brightness_change=held_out.brightness_change(values),
    )


def _descend(
    search: _Search, held_out: _HeldOut, advance: Callable[[_Search, int], None]
) -> tuple[float, Tensor]:
    """Takes a search to its end; the held-out loss of the direction to keep, and the direction."""
    config = search.config
    if config.tolerance == 0:
        advance(search, config.steps)
        return held_out.loss(search), search.direction.detach()
    best, direction, stale = held_out.loss(search), search.direction.detach(), 0
    while len(search.losses) < config.steps and stale < PATIENCE:
        advance(search, min(len(search.losses) + CHECK_EVERY, config.steps))
        loss = held_out.loss(search)
        stale = 0 if best - loss > config.tolerance * abs(best) else stale + 1
        if loss < best:
            best, direction = loss, search.direction.detach()
    return best, direction
