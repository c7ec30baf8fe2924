"""Inversion: latents whose images are given photos, and the photos' masks by a labeler.

Source: Karras et al. 2020 (StyleGAN2), appendix D; the few-shot route of Tritrong 2021 to photos.
"""

import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from latentseg.configs import check_choice, check_choices, check_range
from latentseg.devices import pick_device
from latentseg.errors import CorruptFileError, DivergedError, InputError, LatentsegError
from latentseg.files import (
    MANIFEST,
    claim,
    locked,
    read_json,
    read_safetensors,
    sha256,
    write_bytes,
    write_json,
    write_manifest,
    write_safetensors,
)
from latentseg.generators.chunks import parts
from latentseg.generators.protocols import Generator, Latents
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.images import (
    Pixels,
    contact_sheet,
    cover,
    list_images,
    overlay,
    read_image,
    to_pixels,
    to_tensor,
    write_image,
    write_mask,
)
from latentseg.inversion.losses import Loss, MultiScaleLoss, PerceptualLoss, reduced
from latentseg.inversion.noise_maps import (
    Noise,
    held,
    noise_correlation,
    noise_maps,
    normalised,
    with_noise,
)
from latentseg.labelers import Labelled, load_labeler
from latentseg.progress import Progress, say
from latentseg.seeds import derive_seeds, random_generator

Space = Literal["w", "w+", "z"]

RECORD = "inversions.json"
FIT = "scaled to cover the generator's size, and cut at the centre"
THUMBNAIL_PX = 64
AT_ONCE = 256  # latents that are drawn at once for the mean
SHOWN, LEAST_CELL_PX = 64, 96
OUTSIDE = 0.5  # own images and photos of its domain lie below, what it cannot draw above
OUTSIDE_WARNING = "outside what the generator draws: the reconstruction lacks {:.0%} of the photo"
LEAST_LOSS = 1 / 255  # of a photo of one colour: a level
POPULATION, DRAWN, JITTER, MAPS, OWN = 1, 2, 3, 4, 5  # keep random numbers of one seed apart


@dataclass(frozen=True)
class InversionConfig:
    """How latents are searched.

    Attributes:
        steps: Of Adam.
        space: "w" (one style), "w+" (one for each layer), "z" (the generator's own latent); None:
            "w+" of a generator with styles, "z" of any other.
        noise: Also search the noise maps, where the generator has them.
        start: "mean" of the latents, or the nearest of some "drawn" ones.
        candidates: How many are drawn for that.
        mean_samples: Latents of which mean and standard deviation are taken.
        unit: Of `lr`: "raw" latents, or their "spread", the standard deviation per coordinate.
        lr: Learning rate at its highest.
        ramp_up: Share of the steps during which it rises linearly.
        ramp_down: Share of the steps during which it falls as a cosine.
        jitter: Noise added to the latent at the beginning, in standard deviations of the latent:
            of the whole vector for "raw", as in the official code, per coordinate for "spread".
        jitter_until: Share of the steps after which there is none.
        noise_weight: Of `noise_correlation`.
        pixel_weight: Of the mean squared error, beside a perceptual loss.
        batch: Photos at once; fewer, if they are large.
    """

    steps: int = 300
    space: Space | None = None
    noise: bool = True
    start: Literal["mean", "drawn"] = "mean"
    candidates: int = 256
    mean_samples: int = 10_000
    unit: Literal["raw", "spread"] = "spread"
    lr: float = 0.2
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    jitter: float = 0.05
    jitter_until: float = 0.75
    noise_weight: float = 1e5
    pixel_weight: float = 0.0
    batch: int = 8

    def __post_init__(self) -> None:
        check_choices(self)
        check_choice("space", self.space, (*get_args(Space), None))
        check_range(self, ("steps", "candidates", "mean_samples", "batch"), 1)
        check_range(self, ("lr", "ramp_up", "ramp_down", "jitter_until"), above=0, most=1)
        check_range(self, ("jitter", "noise_weight", "pixel_weight"), 0)

    def learning_rate(self, t: float) -> float:
        """That of a step, where `t` in [0, 1) is the share of the steps before it.

        Source: Karras et al. 2020, appendix D, with the constants of the official projectors.
        """
        fall = 0.5 - 0.5 * math.cos(math.pi * min(1.0, (1 - t) / self.ramp_down))
        return self.lr * fall * min(1.0, t / self.ramp_up)

    def jitter_at(self, t: float) -> float:
        """Strength of the noise on the latent, where `t` in [0, 1) is the share of steps before."""
        return self.jitter * max(0.0, 1 - t / self.jitter_until) ** 2


