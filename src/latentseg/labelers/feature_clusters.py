"""Clusters of features as classes (Segmentation in Style, Pakhomov et al. 2021): no labels at all.

The features of one layer of a generator, over many images, fall into a few clusters that mean the
same in every image. Nothing is trained, and nothing is painted; a person may name the clusters.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
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
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import Pixels, class_colors, overlay, to_pixels, write_image
from latentseg.images import contact_sheet as compose
from latentseg.labelers.clustering import GIB, cluster, nearest
from latentseg.labelers.descriptions import DESCRIPTION, read_description
from latentseg.labelers.features import Hypercolumns, check_features
from latentseg.labelers.foreground import background_classes, places
from latentseg.labelers.losses import paper_prior
from latentseg.labelers.naming import BACKGROUND, ClassNames
from latentseg.labelers.overview import sample_counts
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.refinement import area_share
from latentseg.seeds import derive_seeds, random_generator

FORMAT = 1
CENTRES = "centres.safetensors"
FILTERS = ("area", "confidence")
FITTED, OWN, STARTS, POINTS = 1, 2, 3, 4  # keys that keep random numbers of one seed apart
POOLED_POINTS = 65_536  # pixels that are clustered
REPORTED, SHOWN, LEAST_CELL_PX = 64, 12, 96
FINEST = 4  # of the layers that are not chosen by hand: a pixel is at least so many image pixels


@dataclass(frozen=True)
class FeatureClustersConfig:
    """How features are clustered.

    Attributes:
        k: Clusters; the paper takes 9 to 25.
        layer: The map whose features are clustered; None: the finest one with at most a quarter of
            the image's height (the paper takes layer 7 of StyleGAN2, 64 px of 1024).
        n_images: Images whose pixels are clustered together.
        restarts: Starts of the clustering.
        normalise: Whether channels are brought to mean 0 and deviation 1; the paper does not.
        min_area: Least share of the image that the foreground must cover.
        max_area: Largest share that it may cover.
        min_confidence: Least confidence.
        memory: Bytes that may be used beside the generator's.
    """

    k: int = 9
    layer: int | None = None
    n_images: int = 50
    restarts: int = 10
    normalise: bool = False
    min_area: float = 0.01
    max_area: float = 1.0
    min_confidence: float = 0.0
    memory: int = GIB

    def __post_init__(self) -> None:
        if not 2 <= self.k <= 254:
            raise InputError(f"k {self.k}: expected 2 to 254.")
        for name in ("n_images", "restarts", "memory"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} {getattr(self, name)}: must be at least 1.")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "FeatureClustersConfig":
        """Reads what `to_json` gave.

        Raises:
            InputError: a field is unknown, or a value is out of its range.
        """
        check_keys(values, {field.name for field in fields(FeatureClustersConfig)}, where)
        return FeatureClustersConfig(**values)


class FeatureClustersLabeler:
    """Labels images by the nearest cluster of each pixel's features in one layer.

    Args:
        generator: It has features.
        centres: (k, C) of the clusters, in normalised features.
        mean, deviation: (C,), by which features are normalised.
        config: Its `layer` must be a number.
        names: Of the k clusters.
        seed: Of images and starts, for the record.

    Raises:
        InputError: the generator has no features, or no such layer.

    Source: Pakhomov et al. 2021; features are enlarged to the images' size before they are
    assigned, where the official notebooks take 128 px.
    """

    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        centres: Tensor,
        mean: Tensor,
        deviation: Tensor,
        *,
        config: FeatureClustersConfig,
        names: ClassNames,
        seed: int,
    ) -> None:
        if config.layer is None:
            raise InputError("layer: must be a number for a labeler.")
        self.generator, self.config, self.names, self.seed = generator, config, names, seed
        self.centres, self.mean, self.deviation = centres, mean, deviation
        self.columns = Hypercolumns(generator, layers=(config.layer,), memory=config.memory)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.names.classes

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": "feature-clusters",
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": self.config.to_json(),
            "classes": list(self.names.given),
        }

    def with_names(self, names: ClassNames) -> "FeatureClustersLabeler":
        """The same clusters under other names; equal names are one class."""
        return FeatureClustersLabeler(
            self.generator,
            self.centres,
            self.mean,
            self.deviation,
            config=self.config,
            names=names,
            seed=self.seed,
        )

    @torch.no_grad()
    def segments(self, latents: Latents) -> tuple[Tensor, Tensor]:
        """Cluster of each pixel, (B, H, W) int64 in [0, k), and the mean margin to the next, (B,).

        Both on the CPU.
        """
        height, width = self.columns.size
        at_once = max(1, self.config.memory // (16 * self.columns.n_channels * height * width))
        found = []
        for start in range(0, len(latents), at_once):
            maps = self.columns.maps(latents[start : start + at_once])
            points = self.columns.rows_of(maps, 0, height).flatten(2).mT
            points = (points - self.mean.to(points)) / self.deviation.to(points)
            centres = self.centres.to(points).expand(len(points), -1, -1)
            labels, margins = nearest(points, centres)
            found.append((labels.unflatten(1, (height, width)).cpu(), margins.mean(dim=1).cpu()))
        labels, margins = zip(*found, strict=True)
        return torch.cat(labels), torch.cat(margins)

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        segments, confidence = self.segments(latents)
        masks = torch.from_numpy(self.names.ids)[segments]
        area = torch.from_numpy(area_share(masks.numpy() > 0))
        is_odd = (area < self.config.min_area) | (area > self.config.max_area)
        is_unsure = confidence < self.config.min_confidence
        return Labelled(
            images=self.generator(latents),
            masks=masks,
            confidence=confidence.clamp(0, 1),
            rejected_by=torch.where(is_odd, 1, torch.where(is_unsure, 2, 0)),
        )

    def own_latents(self, n: int) -> Latents:
        """`n` latents on which the labeler may be judged: none that it was fitted to."""
        seeds = derive_seeds(self.seed, OWN, np.arange(n)).to(self.generator.device)
        return self.generator.sample(seeds)

    def save(self, folder: Path | str) -> None:
        """Writes centres.safetensors, labeler.json and, last, the manifest of `folder`."""
        folder = Path(folder)
        tensors = {"centres": self.centres, "mean": self.mean, "deviation": self.deviation}
        write_safetensors(folder / CENTRES, tensors)
        write_json(folder / "labeler.json", {"format": FORMAT, **self.info})
        write_manifest(folder)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "FeatureClustersLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        folder = Path(folder)
        description = read_description(folder, generator, format=FORMAT)
        tensors = read_safetensors(folder / CENTRES)
        return FeatureClustersLabeler(
            generator,
            tensors["centres"],
            tensors["mean"],
            tensors["deviation"],
            config=FeatureClustersConfig.from_json(description["options"], folder / DESCRIPTION),
            names=ClassNames(tuple(description["classes"])),
            seed=description["seed"],
        )


def fit_feature_clusters(
    generator: Generator,
    *,
    config: FeatureClustersConfig | None = None,
    seed: int = 0,
    out: Path | str | None = None,
) -> FeatureClustersLabeler:
    """Clusters the features of many images; takes seconds, and no label.

    Clusters that lie at the border of the images are called background, the others "part-1", ...

    Args:
        generator: It has features.
        config: How; None: the defaults.
        seed: Of images and starts.
        out: Where labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned.

    Raises:
        InputError: the generator has no features, there is no such layer, or `out` holds other
            work.
    """
    config = config or FeatureClustersConfig()
    check_features(generator, "feature-clusters")
    if out is None:
        return _fit(generator, config, seed)
    out = Path(out)
    asked = {
        "method": "feature-clusters",
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": config.to_json(),
    }
    with locked(out):
        claim(out, asked)
        if not (out / MANIFEST).is_file():
            labeler = _fit(generator, config, seed)
            write_json(out / "quality.json", quality_report(labeler))
            write_image(out / "contact_sheet.png", contact_sheet(labeler))
            labeler.save(out)
    return FeatureClustersLabeler.load(out, generator)


@torch.no_grad()
def _fit(generator: Generator, config: FeatureClustersConfig, seed: int) -> FeatureClustersLabeler:
    seeds = derive_seeds(seed, FITTED, np.arange(config.n_images)).to(generator.device)
    latents = generator.sample(seeds)
    layer = _choose_layer(generator, latents) if config.layer is None else config.layer
    config = FeatureClustersConfig(**{**config.to_json(), "layer": layer})
    columns = Hypercolumns(generator, layers=(layer,), memory=config.memory)
    points = _points(columns, latents, seed)
    mean, deviation = torch.zeros_like(points[0]), torch.ones_like(points[0])
    if config.normalise:
        mean, deviation = points.mean(dim=0), points.std(dim=0).clamp(min=1e-6)
    found = cluster(
        ((points - mean) / deviation)[None],
        config.k,
        seeds=derive_seeds(seed, STARTS)[None],
        restarts=config.restarts,
        memory=config.memory,
    )
    draft = FeatureClustersLabeler(
        generator,
        found.centres[0].cpu(),
        mean.cpu(),
        deviation.cpu(),
        config=config,
        names=ClassNames(tuple(f"part-{i}" for i in range(1, config.k + 1))),
        seed=seed,
    )
    return draft.with_names(_default_names(draft.segments(latents)[0], config.k))


def _choose_layer(generator: Generator, latents: Latents) -> int:
    """The finest layer with at most a quarter of the images' height."""
    maps = check_features(generator, "feature-clusters").features(latents[:1])
    coarse = [i for i, each in enumerate(maps) if each.shape[2] * FINEST <= generator.info.size[0]]
    return coarse[-1] if coarse else 0


