"""Fits style mixing: chooses the first mixed layer, finds classes for k > 2, and reports."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentseg.errors import InputError
from latentseg.files import read_json, write_json
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import Pixels, class_colours, to_pixels
from latentseg.labelers.fitting import fit_labeler
from latentseg.labelers.kinds import Fitted
from latentseg.labelers.mask_measures import mask_iou
from latentseg.labelers.naming import ClassNames, default_names, write_class_page
from latentseg.labelers.overview import sample_counts, samples_sheet
from latentseg.labelers.prototypes import (
    SHARED_POINTS,
    Classes,
    fit_prototypes,
    fit_shared,
    segment_statistics,
)
from latentseg.labelers.style_mixing import CLASS_IMAGES, STARTS, StyleMixingLabeler
from latentseg.labelers.style_mixing_settings import KIND, SETTINGS, StyleMixingConfig
from latentseg.labelers.variants import VariantGenerator, check_variants, descriptors, reduce
from latentseg.progress import Progress, say
from latentseg.seeds import derive_seeds

LAYERS = "layers.json"
LAYERS_MEASURED = 9  # at most
MEASURED = 16  # images on which the first mixed layer is chosen
FITTED = 64  # images from which the classes are found
REPORTED, SHOWN = 64, 12


def fit_style_mixing(
    generator: Generator,
    *,
    config: StyleMixingConfig = SETTINGS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> StyleMixingLabeler:
    """Chooses what `config` leaves open, finds classes for k > 2, and reports; trains nothing.

    Args:
        generator: Must have variants.
        config: How to draw, cluster and label.
        seed: Seeds all random numbers.
        out: Where the labeler, quality.json, contact_sheet.png and, for k > 2, classes.html are
            written. If it holds the finished labeler already, that one is returned; interrupted
            work is continued, layer by layer.
        quiet: Print no progress.

    Raises:
        InputError: the generator has no variants (said before any work, with the labelers that it
            can serve), k is larger than the number of pixels, or `out` holds other work.
        DivergedError: the generator's images are NaN or infinite.
    """
    return fit_labeler(KIND, generator, config=config, seed=seed, out=out, quiet=quiet)


def check(generator: Generator, config: StyleMixingConfig) -> None:
    """Raises an error if an image of the generator has fewer pixels than `k`.

    Raises:
        InputError: it has.
    """
    height, width = generator.info.size
    if config.k > height * width:
        raise InputError(f"`k`: {config.k}, but an image has only {height} x {width} pixels.")


def fit(
    generator: Generator,
    *,
    config: StyleMixingConfig,
    seed: int,
    folder: Path | None,
    quiet: bool,
) -> Fitted[StyleMixingLabeler]:
    """The labeler with its first mixed layer and its classes; see `LabelerKind.fit`."""
    mixing, layers = check_variants(generator), []
    if config.first_mixed_layer is None:
        journal = None if folder is None else folder / LAYERS
        layers = measure_layers(mixing, config, seed=seed, journal=journal, quiet=quiet)
        chosen = max(layers, key=reliability)["layer"]
        say(f"styles are mixed from layer {chosen} of {mixing.n_layers} on", quiet=quiet)
        config = replace(config, first_mixed_layer=chosen)
    if config.k == 2:
        names = ClassNames(("foreground",))
        labeler = StyleMixingLabeler(mixing, config=config, seed=seed, names=names)
    else:
        labeler = _fit_classes(mixing, config, seed)
    return Fitted(
        labeler,
        quality=partial(quality_report, labeler, layers),
        sheet=partial(contact_sheet, labeler),
        finish=partial(_write_page, labeler) if config.k > 2 else None,
    )


def measure_layers(
    generator: Generator,
    config: StyleMixingConfig = SETTINGS["ours"],
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


def _measure_layer(
    generator: VariantGenerator, config: StyleMixingConfig, seed: int
) -> dict[str, float]:
    """One row of `measure_layers`."""
    names = ClassNames(("foreground",))
    labeler = StyleMixingLabeler(generator, config=config, seed=seed, names=names)
    variants = torch.cat(list(labeler.drawn(labeler.own_latents(MEASURED))))
    masks, confidence, rejected_by = labeler.judge(variants)
    one, other = labeler.halves(variants)
    strangers = [mask_iou(one, np.roll(other, shift, axis=0)) for shift in range(1, MEASURED)]
    change = (variants[:, 1:] - variants[:, :1]).abs().sum() / max(1, variants[:, 1:].numel())
    return {
        "change": float(change),
        "kept": float((rejected_by == 0).double().mean()),
        "area": float((masks > 0).double().mean()),
        "confidence": float(confidence.mean()),
        "halves": float(mask_iou(one, other).mean()),
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


def _fit_classes(
    generator: VariantGenerator, config: StyleMixingConfig, seed: int
) -> StyleMixingLabeler:
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
    """The centers of one clustering of many images, of each of which some pixels take part."""
    some = []
    for variants in draft.drawn(latents):
        points = descriptors(reduce(variants, draft.config.resolution))
        every = max(1, FITTED * points.shape[1] // SHARED_POINTS)
        some.append(points[:, :: every - 1 + every % 2].flatten(0, 1))
    start = int(derive_seeds(draft.seed, STARTS))
    memory = draft.config.memory
    return Classes(centers=fit_shared(torch.cat(some), draft.config.k, seed=start, memory=memory))


def _matched_classes(draft: StyleMixingLabeler, latents: Latents) -> Classes:
    """Prototypes of the segments of many images."""
    found = []
    for variants in draft.drawn(latents):
        small = reduce(variants, draft.config.resolution)
        segments = draft.segments(small).segments.to(small.device)
        found.append(segment_statistics(descriptors(small), segments, draft.config.k))
    statistics = torch.cat([each for each, _ in found])
    return Classes(prototypes=fit_prototypes(statistics, found[0][1])[0])


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

    The samples are the first ones, not the best; a mask that the filters refuse is shown gray.
    """
    latents = labeler.own_latents(n)
    variants = labeler.steps(latents)
    segments = torch.cat([labeler.segments(each).segments for each in labeler.drawn(latents)])
    steps = {name: list(to_pixels(x)) for name, x in variants.items()}
    steps["segments"] = list(class_colours()[segments.numpy() + 1])
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