VARIANTS = {
    "ours": InversionConfig(),
    "official": InversionConfig(steps=1000, space="w", unit="raw", lr=0.1),
}


@dataclass(frozen=True)
class Population:
    """What a generator's latents are like.

    Attributes:
        mean, deviation: (*latent) of each coordinate.
        drawn: Latents to start from.
        thumbnails: Their images, (N, 3, h, w), at most 64 px, on the CPU.
    """

    mean: Tensor
    deviation: Tensor
    drawn: Latents
    thumbnails: Tensor

    @staticmethod
    @torch.no_grad()
    def of(generator: Generator, config: InversionConfig, seed: int) -> "Population":
        """That of `generator`, with the latents to start from.

        Raises:
            InputError: its images are not of the size that it announces.
        """

        def sample(key: int, rows: range) -> Latents:
            return generator.sample(derive_seeds(seed, key, np.array(rows)).to(generator.device))

        n = config.mean_samples
        total = squares = torch.zeros((), dtype=torch.float64)
        for start in range(0, n, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, n))
            values = sample(POPULATION, rows).values.cpu().double()
            total, squares = total + values.sum(dim=0), squares + values.square().sum(dim=0)
        mean = total / n
        deviation = (squares / n - mean.square()).clamp(min=0).sqrt()
        drawn = sample(DRAWN, range(config.candidates))
        small = []
        for part in parts(config.candidates, generator.info.size):
            x = generator(drawn[part])
            if x.shape[1:] != (3, *generator.info.size):
                raise InputError(
                    f"generator {generator.info.name!r}: draws images of shape "
                    f"{tuple(x.shape[1:])}; its card says {(3, *generator.info.size)}."
                )
            small.append(thumbnails(x).cpu())
        device = generator.device
        return Population(
            mean.float().to(device), deviation.float().to(device), drawn, torch.cat(small)
        )

    def distances(self, x: Tensor) -> Tensor:
        """Multi-scale loss between `x` (B, 3, H, W) and the N drawn images, thumbnails both."""
        loss = MultiScaleLoss()
        drawn = loss.describe(self.thumbnails)
        wanted = loss.describe(thumbnails(x).cpu())
        rows = [loss.compare([level[i : i + 1] for level in wanted], drawn) for i in range(len(x))]
        return torch.stack(rows)


def unexplained(images: Tensor, x: Tensor) -> Tensor:
    """How much of photos `x` reconstructions `images` lack, (B,): 0 nothing, about 1 all of it.

    Their multi-scale loss over that of the photo's mean colour.
    """
    loss = MultiScaleLoss()
    photo = loss.describe(x)
    flat = loss.describe(x.mean(dim=(2, 3), keepdim=True).expand_as(x))
    whole = loss.compare(flat, photo).clamp(min=LEAST_LOSS)
    return loss.compare(loss.describe(images), photo) / whole


def thumbnails(x: Tensor) -> Tensor:
    """Images (B, 3, H, W), reduced to at most 64 px by means of their pixels."""
    return reduced(x, THUMBNAIL_PX)


@dataclass(frozen=True)
class Found:
    """What was found for B photos.

    Attributes:
        latents: Values (B, ...), in the space that was searched.
        noise: Maps (B, ..., H, W) by name; {} if they were not searched.
        images: (B, 3, H, W): what they draw.
        losses: (B,).
    """

    latents: Latents
    noise: Noise
    images: Tensor
    losses: Tensor

    def __getitem__(self, i: int) -> "Found":
        """That of one photo."""
        one = slice(i, i + 1)
        noise = {name: maps[one] for name, maps in self.noise.items()}
        return Found(self.latents[one], noise, self.images[one], self.losses[one])


