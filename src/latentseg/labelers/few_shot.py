"""Few-shot parts (Tritrong et al. 2021): one to ten painted images teach a head on features."""

import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from latentseg.errors import CorruptFileError
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import IGNORE, Pixels, overlay, resize_mask, to_pixels
from latentseg.images import contact_sheet as compose
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.features import Hypercolumns
from latentseg.labelers.few_shot_settings import KIND, SETTINGS, FewShotConfig
from latentseg.labelers.fitting import fit_labeler
from latentseg.labelers.head_training import HeadTraining, PaintedFeatures
from latentseg.labelers.heads import (
    Ensemble,
    build_heads,
    class_probabilities,
    entropy,
    jensen_shannon,
)
from latentseg.labelers.kinds import Fitted
from latentseg.labelers.mask_measures import area_share
from latentseg.labelers.overview import LEAST_CELL_PX, sample_counts
from latentseg.labelers.painted import PaintedImages
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.refinement import first_refusal
from latentseg.progress import say
from latentseg.seeds import derive_seeds
from latentseg.training_states import Checkpoints

WEIGHTS = "head.safetensors"
FILTERS = ("area", "confidence", "uncertainty")
OWN = 1  # keeps the latents on which a labeler is judged apart from others of the same seed
JUDGED = 128  # samples whose most uncertain ones set the limit
SHOWN, SHEET_COLUMNS = 64, 8
UNSURE_SHARE = 0.1  # DatasetGAN: of the pixels, the least sure of which tell how sure an image is
AT_ONCE = 8  # images per pass, where memory allows


@dataclass(frozen=True)
class Answer:
    """What a head says of some images.

    Attributes:
        probabilities: (B, K + 1, H, W) float32 at the size of the images.
        confidence: (B,) in [0, 1]: the mean probability of the class that each pixel is given.
        uncertainty: (B,) in [0, 1]: the mean over the least sure tenth of the pixels of the
            members' disagreement, or of the entropy of a single head.
    """

    probabilities: Tensor
    confidence: Tensor
    uncertainty: Tensor


