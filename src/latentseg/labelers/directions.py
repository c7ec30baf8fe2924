"""Latent directions (Melas-Kyriazi et al. 2021): masks from what a step in latent space lights up.

One direction in latent space makes the centre of every image lighter against its border and keeps
the edges; it is found by gradient descent through the frozen generator. Another one makes it
darker. Where the light image is brighter than the dark one lies the foreground.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import DivergedError, InputError
from latentseg.files import (
    MANIFEST,
    check_keys,
    claim,
    locked,
    read_safetensors,
    write_json,
    write_manifest,
    write_safetensors,
)
from latentseg.generators.chunks import parts
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import write_image
from latentseg.labelers.descriptions import DESCRIPTION, read_description
from latentseg.labelers.losses import LOSSES, centre_minus_border, grey
from latentseg.labelers.overview import sample_latents
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.quality import (
    RADII,
    contact_sheet,
    measure_radii,
    quality_report,
    reliability,
)
from latentseg.labelers.refinement import FILTERS, RefinementConfig, refine
from latentseg.progress import Progress, say
from latentseg.seeds import random_generator

Mode = Literal["light", "dark", "both"]

FORMAT = 1
HELD_OUT = -1  # takes the place of the step in the seeds of latents that no step learns from
START_SCALE = 0.1  # official code
PARTS: tuple[str, ...] = ("loss", "contrast", "structure")  # what is reported of each step
CHECK_EVERY = 25
PATIENCE = 2  # checks


@dataclass(frozen=True)
class DirectionsConfig:
    """How directions are searched, and how masks are made with them.

    Attributes:
        loss: "official" (Sobel magnitude of grey, prior C) or "paper" (squared Sobel of RGB, r).
        contrast_weight: Weight of the contrast loss: lambda in the paper.
        structure_weight: Weight of the structure loss.
        radius: Length of the step in the search, in standard deviations of the latent.
        radius_spread: Standard deviation of that length, which is drawn anew for every image.
        min_radius: Lower bound of the drawn lengths.
        per_coordinate: Draw a length for each coordinate of the latent, not one for all of it.
        steps: Most steps of the search.
        batch: Images per step.
        lr: Learning rate of Adam.
        restarts: Number of random starts; the one with the lowest held-out loss is continued.
        restart_steps: Steps of each start before they are compared.
        tolerance: The search ends when the held-out loss has not fallen by this share of its
            size for 50 steps, and the direction with the lowest one is kept; 0: all steps are
            made and the last direction is kept.
        mode: "light" and "dark" take one direction, "both" the difference of the two.
        is_opposite: In mode "both", step along v and -v, v being the normalised difference of the
            two directions, instead of along each of them. What the two share moves both images
            alike: sometimes it only spoils the mask, sometimes it keeps the object in place. None:
            chosen, see `quality.reliability`.
        generation_radius: Length of the step that makes masks; None: chosen in the same way.
        refinement: Thresholds of the filters.
    """

    loss: Literal["official", "paper"] = "official"
    contrast_weight: float = 1.0
    structure_weight: float = 10.0
    radius: float = 2.0
    radius_spread: float = 0.5
    min_radius: float = 0.1
    per_coordinate: bool = True
    steps: int = 300
    batch: int = 32
    lr: float = 5e-3
    restarts: int = 3
    restart_steps: int = 50
    tolerance: float = 0.01
    mode: Mode = "both"
    is_opposite: bool | None = None
    generation_radius: float | None = None
    refinement: RefinementConfig = field(default_factory=RefinementConfig)

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise InputError(f"mode {self.mode!r}: expected one of {', '.join(get_args(Mode))}.")
        if self.loss not in LOSSES:
            raise InputError(f"loss {self.loss!r}: expected one of {', '.join(LOSSES)}.")
        positive = ("radius", "steps", "batch", "lr", "restarts", "restart_steps")
        for name in (*positive, "generation_radius"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name} {value}: must be greater than 0.")

    @property
    def signs(self) -> tuple[str, ...]:
        """The directions that `mode` needs."""
        return ("light", "dark") if self.mode == "both" else (self.mode,)

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "DirectionsConfig":
        """Reads what `to_json` gave.

        Raises:
            InputError: a field is unknown, or a value is out of its range.
        """
        check_keys(values, {field.name for field in fields(DirectionsConfig)}, where)
        refinement = values.get("refinement", {})
        check_keys(refinement, {field.name for field in fields(RefinementConfig)}, where)
        return DirectionsConfig(**{**values, "refinement": RefinementConfig(**refinement)})


_AS_PUBLISHED = DirectionsConfig(
    contrast_weight=2.0,
    restarts=1,
    tolerance=0.0,
    is_opposite=False,
    generation_radius=5.0,
    refinement=RefinementConfig(min_area=0.0),
)
VARIANTS = {
    "ours": DirectionsConfig(),
    # one start and larger steps: a quarter of the time, no choice between starts
    "fast": DirectionsConfig(lr=0.02, restarts=1),
    "official": _AS_PUBLISHED,
    "paper": replace(
        _AS_PUBLISHED,
        loss="paper",
        contrast_weight=5.0,
        structure_weight=1.0,
        radius_spread=0.0,
        per_coordinate=False,
    ),
}


@dataclass(frozen=True)
class Direction:
    """A direction that was found, and the way to it.

    Attributes:
        values: (*latent) float32, of length 1 over the whole latent.
        losses: Total, contrast and structure loss of each step, each before its weight.
        starts: Held-out loss of every start when they were compared.
        held_out: Held-out loss of the direction.
        is_converged: Whether the search ended before its last step.
        brightness_change: By how much the held-out images' centre lightened against the border.
    """

    values: Tensor
    losses: list[dict[str, float]]
    starts: list[float]
    held_out: float
    is_converged: bool
    brightness_change: float

    def has_right_sign(self, sign: str) -> bool:
        """Whether the light direction lightened, or the dark one darkened, the centre."""
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
        means: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        # The losses are means over images: those of parts of the batch, weighted, add up.
        for part in parts(len(latents), self.generator.info.size):
            share = len(latents[part]) / len(latents)
            loss, numbers = self._part_loss(latents[part], lengths[part])
            if not math.isfinite(numbers["loss"]):
                raise DivergedError(
                    f"step {s} of the search for a direction: the loss became {numbers['loss']}. "
                    "Nothing was written. Check the generator, or lower the learning rate."
                )
            (found,) = torch.autograd.grad(loss, self.values)
            gradient += share * found
            means = {name: means[name] + share * numbers[name] for name in PARTS}
        self.values.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            self.values /= self.values.norm()
        self.losses.append(means)

    def _part_loss(self, latents: Latents, lengths: Tensor) -> tuple[Tensor, dict[str, float]]:
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
        numbers = zip(PARTS, (total, contrast, structure), strict=True)
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
        """By how much the centre lightens against the border."""
        change = centre_minus_border(self._shifted(direction)) - centre_minus_border(self.x)
        return float(change.mean())

    def _shifted(self, direction: Tensor) -> Tensor:
        return self.generator(self.generator.shift(self.latents, self.radius * direction))


def draw_lengths(config: DirectionsConfig, latent: tuple[int, ...], seed: int, step: int) -> Tensor:
    """Lengths of a search step, (B, *latent) or (B, 1, ..., 1): normal, with a lower bound."""
    shape = latent if config.per_coordinate else (1,) * len(latent)
    # The last key keeps these numbers apart from those of the step's latents.
    noise = torch.randn((config.batch, *shape), generator=random_generator(seed, step, HELD_OUT))
    return (config.radius + config.radius_spread * noise).clamp(min=config.min_radius)


def find_direction(
    generator: Generator,
    sign: str,
    *,
    config: DirectionsConfig = VARIANTS["ours"],
    seed: int = 0,
    quiet: bool = False,
) -> Direction:
    """Searches the direction that lightens, or darkens, the centre of images and keeps their edges.

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

    Source: Melas-Kyriazi 2021, equation 1 and the official code; starts and stop are ours.
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


