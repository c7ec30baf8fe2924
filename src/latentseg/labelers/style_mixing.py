"""Style mixing (Feng et al. 2023): masks from which pixels change color together.

Pixels of one thing take on new colors together as styles change; so the pixels, each described by
its colors in all variants of an image, fall into clusters, one for each segment. Nothing is
trained.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers.clustering import cluster, nearest
from latentseg.labelers.components import ACROSS_SIDES, large_components
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.foreground import foreground_segment
from latentseg.labelers.mask_measures import Masks, area_share, mask_iou
from latentseg.labelers.naming import ClassNames, read_names
from latentseg.labelers.overview import sample_latents
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.prototypes import Classes, segment_statistics
from latentseg.labelers.refinement import first_refusal
from latentseg.labelers.style_mixing_settings import KIND, StyleMixingConfig
from latentseg.labelers.variants import check_variants, descriptors, draw_variants, reduce
from latentseg.seeds import derive_seeds

TENSORS = "classes.safetensors"
FILTERS = ("components", "area", "confidence", "agreement")
STYLES, OWN, STARTS, REGION_STARTS = 1, 2, 3, 4  # keep random numbers of one seed apart
JUDGED_IMAGES, CLASS_IMAGES = 0, 1  # as do these those of the labeler's own latents
COPIES = 5  # of the variants that are in memory at once: descriptors, and steps on the way to them
VARIANTS_SHOWN = 4


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
        config: Settings of the clustering.
        seed: Of the starts, the same for every image.
        classes: For k > 2; without them segments mean something else in every image.
    """
    size = (variants.shape[3], variants.shape[4])
    small = reduce(variants, config.resolution)
    small_size = (small.shape[3], small.shape[4])
    points = descriptors(small)
    if classes is not None and classes.centers is not None:
        centers = classes.centers.to(points).expand(len(points), -1, -1)
        labels, margins = nearest(points, centers)
        if small is not variants:
            labels = nearest(descriptors(variants), centers)[0]
        return Segmented(labels.unflatten(1, size).cpu(), margins.unflatten(1, small_size).cpu())
    found = cluster(
        points,
        config.k,
        seeds=torch.full((len(points),), seed),
        restarts=config.restarts,
        memory=config.memory,
    )
    segments = found.labels.unflatten(1, small_size)
    if small is not variants:
        full = found.assign(descriptors(variants)).unflatten(1, size)
    else:
        full = segments
    if classes is not None and classes.prototypes is not None:
        statistics, _ = segment_statistics(points, segments, config.k)
        full = classes.prototypes.match(statistics).gather(1, full.flatten(1).cpu())
        full = full.unflatten(1, size)
    return Segmented(full.cpu(), found.margins.unflatten(1, small_size).cpu())


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
        seed: Seeds styles and starts.
        names: For k > 2 of the k classes, for 2 of the foreground.
        classes: For k > 2, what gives them their meaning.

    Raises:
        InputError: the generator has no variants, or not so many layers; classes are missing.

    Source: Feng et al. 2023.
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
                f"`first_mixed_layer`: expected 0 to {self.mixing.n_layers}, the layers of "
                f"generator {generator.info.name!r}; found {layer}."
            )
        n_names = 1 if config.k == 2 else config.k
        if len(names.given) != n_names or (config.k > 2 and classes is None):
            raise InputError(
                f"`k`: {config.k} with {len(names.given)} names: expected {n_names} of them"
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
            "method": KIND.name,
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": asdict(self.config),
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

    def votes(self, latents: Latents, x: Tensor) -> Tensor:
        """How sure the labeler is of each pixel for k = 2, (B, H, W): positive for foreground.

        The size is the margin of the pixel, in [0, 1]; masks are made of it before any cleaning.
        """
        votes = []
        for variants in self.drawn(latents, x):
            found = self.segments(variants)
            chosen = foreground_segment(found.segments, 2, rule=self.config.foreground)
            size = self.generator.info.size
            margins = functional.interpolate(found.margins[:, None], size=size, mode="bilinear")
            is_foreground = found.segments == chosen[:, None, None]
            votes.append(torch.where(is_foreground, margins[:, 0], -margins[:, 0]))
        return torch.cat(votes)

    def object_in(
        self, drawn: Tensor, rows: slice, columns: slice
    ) -> tuple[NDArray[np.bool_], float]:
        """The foreground of a region of one image by its variants (N, 3, H, W); k is 2.

        Returns:
            The mask of the region, cleaned, and the mean margin of its pixels, in [0, 1].
        """
        config = replace(self.config, k=2)
        seed = int(derive_seeds(self.seed, REGION_STARTS))
        found = segment(drawn[None, :, :, rows, columns], config, seed=seed)
        chosen = foreground_segment(found.segments, 2, rule=config.foreground)
        mask = clean((found.segments == chosen[:, None, None]).numpy(), config)[0]
        return mask, float(found.confidence)

    def agreement(self, variants: Tensor) -> NDArray[np.float64]:
        """IoU of the foregrounds that either half of the variants gives, (B,), for k = 2.

        1 for a single variant, which has no halves.
        """
        return mask_iou(*self.halves(variants))

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
        self.names.write(folder)
        info = {key: value for key, value in self.info.items() if key != "classes"}
        classes = self.own_classes
        write_labeler(folder, info, {} if classes is None else {TENSORS: classes.tensors()})

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "StyleMixingLabeler":
        """Reads a labeler that `save` wrote, with the names that classes.json has now.

        Raises:
            InputError: the folder is not finished, or belongs to another generator; classes.json
                does not say what each class is.
            CorruptFileError: a file is damaged.
        """
        saved = read_labeler(KIND, folder, generator)
        config: StyleMixingConfig = saved.config
        classes = Classes.from_tensors(saved.tensors(TENSORS)) if config.k > 2 else None
        return StyleMixingLabeler(
            generator,
            config=config,
            seed=saved.seed,
            names=read_names(folder, n=1 if config.k == 2 else config.k),
            classes=classes,
        )
