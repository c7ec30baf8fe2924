"""Masks of style mixing against a supervised student: python benchmarks/style_mixing.py --model M.

As in Table 2 of Feng et al. 2023, what a supervised network sees in generated images is taken for
the truth. Nothing is trained here. IoU of foreground and background is over all pixels of all
images together; that of a trimap is over the pixels near the true boundary alone.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import scipy.ndimage
import torch
import tyro
from numpy.typing import NDArray

from latentseg.evaluation.metrics import Counts, confusion_matrix, iou
from latentseg.files import write_json
from latentseg.generators import load_generator
from latentseg.generators.protocols import Latents
from latentseg.images import Pixels, to_pixels
from latentseg.labelers import load_labeler
from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
from latentseg.labelers.fit_style_mixing import fit_style_mixing
from latentseg.labelers.mask_measures import area_share
from latentseg.labelers.naming import ClassNames
from latentseg.labelers.protocols import Labeler, Labelled
from latentseg.labelers.style_mixing import StyleMixingLabeler
from latentseg.labelers.style_mixing_settings import StyleMixingConfig
from latentseg.labelers.variants import check_variants, draw_variants
from latentseg.progress import say
from latentseg.students.segmenter import Segmenter

COUNTS = (2, 4, 8, 16, 32, 64)
# Pixels on either side of the boundary, which runs between pixels: a Chebyshev distance of at
# most 3, and of at most 1.5, to it.
TRIMAPS = {"trimap 3": 3, "trimap 1.5": 2}
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "clustering": tuple({"clustering": kind} for kind in ("kmeans", "mixture", "spherical")),
    "normalisation": tuple({"normalisation": kind} for kind in ("none", "plane", "correlation")),
    "colour": tuple({"colour": kind} for kind in ("rgb", "lab")),
    "foreground": tuple({"foreground": rule} for rule in ("border", "centre", "area", "vote")),
    "place": tuple({"spatial_weight": weight} for weight in (0.0, 0.05, 0.2)),
    "holes": tuple({"fill_holes": fills} for fills in (False, True)),
}
NAMES = ClassNames(("foreground",))

Truth = NDArray[np.bool_]


@dataclass
class Score:
    """Pixels by true and predicted class: of all, and near the boundary."""

    whole: Counts
    near: dict[str, Counts]
    per_image: list[float]

    @staticmethod
    def of(masks: Pixels, truth: Truth) -> "Score":
        """Counts the pixels of masks (B, H, W) and of the truth."""
        near = {name: np.zeros((2, 2), np.int64) for name in TRIMAPS}
        score = Score(np.zeros((2, 2), np.int64), near, [])
        for mask, true in zip((masks > 0).astype(np.uint8), truth, strict=True):
            confusion = confusion_matrix(mask, true.astype(np.uint8), n_classes=2)
            score.whole += confusion
            union = confusion.sum() - confusion[0, 0]
            score.per_image.append(float(confusion[1, 1] / union) if union else 1.0)
            for name, width in TRIMAPS.items():
                ignored = np.where(near_boundary(true, width), true, 255).astype(np.uint8)
                score.near[name] += confusion_matrix(mask, ignored, n_classes=2)
        return score

    def row(self) -> dict[str, float]:
        """The numbers to be printed, all in [0, 1]."""
        background, foreground = iou(self.whole)
        numbers = {
            "IoU fg": foreground,
            "IoU bg": background,
            "mean": (foreground + background) / 2,
            "per image": float(np.mean(self.per_image)),
        }
        for name, confusion in self.near.items():
            numbers[name] = float(iou(confusion).mean())
        return {name: round(float(number), 4) for name, number in numbers.items()}


def near_boundary(true: Truth, width: int) -> Truth:
    """Pixels of a mask (H, W) from which the other class is at most `width` pixels away."""
    # A pixel is near the boundary if the classes differ among its neighbours within `width`.
    size = 2 * width + 1
    highest = scipy.ndimage.maximum_filter(true, size, mode="nearest")
    lowest = scipy.ndimage.minimum_filter(true, size, mode="nearest")
    return highest != lowest


@dataclass(frozen=True)
class Trial:
    """The images, what is true in them, and the rows that are measured on them."""

    labeler: StyleMixingLabeler
    latents: Latents
    x: torch.Tensor
    truth: Truth
    n_variants: int

    def drawn(self, layer: int) -> torch.Tensor:
        """All variants from a first mixed layer on; the first n of them are those of n variants."""
        config = replace(self.labeler.config, first_mixed_layer=layer, n_variants=self.n_variants)
        labeler = self.labeler.with_config(config)
        others = draw_variants(
            labeler.mixing, self.latents, labeler.styles.to(self.x.device), layer
        )
        return torch.cat([self.x[:, None], others], dim=1)

    def row(self, setting: str, variants: torch.Tensor, **options: Any) -> dict[str, Any]:
        """One way of making masks, without filters, and how many of them the filters keep."""
        n = options.get("n_variants", self.labeler.config.n_variants)
        labeler = self.labeler.with_config(
            replace(self.labeler.config, **{"n_variants": n, **options})
        )
        masks, confidence, rejected_by = labeler.judge(variants[:, :n])
        return self.scored(setting, masks.numpy(), confidence, rejected_by)

    def labelled(self, setting: str, labeler: Labeler) -> dict[str, Any]:
        """A row for any labeler."""
        found: Labelled = labeler.label(self.latents)
        return self.scored(setting, found.masks.numpy(), found.confidence, found.rejected_by)

    def scored(
        self, setting: str, masks: Pixels, confidence: torch.Tensor, rejected_by: torch.Tensor
    ) -> dict[str, Any]:
        """Numbers of all masks, and of those that the filters keep."""
        is_kept = rejected_by.numpy() == 0
        kept = Score.of(masks[is_kept], self.truth[is_kept]) if is_kept.any() else None
        surest = np.argsort(-confidence.numpy())[: max(1, len(masks) // 2)]
        return {
            "setting": setting,
            **Score.of(masks, self.truth).row(),
            "area": round(float(area_share(masks > 0).mean()), 4),
            "kept": round(float(is_kept.mean()), 4),
            "mean of kept": None if kept is None else kept.row()["mean"],
            "mean of the surer half": Score.of(masks[surest], self.truth[surest]).row()["mean"],
        }


def tables(
    trial: Trial, layers: tuple[int, ...], directions: Path | None
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and rows of every table."""
    chosen = trial.labeler.keep
    variants = trial.drawn(chosen)
    counts = [n for n in COUNTS if n <= trial.n_variants]
    yield (
        f"variants, mixed from layer {chosen} on",
        [trial.row(str(n), variants, n_variants=n) for n in counts],
    )
    for title, changes in OPTIONS.items():
        rows = [
            trial.row(", ".join(map(str, change.values())), variants, **change)
            for change in changes
        ]
        yield title, rows
    yield (
        "first mixed layer",
        [trial.row(str(layer), trial.drawn(layer), first_mixed_layer=layer) for layer in layers],
    )
    if directions is not None:
        other = load_labeler(directions, trial.labeler.generator)
        mixing = trial.labeler
        pairs: dict[str, Labeler] = {
            "style-mixing": mixing,
            "directions": other,
            "style-mixing, where directions agree": AgreementLabeler(mixing, other),
            "directions, where style-mixing agrees": AgreementLabeler(other, mixing),
            "both vote": VotingLabeler(mixing, other),
        }
        yield "labelers", [trial.labelled(name, labeler) for name, labeler in pairs.items()]