class Inversion:
    """The search for latents of photos, in batches.

    Args:
        generator: Differentiable.
        config: Space, schedule and start.
        loss: Between images and photos.
        seed: Of everything random.

    Raises:
        InputError: the generator has no such space, or its images are not of its size.
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
        """Latents of photos `x`, (B, 3, H, W) in [-1, 1].

        Args:
            x: On the generator's device.
            keys: A number for each photo, on which (and the seed) its random numbers depend: the
                others of the batch do not change what is found, up to rounding.
            on_step: Called after each step with the number of steps done and the mean loss.

        Raises:
            InputError: the generator's images have no gradient.
            DivergedError: the loss became NaN or infinite.
        """
        config, wanted = self.config, self.loss.describe(x)
        start = self._start(x)
        unit, jitter_unit = self._units(start.values)
        offset = torch.zeros_like(start.values, requires_grad=True)
        noise = {
            name: normalised(self._random(maps, MAPS, keys, number)).requires_grad_()
            for number, (name, maps) in enumerate(self.noise.items())
        }
        adam = torch.optim.Adam([offset, *noise.values()], lr=config.lr)
        for step in range(config.steps):
            t = step / config.steps
            adam.param_groups[0]["lr"] = config.learning_rate(t)
            jitter = config.jitter_at(t) * jitter_unit
            moved = offset + jitter * self._random(start.values[0], JITTER, keys, step)
            drawn = self._draw(start.with_values(start.values + moved * unit), noise)
            losses = self.loss.compare(self.loss.describe(drawn), wanted)
            if not losses.requires_grad:
                raise InputError(
                    f"generator {self.generator.info.name!r}: its images have no gradient with "
                    "respect to the latents, which inversion follows."
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
                    maps.copy_(normalised(maps))
            if on_step is not None:
                on_step(step + 1, float(losses.detach().mean()))
        return self._found(start.with_values(start.values + offset.detach() * unit), noise, wanted)

    def _start(self, x: Tensor) -> Latents:
        """The latents at which the search for each photo begins, in the space that is searched."""
        nearest = self.population.distances(x).argmin(dim=1)
        start = self.population.drawn[nearest.to(self.generator.device)]
        if self.config.start == "mean":
            start = start.with_values(self.population.mean.expand_as(start.values).clone())
        return start.with_values(self._in_space(start.values))

    def _in_space(self, values: Tensor) -> Tensor:
        """(B, w_dim) as one style per layer, in w+."""
        if isinstance(self.generator, StyleGenerator) and self.space == "w+" and values.ndim == 2:
            return values[:, None].repeat(1, self.generator.n_layers, 1)
        return values

    def _units(self, start: Tensor) -> tuple[Tensor, float]:
        """What a step of 1 is in each coordinate, and the strength of the jitter in these units."""
        deviation = self.population.deviation
        if self.config.unit == "spread":
            # A coordinate that never changes moves with the others' scale.
            unit = torch.where(deviation > 0, deviation, deviation.mean().clamp(min=1e-6))
            return self._in_space(unit[None]), 1.0
        return torch.ones_like(start[:1]), float(deviation.square().sum().sqrt())

    def _random(self, like: Tensor, key: int, keys: Sequence[int], step: int) -> Tensor:
        """Normal numbers in the shape of `like` for each photo, (B, ...)."""
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
            raise DivergedError("the loss of an inversion became NaN or infinite: lower lr.")
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
    """The space that is searched: `space`, or the largest that the generator has.

    Raises:
        InputError: the generator has no such space.
    """
    if not isinstance(generator, StyleGenerator):
        if space in (None, "z"):
            return "z"
        raise InputError(
            f"space {space}: generator {generator.info.name!r} has no styles. Take z, its own "
            "latent."
        )
    if space == "z" or (space == "w" and generator.is_layered):
        known = "w+" if generator.is_layered else "w or w+"
        raise InputError(
            f"space {space}: the latents of generator {generator.info.name!r} are "
            f"{generator.info.space}. Take {known}."
        )
    return space or "w+"


@dataclass(frozen=True)
class Inverted:
    """A photo, and what was found for it.

    Attributes:
        name: Of the photo and of its files, without suffix.
        photo: Its file.
        sha256: Of that.
        loss: Between reconstruction and photo, by the loss that inversions.json names.
        unexplained: How much of the photo the reconstruction lacks; see `unexplained`.
        psnr: Of the reconstruction in 8 bits, in dB.
        error: Mean absolute difference of the two, in [0, 1].
        label: Class label of the latent; None for an unconditional generator.
        warning: Why not to trust the result, or "".
        confidence: Of the labeler in the mask, in [0, 1]; None without a labeler.
        refused_by: The filter of the labeler that refuses the mask, or "".
    """

    name: str
    photo: str
    sha256: str
    loss: float
    unexplained: float
    psnr: float
    error: float
    label: int | None = None
    warning: str = ""
    confidence: float | None = None
    refused_by: str = ""


def invert(
    generator: Generator,
    photos: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    config: InversionConfig = VARIANTS["ours"],
    labeler: Path | str | None = None,
    perceptual: Sequence[Path | str] = (),
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> list[Inverted]:
    """Finds latents whose images are the photos, and the photos' masks by a labeler.

    Photos are scaled until they cover the generator's size, and cut at the centre. A photo NAME.*
    gives NAME.safetensors (see `read_inverted`), NAME_photo.png (what was inverted),
    NAME_reconstruction.png, and with a labeler NAME_mask.png and NAME_overlay.png; all together
    give inversions.json, inversions.png (photo, reconstruction, overlay) and latents.npy, (N, ...)
    in the order of inversions.json. A photo that an earlier call finished is not done again.

    Args:
        generator: Differentiable.
        photos: Photos, or folders of photos.
        out: Folder of the results.
        config: Space, schedule and start; `VARIANTS` has the published constants.
        labeler: Folder of a labeler of this generator, for masks. It sees the noise maps that were
            found.
        perceptual: Files of `PerceptualLoss`; none: `MultiScaleLoss`.
        seed: Of everything random.
        device: Where to compute.
        quiet: Print no progress.

    Returns:
        The photos that could be read, in their order. The others are named on stderr at the end,
        and in inversions.json.

    Raises:
        InputError: the generator cannot be inverted, a folder holds no photo, none can be read, two
            have the same name, or `out` holds other work.
        CorruptFileError: labeler or perceptual weights are damaged.
        DivergedError: the loss became NaN or infinite.
    """
    generator = held(generator.to(pick_device(device)))
    loss: Loss = MultiScaleLoss()
    if perceptual:
        loss = PerceptualLoss(perceptual, generator.device, pixel_weight=config.pixel_weight)
    config = replace(config, space=choose_space(generator, config.space))
    masks = None if labeler is None else _Masks(generator, labeler)
    out, paths = Path(out), _listed(photos)
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise InputError(f"{out}: holds the photos. Give another folder for the results.")
    asked = {
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": asdict(config),
        "loss": loss.name,
        "perceptual": [sha256(file) for file in perceptual],
        "labeler": None if labeler is None else sha256(Path(labeler) / MANIFEST),
    }
    about = {
        "space": config.space,
        "noise": config.noise and bool(noise_maps(generator)),
        "loss": loss.name,
        "fit": FIT,
        "classes": None if masks is None else masks.labeler.classes,
    }
    at_once = min(config.batch, parts(config.batch, generator.info.size)[0].stop)
    with locked(out):
        claim(out, asked, free=("options.batch",))
        done, problems = _finished(out), dict[str, str]()
        say(
            f"invert: {len(paths)} photos in {config.space}, {'with' if about['noise'] else 'no'} "
            f"noise maps, loss {loss.name}; photos are {FIT}",
            quiet=quiet,
        )
        search: Inversion | None = None
        steps = config.steps
        with Progress("invert", total=len(paths) * steps, unit="step", quiet=quiet) as progress:
            for first in range(0, len(paths), at_once):
                batch = paths[first : first + at_once]
                todo = [
                    photo
                    for photo in _readable(batch, generator.info.size, problems)
                    if photo.name not in done or done[photo.name].sha256 != photo.sha256
                ]
                if not todo:
                    continue
                (out / MANIFEST).unlink(missing_ok=True)
                search = search or Inversion(generator, config, loss, seed=seed)

                def tell(step: int, loss: float, first: int = first, n: int = len(batch)) -> None:
                    progress.update(first * steps + step * n, loss=loss)

                x = to_tensor(np.stack([photo.image for photo in todo])).to(generator.device)
                found = search.find(x, [photo.key for photo in todo], tell)
                missing = unexplained(found.images, x).tolist()
                for i, photo in enumerate(todo):
                    done[photo.name] = _write(out, photo, found[i], missing[i], masks)
                _record(out, about, done, problems)
        for problem in problems.values():
            say(f"left out: {problem}")
        inverted = [done[path.stem] for path in paths if str(path) not in problems]
        if not inverted:
            raise InputError(
                f"none of {len(paths)} photos can be read: {'; '.join(problems.values())}"
            )
        _record(out, about, done, problems)
        _write_overview(out, list(done))
        write_manifest(out)
    return inverted


def _listed(photos: Path | str | Sequence[Path | str]) -> list[Path]:
    """Photos, and those of folders; refuses two of one name, whose results would be one file."""
    given = [photos] if isinstance(photos, Path | str) else photos
    paths = [
        path
        for each in map(Path, given)
        for path in (list_images(each) if each.is_dir() else [each])
    ]
    if not paths:
        raise InputError("no photos are given.")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{other} and {path}: their results would have one name. Give them one by one, "
                "with different output folders."
            )
    return list(by_name.values())


@dataclass(frozen=True)
class _Photo:
    """A photo that could be read, fitted to the generator's size."""

    path: Path
    sha256: str
    image: Pixels

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def key(self) -> int:
        """Names its random numbers: they depend on its content, not on its place."""
        return int(self.sha256[:15], 16)


