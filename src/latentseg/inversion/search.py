"""The search for the latents whose images are given photos.

Source: Abdal et al. 2019 (Image2StyleGAN), Eq. 1; Karras et al. 2020 (StyleGAN2), appendix D.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentseg.errors import DivergedError, InputError
from latentseg.generators.protocols import Generator, Latents
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.inversion.losses import Loss
from latentseg.inversion.noise_maps import (
    Noise,
    held,
    noise_correlation,
    noise_maps,
    normalized,
)
from latentseg.inversion.population import Population
from latentseg.inversion.settings import InversionConfig, Space
from latentseg.seeds import random_generator

OF_JITTER, OF_MAPS = 3, 4  # keep the random numbers of one seed apart; those of population.py too


@dataclass(frozen=True)
class Found:
    """The latents and noise maps that were found for B photos.

    Attributes:
        latents: Values (B, ...) in the space that was searched.
        noise: Noise maps (B, ..., H, W) by name; {} if they were not searched.
        images: The images (B, 3, H, W) in [-1, 1] that they draw.
        losses: (B,), at least 0, of these images.
    """

    latents: Latents
    noise: Noise
    images: Tensor
    losses: Tensor

    def __getitem__(self, i: int) -> "Found":
        """What was found for photo `i`."""
        one = slice(i, i + 1)
        noise = {name: maps[one] for name, maps in self.noise.items()}
        return Found(self.latents[one], noise, self.images[one], self.losses[one])


class Inversion:
    """The search for the latents of photos, batch by batch.

    Args:
        generator: Must be differentiable with respect to its latents.
        config: Space, schedule and start of the search.
        loss: What is minimized between images and photos.
        seed: Seeds all random numbers.

    Raises:
        InputError: the generator has no such space, or draws images of another size than its own.
    """

    def __init__(
        self, generator: Generator, config: InversionConfig, loss: Loss, *, seed: int = 0
    ) -> None:
        self.config, self.loss, self.seed = config, loss, seed
        self.space = choose_space(generator, config.space)
        self.generator = held(generator)
        self.noise = noise_maps(self.generator) if config.noise else {}
        self.population = Population.of(self.generator, config, seed)

    def find(
        self, x: Tensor, keys: Sequence[int], on_step: Callable[[int, float], None] | None = None
    ) -> Found:
        """Finds the latents w whose images G(w) are the photos.

            w* = argmin_w  L_percept(G(w), x) + pixel_weight / N ||G(w) - x||^2

        In w+, w has one row for each layer. Where noise maps are searched,
        `noise_weight` * `noise_correlation` of them is added.

        Args:
            x: Photos (B, 3, H, W) in [-1, 1], on the generator's device.
            keys: A number for each photo. Its random numbers depend on it and on the seed alone,
                so the other photos of the batch do not change what is found, up to rounding.
            on_step: Called after each step with the number of steps done and the mean loss.

        Raises:
            InputError: the generator's images have no gradient.
            DivergedError: the loss became NaN or infinite.

        Source: Abdal et al. 2019, Eq. 1, for w+; Karras et al. 2020, appendix D, for the schedule,
        the jitter and the noise maps.
        """
        config, wanted = self.config, self.loss.describe(x)
        start = self._start(x)
        unit, jitter_unit = self._units(start.values)
        offset = torch.zeros_like(start.values, requires_grad=True)
        noise = {
            name: normalized(self._random(maps, OF_MAPS, keys, number)).requires_grad_()
            for number, (name, maps) in enumerate(self.noise.items())
        }
        adam = torch.optim.Adam([offset, *noise.values()], lr=config.lr)
        for step in range(config.steps):
            t = step / config.steps
            adam.param_groups[0]["lr"] = config.learning_rate(t)
            jitter = config.jitter_at(t) * jitter_unit
            moved = offset + jitter * self._random(start.values[0], OF_JITTER, keys, step)
            drawn = self._draw(start.with_values(start.values + moved * unit), noise)
            losses = self.loss.compare(self.loss.describe(drawn), wanted)
            if not losses.requires_grad:
                raise InputError(
                    f"generator {self.generator.info.name!r}: its images have no gradient with "
                    "respect to the latents, and inversion needs one."
                )
            total = losses.sum()
            for maps in noise.values():
                planes = maps.flatten(0, -3)
                total = total + config.noise_weight * noise_correlation(planes).sum()
            adam.zero_grad()
            total.backward()
            adam.step()
            with torch.no_grad():
                for maps in noise.values():
                    maps.copy_(normalized(maps))
            if on_step is not None:
                on_step(step + 1, float(losses.detach().mean()))
        return self._found(start.with_values(start.values + offset.detach() * unit), noise, wanted)

    def _start(self, x: Tensor) -> Latents:
        """The latents (B, ...) at which the searches begin, in the space that is searched."""
        nearest = self.population.distances(x).argmin(dim=1)
        start = self.population.drawn[nearest.to(self.generator.device)]
        if self.config.start == "mean":
            start = start.with_values(self.population.mean.expand_as(start.values).clone())
        return start.with_values(self._in_space(start.values))

    def _in_space(self, values: Tensor) -> Tensor:
        """Styles (B, w_dim) repeated for each layer in w+; other values as they are."""
        if isinstance(self.generator, StyleGenerator) and self.space == "w+" and values.ndim == 2:
            return values[:, None].repeat(1, self.generator.n_layers, 1)
        return values

    def _units(self, start: Tensor) -> tuple[Tensor, float]:
        """What a step of 1 is in each coordinate, and the strength of the jitter in these units."""
        std = self.population.std
        if self.config.unit == "std":
            # A coordinate that never changes moves with the others' scale.
            unit = torch.where(std > 0, std, std.mean().clamp(min=1e-6))
            return self._in_space(unit[None]), 1.0
        return torch.ones_like(start[:1]), float(std.square().sum().sqrt())

    def _random(self, like: Tensor, key: int, keys: Sequence[int], step: int) -> Tensor:
        """(B, ...): normal numbers in the shape of `like` for each photo."""
        drawn = [
            torch.randn(like.shape, generator=random_generator(self.seed, key, photo, step))
            for photo in keys
        ]
        return torch.stack(drawn).to(like.device)

    def _draw(self, latents: Latents, noise: Noise) -> Tensor:
        """Images (B, 3, H, W), each with its own noise maps."""
        generator = self.generator
        if not noise or not isinstance(generator, StyleGenerator):
            return generator(latents)
        drawing = _Drawing(generator.network)

        def draw(values: Tensor, maps: Noise) -> Tensor:
            given = {f"network.{name}": each for name, each in maps.items()}
            return torch.func.functional_call(drawing, given, (values,))

        return torch.vmap(draw)(latents.values, noise)

    @torch.no_grad()
    def _found(self, latents: Latents, noise: Noise, wanted: Sequence[Tensor]) -> Found:
        noise = {name: maps.detach() for name, maps in noise.items()}
        images = self._draw(latents, noise)
        losses = self.loss.compare(self.loss.describe(images), wanted)
        if not losses.isfinite().all():
            raise DivergedError("The loss of an inversion became NaN or infinite. Lower `lr`.")
        return Found(latents, noise, images, losses)


class _Drawing(nn.Module):
    """One image (3, H, W) of styles (w_dim,) or (n_layers, w_dim), with the stored noise."""

    def __init__(self, network: StyleNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, w: Tensor) -> Tensor:
        ws = w.expand(self.network.n_layers, -1) if w.ndim == 1 else w
        return self.network.draw(ws[None], "const")[0][0]


def choose_space(generator: Generator, space: Space | None) -> Space:
    """The space that is searched: `space`, or the largest one that the generator has.

    Raises:
        InputError: the generator has no such space.
    """
    if not isinstance(generator, StyleGenerator):
        if space in (None, "z"):
            return "z"
        raise InputError(
            f"`space`: generator {generator.info.name!r} has no styles, so there is no {space}. "
            "Take z, its own latent."
        )
    if space == "z" or (space == "w" and generator.is_layered):
        known = "w+" if generator.is_layered else "w or w+"
        raise InputError(
            f"`space`: found {space}, but the latents of generator {generator.info.name!r} are "
            f"{generator.info.space}. Take {known}."
        )
    return space or "w+"