def _points(columns: Hypercolumns, latents: Latents, seed: int) -> Tensor:
    """Features of some pixels of all images, (P, C)."""
    height, width = columns.size
    n = min(height * width, max(1, POOLED_POINTS // len(latents)))
    found = []
    for i in range(len(latents)):
        order = torch.randperm(height * width, generator=random_generator(seed, POINTS, i))[:n]
        where = torch.stack([order // width, order % width], dim=1)
        found.append(columns.pixels(latents[i : i + 1], where[None])[0])
    return torch.cat(found)


def _default_names(segments: Tensor, k: int) -> ClassNames:
    """Names of k clusters: "background" for those at the border, "part-1" ... for the rest."""
    prior = float(paper_prior((segments.shape[1], segments.shape[2])).mean())
    is_background = background_classes(places(segments, k), prior).tolist()
    numbers = np.cumsum(~np.array(is_background))
    return ClassNames(
        tuple(
            BACKGROUND if behind else f"part-{number}"
            for behind, number in zip(is_background, numbers, strict=True)
        )
    )


def quality_report(labeler: FeatureClustersLabeler, *, n: int = REPORTED) -> dict[str, Any]:
    """What the labeler makes of `n` samples, as JSON values."""
    labelled = labeler.label(labeler.own_latents(n))
    masks = labelled.masks.numpy()
    return {
        "layer": labeler.config.layer,
        **sample_counts(labelled, FILTERS),
        "class_areas": {
            name: float((masks == i).mean()) for i, name in enumerate(labeler.classes, start=1)
        },
    }


def contact_sheet(labeler: FeatureClustersLabeler, *, n: int = SHOWN) -> Pixels:
    """A picture with one row per sample: image, clusters, mask over the image.

    The samples are the first ones, not the best.
    """
    latents = labeler.own_latents(n)
    labelled = labeler.label(latents)
    segments = labeler.segments(latents)[0].numpy()
    images, colours = to_pixels(labelled.images), class_colors()
    rows = [
        [image, colours[segment + 1], overlay(image, mask)]
        for image, segment, mask in zip(images, segments, labelled.masks.numpy(), strict=True)
    ]
    height, width = labeler.generator.info.size
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    titles = ["image", "clusters", "mask"]
    return compose(rows, titles=titles, cell=(height * scale, width * scale))
