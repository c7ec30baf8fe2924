"""Clusters of features as classes (Segmentation in Style, Pakhomov et al. 2021): no labels at all.

The features of one layer of a generator, over many images, fall into a few clusters that mean the
same in every image. Nothing is trained, and nothing is painted; a person may name the clusters.
"""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import Pixels, class_colors, overlay, to_pixels
from latentseg.images import contact_sheet as compose
from latentseg.labelers.clustering import cluster, nearest
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.feature_clusters_settings import KIND, SETTINGS, FeatureClustersConfig
from latentseg.labelers.features import Hypercolumns, check_features
from latentseg.labelers.fitting import fit_labeler
from latentseg.labelers.kinds import Fitted
from latentseg.labelers.mask_measures import area_share
from latentseg.labelers.naming import (
    NAMES,
    ClassNames,
    default_names,
    read_names,
    write_class_page,
)
from latentseg.labelers.overview import LEAST_CELL_PX, sample_counts
from latentseg.labelers.protocols import Labelled
from latentseg.seeds import derive_seeds, random_generator

TENSORS = "centres.safetensors"
FILTERS = ("area", "confidence")
FITTED, OWN, STARTS, POINTS = 1, 2, 3, 4  # keys that keep random numbers of one seed apart
POOLED_POINTS = 65_536  # pixels that are clustered
REPORTED, SHOWN = 64, 12
FINEST = 4  # of the layers that are not chosen by hand: a pixel is at least so many image pixels


class FeatureClustersLabeler:
    """Labels images by the nearest cluster of each pixel's features in one layer.

    Args:
        generator: It has features.
        centers: (k, C) of the clusters, in normalized features.
        mean, std: (C,), by which features are normalized.
        config: Its `layer` must be a number.
        names: Names of the k clusters.
        seed: That of images and starts, for the record.

    Raises:
        InputError: the generator has no features, or no such layer.

    Source: Pakhomov et al. 2021; features are enlarged to the images' size before they are
    assigned, where the official notebooks take 128 px.
    """

    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        centers: Tensor,
        mean: Tensor,
        std: Tensor,
        *,
        config: FeatureClustersConfig,
        names: ClassNames,
        seed: int,
    ) -> None:
        if config.layer is None:
            raise InputError("`layer`: expected a number, as the labeler reads that map.")
        self.generator, self.config, self.names, self.seed = generator, config, names, seed
        self.centers, self.mean, self.std = centers, mean, std
        self.columns = Hypercolumns(generator, layers=(config.layer,), memory=config.memory)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.names.classes

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": KIND.name,
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": asdict(self.config),
            "classes": list(self.names.given),
        }

    def with_names(self, names: ClassNames) -> "FeatureClustersLabeler":
        """The same clusters under other names; equal names are one class."""
        return FeatureClustersLabeler(
            self.generator,
            self.centers,
            self.mean,
            self.std,
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
            points = (points - self.mean.to(points)) / self.std.to(points)
            centers = self.centers.to(points).expand(len(points), -1, -1)
            labels, margins = nearest(points, centers)
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
        """Writes centres.safetensors, classes.json, labeler.json and, last, the manifest.

        classes.json is not in the manifest: it may be changed.
        """
        self.names.write(folder)
        tensors = {"centres": self.centers, "mean": self.mean, "deviation": self.std}
        write_labeler(folder, self.info, {TENSORS: tensors})

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "FeatureClustersLabeler":
        """Reads a labeler that `save` wrote, with the names that classes.json has now.

        Raises:
            InputError: the folder is not finished, or belongs to another generator; classes.json
                does not say what each class is.
            CorruptFileError: a file is damaged.
        """
        saved = read_labeler(KIND, folder, generator)
        config: FeatureClustersConfig = saved.config
        tensors = saved.tensors(TENSORS)
        is_named = (
            saved.folder / NAMES
        ).is_file()  # earlier versions had the names in labeler.json
        return FeatureClustersLabeler(
            generator,
            tensors["centres"],
            tensors["mean"],
            tensors["deviation"],
            config=config,
            names=read_names(folder, n=config.k)
            if is_named
            else ClassNames(tuple(saved["classes"])),
            seed=saved.seed,
        )


def fit_feature_clusters(
    generator: Generator,
    *,
    config: FeatureClustersConfig = SETTINGS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> FeatureClustersLabeler:
    """Clusters the features of many images; takes seconds, and no label.

    Clusters that lie at the border of the images are called background, the others "part-1", ...

    Args:
        generator: Must have features.
        config: How to cluster and to label.
        seed: Seeds all random numbers.
        out: Where labeler, quality.json, contact_sheet.png and classes.html are written. If it
            holds the finished labeler already, that one is returned.
        quiet: Print no progress.

    Raises:
        InputError: the generator has no features, there is no such layer, or `out` holds other
            work.
    """
    return fit_labeler(KIND, generator, config=config, seed=seed, out=out, quiet=quiet)


@torch.no_grad()
def fit(
    generator: Generator,
    *,
    config: FeatureClustersConfig,
    seed: int,
    folder: Path | None,
    quiet: bool,
) -> Fitted[FeatureClustersLabeler]:
    """The labeler with its clusters and their names; see `LabelerKind.fit`."""
    del folder, quiet  # it takes seconds, and nothing of it is worth keeping
    seeds = derive_seeds(seed, FITTED, np.arange(config.n_images)).to(generator.device)
    latents = generator.sample(seeds)
    layer = _choose_layer(generator, latents) if config.layer is None else config.layer
    config = replace(config, layer=layer)
    columns = Hypercolumns(generator, layers=(layer,), memory=config.memory)
    points = _points(columns, latents, seed)
    mean, std = torch.zeros_like(points[0]), torch.ones_like(points[0])
    if config.normalize:
        mean, std = points.mean(dim=0), points.std(dim=0).clamp(min=1e-6)
    found = cluster(
        ((points - mean) / std)[None],
        config.k,
        seeds=derive_seeds(seed, STARTS)[None],
        restarts=config.restarts,
        memory=config.memory,
    )
    draft = FeatureClustersLabeler(
        generator,
        found.centers[0].cpu(),
        mean.cpu(),
        std.cpu(),
        config=config,
        names=ClassNames(tuple(f"part-{i}" for i in range(1, config.k + 1))),
        seed=seed,
    )
    labeler = draft.with_names(default_names(draft.segments(latents)[0], config.k))
    return Fitted(
        labeler,
        quality=partial(quality_report, labeler),
        sheet=partial(contact_sheet, labeler),
        finish=partial(_write_page, labeler),
    )


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


def _write_page(labeler: FeatureClustersLabeler, folder: Path) -> None:
    """Writes the page on which a person names the clusters."""
    latents = labeler.own_latents(SHOWN)
    images = to_pixels(labeler.generator(latents))
    segments = labeler.segments(latents)[0].numpy() + 1
    title = labeler.generator.info.name
    write_class_page(folder, images, segments, labeler.names, title=title)
