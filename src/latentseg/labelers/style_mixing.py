"""Style-mixed variants (Feng 2023): masks from which pixels change colour together.

A generator that can keep the layout of an image and change its look draws many variants of it.
Pixels of one thing take on new colours together; so the pixels, each described by its colours in
all variants, fall into clusters, one for each segment. Nothing is trained.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import scipy.ndimage
import torch
from kornia.color import rgb_to_lab
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.files import (
    MANIFEST,
    check_keys,
    claim,
    locked,
    read_json,
    read_safetensors,
    write_json,
    write_manifest,
    write_safetensors,
)
from latentseg.generators.abilities import abilities
from latentseg.generators.protocols import Generator, HasVariants, Latents
from latentseg.images import Pixels, class_colors, to_pixels, write_image
from latentseg.labelers import labelers_for
from latentseg.labelers.clustering import GIB, Method, cluster, nearest
from latentseg.labelers.descriptions import DESCRIPTION, read_description
from latentseg.labelers.foreground import Rule, background_classes, foreground_segment, places
from latentseg.labelers.losses import paper_prior
from latentseg.labelers.naming import BACKGROUND, NAMES, ClassNames, read_names, write_class_page
from latentseg.labelers.overview import sample_counts, sample_latents, samples_sheet
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.prototypes import (
    SHARED_POINTS,
    Classes,
    fit_prototypes,
    fit_shared,
    segment_statistics,
)
from latentseg.labelers.quality import agreement
from latentseg.labelers.refinement import (
    ACROSS_SIDES,
    Masks,
    area_share,
    first_refusal,
    large_components,
)
from latentseg.progress import Progress, say
from latentseg.seeds import derive_seeds

Colour = Literal["rgb", "lab"]
Normalisation = Literal["none", "plane", "correlation"]
Meaning = Literal["shared", "matched"]

FORMAT = 1
TENSORS = "classes.safetensors"
LAYERS = "layers.json"
FILTERS = ("components", "area", "confidence", "agreement")
STYLES, OWN, STARTS = 1, 2, 3  # keys that keep random numbers of one seed apart
JUDGED_IMAGES, CLASS_IMAGES = 0, 1  # as do these those of the labeler's own latents
COPIES = 5  # of the variants that are in memory at once: descriptors, and steps on the way to them
ACTIVATION_CHANNELS = 192  # float32 values per pixel that drawing an image may hold at once
LAB_RANGE = 100.0  # of the lightness; the units of the two colour axes are the same
SMALLEST_SPREAD = 1e-6  # what is smaller is rounding of one value
LAYERS_MEASURED = 9  # at most
MEASURED = 16  # images on which the first mixed layer is chosen
FITTED = 64  # images from which the classes are found
REPORTED = 64
SHOWN = 12
VARIANTS_SHOWN = 4
LEAST_CELL_PX = 96


@dataclass(frozen=True)
class StyleMixingConfig:
    """How variants are drawn, clustered and made into masks.

    Attributes:
        k: Segments; 2: foreground and background.
        n_variants: Variants of each image, itself included.
        first_mixed_layer: Layers from this one on take another style, those before it keep theirs;
            None: chosen, see `reliability`.
        colour: Colour space of the descriptors.
        normalisation: "none"; "plane": every channel of every variant to mean 0 and deviation 1
            over the image; "correlation": every pixel's colours to mean 0 and deviation 1 over the
            variants and to length 1, so that distances are those of correlation.
        spatial_weight: Variance of the place of a pixel as a share of that of its colours.
        clustering: "kmeans", "spherical" or "mixture".
        restarts: Starts of the clustering.
        meaning: For k > 2, how classes keep their meaning: "shared": one clustering of many
            images; "matched": clusters of each image are matched to prototypes.
        foreground: For k = 2, which segment is the foreground; see `foreground_segment`.
        min_component: Components stay whose area exceeds this share of the largest one's; 0: all.
        fill_holes: Fill holes of the foreground.
        min_area: Least share of the image that the foreground must cover.
        max_area: Largest share that it may cover.
        min_confidence: Least confidence.
        min_agreement: For k = 2: least IoU of the masks that either half of the variants gives;
            0: not asked, which saves two clusterings. Halves of less than 8 variants seldom agree.
        resolution: Longest side, in pixels, at which clusters are sought. Larger images are
            reduced for it, then each of their pixels goes to the nearest centre.
        memory: Bytes that may be used beside the generator's weights; the least that can be done
            is one image.
    """

    k: int = 2
    n_variants: int = 32
    first_mixed_layer: int | None = None
    colour: Colour = "rgb"
    normalisation: Normalisation = "correlation"
    spatial_weight: float = 0.0
    clustering: Method = "kmeans"
    restarts: int = 10
    meaning: Meaning = "shared"
    foreground: Rule = "centre"
    min_component: float = 0.2
    fill_holes: bool = True
    min_area: float = 0.01
    max_area: float = 0.6
    min_confidence: float = 0.0
    min_agreement: float = 0.5
    resolution: int = 256
    memory: int = GIB

    def __post_init__(self) -> None:
        choices = (
            ("colour", Colour),
            ("normalisation", Normalisation),
            ("clustering", Method),
            ("meaning", Meaning),
            ("foreground", Rule),
        )
        for name, allowed in choices:
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    f"{name} {getattr(self, name)!r}: expected one of "
                    f"{', '.join(get_args(allowed))}."
                )
        if not 2 <= self.k <= 254:
            raise InputError(f"k {self.k}: expected 2 (foreground and background) to 254.")
        for name in ("n_variants", "restarts", "resolution", "memory"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must be at least 1.")
        for name in ("spatial_weight", "min_component", "min_confidence", "min_agreement"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} {getattr(self, name)}: must not be negative.")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "StyleMixingConfig":
        """Reads what `to_json` gave.

        Raises:
            InputError: a field is unknown, or a value is out of its range.
        """
        check_keys(values, {field.name for field in fields(StyleMixingConfig)}, where)
        return StyleMixingConfig(**values)


DEFAULTS = StyleMixingConfig()


class _Mixing(Generator, HasVariants, Protocol):
    """A generator with variants."""


def check_variants(generator: Generator) -> _Mixing:
    """The generator, which has variants.

    Raises:
        InputError: it has none; names the labelers that it can serve.
    """
    if isinstance(generator, HasVariants):
        return generator  # pyright: ignore[reportReturnType]
    served = ", ".join(labelers_for(abilities(generator)))
    raise InputError(
        f"generator {generator.info.name!r}: cannot draw variants of an image (the same layout in "
        "another look: `n_layers` and `variants` of the protocol HasVariants), which style-mixing "
        f"needs. It can serve: {served}."
    )


@torch.no_grad()
def draw_variants(
    generator: _Mixing, latents: Latents, seeds: Tensor, keep: int, *, memory: int = GIB
) -> Tensor:
    """Variants of each image, (B, N, 3, H, W), a few at a time.

    Args:
        generator: It can draw variants.
        latents: Of the images.
        seeds: (N,) int64, of the styles.
        keep: Layers that keep the style of the image.
        memory: Bytes that drawing may use; it bounds how many images are drawn at once.
    """
    height, width = generator.info.size
    at_once = max(1, memory // (4 * ACTIVATION_CHANNELS * height * width))
    n_styles = min(len(seeds), at_once)
    n_images = max(1, at_once // n_styles)
    drawn = [
        torch.cat(
            [
                generator.variants(latents[start : start + n_images], some, keep)
                for some in seeds.split(n_styles)
            ],
            dim=1,
        )
        for start in range(0, len(latents), n_images)
    ]
    return torch.cat(drawn)


def describe(variants: Tensor, config: StyleMixingConfig) -> Tensor:
    """Descriptors of the pixels: (B, N, 3, H, W) in [-1, 1] to (B, H * W, D).

    D is 3 N, and 2 more with a spatial term. The result is the transposed view of (B, D, H * W).

    Source: Feng 2023, each pixel by its flattened N * C values; colour spaces and normalisations
    are ours, "correlation" after the paper's observation that what one segment shares is not
    colour but change of colour.
    """
    x = variants
    if config.colour == "lab":
        rgb = (x.flatten(0, 1).clamp(-1, 1) + 1) / 2
        x = (rgb_to_lab(rgb) / LAB_RANGE).reshape(x.shape)
    if config.normalisation == "plane":
        x = x - x.mean(dim=(3, 4), keepdim=True)
        x = x / x.std(dim=(3, 4), keepdim=True, unbiased=False).clamp(min=SMALLEST_SPREAD)
    if config.normalisation == "correlation":
        x = x - x.mean(dim=1, keepdim=True)
        x = x / x.std(dim=1, keepdim=True, unbiased=False).clamp(min=SMALLEST_SPREAD)
        x = x / x.shape[1] ** 0.5
    columns = x.flatten(1, 2).flatten(2)
    if config.spatial_weight > 0:
        columns = torch.cat([columns, _place_columns(columns, x.shape[3:], config)], dim=1)
    return columns.mT


def _place_columns(columns: Tensor, size: tuple[int, ...], config: StyleMixingConfig) -> Tensor:
    """(B, 2, H * W): y and x, of the variance that the configuration gives to the place."""
    y = torch.linspace(-1, 1, size[0], device=columns.device)[:, None].expand(*size)
    x = torch.linspace(-1, 1, size[1], device=columns.device).expand(*size)
    place = torch.stack([y, x]).flatten(1)
    place = place / place.std(dim=1, keepdim=True, unbiased=False).clamp(min=SMALLEST_SPREAD)
    variance = columns.var(dim=2, unbiased=False).sum(dim=1)
    return place * (config.spatial_weight / 2 * variance).sqrt()[:, None, None]


@dataclass(frozen=True)
class Segmented:
    """What the clustering made of some images.

    Attributes:
        segments: Of each pixel, (B, H, W) int64 in [0, k), on the CPU. For k > 2 they are the
            classes.
        margins: How far each pixel lies from the boundary between clusters, (B, h, w) float32 in
            [0, 1], on the CPU; h, w are the size at which clusters were sought.
    """

    segments: Tensor
    margins: Tensor

    @property
    def confidence(self) -> Tensor:
        """The mean margin of the pixels, (B,) float32 in [0, 1]."""
        return self.margins.mean(dim=(1, 2))


def segment(
    variants: Tensor, config: StyleMixingConfig, *, seed: int, classes: Classes | None = None
) -> Segmented:
    """Clusters the pixels of images by their variants.

    Args:
        variants: (B, N, 3, H, W) in [-1, 1].
        config: How.
        seed: Of the starts, the same for every image.
        classes: For k > 2; without them segments mean something else in every image.
    """
    size = (variants.shape[3], variants.shape[4])
    small = reduce(variants, config.resolution)
    small_size = (small.shape[3], small.shape[4])
    points = describe(small, config)
    if classes is not None and classes.centres is not None:
        centres = classes.centres.to(points).expand(len(points), -1, -1)
        labels, margins = nearest(points, centres)
        if small is not variants:
            labels = nearest(describe(variants, config), centres)[0]
        return Segmented(labels.unflatten(1, size).cpu(), margins.unflatten(1, small_size).cpu())
    found = cluster(
        points,
        config.k,
        seeds=torch.full((len(points),), seed),
        method=config.clustering,
        restarts=config.restarts,
        memory=config.memory,
    )
    segments = found.labels.unflatten(1, small_size)
    if small is not variants:
        full = found.assign(describe(variants, config)).unflatten(1, size)
    else:
        full = segments
    if classes is not None and classes.prototypes is not None:
        statistics, _ = segment_statistics(points, segments, config.k)
        full = classes.prototypes.match(statistics).gather(1, full.flatten(1).cpu())
        full = full.unflatten(1, size)
    return Segmented(full.cpu(), found.margins.unflatten(1, small_size).cpu())


def reduce(variants: Tensor, longest: int) -> Tensor:
    """The variants with sides of at most `longest` pixels, each pixel a mean; or themselves."""
    height, width = variants.shape[3:]
    if max(height, width) <= longest:
        return variants
    scale = longest / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = functional.interpolate(variants.flatten(0, 1), size=size, mode="area")
    return small.unflatten(0, variants.shape[:2])


def clean(masks: Masks, config: StyleMixingConfig) -> Masks:
    """Foregrounds (B, H, W) without small components and, if asked, without holes."""
    if config.min_component > 0:
        masks = large_components(masks, config.min_component)
    if config.fill_holes:
        masks = np.asarray(scipy.ndimage.binary_fill_holes(masks, ACROSS_SIDES), dtype=bool)
    return masks


class StyleMixingLabeler:
    """Labels images by how their pixels change colour as styles change.

    Args:
        generator: It can draw variants.
        config: Its `first_mixed_layer` must be a number.
        seed: Of styles and starts.
        names: For k > 2 of the k classes, for 2 of the foreground.
        classes: For k > 2, what gives them their meaning.

    Raises:
        InputError: the generator has no variants, or not so many layers; classes are missing.

    Source: Feng 2023.
    """

    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        *,
        config: StyleMixingConfig,
        seed: int,
        names: ClassNames,
        classes: Classes | None = None,
    ) -> None:
        self.mixing = check_variants(generator)
        layer = config.first_mixed_layer
        if layer is None or not 0 <= layer <= self.mixing.n_layers:
            raise InputError(
                f"first_mixed_layer {layer}: generator {generator.info.name!r} has "
                f"{self.mixing.n_layers} layers; expected 0 to {self.mixing.n_layers}."
            )
        n_names = 1 if config.k == 2 else config.k
        if len(names.given) != n_names or (config.k > 2 and classes is None):
            raise InputError(
                f"k {config.k} with {len(names.given)} names: expected {n_names} of them"
                f"{', and fitted classes' if config.k > 2 else ''}. Fit the labeler again."
            )
        self.generator, self.config, self.seed = generator, config, seed
        self.names, self.own_classes, self.keep = names, classes, layer
        self.styles = derive_seeds(seed, STYLES, np.arange(config.n_variants - 1))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.names.classes

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": "style-mixing",
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": self.config.to_json(),
            "classes": list(self.names.given),
        }

    def with_config(self, config: StyleMixingConfig) -> "StyleMixingLabeler":
        """The same styles, with other options; k and what classes mean have to stay."""
        return StyleMixingLabeler(
            self.generator,
            config=config,
            seed=self.seed,
            names=self.names,
            classes=self.own_classes,
        )

    def with_names(self, names: ClassNames) -> "StyleMixingLabeler":
        """The same classes under other names."""
        return StyleMixingLabeler(
            self.generator,
            config=self.config,
            seed=self.seed,
            names=names,
            classes=self.own_classes,
        )

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        x = self.generator(latents)
        judged = [self.judge(variants) for variants in self.drawn(latents, x)]
        masks, confidence, rejected_by = (torch.cat(part) for part in zip(*judged, strict=True))
        return Labelled(images=x, masks=masks, confidence=confidence, rejected_by=rejected_by)

    @torch.no_grad()
    def drawn(self, latents: Latents, x: Tensor | None = None) -> Iterator[Tensor]:
        """The variants that are clustered, (b, N, 3, H, W), of so few images that memory suffices.

        The first variant of each image is the image itself, which is drawn if `x` (B, 3, H, W)
        does not hold it.
        """
        x = self.generator(latents) if x is None else x
        styles = self.styles.to(x.device)
        at_once = max(1, self.config.memory // (COPIES * x[0].nbytes * self.config.n_variants))
        for start in range(0, len(x), at_once):
            rows = slice(start, start + at_once)
            variants = x[rows, None]
            if len(styles):
                others = draw_variants(
                    self.mixing, latents[rows], styles, self.keep, memory=self.config.memory
                )
                variants = torch.cat([variants, others], dim=1)
            yield variants

    def segments(self, variants: Tensor) -> Segmented:
        """What the clustering makes of `variants`, before any is called foreground."""
        seed = int(derive_seeds(self.seed, STARTS))
        return segment(variants, self.config, seed=seed, classes=self.own_classes)

    def steps(self, latents: Latents) -> dict[str, Tensor]:
        """Some of the images from which masks are made: variants, by name."""
        variants = torch.cat(list(self.drawn(latents)))[:, 1 : VARIANTS_SHOWN + 1]
        return {f"variant {i}": x for i, x in enumerate(variants.unbind(dim=1), start=1)}

    def own_latents(self, n: int, key: int = JUDGED_IMAGES) -> Latents:
        """`n` latents on which the labeler may be judged; other ones for each `key`."""
        return sample_latents(self.generator, n, self.seed, OWN, key)

    def masks(self, segments: Tensor) -> NDArray[np.uint8]:
        """Masks (B, H, W) from segments, cleaned."""
        if self.config.k == 2:
            chosen = foreground_segment(segments, 2, rule=self.config.foreground)
            foreground = clean((segments == chosen[:, None, None]).numpy(), self.config)
            return foreground * self.names.ids[0]
        masks = self.names.ids[segments.numpy()]
        return np.where(clean(masks > 0, replace(self.config, fill_holes=False)), masks, 0)

    def judge(self, variants: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Masks (B, H, W), confidence (B,) and verdicts (B,) from `variants`, as `Labelled`."""
        found = self.segments(variants)
        masks = self.masks(found.segments)
        area = area_share(masks > 0)
        passed = np.ones((len(FILTERS), len(masks)), dtype=bool)
        passed[0] = area > 0
        passed[1] = (area >= self.config.min_area) & (area <= self.config.max_area)
        passed[2] = found.confidence.numpy() >= self.config.min_confidence
        if self.config.min_agreement > 0 and self.config.k == 2:
            passed[3] = self.agreement(variants) >= self.config.min_agreement
        rejected_by = torch.from_numpy(first_refusal(passed))
        return torch.from_numpy(masks), found.confidence, rejected_by

    def votes(self, latents: Latents) -> Tensor:
        """How sure the labeler is of each pixel for k = 2, (B, H, W): positive for foreground.

        The size is the margin of the pixel, in [0, 1]; masks are made of it before any cleaning.
        """
        votes = []
        for variants in self.drawn(latents):
            found = self.segments(variants)
            chosen = foreground_segment(found.segments, 2, rule=self.config.foreground)
            size = self.generator.info.size
            margins = functional.interpolate(found.margins[:, None], size=size, mode="bilinear")
            is_foreground = found.segments == chosen[:, None, None]
            votes.append(torch.where(is_foreground, margins[:, 0], -margins[:, 0]))
        return torch.cat(votes)

    def agreement(self, variants: Tensor) -> NDArray[np.float64]:
        """IoU of the foregrounds that either half of the variants gives, (B,), for k = 2.

        1 for a single variant, which has no halves.
        """
        return agreement(*self.halves(variants))

    def halves(self, variants: Tensor) -> tuple[Masks, Masks]:
        """The foregrounds, (B, H, W), that the even and the odd variants give."""
        if variants.shape[1] == 1:
            variants = variants.expand(-1, 2, -1, -1, -1)
        even, odd = (self.segments(variants[:, half::2]).segments for half in (0, 1))
        return self.masks(even) > 0, self.masks(odd) > 0

    def save(self, folder: Path | str) -> None:
        """Writes labeler.json, the classes if there are any and, last, the manifest of `folder`.

        classes.json is not in the manifest: it may be changed.
        """
        folder = Path(folder)
        if self.own_classes is not None:
            write_safetensors(folder / TENSORS, self.own_classes.tensors())
        self.names.write(folder)
        description = {key: value for key, value in self.info.items() if key != "classes"}
        write_json(folder / "labeler.json", {"format": FORMAT, **description})
        write_manifest(folder, keep=lambda path: path.name != NAMES)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "StyleMixingLabeler":
        """Reads a labeler that `save` wrote, with the names that classes.json has now.

        Raises:
            InputError: the folder is not finished, or belongs to another generator; classes.json
                does not say what each class is.
            CorruptFileError: a file is damaged.
        """
        folder = Path(folder)
        description = read_description(folder, generator, format=FORMAT)
        config = StyleMixingConfig.from_json(description["options"], folder / DESCRIPTION)
        classes = None
        if config.k > 2:
            classes = Classes.from_tensors(read_safetensors(folder / TENSORS))
        return StyleMixingLabeler(
            generator,
            config=config,
            seed=description["seed"],
            names=read_names(folder, n=1 if config.k == 2 else config.k),
            classes=classes,
        )


