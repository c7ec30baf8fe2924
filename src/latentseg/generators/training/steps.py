"""One step of a training: the discriminator learns, then the generator, then the average."""

import contextlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from latentseg.devices import autocast, pick_precision
from latentseg.distributed import OwnDraws, Team
from latentseg.errors import InputError
from latentseg.generators.families.stylegan2 import StyleGAN2, StyleGAN2Config
from latentseg.generators.training.config import GeneratorTrainingConfig
from latentseg.generators.training.discriminator import GROUP
from latentseg.generators.training.objectives import (
    LogisticObjective,
    Objective,
    ProjectedObjective,
)
from latentseg.generators.training.photos import Photos
from latentseg.seeds import derive_seeds
from latentseg.weights.efficientnet_lite0 import EfficientNetLite0

ADA_TARGET = 0.6  # share of photos the discriminator calls real; Karras et al. 2020 (ADA)
ADA_IMAGES = 100_000  # photos in which the strength may go from 0 to 1
W_AVG_BETA = 0.995  # Karras et al. 2020


class Training:
    """The state of a training: three networks, two optimizers, the step.

    The averaged generator (`average`) is the one that is kept.
    """

    def __init__(
        self,
        config: GeneratorTrainingConfig,
        n_classes: int,
        team: Team,
        features: EfficientNetLite0 | None = None,
    ) -> None:
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
        self.objective = self._objective(network, features)
        self.discriminator = _placed(self.objective.network, self.device)
        lr, lazy = config.discriminator_lr or config.lr, self.objective.lazy
        self.generator_adam = _adam(self.generator.parameters(), config.lr, 1.0)
        self.discriminator_adam = _adam(self.discriminator.parameters(), lr, lazy)
        self.step = 0
        self.seconds = 0.0
        self.strength = 0.0 if config.adaptive else 1.0

    def _objective(self, network: StyleGAN2Config, features: EfficientNetLite0 | None) -> Objective:
        if features is None:
            return LogisticObjective(self.config, network, self.dtype)
        placed = _placed(features, self.device)
        return ProjectedObjective(self.config, network, self.device, self.dtype, placed)

    def advance(self, photos: Photos) -> dict[str, Tensor]:
        """One step: the discriminator learns, then the generator. Returns the losses."""
        config = self.config
        torch.manual_seed(int(derive_seeds(config.seed, self.step)))
        real, labels = photos.batch(self.step, config.batch, config.seed)
        # As bytes to the device: a quarter of the way, which a GPU waits for.
        real = real[self.rows].to(self.device, memory_format=torch.channels_last)
        real = real.float() / 127.5 - 1
        labels = None if labels is None else labels[self.rows].to(self.device)
        with autocast(self.device, self.dtype):
            drawn = self._draw(labels)
        with self._draws():
            seen = self.objective.look(drawn, self.step, self.strength)
        losses = self._learn_discriminator(real, seen, labels)
        losses |= self._learn_generator(seen, labels)
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

    def _learn_discriminator(
        self, real: Tensor, seen: Any, labels: Tensor | None
    ) -> dict[str, Tensor]:
        with self._draws():
            losses = self.objective.discriminator_losses(
                real, seen, labels, self.step, self.strength
            )
        self.discriminator_adam.zero_grad(set_to_none=True)
        (losses.total * self.share).backward()
        self.team.add_gradients(self.discriminator.parameters())
        self.discriminator_adam.step()
        realness = self._mean(losses.realness)
        if self.config.adaptive:
            direction = 1 if realness.item() > ADA_TARGET else -1
            moved = self.strength + direction * self.config.batch / ADA_IMAGES
            self.strength = min(max(moved, 0.0), 1.0)
        shown = {name: self._mean(value) for name, value in losses.shown.items()}
        return {"d": self._mean(losses.total), "realness": realness, **shown}

    def _learn_generator(self, seen: Any, labels: Tensor | None) -> dict[str, Tensor]:
        self.discriminator.requires_grad_(False)
        with self._draws():
            loss = self.objective.generator_loss(seen, labels, self.strength)
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
        average_by_lerp = get_ema_multi_avg_fn(kept)
        average_by_lerp(list(averaged.values()), [current[name] for name in averaged], self.step)

    def state(self) -> dict[str, Tensor]:
        """Everything that the next step depends on, as named tensors."""
        state: dict[str, Tensor] = {}
        for name, network in self._networks():
            state |= {f"{name}/{key}": value for key, value in network.state_dict().items()}
        for name, adam in self._adams():
            for index, values in adam.state_dict()["state"].items():
                state |= {f"{name}/{index}/{key}": value for key, value in values.items()}
        state["step"] = torch.tensor(self.step)
        state["augment_probability"] = torch.tensor(self.strength, dtype=torch.float64)
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
        self.strength = float(state["augment_probability"])

    def _networks(self) -> Iterable[tuple[str, nn.Module]]:
        yield "generator", self.generator
        yield "average", self.average
        yield "discriminator", self.discriminator

    def _adams(self) -> Iterable[tuple[str, torch.optim.Adam]]:
        yield "generator_adam", self.generator_adam
        yield "discriminator_adam", self.discriminator_adam


def own_rows(batch: int, team: Team) -> Tensor:
    """The rows (n,) of a batch that this process computes: whole groups of `minibatch_std`.

    So the std of a group is known without asking the other processes.

    Raises:
        InputError: the batch has fewer groups than there are processes, or no part of it may be
            cut into the same groups.
    """
    group = math.gcd(batch, GROUP)
    positions = torch.arange(batch).view(group, -1)
    if team.world > positions.shape[1] or (team.world > 1 and group < GROUP):
        raise InputError(
            f"`batch`: {batch}: {team.world} processes need a multiple of {GROUP} that is at least "
            f"{GROUP * team.world}, as the discriminator compares the images in groups of {GROUP}."
        )
    return positions[:, team.part(positions.shape[1])].flatten()


def _placed(network: nn.Module, device: torch.device) -> Any:
    return network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _adam(parameters: Iterable[nn.Parameter], lr: float, lazy: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=lr * lazy, betas=(0.0, 0.99**lazy), eps=1e-8)


def _below(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    return {k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")}
