"""Unlabelled photos help: a student labels them, and a new student learns from these labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentseg.datasets.pairs import Pairs
from latentseg.devices import pick_device
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, claim, locked, write_json, write_manifest
from latentseg.images import (
    PLAIN,
    Pixels,
    cover,
    list_images,
    read_image,
    to_tensor,
    with_range,
)
from latentseg.progress import say
from latentseg.students.photo_labels import (
    PhotoLabels,
    hold_area,
    label_photos,
    likely_areas,
    mean_iou,
    object_areas,
)
from latentseg.students.photo_pairs import PhotoPairs
from latentseg.students.scaled_pairs import at_size
from latentseg.students.segmenter import Segmenter
from latentseg.students.self_training_settings import SelfTrainingConfig
from latentseg.students.statistics import adapt_statistics
from latentseg.students.training import train, working_size
from latentseg.training_states import load_state, save_state

STATISTICS_BATCH = 32  # photos that are normalized together
STATISTICS_PHOTOS = 1_024  # from which batch statistics are taken


def self_train(
    segmenter: Segmenter,
    photos: Path | str | Sequence[Path],
    pairs: Pairs,
    *,
    out: Path | str,
    config: SelfTrainingConfig | None = None,
    card: Mapping[str, Any] | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Segmenter:
    """Improves a segmenter with unlabelled photos of its domain; no label is ever read.

    In each round the photos are labelled by the last student and a new one learns from these labels
    and synthetic pairs. It stops after `config.rounds`, or when two students in succession agree,
    or when a student finds no likely object in photos where the one before did (it is dropped).
    The same call again continues, and so does one with more rounds.

    Args:
        segmenter: The first labeller of the photos: a student of the synthetic pairs.
        photos: A folder of photos; or paths of photos and folders.
        pairs: The synthetic pairs. They and the photos are scaled to `working_size`.
        out: Folder of the work: round-N/ (see `train`), labels-N/, rounds.json, model/.
        config: Settings of the self-training.
        card: For the new segmenter; by default that of `segmenter`, without its results.
        device: "auto", "cpu", "cuda", "mps".
        quiet: No progress lines.

    Returns:
        The student of the last round that counts, read from `out`/model.

    Raises:
        InputError: photos cannot be read (all are named), none gets a likely label, or `out` holds
            other work.
        DivergedError: see `train`.
    """
    out, config = Path(out), config or SelfTrainingConfig()
    if segmenter.classes != tuple(pairs.classes):
        raise InputError(
            f"The segmenter knows the classes {segmenter.classes}, but the pairs have "
            f"{tuple(pairs.classes)}. They must agree."
        )
    pairs = at_size(pairs, working_size(config.train, pairs.size))
    pictures = read_photos(photos, pairs.size, limit=config.max_photos, seed=config.train.seed)
    digest = sha256(pictures.data).hexdigest()
    if card is None:
        card = {name: value for name, value in segmenter.card.items() if name != "results"}
    with locked(out):
        record = {**asdict(config), "segmenter": segmenter.digest, "photos_sha256": digest}
        (out / MANIFEST).unlink(missing_ok=True)  # more rounds may be asked for
        claim(out, record, free=("rounds", "train.encoder_weights"))
        drawn = object_areas(pairs)
        areas = likely_areas(drawn)
        student = segmenter.to(pick_device(device))
        if config.adapt:
            student = adapt_statistics(student, _statistics_batches(pictures))
        share = _known_share(config, drawn)
        labels = _labels(
            student, pictures, config, areas, share=share, folder=out / "labels-0", quiet=quiet
        )
        rounds = [{"round": 0, **_summary(labels)}]
        if config.hold_area and share is None:
            share = float(labels.areas.mean())
        for index in range(1, config.rounds + 1):
            _report(rounds, out, quiet=quiet)
            seed = config.train.seed + index
            used = {"n_photos": len(pictures), "sha256": digest, "round": index}
            new_student = train(
                PhotoPairs(pictures, labels, pairs, config, seed=seed),
                out=out / f"round-{index}",
                config=replace(config.train, seed=seed),
                card={**card, "photos": used},
                start=student if config.warm_start else None,
                device=device,
                quiet=quiet,
            )
            folder = out / f"labels-{index}"
            new_labels = _labels(
                new_student, pictures, config, areas, share=share, folder=folder, quiet=quiet
            )
            agreement = mean_iou(new_labels.foreground, labels.foreground)
            stop = _reason_to_stop(labels, new_labels, agreement, config)
            summary = _summary(new_labels)
            rounds.append({"round": index, **summary, "agreement": agreement, "stop": stop})
            if stop == "collapsed":
                break
            student, labels = new_student, new_labels
            if stop == "agreed":
                break
        _report(rounds, out, quiet=quiet)
        if config.hold_last and share is not None and student is not segmenter:
            student = hold_area(student, pictures, share)
        student.save(out / "model")
        write_manifest(out)
    return Segmenter.from_pretrained(out / "model", device=device)


def read_photos(
    photos: Path | str | Sequence[Path], size: tuple[int, int], *, limit: int, seed: int
) -> Pixels:
    """Reads photos, scaled to cover `size` and cut at the centre.

    Args:
        photos: A folder; or paths of photos and folders.
        size: (height, width).
        limit: At most so many, chosen at random by `seed`.
        seed: Of the choice.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        InputError: there are none, or some cannot be read; all of these are named.
    """
    places = [Path(photos)] if isinstance(photos, Path | str) else photos
    paths = [
        path for place in places for path in (list_images(place) if place.is_dir() else [place])
    ]
    reading, _ = with_range(PLAIN, paths)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(paths))[:limit])
    pictures, problems = np.empty((len(chosen), *size, 3), np.uint8), []
    for row, index in enumerate(chosen):
        try:
            pictures[row] = cover(read_image(paths[index], reading), size)
        except (InputError, CorruptFileError) as error:
            problems.append(str(error))
    if problems:
        raise InputError(f"{len(problems)} photos cannot be read:\n" + "\n".join(problems))
    if not len(pictures):
        raise InputError("No photos to learn from. Name a folder that holds some.")
    return pictures


def _known_share(config: SelfTrainingConfig, areas: NDArray[np.float64]) -> float | None:
    """The share of all pixels that objects shall cover, if it does not depend on the student."""
    if not config.hold_area:
        return None
    if config.area is None and config.area_from == "pairs":
        return float(areas.mean())
    return config.area


def _statistics_batches(photos: Pixels) -> Iterator[Tensor]:
    """Some of the photos, in batches of equal size if there are enough."""
    some = photos[:STATISTICS_PHOTOS]
    whole = len(some) - len(some) % STATISTICS_BATCH or len(some)
    for start in range(0, whole, STATISTICS_BATCH):
        yield to_tensor(some[start : start + STATISTICS_BATCH])


def _labels(
    segmenter: Segmenter,
    photos: Pixels,
    config: SelfTrainingConfig,
    areas: tuple[float, float],
    *,
    share: float | None = None,
    folder: Path,
    quiet: bool,
) -> PhotoLabels:
    """`label_photos`, done once: what lies in `folder`, complete and undamaged, is read again."""
    try:
        return PhotoLabels(**load_state(folder))
    except (InputError, CorruptFileError):
        labels = label_photos(segmenter, photos, config, areas, share=share, quiet=quiet)
    save_state(folder, vars(labels))
    return labels


def _reason_to_stop(
    labels: PhotoLabels, new_labels: PhotoLabels, agreement: float, config: SelfTrainingConfig
) -> str | None:
    if new_labels.is_kept.sum() < labels.is_kept.sum() / 2:
        return "collapsed"
    return "agreed" if agreement >= config.stop_agreement else None


def _summary(labels: PhotoLabels) -> dict[str, float | int]:
    """What can be said about labels without knowing the truth."""
    return {
        "n_photos": len(labels.is_kept),
        "n_kept": int(labels.is_kept.sum()),
        "area": float(labels.areas.mean()),
        "consistency": float(labels.consistency.mean()),
    }


def _report(rounds: list[dict[str, Any]], out: Path, *, quiet: bool) -> None:
    write_json(out / "rounds.json", rounds)
    last = rounds[-1]
    line = f"round {last['round']}: {last['n_kept']} of {last['n_photos']} photos kept"
    if "agreement" in last:
        line += f", agreement with the round before {last['agreement']:.3f}"
    say(line + (f", {last['stop']}" if last.get("stop") else ""), quiet=quiet)
