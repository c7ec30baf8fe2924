"""Generators with a space of styles, StyleGAN and its kin: latents are w, or one w per layer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latentseg.generators.banks import Bank
from latentseg.generators.chunks import draw_in_parts
from latentseg.generators.family import Sampling
from latentseg.generators.feature_strips import whole_maps
from latentseg.generators.layer_mixing import mix_layers
from latentseg.generators.priors import Prior
from latentseg.generators.protocols import GeneratorInfo, Latents, Strip

MEASURED = 4096  # latents whose standard deviation is the unit of a step


class StyleNetwork(nn.Module, ABC):
    """A network in two parts: noise and class to a style, one style per layer to an image.

    Attributes:
        config: Fixes the layers; has `size`, `z_dim`, `w_dim` and `n_classes`.
        is_centre_layered: Whether `centre` differs between layers.
    """

    config: Any
    is_centre_layered = False

    @property
    @abstractmethod
    def n_layers(self) -> int:
        """Layers that take a style of their own."""

    @property
    @abstractmethod
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of each activation map that `draw` gives."""

    @abstractmethod
    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, z_dim) and classes (B,) to styles w (B, w_dim)."""

    @abstractmethod
    def centre(self, labels: Tensor | None) -> Tensor:
        """Where truncation leads: (w_dim,), (B, w_dim) for one per class, or (layers, w_dim)."""

    @abstractmethod
    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and activation maps, coarse to fine, of ws (B, n_layers, w_dim)."""

    def strips(self, ws: Tensor, noise: str, memory: int) -> Iterator[Strip]:
        """The maps of `draw` as `HasFeatureStrips` has it: here whole, whatever `memory` is."""
        yield from whole_maps(self.draw(ws, noise)[1])


