"""Trains a student on pairs of image and mask; exactly resumable."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentseg.configs import check_choice, check_range
from latentseg.datasets.pairs import Batch, FolderPairs, Pairs
from latentseg.devices import autocast, pick_precision
from latentseg.distributed import Team, join, normalise_over_all
from latentseg.errors import DivergedError, InputError
from latentseg.files import (
    MANIFEST,
    claim,
    locked,
    open_in_place,
    read_bytes,
    write_manifest,
    write_text,
)
from latentseg.images import IGNORE
from latentseg.interrupts import HeldInterrupt
from latentseg.progress import Progress, say
from latentseg.seeds import derive_seeds
from latentseg.students.augmentation import AUGMENTATIONS, augment
from latentseg.students.averages import Average
from latentseg.students.losses import (
    counted,
    foreground_iou,
    mean_iou,
    segmentation_loss,
    total,
)
from latentseg.students.model_card import check_card
from latentseg.students.networks import (
    MAX_WIDTH,
    PHOTO_UNET,
    build_network,
    count_parameters,
    encoder_of,
    initialize,
    initialized_on,
)
from latentseg.students.scaled_pairs import at_size
from latentseg.students.segmenter import Segmenter
from latentseg.training_states import Checkpoints
from latentseg.version import __version__

LEAST_PHOTO_SIDE = 128  # at which an encoder of photos works, if nothing else is asked for
ENCODER_RATE = 0.1  # of the learning rate, for an encoder that has learned before
_WEIGHTS_KEY, _STEP_KEY = 1, 2  # keep the random numbers of different uses apart


@dataclass(frozen=True)
class TrainConfig:
    """How a student is trained. The defaults are the paper's (Melas-Kyriazi 2021, section 4)."""

    network: str = "unet"  # see networks.build_network
    width: float = 1.0  # factor on the channels of unet
    steps: int = 12_000
    batch: int = 95
    lr: float = 1e-3  # of Adam
    decay_at: int = 8_000  # the step from which the learning rate is multiplied ...
    decay: float = 0.2  # ... by this
    augment: str = "none"  # none, flip, photo, parts, parts-photo
    seed: int = 0
    precision: str = "auto"  # auto, fp32, bf16
    report_every: int = 50  # steps between two lines of metrics.jsonl
    checkpoint_every: int = 250  # steps between two states on disk
    weight_decay: float | None = None  # of Adam: this share of the weights is added to gradients
    clip: float | None = None  # largest absolute value in a gradient
    size: tuple[int, int] | None = None  # (height, width) to work at; None: see `working_size`
    encoder_weights: str | None = None  # file of a pretrained encoder; None: see `initialize`
    encoder_lr: float | None = None  # learning rate of a pretrained encoder; None: lr / 10
    ema: float | None = None  # the student is this moving average of its weights, below 1

    def __post_init__(self) -> None:
        check_choice("augment", self.augment, tuple(AUGMENTATIONS))
        # In fp16, gradients would vanish.
        check_choice("precision", self.precision, ("auto", "fp32", "bf16"))
        check_range(self, ("steps", "report_every", "checkpoint_every"), 1)
        check_range(self, ("batch",), 2)  # batch normalization needs two
        check_range(self, ("lr", "decay", "encoder_lr"), 0)
        check_range(self, ("weight_decay", "clip"), above=0)
        check_range(self, ("width",), above=0, most=MAX_WIDTH)
        check_range(self, ("decay_at", "seed"))
        check_range(self, ("ema",), above=0, most=0.9999)
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise InputError(f"`size`: expected height and width in pixels, found {self.size}.")


PRESETS = {
    # minutes on two CPU cores
    "quick": TrainConfig(width=0.25, steps=500, batch=32, decay_at=350, augment="photo"),
    # the bundled segmenter's
    "standard": TrainConfig(width=0.375, steps=800, batch=32, decay_at=550, augment="photo"),
    # Melas-Kyriazi et al. 2021; wants a GPU
    "paper": TrainConfig(),
}
# For parts, which a student learns from the probabilities of a few-shot labeler: more steps. Short
# trainings do not gain from the strong changes of "parts"; those of the paper are long.
PARTS_PRESETS = {
    "quick": replace(PRESETS["quick"], steps=1_000, decay_at=700),
    "standard": replace(PRESETS["standard"], steps=2_000, decay_at=1_400),
    # Tritrong et al. 2021, 1000 epochs of 5000 pairs; theirs waits for a plateau to lower the rate
    "paper": TrainConfig(
        steps=156_000,
        batch=32,
        decay_at=104_000,
        augment="parts",
        weight_decay=1e-3,
        clip=0.1,
    ),
}
# May change on continuing.
_FREE = ("report_every", "checkpoint_every", "encoder_weights", "latentseg", "torch")