def _readable(
    paths: Sequence[Path], size: tuple[int, int], problems: dict[str, str]
) -> Iterator[_Photo]:
    """The photos that can be read; of the others the error goes to `problems`."""
    for path in paths:
        try:
            image = cover(read_image(path), size)
        except LatentsegError as error:
            problems[str(path)] = str(error)
        else:
            yield _Photo(path, sha256(path), image)


class _Masks:
    """The masks that a labeler gives to what was found."""

    def __init__(self, generator: Generator, folder: Path | str) -> None:
        self.generator, self.folder = generator, folder
        self.labeler = load_labeler(folder, generator)

    def of(self, found: Found) -> Labelled:
        """That of one photo."""
        if not found.noise or not isinstance(self.generator, StyleGenerator):
            return self.labeler.label(found.latents)
        noise = {name: maps[0] for name, maps in found.noise.items()}
        drawing = with_noise(self.generator, noise)
        return load_labeler(self.folder, drawing).label(found.latents)

    def refusal(self, labelled: Labelled) -> str:
        """The filter that refuses the mask, or ""."""
        number = int(labelled.rejected_by[0])
        return self.labeler.filters[number - 1] if number else ""


def _write(
    out: Path, photo: _Photo, found: Found, missing: float, masks: _Masks | None
) -> Inverted:
    """Writes the files of one photo."""
    tensors = {"latent": found.latents.values[0]}
    if found.latents.labels is not None:
        tensors["label"] = found.latents.labels[0]
    tensors |= {f"noise.{name}": maps[0] for name, maps in found.noise.items()}
    drawn = to_pixels(found.images)[0]
    name, difference = photo.name, drawn.astype(np.float64) - photo.image
    write_safetensors(out / f"{name}.safetensors", tensors)
    write_image(out / f"{name}_photo.png", photo.image)
    write_image(out / f"{name}_reconstruction.png", drawn)
    inverted = Inverted(
        name=name,
        photo=str(photo.path),
        sha256=photo.sha256,
        loss=float(found.losses[0]),
        unexplained=missing,
        psnr=_psnr(difference),
        error=float(np.abs(difference).mean() / 255),
        label=None if found.latents.labels is None else int(found.latents.labels[0]),
        warning=OUTSIDE_WARNING.format(missing) if missing > OUTSIDE else "",
    )
    if masks is None:
        return inverted
    labelled = masks.of(found)
    mask = labelled.masks[0].numpy()
    write_mask(out / f"{name}_mask.png", mask)
    write_image(out / f"{name}_overlay.png", overlay(photo.image, mask))
    return replace(
        inverted,
        confidence=float(labelled.confidence[0]),
        refused_by=masks.refusal(labelled),
    )


