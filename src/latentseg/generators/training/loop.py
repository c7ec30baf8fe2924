"""Trains a StyleGAN2 on a folder of photos; the same call again continues it exactly."""

import math
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentseg.distributed import Team, join
from latentseg.errors import DivergedError, InputError
from latentseg.files import claim, locked, read_json, write_json
from latentseg.generators.training.config import CHANGEABLE, DEFAULTS, GeneratorTrainingConfig
from latentseg.generators.training.distance import FrechetDistance
from latentseg.generators.training.feature_distances import NEIGHBOR, FeatureDistances
from latentseg.generators.training.photos import Photos, read_photos
from latentseg.generators.training.report import Measures, Report
from latentseg.generators.training.steps import Training
from latentseg.interrupts import HeldInterrupt
from latentseg.progress import Progress, say
from latentseg.training_states import Checkpoints
from latentseg.weights.efficientnet_lite0 import EfficientNetLite0, load_efficientnet_lite0

TIMING = "timing.json"
CHECK_EVERY = 16  # steps between two looks at the losses, which make the GPU wait
SAVE_EVERY = 256  # steps between two checkpoints where reports are further apart; see CHECK_EVERY
LATER_FIELDS = ("discriminator_lr", "features", "feature_px", "blur_images")


def train_generator(
    photos: Path | str,
    out: Path | str,
    *,
    config: GeneratorTrainingConfig | None = None,
    with_classes: bool = False,
    feature_weights: Path | str | None = None,
    inception: Path | str | None = None,
    name: str | None = None,
    licence: str = "unknown: that of the photos",
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    quiet: bool = False,
) -> Path:
    """Trains a generator of one's own domain on a folder of photos.

    The same call again continues where it stopped, with the same result as one that never stopped;
    with a larger `config.images` it goes on, and from there with another learning rate, average or
    augmentation if they are given; metrics.jsonl records them.

    Several processes share the batch of each step; the gradients are those of one process, within
    rounding, and their number may change when a training is continued. All of them call this, read
    the photos, and see the same `out`.

    Args:
        photos: Folder of photos; with `with_classes`, one subfolder per class.
        out: Folder of the training: config.json, metrics.jsonl, previews/, checkpoints/ and
            generator/, the averaged generator, which `load_generator(out)` opens at any time.
        config: How; see its fields.
        with_classes: Learn a conditional generator.
        feature_weights: File of EfficientNet-Lite0; by default that of the installed package. A
            training without features uses them to measure its distances, if they are there.
        inception: Weights of the Inception network; reports the FID beside the own distance.
        name: Of the generator; by default the name of `out`.
        licence: Of the weights, written into the card.
        device: "auto", "cpu", "cuda", ...
        devices: Processes on each machine, as `distributed.join` has them.
        nodes: Machines.
        quiet: Print nothing.

    Returns:
        The folder generator/.

    Raises:
        InputError: photos that cannot be read (all are listed), `out` holds other work, or the
            features are not installed.
        NotFinishedError: another process has ended; the last checkpoint is intact.
        KeyboardInterrupt: after the state was saved.
        DivergedError: a loss is NaN or infinite; the last checkpoint is intact.
    """
    config, out = config or GeneratorTrainingConfig(), Path(out)
    team = join(device, devices=devices, nodes=nodes)
    quiet = quiet or not team.is_rank_zero
    read = read_photos(photos, config.size, with_classes=with_classes)
    wanted = _recorded(config) | {"photos": len(read), "classes": list(read.classes)}
    with team.rank_zero_context(locked(out)):
        team.on_rank_zero(lambda: claim(out, wanted, free=("images", *CHANGEABLE)))
        features = _features(config, feature_weights)
        training = Training(config, len(read.classes), team, features)
        checkpoints = Checkpoints(out / "checkpoints")
        step, state = team.on_rank_zero(checkpoints.load)
        if state:
            training.load(state)
            training.seconds = team.on_rank_zero(lambda: _read_seconds(out / TIMING))
            say(f"continuing from step {step}", quiet=quiet)
        measures = Measures(
            by_features=_distances(config, features, feature_weights, read, team),
            fid=None if inception is None else FrechetDistance(inception, read.pixels),
        )
        name = name or out.absolute().name
        report = Report(out, read, name=name, licence=licence, measures=measures)
        _loop(training, read, checkpoints, report, quiet)
    return out / "generator"


