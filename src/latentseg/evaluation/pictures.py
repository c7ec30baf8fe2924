"""The pictures of a report: from a latent to a mask to a photo, pairs, best and worst photos."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from latentseg.datasets.real import RealDataset
from latentseg.evaluation.measuring import Scorer, center_square, class_ids
from latentseg.evaluation.protocols import find_rules
from latentseg.evaluation.results import ImageScore, Result
from latentseg.files import write_json
from latentseg.generators.protocols import Latents
from latentseg.images import (
    IGNORE,
    Pixels,
    contact_sheet,
    overlay,
    resize,
    resize_mask,
    to_pixels,
    write_image,
)
from latentseg.labelers.protocols import Labeler
from latentseg.seeds import derive_seeds

LONGEST_PX = 256  # pictures are for a page, not for measuring
SHEET_PX = 128  # a picture in the sheet of the whole story
LATENT_SHOWN = 144  # coordinates of a latent that are drawn
CANDIDATES = 32
STORY_KEY = 0x5709  # keeps the story's latents apart from those of data sets


@runtime_checkable
class ShowsSteps(Protocol):
    """A labeler that can show the images from which it makes a mask."""

    def steps(self, latents: Latents) -> Mapping[str, Tensor]:
        """By name, for example "light": images (B, 3, H, W) in [-1, 1]."""
        ...


def write_story(
    labeler: Labeler,
    scorer: Scorer,
    dataset: RealDataset | None,
    result: Result | None,
    folder: Path | str,
    *,
    seed: int = 0,
) -> None:
    """Writes a generated image on its way to a mask, and a photo with the segmenter's mask.

    The image is the one of 32 whose mask the labeler is surest of; the photo the one in the middle
    by IoU.

    Args:
        labeler: It draws and labels; the steps that it shows depend on its kind.
        scorer: The segmenter.
        dataset: Real photos, or None: the story ends with the mask.
        result: What was measured on them, or None.
        folder: Gets story.json and the pictures that it names.
        seed: Of the latents.
    """
    folder = Path(folder)
    generator = labeler.generator
    latents = generator.sample(
        derive_seeds(seed, STORY_KEY, np.arange(CANDIDATES)).to(generator.device)
    )
    labelled = labeler.label(latents)
    certainty = labelled.confidence - 2 * (labelled.rejected_by > 0).to(labelled.confidence)
    shown = slice(int(certainty.argmax()), int(certainty.argmax()) + 1)
    image, mask = to_pixels(labelled.images[shown])[0], labelled.masks[shown][0].cpu().numpy()
    pictures = {"image": image}
    if isinstance(labeler, ShowsSteps):
        for name, x in labeler.steps(latents[shown]).items():
            pictures[name] = to_pixels(x)[0]
    pictures |= {"mask": _black_and_white(mask), "pair": overlay(image, mask)}
    story: dict[str, Any] = {
        "latent": latents.values[shown].flatten()[:LATENT_SHOWN].tolist(),
        "latent_shape": list(generator.info.latent),
    }
    if dataset is not None and result is not None:
        middle = _by_iou(result)[result.n_images // 2]
        photo, _, predicted = _panels(scorer, dataset, result, middle)
        pictures |= {"photo": photo, "prediction": predicted}
        story |= {"photo": middle.name, "iou": middle.iou}
    for name, picture in pictures.items():
        write_image(folder / f"{name}.png", picture)
    cell = (SHEET_PX, SHEET_PX)
    sheet = contact_sheet([list(pictures.values())], titles=list(pictures), cell=cell)
    write_image(folder / "story.png", sheet)
    write_json(folder / "story.json", {**story, "pictures": list(pictures)})


def write_pairs(images: Pixels, masks: Pixels, path: Path | str, *, columns: int = 10) -> None:
    """Writes a sheet of synthetic pairs: a row of images, below it the same with their masks.

    There are two such double rows, if there are pairs enough.

    Args:
        images: (N, H, W, 3) uint8.
        masks: (N, H, W) uint8.
        path: A PNG or JPEG file.
        columns: Most pictures in a row.
    """
    rows = []
    for start in range(0, min(len(images), 2 * columns), columns):
        of_row = slice(start, start + columns)
        pairs = zip(images[of_row], masks[of_row], strict=True)
        rows += [list(images[of_row]), [overlay(image, mask) for image, mask in pairs]]
    write_image(path, contact_sheet(rows, gap_px=0))


def write_examples(
    scorer: Scorer, dataset: RealDataset, result: Result, folder: Path | str, *, n: int = 6
) -> None:
    """Writes the best and worst photos by IoU, and as many evenly spread between them.

    Args:
        scorer: The segmenter that was measured.
        dataset: The data set on which it was measured.
        result: What was measured.
        folder: Gets examples.json and, for each photo, a strip: photo, truth, prediction.
        n: Photos of each kind.
    """
    folder = Path(folder)
    ranked = _by_iou(result)
    spread = [ranked[(2 * i + 1) * len(ranked) // (2 * n)] for i in range(n)]
    groups = {"worst": ranked[:n], "typical": spread, "best": ranked[::-1][:n]}
    shown: dict[str, list[dict[str, Any]]] = {}
    for group, scores in groups.items():
        shown[group] = []
        for number, score in enumerate(scores):
            file = f"{group}-{number:02d}.jpg"
            write_image(folder / file, np.hstack(_panels(scorer, dataset, result, score)))
            shown[group].append({"file": file, "name": score.name, "iou": score.iou})
    about = {"dataset": result.dataset, "protocol": result.protocol}
    ious = [score.iou for score in result.per_image]
    write_json(folder / "examples.json", {**about, "groups": shown, "ious": ious})


def _by_iou(result: Result) -> list[ImageScore]:
    return sorted(result.per_image, key=lambda score: score.iou)


def _panels(
    scorer: Scorer, dataset: RealDataset, result: Result, score: ImageScore
) -> tuple[Pixels, Pixels, Pixels]:
    """Photo, truth over it, prediction over it; pixels without a label are grey in the truth."""
    names = [pair.name for pair in dataset.pairs]
    _, image, truth = dataset[names.index(score.name)]
    if find_rules(result.protocol).crops and dataset.crops:
        image, truth = center_square(image), center_square(truth)
    scores = scorer.scores(image)
    ids = class_ids(scorer, dataset, find_rules(result.protocol))
    predicted = scores.argmax(axis=0).astype(np.uint8)
    if len(ids) == len(scores):
        predicted = ids[predicted]
    image, truth, predicted = (_reduced(picture) for picture in (image, truth, predicted))
    with_truth = overlay(image, truth)
    with_truth[truth == IGNORE] = with_truth[truth == IGNORE] // 2 + 64
    return image, with_truth, overlay(image, predicted)


def _reduced(picture: Pixels) -> Pixels:
    height, width = picture.shape[:2]
    scale = LONGEST_PX / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return resize_mask(picture, size) if picture.ndim == 2 else resize(picture, size)


def _black_and_white(mask: Pixels) -> Pixels:
    return np.where(mask > 0, 255, 0).astype(np.uint8)
