"""Trains a StyleGAN2 on a folder of photos; the same call again continues it exactly."""

import contextlib
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.devices import autocast, pick_precision
from latentseg.distributed import OwnDraws, Team, join
from latentseg.errors import DivergedError, InputError
from latentseg.files import claim, locked
from latentseg.generators.families.stylegan2 import StyleGAN2, StyleGAN2Config
from latentseg.generators.training.augmentation import augment
from latentseg.generators.training.discriminator import GROUP, Discriminator
from latentseg.generators.training.distance import FrechetDistance
from latentseg.generators.training.photos import Photos, read_photos
from latentseg.generators.training.report import SETTINGS, Report
from latentseg.interrupts import HeldInterrupt
from latentseg.progress import Progress, say
from latentseg.seeds import derive_seeds
from latentseg.training_states import Checkpoints


@dataclass(frozen=True)
class GeneratorTrainingConfig:
    """How a generator is trained.

    Attributes:
        size: (height, width) of the images.
        channels: Channels of generator and discriminator, coarse to fine, one per resolution.
        latent_dim: Size of z and of w.
        images: Photos shown to the discriminator in all; may be raised later to go on.
        batch: Photos per step.
        lr: Learning rate of both networks (Adam, betas 0 and 0.99); may be changed to go on, as
            `ema_images` and `augmentation` may: a lower rate at the end gives cleaner images.
        r1_weight, r1_interval: Gradient penalty on photos, every so many steps (lazy).
        style_mixing: Chance that an image is drawn from two styles.
        ema_images: Half-life of the averaged generator, in photos shown.
        augmentation: Differentiable augmentation: any of "color", "translation", "cutout".
        adaptive: Let the strength of the augmentation follow the discriminator's overfitting.
        seed: Step s depends only on (seed, s).
        precision: "auto", "fp32", "bf16" or "fp16".
        report_images: Photos between two reports: contact sheet, checkpoint, saved generator.
        distance_images: Images compared for the distance; at most as many as photos.
    """

    size: tuple[int, int] = (64, 64)
    channels: tuple[int, ...] = (256, 192, 96, 32, 16)
    latent_dim: int = 128
    images: int = 1_000_000
    batch: int = 32
    lr: float = 2.5e-3
    r1_weight: float = 0.1
    r1_interval: int = 16
    style_mixing: float = 0.9
    ema_images: int = 10_000
    augmentation: tuple[str, ...] = ("color", "translation")
    adaptive: bool = False
    seed: int = 0
    precision: str = "auto"
    report_images: int = 32_000
    distance_images: int = 1_000


FINE_TO_COARSE = (16, 32, 96, 192, 256)  # channels from the finest resolution down, then the last
COARSEST_PX = 4


def default_channels(size: tuple[int, int]) -> tuple[int, ...]:
    """Channels of each resolution, coarse to fine: `size` is halved down to about 4 px."""
    height, width = size
    n_blocks = 1
    while height % 2 == width % 2 == 0 and min(height, width) >= 2 * COARSEST_PX:
        height, width, n_blocks = height // 2, width // 2, n_blocks + 1
    last = FINE_TO_COARSE[-1]
    return (*FINE_TO_COARSE, *[last] * n_blocks)[:n_blocks][::-1]


CHECK_EVERY = 16  # steps between two looks at the losses, which make the GPU wait
ADA_TARGET = 0.6  # share of photos the discriminator calls real; Karras et al. 2020 (ADA)
ADA_IMAGES = 100_000  # photos in which the strength may go from 0 to 1
W_AVG_BETA = 0.995  # Karras et al. 2020