def _features(config: GeneratorTrainingConfig, path: Path | str | None) -> EfficientNetLite0 | None:
    """The frozen features that the discriminator looks at, if it does."""
    if config.features not in DEFAULTS:
        raise InputError(
            f"`features`: expected {' or '.join(DEFAULTS)}, found {config.features!r}."
        )
    return None if config.features == "none" else load_efficientnet_lite0(path)


def _distances(
    config: GeneratorTrainingConfig,
    features: EfficientNetLite0 | None,
    path: Path | str | None,
    photos: Photos,
    team: Team,
) -> FeatureDistances | None:
    """The distances by features; a training without features has them if they are installed."""
    if min(config.distance_images, len(photos)) <= NEIGHBOR:
        return None
    if features is None:
        try:
            features = load_efficientnet_lite0(path)
        except InputError as error:
            if path is not None:
                raise
            say(
                f"fd-lite0, precision and recall are left out. {error}",
                quiet=not team.is_rank_zero,
            )
            return None
    # The first process alone writes reports.
    return FeatureDistances(features.to(team.device), photos.pixels) if team.is_rank_zero else None


def _recorded(config: GeneratorTrainingConfig) -> dict[str, Any]:
    """The fields; a field that came later only if it was set, so that older trainings go on."""
    default = asdict(GeneratorTrainingConfig())
    return {
        name: value
        for name, value in asdict(config).items()
        if name not in LATER_FIELDS or value != default[name]
    }


def _read_seconds(path: Path) -> float:
    return float(read_json(path)["seconds"]) if path.exists() else 0.0


def _loop(
    training: Training, photos: Photos, checkpoints: Checkpoints, report: Report, quiet: bool
) -> None:
    config, team = training.config, training.team
    last = math.ceil(config.images / config.batch)
    interval = max(config.report_images // config.batch, 1)
    shown = f"{config.images:,}".replace(",", " ")
    say(
        f"train-generator: {len(photos)} photos at {config.size[0]} x {config.size[1]}, "
        f"{shown} shown in all, on {training.device} in {training.dtype}",
        quiet=quiet,
    )
    label = f"train-generator {report.name}"
    losses: dict[str, Tensor] = {}
    distances: dict[str, float] = {}
    began, seconds_before = time.monotonic(), training.seconds
    with (
        Progress(
            label, total=last, start=training.step, per_step=config.batch, quiet=quiet
        ) as progress,
        HeldInterrupt() as interrupt,
    ):
        while training.step < last:
            losses |= training.advance(photos)
            signal = team.agreed(interrupt.number)
            is_due = training.step % interval == 0 or training.step == last
            if is_due or signal or training.step % CHECK_EVERY == 0:
                _check(losses, training, checkpoints)
                training.seconds = seconds_before + time.monotonic() - began
            if is_due:
                distances = team.on_rank_zero(partial(report.write, training, losses))
            if is_due or signal or training.step % CHECK_EVERY == 0:
                numbers = {name: value.item() for name, value in losses.items()}
                progress.update(training.step, **numbers, **distances)
            # After the report: what a kill between the two leaves out is then made again.
            if is_due or signal or training.step % SAVE_EVERY == 0:
                team.on_rank_zero(partial(_save, training, checkpoints))
            if signal:
                interrupt.number = signal
                interrupt.release()


def _save(training: Training, checkpoints: Checkpoints) -> None:
    """Saves the state; the time stands outside of it, so that a repeated training is the same."""
    checkpoints.save(training.step, training.state())
    write_json(checkpoints.folder.parent / TIMING, {"seconds": round(training.seconds, 3)})


def _check(losses: dict[str, Tensor], training: Training, checkpoints: Checkpoints) -> None:
    for name, value in losses.items():
        if not torch.isfinite(value):
            newest = checkpoints.newest()
            raise DivergedError(
                f"{checkpoints.folder.parent}: the loss {name!r} is {value.item()} after step "
                f"{training.step}. Last good checkpoint: {newest.name if newest else 'none'}. "
                "Try a lower learning rate in a new folder."
            )