class StyleGenerator:
    """A style network as a latentseg generator.

    Latents are w (w_dim,), or ws (n_layers, w_dim) where truncation differs between the layers or
    they are given so. Every generator of this kind draws both.

    Args:
        network: The weights; frozen here.
        info: Its identity card; `latent` and `space` are set here.
        sampling: `psi`, `cutoff`, `noise` and `class_weights` are heeded.
        spread: (w_dim,) standard deviation of w, the unit of `shift`; measured if None.
        given: Latents, w or ws, that are drawn as they are, without truncation.
    """

    def __init__(
        self,
        network: StyleNetwork,
        info: GeneratorInfo,
        sampling: Sampling | None = None,
        spread: Tensor | None = None,
        given: Bank | None = None,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.sampling = sampling or Sampling()
        self.given = given
        config = network.config
        w, ws = (config.w_dim,), (network.n_layers, config.w_dim)
        is_given_layered = given is not None and tuple(given.latents.shape[1:]) == ws
        self.is_layered = (
            self.sampling.cutoff is not None or network.is_centre_layered or is_given_layered
        )
        self.info = replace(
            info,
            latent=ws if self.is_layered else w,
            space="ws" if self.is_layered else "w",
            bank=None if given is None else given.description,
        )
        self.prior = Prior(
            (config.z_dim,),
            config.n_classes,
            classes=info.classes,
            class_weights=self.sampling.class_weights,
        )
        self.spread = self._measured_spread() if spread is None else spread.to(self.device)
        self.bank_prior: Prior | None = None
        if given is not None:
            given.check(info.name, [w, ws], config.n_classes)
            self.bank_prior = self.prior.drawn_from(given, self.spread)
        self.feature_channels = network.feature_channels

    @staticmethod
    def adapt(
        network: StyleNetwork, info: GeneratorInfo, sampling: Sampling, extras: Mapping[str, Tensor]
    ) -> "StyleGenerator":
        """As `Family.adapt`; the only extra is "spread"."""
        return StyleGenerator(network, info, sampling, extras.get("spread"))

    @property
    def extras(self) -> dict[str, Tensor]:
        """The unit of a step, which takes a while to measure."""
        return {"spread": self.spread}

    @property
    def n_layers(self) -> int:
        """Layers that take a style of their own."""
        return self.network.n_layers

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "StyleGenerator":
        """Moves the weights and returns itself."""
        self.network.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.spread = self.spread.to(device)
        return self

    def with_classes(self, classes: tuple[int, ...]) -> "StyleGenerator":
        """The same weights; only these class labels are drawn.

        Raises:
            InputError: there are no such classes.
        """
        info = replace(self.info, classes=classes)
        return StyleGenerator(self.network, info, self.sampling, self.spread, self.given)

    def with_bank(self, bank: Bank) -> "StyleGenerator":
        """The same weights; the latents of `bank` are drawn. Steps keep their unit.

        Raises:
            InputError: its latents are neither (N, w_dim) nor (N, n_layers, w_dim), or its labels
                do not fit.
        """
        return StyleGenerator(self.network, self.info, self.sampling, self.spread, bank)

    def sample(self, seeds: Tensor) -> Latents:
        """Draws a truncated w for each seed, (B,) int64: values (B, *info.latent), and classes."""
        if self.bank_prior is not None:
            w, labels = self.bank_prior.draw(seeds)
            w = (self._per_layer(w) if self.is_layered else w).to(self.device)
            return Latents(w, None if labels is None else labels.to(self.device))
        z, labels = self.prior.draw(seeds)
        labels = None if labels is None else labels.to(self.device)
        with torch.no_grad():
            w = self.network.style(z.to(self.device), labels)
            return Latents(self._truncated(w, labels), labels)

    def __call__(self, latents: Latents) -> Tensor:
        """Latents (B, w_dim) or (B, n_layers, w_dim) to images (B, 3, H, W) float32.

        Nominally in [-1, 1]; like the official networks it does not clamp, so that brightness
        beyond the range still has a gradient.
        """
        return self._draw(self._per_layer(latents.values))

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """Moves w by `step`, (w_dim,), (layers, w_dim) or with a batch axis, in its own spread."""
        return latents.with_values(latents.values + step * self.spread)

    def variants(self, latents: Latents, seeds: Tensor, keep: int) -> Tensor:
        """(B, N, 3, H, W): the first `keep` layers keep their style, the others take a seed's."""
        others = self._per_layer(self.sample(seeds).values)
        mixed = mix_layers(self._per_layer(latents.values), others, keep)
        return self._draw(mixed).unflatten(0, (len(latents), len(seeds)))

    def features(self, latents: Latents) -> list[Tensor]:
        """Activation maps (B, C_l, H_l, W_l), coarse to fine, with `feature_channels` channels."""
        return self.network.draw(self._per_layer(latents.values), self.sampling.noise)[1]

    def feature_strips(self, latents: Latents, *, memory: int) -> Iterator[Strip]:
        """The maps of `features` in strips of rows, for which `memory` bytes suffice.

        Networks that cannot draw rows hand out whole maps.
        """
        return self.network.strips(self._per_layer(latents.values), self.sampling.noise, memory)

    def _draw(self, ws: Tensor) -> Tensor:
        def draw(part: Tensor) -> Tensor:
            return self.network.draw(part, self.sampling.noise)[0]

        return draw_in_parts(draw, ws, self.info.size)

    def _truncated(self, w: Tensor, labels: Tensor | None) -> Tensor:
        psi, cutoff = self.sampling.psi, self.sampling.cutoff
        if not self.is_layered:
            return w if psi == 1 else torch.lerp(self.network.centre(labels).expand_as(w), w, psi)
        ws = self._per_layer(w)
        centre = self.network.centre(labels)
        centre = centre if self.network.is_centre_layered else centre.unsqueeze(-2)
        is_truncated = torch.arange(self.n_layers, device=ws.device)[:, None] < (
            self.n_layers if cutoff is None else cutoff
        )
        return torch.where(is_truncated, torch.lerp(centre.expand_as(ws), ws, psi), ws)

    def _per_layer(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, self.n_layers, -1) if w.ndim == 2 else w

    @torch.no_grad()
    def _measured_spread(self) -> Tensor:
        config = self.network.config
        drawn = torch.Generator().manual_seed(0)
        z = torch.randn(MEASURED, config.z_dim, generator=drawn).to(self.device)
        labels = None
        if config.n_classes:
            labels = torch.arange(MEASURED, device=self.device) % config.n_classes
        return self.network.style(z, labels).std(dim=0)