class DirectionsLabeler:
    """Labels images by what a step along the light and the dark direction does to their brightness.

    Args:
        generator: The generator in whose latent space the directions lie.
        directions: By sign; (*latent), of length 1.
        config: Mode, generation radius (which must be set) and filters are used.
        seed: Of the search, for the record.

    Source: Melas-Kyriazi 2021, equations 2 and 3.
    """

    classes = ("foreground",)
    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        directions: Mapping[str, Tensor],
        *,
        config: DirectionsConfig,
        seed: int,
    ) -> None:
        missing = [sign for sign in config.signs if sign not in directions]
        if missing:
            raise InputError(
                f"mode {config.mode!r}: the {missing[0]} direction was never searched."
            )
        if config.generation_radius is None:
            raise InputError("generation_radius: must be a number for a labeler.")
        self.generator, self.config, self.seed = generator, config, seed
        self.radius = config.generation_radius
        self.directions = dict(directions)
        self.used = {sign: directions[sign] for sign in config.signs}
        if config.is_opposite and config.mode == "both":
            difference = directions["light"] - directions["dark"]
            unit = difference / difference.norm()
            self.used = {"light": unit, "dark": -unit}

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": "directions",
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": self.config.to_json(),
        }

    def with_config(self, config: DirectionsConfig) -> "DirectionsLabeler":
        """The same directions, used with another mode, generation radius or filters."""
        return DirectionsLabeler(self.generator, self.directions, config=config, seed=self.seed)

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        return self.judge(self.generator(latents), self.shifted(latents))

    @torch.no_grad()
    def shifted(self, latents: Latents) -> dict[str, Tensor]:
        """The images of `latents` after the step along each direction that the mode needs."""
        steps = {sign: self.radius * values for sign, values in self.used.items()}
        return {
            sign: self.generator(self.generator.shift(latents, step.to(latents.values)))
            for sign, step in steps.items()
        }

    def steps(self, latents: Latents) -> dict[str, Tensor]:
        """The images from which masks are made: those after the light and the dark step."""
        return self.shifted(latents)

    def own_latents(self, n: int) -> Latents:
        """`n` latents on which the labeler may be judged: none that the search has seen."""
        return sample_latents(self.generator, n, self.seed, HELD_OUT, 1)

    def judge(self, x: Tensor, shifted: Mapping[str, Tensor]) -> Labelled:
        """Masks and verdicts from images and shifted images, each (B, 3, H, W)."""
        plain = grey(x)
        light = grey(shifted["light"]) if "light" in shifted else plain
        dark = grey(shifted["dark"]) if "dark" in shifted else plain
        is_dual = len(shifted) == 2
        parts = [light > plain, plain > dark] if is_dual else []
        masks, rejected_by = refine(
            (light > dark).cpu().numpy(),
            [part.cpu().numpy() for part in parts],
            list(shifted.values()),
            self.config.refinement,
        )
        return Labelled(
            images=x,
            masks=torch.from_numpy(masks.astype(np.uint8)),
            confidence=confidence(light - dark).cpu(),
            rejected_by=torch.from_numpy(rejected_by),
        )

    def save(self, folder: Path | str) -> None:
        """Writes directions.safetensors, labeler.json and, last, the manifest of `folder`."""
        folder = Path(folder)
        write_safetensors(folder / "directions.safetensors", self.directions)
        write_json(folder / "labeler.json", {"format": FORMAT, **self.info})
        write_manifest(folder)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "DirectionsLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        folder = Path(folder)
        description = read_description(folder, generator, format=FORMAT)
        directions = read_safetensors(folder / "directions.safetensors")
        config = DirectionsConfig.from_json(description["options"], folder / DESCRIPTION)
        return DirectionsLabeler(generator, directions, config=config, seed=description["seed"])