def working_size(config: TrainConfig, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) at which a student works that learns from pairs of `size`.

    `config.size`, if it is given; else `size`, doubled for an encoder that has seen photos until
    the shorter side has at least 128 px: what it knows is of larger pictures.
    """
    if config.size is not None:
        return config.size[0], config.size[1]
    height, width = size
    while config.network == PHOTO_UNET and min(height, width) < LEAST_PHOTO_SIDE:
        height, width = 2 * height, 2 * width
    return height, width


def train(
    pairs: Pairs | Path | str,
    *,
    out: Path | str,
    config: TrainConfig = PRESETS["quick"],
    card: Mapping[str, Any] | None = None,
    start: Segmenter | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    quiet: bool = False,
) -> Segmenter:
    """Trains a student; the same call again continues an interrupted one, bit for bit.

    Steps depend only on (seed, step), and states are saved every `checkpoint_every` steps and at
    an interrupt. On the CPU, an interrupted and continued training ends with the weights of an
    uninterrupted one. Masks with the id 255 and pixels of weight 0 are not learned from.

    Several processes share the batch of each step; the gradients are those of one process, within
    rounding, and their number may change when a training is continued. Networks with dropout draw
    other zeros in each process. All of them call this, and see the same `out`.

    Args:
        pairs: What to learn, or a finished dataset folder. They are scaled to `working_size`, which
            is the student's input size.
        out: Folder of the work: config.json, metrics.jsonl, checkpoints/ until it is finished,
            model/ at the end, MANIFEST.json last.
        config: How to train; `PRESETS` holds "quick", "standard" and "paper".
        card: Where the pairs come from (generator, labeler, licence ...), kept in the model;
            see `model_card.FIELDS`.
        start: Begin with the weights of this segmenter instead of random ones.
        device: "auto", "cpu", "cuda", "mps".
        devices: Processes on each machine, as `distributed.join` has them.
        nodes: Machines.
        quiet: No progress line.

    Returns:
        The finished segmenter, read from `out`/model; at once if it was finished before.

    Raises:
        InputError: `out` holds other work (the fields that differ are named), or is in use.
        DivergedError: a number became NaN or infinite; the last good checkpoint stays.
        NotFinishedError: another process has ended; the last checkpoint stays.
        KeyboardInterrupt: after the state was saved.
    """
    if isinstance(pairs, Path | str):
        pairs = FolderPairs(pairs, seed=config.seed)
    pairs = at_size(pairs, working_size(config, pairs.size))
    out, card = Path(out), {**(card or {}), "training": _published(config)}
    check_card(card)
    team = join(device, devices=devices, nodes=nodes)
    with team.rank_zero_context(locked(out)):
        team.on_rank_zero(lambda: claim(out, _record(pairs, config, card, start), free=_FREE))
        if not team.on_rank_zero((out / "model" / MANIFEST).is_file):
            training = _Training(pairs, config, out, start=start, team=team)
            training.run(quiet=quiet or not team.is_rank_zero)
            team.on_rank_zero(lambda: training.segmenter(card).save(out / "model"))
        team.on_rank_zero(lambda: _finish(out))
    return Segmenter.from_pretrained(out / "model", device=str(team.device))


def _finish(out: Path) -> None:
    if not (out / MANIFEST).is_file():
        Checkpoints(out / "checkpoints").delete()
        write_manifest(out)


class _Training:
    """A student on its way: the network, the optimiser, and how many steps they have done."""

    def __init__(
        self,
        pairs: Pairs,
        config: TrainConfig,
        out: Path,
        *,
        start: Segmenter | None,
        team: Team,
    ) -> None:
        self.pairs, self.config, self.team, self.device = pairs, config, team, team.device
        self.own = team.part(config.batch)
        self.dtype = pick_precision(config.precision, self.device)
        self.metrics = out / "metrics.jsonl"
        self.checkpoints = Checkpoints(out / "checkpoints")
        self.network = _new_network(pairs, config, start)
        self.network.to(device=self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.average = Average(self.network, config.ema) if config.ema else None
        if team.world > 1:
            normalise_over_all(self.network, team)
        self.optimizer = torch.optim.Adam(
            _parameter_groups(self.network, config),
            lr=config.lr,
            weight_decay=config.weight_decay or 0.0,
        )
        self.step, tensors = team.on_rank_zero(self.checkpoints.load)
        if tensors:
            self._restore(tensors)
        team.on_rank_zero(lambda: _cut_metrics(self.metrics, self.step))

    def run(self, *, quiet: bool) -> None:
        """Takes all steps that are left, with states and metrics written on the way."""
        config = self.config
        say(self._plan(), quiet=quiet)
        devices = [self.device] if self.device.type == "cuda" else []
        with (
            Progress(
                "train", total=config.steps, start=self.step, per_step=config.batch, quiet=quiet
            ) as progress,
            torch.random.fork_rng(devices=devices),
            HeldInterrupt() as interrupt,
        ):
            losses: list[float] = []
            while self.step < config.steps:
                loss, logits, batch = self._take_step()
                losses.append(loss)
                self.step += 1
                signal = self.team.agreed(interrupt.number)
                is_last = self.step == config.steps
                if is_last or self.step % config.report_every == 0:
                    logits = self.team.whole(logits, config.batch)
                    if self.team.is_rank_zero:
                        self._report(sum(losses) / len(losses), logits, batch, progress)
                    losses = []
                if is_last or signal or self.step % config.checkpoint_every == 0:
                    self.team.on_rank_zero(lambda: self.checkpoints.save(self.step, self._state()))
                progress.update(self.step, loss=loss)
                if signal:
                    interrupt.number = signal
                    interrupt.release()

    def segmenter(self, card: Mapping[str, Any]) -> Segmenter:
        """The network with what it needs for photos."""
        return Segmenter(
            [self.average.network if self.average else self.network],
            classes=self.pairs.classes,
            input_size=self.pairs.size,
            network=self.config.network,
            width=self.config.width,
            card=card,
        )

    def _take_step(self) -> tuple[float, Tensor, Batch]:
        """Loss, own logits and pairs of a step, a function of (seed, step) and the weights."""
        config, rank = self.config, self.team.rank
        keys = (config.seed, _STEP_KEY, self.step, *([rank] if rank else []))
        torch.manual_seed(int(derive_seeds(*keys)))  # for dropout
        batch = self.pairs.batch(self.step, config.batch).to(self.device)
        self._check_ids(batch.masks)
        batch = augment(batch, config.augment, seed=config.seed, step=self.step)
        masks = batch.masks[self.own]
        weights = None if batch.weights is None else batch.weights[self.own]
        images = batch.images[self.own].contiguous(memory_format=torch.channels_last)
        with autocast(self.device, self.dtype):
            logits = self.network(images)
        # A mean over the pixels of the whole batch: a part in which more pixels count weighs more.
        share = total(counted(masks, weights)) / total(counted(batch.masks, batch.weights))
        loss = segmentation_loss(logits, masks, weights) * share
        mean = self.team.sum(loss)
        if not torch.isfinite(mean):
            raise self._diverged(self._culprit(batch, self.team.whole(logits, config.batch)))
        decay = config.decay if self.step >= config.decay_at else 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["start_lr"] * decay
        self.optimizer.zero_grad()
        loss.backward()
        self.team.add_gradients(self.network.parameters())
        if config.clip is not None:
            nn.utils.clip_grad_value_(self.network.parameters(), config.clip)
        self.optimizer.step()
        if self.average:
            self.average.update(self.network, self.step)
        return mean.item(), logits.detach(), batch

    def _check_ids(self, masks: Tensor) -> None:
        if masks.ndim == 3:
            n_classes = len(self.pairs.classes) + 1
            wrong = masks[(masks >= n_classes) & (masks != IGNORE)]
            if len(wrong):
                raise InputError(
                    f"step {self.step}: a mask holds the class id {int(wrong[0])}, but the ids are "
                    f"0 to {n_classes - 1} ({', '.join(('background', *self.pairs.classes))}). "
                    "Find the files with: latentseg check DATASET"
                )

    def _culprit(self, batch: Batch, logits: Tensor) -> str:
        if not batch.images.isfinite().all():
            return "the images"
        if not all(tensor.isfinite().all() for tensor in self.network.state_dict().values()):
            return "the weights of the network"
        return "the loss" if logits.isfinite().all() else "the answer of the network"

    def _diverged(self, place: str) -> DivergedError:
        good = self.checkpoints.newest()
        return DivergedError(
            f"step {self.step}: NaN or infinity in {place}. "
            f"The last good state is {good or 'the beginning'}. "
            "Train into another folder with a lower `lr`, or with `precision` fp32."
        )

    def _report(self, loss: float, logits: Tensor, batch: Batch, progress: Progress) -> None:
        line = {
            "step": self.step,
            "loss": loss,
            "iou": foreground_iou(logits, batch.masks, batch.weights),
            "mean_iou": mean_iou(logits, batch.masks, batch.weights),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        line["images_per_s"] = round(progress.rate(self.step), 2)
        with open_in_place(self.metrics, "ab") as stream:
            stream.write(f"{json.dumps(line, allow_nan=False)}\n".encode())

    def _plan(self) -> str:
        config, (height, width) = self.config, self.pairs.size
        return (
            f"train: {config.network} of {count_parameters(self.network) / 1e6:.2f} M parameters, "
            f"steps {self.step} to {config.steps} of {config.batch} x {height} x {width} px, "
            f"{self.device.type} {str(self.dtype).removeprefix('torch.')}"
        )

    def _state(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        for name, parameter in self.network.named_parameters():
            for kind, moment in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{kind}"] = moment
        if self.average:
            average = self.average.network.state_dict()
            tensors |= {f"average.{name}": tensor for name, tensor in average.items()}
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise self._diverged("the weights of the network or the moments of Adam")
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        weights = {name: tensors[f"network.{name}"] for name in self.network.state_dict()}
        self.network.load_state_dict(weights)
        if self.average:
            average = {name: tensors[f"average.{name}"] for name in weights}
            self.average.network.load_state_dict(average)
        for name, parameter in self.network.named_parameters():
            prefix = f"optimizer.{name}."
            # Moments lie in memory as their parameter does; so sums are rounded as without a stop.
            self.optimizer.state[parameter] = {
                kind: saved if kind == "step" else torch.empty_like(parameter).copy_(saved)
                for kind in ("step", "exp_avg", "exp_avg_sq")
                if (saved := tensors.get(prefix + kind)) is not None
            }


def _published(config: TrainConfig) -> dict[str, Any]:
    """The configuration without what is only of this machine or was left out."""
    return {
        name: value
        for name, value in asdict(config).items()
        if name != "encoder_weights" and value is not None
    }


def _record(
    pairs: Pairs, config: TrainConfig, card: Mapping[str, Any], start: Segmenter | None
) -> dict[str, Any]:
    """What a training folder is about, for its config.json."""
    return {
        **asdict(config),
        "classes": pairs.classes,
        "size": pairs.size,
        "card": {name: value for name, value in card.items() if name != "training"},
        "start": start.digest if start else None,
        "latentseg": __version__,
        "torch": torch.__version__,
    }


def _new_network(pairs: Pairs, config: TrainConfig, start: Segmenter | None) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(derive_seeds(config.seed, _WEIGHTS_KEY)))
        network = build_network(config.network, len(pairs.classes) + 1, width=config.width)
    if not start:
        initialize(network, config.network, config.encoder_weights)
    else:
        there = (start.network, start.width, start.classes)
        wanted = (config.network, config.width, tuple(pairs.classes))
        if there != wanted:
            raise InputError(
                f"The student to start from is {there}, but {wanted} is to be trained."
            )
        network.load_state_dict(start.members[0].state_dict())
    return network


def _parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """All parameters, those of a pretrained encoder apart, with the rate at which each starts."""
    encoder = encoder_of(network) if initialized_on(config.network) else None
    known = [] if encoder is None else list(encoder.parameters())
    ids = {id(parameter) for parameter in known}
    new = [parameter for parameter in network.parameters() if id(parameter) not in ids]
    encoder_lr = ENCODER_RATE * config.lr if config.encoder_lr is None else config.encoder_lr
    groups = [{"params": new, "start_lr": config.lr}, {"params": known, "start_lr": encoder_lr}]
    return [group for group in groups if group["params"]]


def _cut_metrics(path: Path, step: int) -> None:
    """Drops the lines after `step`, which will be written again, and a half-written last one."""
    kept = []
    for line in read_bytes(path).decode(errors="replace").splitlines() if path.exists() else []:
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except ValueError:
            break
    write_text(path, "".join(kept))
