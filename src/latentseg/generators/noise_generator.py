"""Generators that draw an image straight from noise z: BigGAN, ResNet GANs, DCGAN, ProGAN, ..."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from latentseg.generators.banks import Bank
from latentseg.generators.chunks import draw_in_parts, parts
from latentseg.generators.family import Sampling
from latentseg.generators.layer_mixing import mix_layers
from latentseg.generators.priors import Prior
from latentseg.generators.protocols import GeneratorInfo, Latents


class NoiseNetwork(nn.Module, ABC):
    """A network from noise and class to an image.

    Attributes:
        config: Fixes the layers; has `size` and `n_classes`.
    """

    config: Any

    @property
    @abstractmethod
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""

    @property
    @abstractmethod
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each activation map that `draw` gives."""

    @abstractmethod
    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [-1, 1] and activation maps, coarse to fine.

        Args:
            z: (B, *latent).
            labels: (B,) int64; None for an unconditional network.
        """

    def prior(self, sampling: Sampling) -> Prior:
        """The distribution of z that the network was trained or is published with."""
        return Prior(self.latent, self.config.n_classes, class_weights=sampling.class_weights)


class LayeredNetwork(NoiseNetwork):
    """A network each of whose layers takes its own part of z and of the class."""

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Layers that take a condition of their own."""

    @abstractmethod
    def conditions(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What each layer takes, (B, n_layers, D), of z (B, *latent) and labels (B,)."""

    @abstractmethod
    def synthesis(self, conditions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images and activation maps, as `draw`, of conditions (B, n_layers, D)."""

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [-1, 1] and activation maps, coarse to fine."""
        return self.synthesis(self.conditions(z, labels))


class FromNoise:
    """What generators from a noise network share, with and without variants; latents are z.

    Args:
        network: The weights; frozen here.
        info: Its identity card; `latent` and `space` are set here.
        sampling: What of it is heeded, the network's `prior` says; `bank_noise` always.
        bank: (N, *latent) latents that are drawn instead of noise, for example the embeddings of
            photos; None for noise. They belong to the generator: a step is measured in their
            standard deviation.
        given: Latents that are drawn instead of all these, while a step stays what it is.
    """

    def __init__(
        self,
        network: NoiseNetwork,
        info: GeneratorInfo,
        sampling: Sampling | None = None,
        bank: Tensor | None = None,
        given: Bank | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sampling = sampling or Sampling()
        self.bank, self.given = bank, given
        self.info = replace(
            info,
            latent=network.latent,
            space="z",
            bank=None if given is None else given.description,
        )
        self.prior = replace(
            network.prior(self.sampling),
            bank=bank,
            bank_noise=self.sampling.bank_noise,
            classes=info.classes,
        )
        if given is not None:
            given.check(info.name, [network.latent], network.config.n_classes)
            self.prior = self.prior.drawn_from(given, self.prior.spread)
        self.spread = self.prior.spread.to(self.device)
        self.feature_channels = network.feature_channels

    @property
    def extras(self) -> dict[str, Tensor]:
        """The bank of latents, if there is one."""
        return {} if self.bank is None else {"bank": self.bank}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights and returns itself."""
        self.network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.spread = self.spread.to(device)
        return self

    def with_classes(self, classes: tuple[int, ...]) -> Self:
        """The same weights; only these class labels are drawn.

        Raises:
            InputError: there are no such classes.
        """
        info = replace(self.info, classes=classes)
        return type(self)(self.network, info, self.sampling, self.bank, self.given)

    def with_bank(self, bank: Bank) -> Self:
        """The same weights; the latents of `bank` are drawn. Steps keep their unit.

        Raises:
            InputError: its latents, (N, *latent), or labels do not fit.
        """
        return type(self)(self.network, self.info, self.sampling, self.bank, bank)

    def sample(self, seeds: Tensor) -> Latents:
        """Draws z for each seed, (B,) int64: values (B, *latent), and classes."""
        z, labels = self.prior.draw(seeds)
        return Latents(z.to(self.device), None if labels is None else labels.to(self.device))

    def __call__(self, latents: Latents) -> Tensor:
        """Latents (B, *latent) to images (B, 3, H, W) float32."""
        z, labels = latents.values, latents.labels
        if torch.is_grad_enabled() and z.requires_grad:
            return self.network.draw(z, labels)[0]
        drawn = [
            self.network.draw(z[part], None if labels is None else labels[part])[0]
            for part in parts(len(z), self.info.size)
        ]
        return torch.cat(drawn)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """Moves z by `step`, (*latent) or (B, *latent), in standard deviations of its prior."""
        return latents.with_values(latents.values + step * self.spread)

    def features(self, latents: Latents) -> list[Tensor]:
        """Activation maps (B, C_l, H_l, W_l), coarse to fine, with `feature_channels` channels."""
        return self.network.draw(latents.values, latents.labels)[1]


class NoiseGenerator(FromNoise):
    """A network that takes z and class at one place: it has no variants."""


class LayeredNoiseGenerator(FromNoise):
    """A network whose layers take parts of z or the class of their own: it has variants."""

    network: LayeredNetwork

    @property
    def n_layers(self) -> int:
        """Layers that take a condition of their own."""
        return self.network.n_layers

    def variants(self, latents: Latents, seeds: Tensor, keep: int) -> Tensor:
        """(B, N, 3, H, W): the first `keep` layers keep their condition, the others take a seed's.

        With the class label: late blocks of a class-conditional network paint textures.
        """
        others = self.sample(seeds)
        mixed = mix_layers(
            self.network.conditions(latents.values, latents.labels),
            self.network.conditions(others.values, others.labels),
            keep,
        )

        def draw(part: Tensor) -> Tensor:
            return self.network.synthesis(part)[0]

        x = draw_in_parts(draw, mixed, self.info.size)
        return x.unflatten(0, (len(latents), len(seeds)))


def adapt(
    network: NoiseNetwork, info: GeneratorInfo, sampling: Sampling, extras: Mapping[str, Tensor]
) -> NoiseGenerator | LayeredNoiseGenerator:
    """As `Family.adapt`; the only extra is "bank"."""
    bank = extras.get("bank")
    if isinstance(network, LayeredNetwork):
        return LayeredNoiseGenerator(network, info, sampling, bank)
    return NoiseGenerator(network, info, sampling, bank)