def confidence(difference: Tensor) -> Tensor:
    """How clearly brightness differences stand off from 0, (B, H, W) to (B,) in [0, 1].

    The mean over the pixels of |difference| in units of its root mean square, cut at 1: 1 where
    every pixel is lit or darkened alike, near 0 where a few pixels carry all of the change.
    """
    spread = difference.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return (difference.abs() / spread.clamp(min=1e-12)).clamp(max=1).mean(dim=(1, 2))


def fit_directions(
    generator: Generator,
    *,
    config: DirectionsConfig = VARIANTS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> DirectionsLabeler:
    """Searches the directions that the mode needs, chooses the generation radius, and reports.

    Args:
        generator: Differentiable with respect to its latents.
        config: How to search and to label; `VARIANTS` has the published settings.
        seed: Of everything random.
        out: Where labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned.
        quiet: Print no progress.

    Raises:
        InputError: the generator is not differentiable, or `out` holds other work.
        DivergedError: a loss became NaN or infinite.
    """
    if out is None:
        return _fit(generator, config, seed, quiet)[0]
    out = Path(out)
    asked = {
        "method": "directions",
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": config.to_json(),
    }
    with locked(out):
        claim(out, asked)
        if not (out / MANIFEST).is_file():
            labeler, directions, radii = _fit(generator, config, seed, quiet)
            quality = quality_report(labeler, directions, radii)
            write_json(out / "quality.json", quality)
            write_image(out / "contact_sheet.png", contact_sheet(labeler))
            labeler.save(out)
    return DirectionsLabeler.load(out, generator)


def _fit(
    generator: Generator, config: DirectionsConfig, seed: int, quiet: bool
) -> tuple[DirectionsLabeler, dict[str, Direction], list[dict[str, Any]]]:
    """The labeler, its directions, and what was measured at each radius."""
    directions = {
        sign: find_direction(generator, sign, config=config, seed=seed, quiet=quiet)
        for sign in config.signs
    }
    for sign, direction in directions.items():
        if not direction.has_right_sign(sign):
            say(
                f"The {sign} direction changes the centre's brightness the wrong way by "
                f"{direction.brightness_change:.3f}. Masks will be poor: raise steps or the "
                "contrast weight, or try another seed.",
                quiet=quiet,
            )
    values = {sign: direction.values for sign, direction in directions.items()}
    labeler, radii = _choose(generator, values, config, seed)
    chosen = labeler.config
    pairing = " along opposite steps" if chosen.is_opposite and chosen.mode == "both" else ""
    say(f"generation radius {chosen.generation_radius:g}{pairing}", quiet=quiet)
    return labeler, directions, radii


def _choose(
    generator: Generator, values: Mapping[str, Tensor], config: DirectionsConfig, seed: int
) -> tuple[DirectionsLabeler, list[dict[str, Any]]]:
    """The most reliable labeler among what `config` leaves open, and the curves over its radius."""
    is_open = config.is_opposite is None and config.mode == "both"
    tried = []
    for is_opposite in (False, True) if is_open else (bool(config.is_opposite),):
        radius = config.generation_radius or config.radius
        fixed = replace(config, is_opposite=is_opposite, generation_radius=radius)
        labeler = DirectionsLabeler(generator, values, config=fixed, seed=seed)
        rows = measure_radii(labeler, tuple(sorted({*RADII, radius})))
        allowed = [row for row in rows if config.generation_radius in (None, row["radius"])]
        best = max(allowed, key=reliability)
        chosen = replace(fixed, generation_radius=best["radius"])
        tried.append((reliability(best), labeler.with_config(chosen), rows))
    _, labeler, rows = max(tried, key=lambda entry: entry[0])
    return labeler, rows