def markdown(title: str, rows: list[dict[str, Any]]) -> str:
    """A table."""
    head = f"| {' | '.join(rows[0])} |\n|{'---|' * len(rows[0])}"
    body = "\n".join(f"| {' | '.join(_shown(value) for value in row.values())} |" for row in rows)
    return f"\n**{title}**\n\n{head}\n{body}"


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main(
    model: Path,
    *,
    generator: str = "pets64",
    directions: Path | None = None,
    count: int = 1_000,
    variants: int = 64,
    layers: tuple[int, ...] = (),
    device: str = "auto",
    seed: int = 0,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Prints curves over the options of style mixing, each beside a supervised student's masks.

    Args:
        model: Folder of a segmenter that was trained with true masks.
        generator: What `latentseg.load_generator` takes.
        directions: Folder of a directions labeler of the same generator, to compare and combine.
        count: Generated images.
        variants: Most variants of the curve over their number.
        layers: First mixed layers to try; by default all of them.
        device: auto, cpu, cuda, ...
        seed: Of images and styles.
        json: Write the rows to this file.
    """
    opened = load_generator(generator, device=device)
    labeler = fit_style_mixing(opened, config=StyleMixingConfig(), seed=seed)
    latents = labeler.own_latents(count, 2)
    with torch.no_grad():
        x = torch.cat([opened(latents[i : i + 64]) for i in range(0, count, 64)])
    student = Segmenter.from_pretrained(model, device=device)
    scores = student.scores_batch(list(to_pixels(x)), flip=True)
    truth = np.stack([one.argmax(axis=0) > 0 for one in scores])
    say(f"{count} images; {truth.mean():.1%} of their pixels are foreground to the student")
    trial = Trial(labeler, latents, x, truth, variants)
    found: dict[str, list[dict[str, Any]]] = {}
    every = layers or tuple(range(1, check_variants(opened).n_layers))
    for title, rows in tables(trial, every, directions):
        print(markdown(title, rows), flush=True)
        found[title] = rows
        if json is not None:
            about = {"model": str(model), "generator": opened.info.to_json(), "count": count}
            write_json(json, {**about, "options": asdict(labeler.config), "tables": found})


if __name__ == "__main__":
    tyro.cli(main)