class Training:
    """The state of a training: three networks, two optimisers, the step.

    The averaged generator (`average`) is the one that is kept.
    """

    def __init__(self, config: GeneratorTrainingConfig, n_classes: int, team: Team) -> None:
        torch.manual_seed(config.seed)
        self.config, self.team, self.device = config, team, team.device
        self.rows = own_rows(config.batch, team)
        self.share = len(self.rows) / config.batch
        self.dtype = pick_precision(config.precision, self.device)
        network = StyleGAN2Config(
            size=config.size,
            channels=config.channels,
            z_dim=config.latent_dim,
            w_dim=config.latent_dim,
            n_classes=n_classes,
        )
        self.generator = _placed(StyleGAN2(network), self.device)
        self.average = _placed(StyleGAN2(network), self.device).requires_grad_(False)
        self.average.load_state_dict(self.generator.state_dict())
        self.discriminator = _placed(Discriminator(network), self.device)
        # The penalty is applied every r1_interval steps: Karras et al. 2020, appendix B.
        lazy = config.r1_interval / (config.r1_interval + 1)
        self.generator_adam = _adam(self.generator.parameters(), config.lr, 1.0)
        self.discriminator_adam = _adam(self.discriminator.parameters(), config.lr, lazy)
        self.step = 0
        self.seconds = 0.0
        self.augment_probability = 0.0 if config.adaptive else 1.0

    def advance(self, photos: Photos) -> dict[str, Tensor]:
        """One step: the discriminator learns, then the generator. Returns the losses."""
        config = self.config
        torch.manual_seed(int(derive_seeds(config.seed, self.step)))
        real, labels = photos.batch(self.step, config.batch, config.seed)
        real = real[self.rows].to(self.device, memory_format=torch.channels_last)
        labels = None if labels is None else labels[self.rows].to(self.device)
        with autocast(self.device, self.dtype):
            drawn = self._draw(labels)
        losses = self._learn_discriminator(real, drawn.detach(), labels)
        losses |= self._learn_generator(drawn, labels)
        self._average()
        self.step += 1
        return losses

    def _draw(self, labels: Tensor | None) -> Tensor:
        config, mapping = self.config, self.generator.mapping
        n_layers = self.generator.n_layers
        z = torch.randn(2, config.batch, config.latent_dim)[:, self.rows].to(self.device)
        w, other = mapping(z[0], labels), mapping(z[1], labels)
        mean = self.team.sum(w.detach().float().mean(dim=0) * self.share)
        mapping.w_avg.lerp_(mean, 1 - W_AVG_BETA)
        cut = torch.randint(1, n_layers, (config.batch, 1))
        cut = torch.where(torch.rand(config.batch, 1) < config.style_mixing, cut, n_layers)
        is_first = (torch.arange(n_layers)[None] < cut[self.rows]).to(self.device)
        ws = torch.where(is_first[..., None], w[:, None], other[:, None])
        with self._draws():
            return self.generator(ws, noise="random")

    def _draws(self) -> contextlib.AbstractContextManager[object]:
        """Random numbers inside are the own ones of the whole batch."""
        if self.team.world == 1:
            return contextlib.nullcontext()
        return OwnDraws(self.rows, self.config.batch)

    def _judge(self, x: Tensor, labels: Tensor | None) -> Tensor:
        with self._draws():
            x = augment(x, self.config.augmentation, self.augment_probability)
        with autocast(self.device, self.dtype):
            return self.discriminator(x, labels)

    def _learn_discriminator(
        self, real: Tensor, drawn: Tensor, labels: Tensor | None
    ) -> dict[str, Tensor]:
        is_lazy_step = self.step % self.config.r1_interval == 0
        judged = self._judge(real.requires_grad_(is_lazy_step), labels)
        loss = F.softplus(self._judge(drawn, labels)).mean() + F.softplus(-judged).mean()
        penalty = squared_gradient(judged, real) if is_lazy_step else None
        if penalty is not None:
            loss = loss + self.config.r1_weight / 2 * self.config.r1_interval * penalty
        self.discriminator_adam.zero_grad(set_to_none=True)
        (loss * self.share).backward()
        self.team.add_gradients(self.discriminator.parameters())
        self.discriminator_adam.step()
        realness = self._mean(judged.sign().mean())
        if self.config.adaptive:
            direction = 1 if realness.item() > ADA_TARGET else -1
            moved = self.augment_probability + direction * self.config.batch / ADA_IMAGES
            self.augment_probability = min(max(moved, 0.0), 1.0)
        losses = {"d": self._mean(loss), "realness": realness}
        return losses if penalty is None else losses | {"r1": self._mean(penalty)}

    def _learn_generator(self, drawn: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        loss = F.softplus(-self._judge(drawn, labels)).mean()
        self.generator_adam.zero_grad(set_to_none=True)
        (loss * self.share).backward()
        self.team.add_gradients(self.generator.parameters())
        self.generator_adam.step()
        self.discriminator.requires_grad_(True)
        return {"g": self._mean(loss)}

    def _mean(self, own: Tensor) -> Tensor:
        """The mean over the batch, of which `own` is the mean over the own part."""
        return self.team.sum(own.detach() * self.share)

    @torch.no_grad()
    def _average(self) -> None:
        # The half-life grows at the start, so that the first weights are forgotten (ADA, appendix).
        shown = (self.step + 1) * self.config.batch
        half_life = min(self.config.ema_images, 0.05 * shown)
        kept = 0.5 ** (self.config.batch / max(half_life, 1e-8))
        averaged, current = self.average.state_dict(), self.generator.state_dict()
        for name, value in averaged.items():
            value.lerp_(current[name], 1 - kept)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        state: dict[str, Tensor] = {}
        for name, network in self._networks():
            state |= {f"{name}/{key}": value for key, value in network.state_dict().items()}
        for name, adam in self._adams():
            for index, values in adam.state_dict()["state"].items():
                state |= {f"{name}/{index}/{key}": value for key, value in values.items()}
        state["step"] = torch.tensor(self.step)
        state["seconds"] = torch.tensor(self.seconds)
        state["augment_probability"] = torch.tensor(self.augment_probability, dtype=torch.float64)
        return state

    def load(self, state: dict[str, Tensor]) -> None:
        """Restores what `state` gave."""
        for name, network in self._networks():
            network.load_state_dict(_below(state, name))
        for name, adam in self._adams():
            values: dict[int, dict[str, Tensor]] = {}
            for key, value in _below(state, name).items():
                index, field = key.split("/")
                values.setdefault(int(index), {})[field] = value
            adam.load_state_dict(
                {"state": values, "param_groups": adam.state_dict()["param_groups"]}
            )
        self.step = int(state["step"])
        self.seconds = float(state["seconds"])
        self.augment_probability = float(state["augment_probability"])

    def _networks(self) -> Iterable[tuple[str, nn.Module]]:
        yield "generator", self.generator
        yield "average", self.average
        yield "discriminator", self.discriminator

    def _adams(self) -> Iterable[tuple[str, torch.optim.Adam]]:
        yield "generator_adam", self.generator_adam
        yield "discriminator_adam", self.discriminator_adam


def own_rows(batch: int, team: Team) -> Tensor:
    """The rows (n,) of a batch that this process computes: whole groups of `minibatch_deviation`.

    So the deviation of a group is known without asking the other processes.

    Raises:
        InputError: the batch has fewer groups than there are processes, or no part of it may be
            cut into the same groups.
    """
    group = math.gcd(batch, GROUP)
    positions = torch.arange(batch).view(group, -1)
    if team.world > positions.shape[1] or (team.world > 1 and group < GROUP):
        raise InputError(
            f"--batch {batch}: {team.world} processes need a multiple of {GROUP} that is at least "
            f"{GROUP * team.world}, as the discriminator compares the images in groups of {GROUP}."
        )
    return positions[:, team.part(positions.shape[1])].flatten()


def squared_gradient(realness: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of the gradient of `realness` at `images`: R1 (Mescheder et al. 2018)."""
    (gradient,) = torch.autograd.grad(realness.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def _placed(network: nn.Module, device: torch.device) -> Any:
    return network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _adam(parameters: Iterable[nn.Parameter], lr: float, lazy: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr * lazy, betas=(0.0, 0.99**lazy), eps=1e-8)


def _below(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}


def train_generator(
    photos: Path | str,
    out: Path | str,
    *,
    config: GeneratorTrainingConfig | None = None,
    with_classes: bool = False,
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
        inception: Weights of the Inception network; reports the FID beside the own distance.
        name: Of the generator; by default the name of `out`.
        licence: Of the weights, written into the card.
        device: "auto", "cpu", "cuda", ...
        devices, nodes: Processes on each machine, and machines, as `distributed.join` has them.
        quiet: Print nothing.

    Returns:
        The folder generator/.

    Raises:
        InputError: photos that cannot be read (all are listed), or `out` holds other work.
        NotFinishedError: another process has ended; the last checkpoint is intact.
        KeyboardInterrupt: after the state was saved.
        DivergedError: a loss is NaN or infinite; the last checkpoint is intact.
    """
    config, out = config or GeneratorTrainingConfig(), Path(out)
    team = join(device, devices=devices, nodes=nodes)
    quiet = quiet or not team.is_rank_zero
    read = read_photos(photos, config.size, with_classes=with_classes)
    wanted = asdict(config) | {"photos": len(read), "classes": list(read.classes)}
    with team.rank_zero_context(locked(out)):
        team.on_rank_zero(lambda: claim(out, wanted, free=("images", *SETTINGS)))
        training = Training(config, len(read.classes), team)
        checkpoints = Checkpoints(out / "checkpoints")
        step, state = team.on_rank_zero(checkpoints.load)
        if state:
            training.load(state)
            say(f"continuing from step {step}", quiet=quiet)
        fid = None if inception is None else FrechetDistance(inception, read.pixels)
        report = Report(out, read, name=name or out.absolute().name, licence=licence, fid=fid)
        _loop(training, read, checkpoints, report, quiet)
    return out / "generator"


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
                progress.update(training.step, **{k: v.item() for k, v in losses.items()})
                training.seconds = seconds_before + time.monotonic() - began
            if is_due:
                team.on_rank_zero(partial(report.write, training, losses))
            # After the report: what a kill between the two leaves out is then made again.
            if is_due or signal:
                team.on_rank_zero(lambda: checkpoints.save(training.step, training.state()))
            if signal:
                interrupt.number = signal
                interrupt.release()


def _check(losses: dict[str, Tensor], training: Training, checkpoints: Checkpoints) -> None:
    for name, value in losses.items():
        if not torch.isfinite(value):
            newest = checkpoints.newest()
            raise DivergedError(
                f"{checkpoints.folder.parent}: the loss {name!r} is {value.item()} after step "
                f"{training.step}. Last good checkpoint: {newest.name if newest else 'none'}. "
                "Try a lower learning rate in a new folder."
            )