def fit_style_mixing(
    generator: Generator,
    *,
    config: StyleMixingConfig = DEFAULTS,
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> StyleMixingLabeler:
    """Chooses what `config` leaves open, finds classes for k > 2, and reports; trains nothing.

    Args:
        generator: It can draw variants.
        config: How to draw, cluster and label.
        seed: Of everything random.
        out: Where the labeler, quality.json, contact_sheet.png and, for k > 2, classes.html are
            written. If it holds the finished labeler already, that one is returned; interrupted
            work is continued, layer by layer.
        quiet: Print no progress.

    Raises:
        InputError: the generator has no variants (said before any work, with the labelers that it
            can serve), k is larger than the number of pixels, or `out` holds other work.
        DivergedError: the generator's images are NaN or infinite.
    """
    mixing = check_variants(generator)
    height, width = generator.info.size
    if config.k > height * width:
        raise InputError(f"k {config.k}: an image has only {height} x {width} pixels.")
    if out is None:
        return _fit(mixing, config, seed, None, quiet)[0]
    out = Path(out)
    asked = {
        "method": "style-mixing",
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": config.to_json(),
    }
    with locked(out):
        claim(out, asked)
        if not (out / MANIFEST).is_file():
            labeler, layers = _fit(mixing, config, seed, out / LAYERS, quiet)
            write_json(out / "quality.json", quality_report(labeler, layers))
            write_image(out / "contact_sheet.png", contact_sheet(labeler))
            if config.k > 2:
                _write_page(labeler, out)
            labeler.save(out)
    return StyleMixingLabeler.load(out, generator)


def _fit(
    generator: _Mixing, config: StyleMixingConfig, seed: int, journal: Path | None, quiet: bool
) -> tuple[StyleMixingLabeler, list[dict[str, Any]]]:
    """The labeler, and what was seen at each first mixed layer."""
    layers: list[dict[str, Any]] = []
    if config.first_mixed_layer is None:
        layers = measure_layers(generator, config, seed=seed, journal=journal, quiet=quiet)
        chosen = max(layers, key=reliability)["layer"]
        say(f"styles are mixed from layer {chosen} of {generator.n_layers} on", quiet=quiet)
        config = replace(config, first_mixed_layer=chosen)
    if config.k == 2:
        names = ClassNames(("foreground",))
        return StyleMixingLabeler(generator, config=config, seed=seed, names=names), layers
    return _fit_classes(generator, config, seed), layers


def measure_layers(
    generator: Generator,
    config: StyleMixingConfig = DEFAULTS,
    *,
    seed: int = 0,
    journal: Path | None = None,
    quiet: bool = False,
) -> list[dict[str, Any]]:
    """What masks of foreground and background do as styles are mixed from later layers on.

    Args:
        generator: It can draw variants.
        config: `first_mixed_layer` and k do not matter.
        seed: Of latents and styles.
        journal: A JSON file that keeps what has been measured, and is continued.
        quiet: Print no progress.

    Returns:
        For each of at most `LAYERS_MEASURED` layers: `layer`; `change`, the mean absolute
        difference of variants from their images; `kept`, the share of samples that pass the
        filters; the mean `area` and `confidence`; `halves`, the mean IoU of the masks that either
        half of the variants gives; `chance`, the same of masks of different images.
    """
    mixing = check_variants(generator)
    last = max(mixing.n_layers - 1, 1)
    layers = np.unique(np.linspace(1, last, min(LAYERS_MEASURED, last)).round().astype(int))
    rows = read_json(journal) if journal is not None and journal.is_file() else []
    with Progress("try layers", total=len(layers), unit="layer", quiet=quiet) as progress:
        for layer in layers[len(rows) :].tolist():
            tried = replace(config, k=2, first_mixed_layer=layer)
            rows.append({"layer": layer, **_measure_layer(mixing, tried, seed)})
            if journal is not None:
                write_json(journal, rows)
            progress.update(len(rows))
    return rows


def _measure_layer(generator: _Mixing, config: StyleMixingConfig, seed: int) -> dict[str, float]:
    """One row of `measure_layers`."""
    names = ClassNames(("foreground",))
    labeler = StyleMixingLabeler(generator, config=config, seed=seed, names=names)
    variants = torch.cat(list(labeler.drawn(labeler.own_latents(MEASURED))))
    masks, confidence, rejected_by = labeler.judge(variants)
    one, other = labeler.halves(variants)
    strangers = [agreement(one, np.roll(other, shift, axis=0)) for shift in range(1, MEASURED)]
    change = (variants[:, 1:] - variants[:, :1]).abs().sum() / max(1, variants[:, 1:].numel())
    return {
        "change": float(change),
        "kept": float((rejected_by == 0).double().mean()),
        "area": float((masks > 0).double().mean()),
        "confidence": float(confidence.mean()),
        "halves": float(agreement(one, other).mean()),
        "chance": float(np.mean(strangers)),
    }


def reliability(row: Mapping[str, Any]) -> float:
    """How much masks made from a first mixed layer on tell about their images, without labels.

    How far the masks of independent styles agree beyond chance, times the change of the images:
    mixed too early, styles move the object, and masks do not agree; mixed too late, they hardly
    change a colour, and masks agree on the little that changes.

    Args:
        row: What `measure_layers` saw at the layer.
    """
    beyond_chance = (row["halves"] - row["chance"]) / max(1 - row["chance"], 1e-6)
    return row["change"] * beyond_chance


def _fit_classes(generator: _Mixing, config: StyleMixingConfig, seed: int) -> StyleMixingLabeler:
    """The labeler with its k classes, which are found on images of its own."""
    names = ClassNames(tuple(f"part-{i}" for i in range(1, config.k + 1)))
    draft = StyleMixingLabeler(generator, config=config, seed=seed, names=names, classes=Classes())
    latents = draft.own_latents(FITTED, CLASS_IMAGES)
    find = _shared_classes if config.meaning == "shared" else _matched_classes
    labeler = StyleMixingLabeler(
        generator, config=config, seed=seed, names=names, classes=find(draft, latents)
    )
    found = torch.cat([labeler.segments(each).segments for each in labeler.drawn(latents)])
    return labeler.with_names(default_names(found, config.k))


def _shared_classes(draft: StyleMixingLabeler, latents: Latents) -> Classes:
    """The centres of one clustering of many images, of each of which some pixels take part."""
    some = []
    for variants in draft.drawn(latents):
        points = describe(reduce(variants, draft.config.resolution), draft.config)
        every = max(1, FITTED * points.shape[1] // SHARED_POINTS)
        some.append(points[:, :: every - 1 + every % 2].flatten(0, 1))
    start = int(derive_seeds(draft.seed, STARTS))
    memory = draft.config.memory
    return Classes(centres=fit_shared(torch.cat(some), draft.config.k, seed=start, memory=memory))


def _matched_classes(draft: StyleMixingLabeler, latents: Latents) -> Classes:
    """Prototypes of the segments of many images."""
    found = []
    for variants in draft.drawn(latents):
        small = reduce(variants, draft.config.resolution)
        segments = draft.segments(small).segments.to(small.device)
        found.append(segment_statistics(describe(small, draft.config), segments, draft.config.k))
    statistics = torch.cat([each for each, _ in found])
    return Classes(prototypes=fit_prototypes(statistics, found[0][1])[0])


def default_names(segments: Tensor, k: int) -> ClassNames:
    """Names of k classes: "background" for what lies at the border, "part-1" ... for the rest.

    Args:
        segments: Classes of the pixels of many images, (B, H, W) int64 in [0, k).
        k: Number of classes.
    """
    size = (segments.shape[1], segments.shape[2])
    mean_prior = float(paper_prior(size).mean())
    is_background = background_classes(places(segments, k), mean_prior).tolist()
    numbers = np.cumsum(~np.array(is_background))
    return ClassNames(
        tuple(
            BACKGROUND if behind else f"part-{number}"
            for behind, number in zip(is_background, numbers, strict=True)
        )
    )


def quality_report(
    labeler: StyleMixingLabeler, layers: list[dict[str, Any]], *, n: int = REPORTED
) -> dict[str, Any]:
    """What the labeler makes of `n` samples, as JSON values.

    Args:
        labeler: With its first mixed layer.
        layers: What `measure_layers` saw; [] if the layer was given.
        n: Number of samples that the filters and the areas are counted on.
    """
    labelled = labeler.label(labeler.own_latents(n))
    masks = labelled.masks.numpy()[labelled.rejected_by.numpy() == 0]
    return {
        "first_mixed_layer": labeler.keep,
        "layers": layers,
        **sample_counts(labelled, labeler.filters),
        "class_areas": {
            name: float((masks == i).mean()) if len(masks) else 0.0
            for i, name in enumerate(labeler.classes, start=1)
        },
    }


def contact_sheet(labeler: StyleMixingLabeler, *, n: int = SHOWN) -> Pixels:
    """A picture with one row per sample: image, variants, segments, mask, mask over the image.

    The samples are the first ones, not the best; a mask that the filters refuse is shown grey.
    """
    latents = labeler.own_latents(n)
    variants = labeler.steps(latents)
    segments = torch.cat([labeler.segments(each).segments for each in labeler.drawn(latents)])
    steps = {name: list(to_pixels(x)) for name, x in variants.items()}
    steps["segments"] = list(class_colors()[segments.numpy() + 1])
    return samples_sheet(labeler.label(latents), steps)


def _write_page(labeler: StyleMixingLabeler, folder: Path) -> None:
    """Writes the page on which a person names the classes."""
    images, segments = [], []
    for variants in labeler.drawn(labeler.own_latents(SHOWN)):
        images.append(to_pixels(variants[:, 0]))
        segments.append(labeler.segments(variants).segments.numpy() + 1)
    write_class_page(
        folder,
        np.concatenate(images),
        np.concatenate(segments),
        labeler.names,
        title=labeler.generator.info.name,
    )