def _psnr(difference: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pixels; at most that of a single wrong level."""
    squares = max(float(np.square(difference).mean()), 1 / difference.size)
    return 10 * math.log10(255**2 / squares)


def _record(
    out: Path, about: dict[str, Any], done: Mapping[str, Inverted], problems: Mapping[str, str]
) -> None:
    write_json(
        out / RECORD,
        {
            **about,
            "photos": [asdict(each) for each in done.values()],
            "left_out": list(problems.values()),
        },
    )


def _finished(out: Path) -> dict[str, Inverted]:
    """What earlier calls finished, by name.

    Raises:
        CorruptFileError: the record is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return {}
    try:
        found = [Inverted(**values) for values in read_json(path)["photos"]]
        wrong = [each.name for each in found if Path(each.name).name != each.name]
    except (TypeError, KeyError) as error:
        raise CorruptFileError(f"{path}: not a record of inversions ({error}).") from error
    if wrong:
        raise CorruptFileError(f"{path}: {wrong[0]!r} is not the name of a file.")
    kept = ("{}.safetensors", "{}_photo.png", "{}_reconstruction.png")
    return {
        each.name: each
        for each in found
        if all((out / k.format(each.name)).is_file() for k in kept)
    }


def _write_overview(out: Path, names: Sequence[str]) -> None:
    """Writes inversions.png and latents.npy."""
    rows = []
    for name in names[:SHOWN]:
        files = [out / f"{name}_{what}.png" for what in ("photo", "reconstruction", "overlay")]
        rows.append([read_image(file) for file in files if file.is_file()])
    height, width = rows[0][0].shape[:2]
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    titles = ("photo", "reconstruction", "overlay")[: len(rows[0])]
    sheet = contact_sheet(rows, titles=titles, cell=(height * scale, width * scale))
    write_image(out / "inversions.png", sheet)
    latents = [read_safetensors(out / f"{name}.safetensors")["latent"] for name in names]
    buffer = io.BytesIO()
    np.save(buffer, torch.stack(latents).numpy())
    write_bytes(out / "latents.npy", buffer.getvalue())


def read_inverted(path: Path | str, generator: Generator) -> tuple[Generator, Latents]:
    """Reads NAME.safetensors of `invert`.

    Args:
        path: The file.
        generator: The one that was inverted.

    Returns:
        The generator with the noise maps that were found, and the latent, a batch of one: together
        they draw the reconstruction.

    Raises:
        InputError: no such file, or it is of another generator.
        CorruptFileError: the file is damaged.
    """
    generator, tensors = held(generator), read_safetensors(path)
    known = noise_maps(generator)
    noise = {
        name.removeprefix("noise."): maps
        for name, maps in tensors.items()
        if name.startswith("noise.")
    }
    latent, shapes = tensors.get("latent"), {generator.info.latent}
    if isinstance(generator, StyleGenerator):
        width = generator.info.latent[-1]
        shapes |= {(width,), (generator.n_layers, width)}
    is_known = all(
        name in known and known[name].shape == maps.shape for name, maps in noise.items()
    )
    if latent is None or tuple(latent.shape) not in shapes or not is_known:
        raise InputError(f"{path}: not an inversion by generator {generator.info.name!r}.")
    if noise and isinstance(generator, StyleGenerator):
        generator = with_noise(generator, noise)
    label = tensors.get("label")
    device = generator.device
    return generator, Latents(
        latent[None].to(device), None if label is None else label[None].to(device)
    )