@torch.no_grad()
def answer(heads: Ensemble, columns: Hypercolumns, latents: Latents) -> Answer:
    """What `heads` say of the images of `latents`, a few at a time.

    Source: Zhang et al. 2021 (DatasetGAN) for the uncertainty of an ensemble.
    """
    height, width = columns.size
    n_values = 2 * heads.heads[0].first.out_channels
    at_once = max(1, min(AT_ONCE, columns.memory // (4 * n_values * height * width)))
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for start in range(0, len(latents), at_once):
        found = class_probabilities(heads, columns, latents[start : start + at_once])
        mean = found.mean(dim=0)
        doubt = jensen_shannon(found) if len(found) > 1 else entropy(mean)
        worst = doubt.flatten(1).topk(max(1, int(UNSURE_SHARE * doubt[0].numel())), dim=1).values
        full = _enlarged(mean, columns.generator.info.size)
        sure = full.amax(dim=1).mean(dim=(1, 2))
        parts.append((full, sure, worst.mean(dim=1)))
    full, sure, worst = zip(*parts, strict=True)
    return Answer(torch.cat(full), torch.cat(sure), torch.cat(worst))


def _enlarged(probabilities: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities at the size of the images; between pixels they are means."""
    if probabilities.shape[2:] == size:
        return probabilities
    return functional.interpolate(probabilities, size=size, mode="bilinear", align_corners=False)


class FewShotLabeler:
    """Labels generated images by a head on their features.

    Args:
        generator: It has features.
        heads: Trained on them.
        config: Features and filters are used.
        classes: Names, without the background.
        seed: Of the training, for the record.
        max_uncertainty: Above it, a sample is refused; 1: never.
        painting: Digest of what was painted, for the record.

    Raises:
        InputError: the generator has no features.

    Source: Tritrong et al. 2021; Zhang et al. 2021 (DatasetGAN) for the filter by uncertainty.
    """

    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        heads: Ensemble,
        *,
        config: FewShotConfig,
        classes: tuple[str, ...],
        seed: int,
        max_uncertainty: float = 1.0,
        painting: str = "",
    ) -> None:
        self.generator, self.heads, self.config = generator, heads, config
        self.names, self.seed = classes, seed
        self.max_uncertainty, self.painting = max_uncertainty, painting
        self.columns = hypercolumns(generator, config)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.names

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": KIND.name,
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": asdict(self.config),
            "classes": list(self.names),
            "painting": self.painting,
            "max_uncertainty": self.max_uncertainty,
        }

    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        return self.label_softly(latents)[0]

    @torch.no_grad()
    def label_softly(self, latents: Latents) -> tuple[Labelled, Tensor]:
        """What `label` gives, and the class probabilities (B, K + 1, H, W) float32 of the head."""
        found = answer(self.heads, self.columns, latents)
        masks = found.probabilities.argmax(dim=1).to(torch.uint8).cpu()
        labelled = Labelled(
            images=self.generator(latents),
            masks=masks,
            confidence=found.confidence.clamp(0, 1).cpu(),
            rejected_by=self._verdict(masks, found),
        )
        return labelled, found.probabilities

    def own_latents(self, n: int) -> Latents:
        """`n` latents on which the labeler may be judged; the first are those of any larger n."""
        seeds = derive_seeds(self.seed, OWN, np.arange(n)).to(self.generator.device)
        return self.generator.sample(seeds)

    def with_limit(self) -> "FewShotLabeler":
        """The same labeler, which refuses the worst share of its own samples, and their like."""
        share = self.config.max_uncertainty_share
        limit = 1.0
        if share > 0:
            doubts = answer(self.heads, self.columns, self.own_latents(JUDGED)).uncertainty
            limit = float(doubts.quantile(1 - share))
        return FewShotLabeler(
            self.generator,
            self.heads,
            config=self.config,
            classes=self.names,
            seed=self.seed,
            max_uncertainty=limit,
            painting=self.painting,
        )

    def save(self, folder: Path | str) -> None:
        """Writes head.safetensors, labeler.json and, last, the manifest of `folder`."""
        write_labeler(folder, self.info, {WEIGHTS: self.heads.state_dict()})

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "FewShotLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        saved = read_labeler(KIND, folder, generator)
        config: FewShotConfig = saved.config
        classes = tuple(saved["classes"])
        columns = hypercolumns(generator, config)
        heads = build_heads(config.head, columns.n_channels, len(classes) + 1)
        tensors, expected = saved.tensors(WEIGHTS), heads.state_dict()
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
            raise CorruptFileError(
                f"{saved.folder / WEIGHTS}: the weights do not fit a head {config.head!r} on "
                f"{columns.n_channels} channels."
            )
        heads.load_state_dict(tensors)
        return FewShotLabeler(
            generator,
            heads.to(generator.device).eval().requires_grad_(False),
            config=config,
            classes=classes,
            seed=saved.seed,
            max_uncertainty=saved["max_uncertainty"],
            painting=saved["painting"],
        )

    def _verdict(self, masks: Tensor, found: Answer) -> Tensor:
        """(B,) int64: the first of the filters that refuses each sample, from 1, or 0."""
        area = area_share(masks.numpy() > 0)
        refused = np.stack(
            [
                (area < self.config.min_area) | (area > self.config.max_area),
                (found.confidence.cpu() < self.config.min_confidence).numpy(),
                (found.uncertainty.cpu() > self.max_uncertainty).numpy(),
            ]
        )
        return torch.from_numpy(first_refusal(~refused))


def hypercolumns(generator: Generator, config: FewShotConfig) -> Hypercolumns:
    """The features that `config` asks for."""
    return Hypercolumns(
        generator,
        size=config.size,
        resize=config.resize,
        layers=config.layers,
        memory=config.memory,
    )


def fit_few_shot(
    generator: Generator,
    painted: Path | str | PaintedImages,
    *,
    config: FewShotConfig = SETTINGS["ours"],
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> FewShotLabeler:
    """Teaches a head from painted images, and reports on it.

    Args:
        generator: Must have features.
        painted: A folder of the painter, or what was painted.
        config: Head, training, features and filters; `SETTINGS` has the published settings.
        seed: Seeds all random numbers.
        out: Where labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned; an interrupted training is continued.
        quiet: Print no progress.

    Raises:
        InputError: the generator has no features, the painted images cannot be used, or `out`
            holds other work.
        DivergedError: the loss became NaN or infinite.
        KeyboardInterrupt: after the state was saved.
    """
    return fit_labeler(
        KIND, generator, painted=painted, config=config, seed=seed, out=out, quiet=quiet
    )


def fit(
    generator: Generator,
    painted: PaintedImages,
    *,
    config: FewShotConfig,
    seed: int,
    folder: Path | None,
    quiet: bool,
) -> Fitted[FewShotLabeler]:
    """The labeler with its head and its limit; see `LabelerKind.fit`."""
    began = time.monotonic()
    states = None if folder is None else Checkpoints(folder / "checkpoints")
    training = HeadTraining(
        painted_features(hypercolumns(generator, config), painted),
        config.head,
        len(painted.classes) + 1,
        config=config.training,
        seed=seed,
        checkpoints=states,
    )
    say(_plan(training, painted, config), quiet=quiet)
    training.run(quiet=quiet)
    labeler = FewShotLabeler(
        generator,
        training.heads,
        config=config,
        classes=painted.classes,
        seed=seed,
        painting=painted.digest,
    ).with_limit()

    def quality() -> dict[str, Any]:
        report = quality_report(labeler, painted)
        return {**report, "seconds": round(time.monotonic() - began, 1)}

    def finish(_: Path) -> None:
        if states is not None:
            states.delete()

    return Fitted(labeler, quality=quality, sheet=partial(contact_sheet, labeler), finish=finish)


def _plan(training: HeadTraining, painted: PaintedImages, config: FewShotConfig) -> str:
    n_parameters = sum(parameter.numel() for parameter in training.heads.parameters())
    return (
        f"few-shot: {config.head} of {n_parameters / 1e6:.2f} M parameters on "
        f"{training.painted.columns.n_channels} channels, {len(painted.names)} painted images"
    )


def painted_features(columns: Hypercolumns, painted: PaintedImages) -> PaintedFeatures:
    """Painted images as a head learns from them, their masks at the size of `columns`."""
    device = columns.generator.device
    latents = columns.generator.sample(torch.tensor(painted.seeds, device=device))
    is_at_size = painted.masks.shape[1:] == columns.size
    masks = [mask if is_at_size else resize_mask(mask, columns.size) for mask in painted.masks]
    return PaintedFeatures(columns, latents, torch.from_numpy(np.stack(masks)))


def quality_report(labeler: FewShotLabeler, painted: PaintedImages) -> dict[str, Any]:
    """What was learned from, what is reached on it, and what the labeler makes of new samples.

    Args:
        labeler: With its limit.
        painted: What it was fitted to.
    """
    named = ("background", *labeler.classes)
    latents = labeler.generator.sample(torch.tensor(painted.seeds, device=labeler.generator.device))
    masks = labeler.label(latents).masks.numpy()
    labelled = labeler.label(labeler.own_latents(JUDGED))
    kept = labelled.masks.numpy()[labelled.rejected_by.numpy() == 0]
    return {
        "painted_images": list(painted.names),
        "painted_pixels": dict(zip(named, painted.pixel_counts(), strict=True)),
        "iou_on_painted_pixels": {
            name: _painted_iou(masks, painted.masks, i) for i, name in enumerate(named)
        },
        **sample_counts(labelled, FILTERS),
        "max_uncertainty": labeler.max_uncertainty,
        "class_areas": {
            name: float((kept == i).mean()) if len(kept) else 0.0 for i, name in enumerate(named)
        },
    }


def _painted_iou(masks: Pixels, painted: Pixels, i: int) -> float:
    """IoU of class i over the painted pixels; 1 if it is on none of them."""
    counted = painted != IGNORE
    union = (((masks == i) | (painted == i)) & counted).sum()
    return float(((masks == i) & (painted == i)).sum() / union) if union else 1.0


def contact_sheet(labeler: FewShotLabeler, *, n: int = SHOWN) -> Pixels:
    """A picture of `n` new images, each beside its mask in colour; refused ones are dimmed.

    The samples are the first ones, not the best.
    """
    labelled = labeler.label(labeler.own_latents(n))
    images = to_pixels(labelled.images)
    rows: list[list[Pixels]] = []
    for i, (image, mask) in enumerate(zip(images, labelled.masks.numpy(), strict=True)):
        if i % SHEET_COLUMNS == 0:
            rows.append([])
        painted = overlay(image, mask)
        rows[-1] += [image, painted if labelled.rejected_by[i] == 0 else painted // 3]
    height, width = labeler.generator.info.size
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    return compose(rows, cell=(height * scale, width * scale))
