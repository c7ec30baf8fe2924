"""A generator of your own, to copy and change: `latentseg run my_module:build RUN` opens it."""

import torch
from torch import Tensor, nn

from latentseg.generators.protocols import GeneratorInfo, Latents


class MyGenerator:
    """The decoder of a VAE: latents (16,) from a standard normal, images of 64 x 64 pixels."""

    def __init__(self, decoder: nn.Module) -> None:
        self.decoder = decoder.eval().requires_grad_(False)
        self.info = GeneratorInfo(
            name="my-vae",
            size=(64, 64),
            latent=(16,),
            n_classes=0,  # with classes: `sample` draws labels, and `__call__` heeds them
            space="z",
            licence="Apache-2.0",  # of the weights; it travels to all that is made with them
            source="trained by me on my photos",
            sha256="",
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.decoder.parameters()).device

    def to(self, device: torch.device | str) -> "MyGenerator":
        """Moves the weights and returns itself."""
        self.decoder.to(device)
        return self

    def sample(self, seeds: Tensor) -> Latents:
        """One latent for each seed, (B,) int64: row i depends on `seeds[i]` alone."""
        rows = [torch.randn(16, generator=torch.Generator().manual_seed(int(s))) for s in seeds]
        return Latents(torch.stack(rows).to(self.device))

    def __call__(self, latents: Latents) -> Tensor:
        """Images (B, 3, 64, 64) in [-1, 1]: the same latent, the same image, with a gradient."""
        return self.decoder(latents.values).tanh()

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """Moves latents by `step`: one unit is one standard deviation of their distribution."""
        return latents.with_values(latents.values + step)


def build() -> MyGenerator:
    """What `my_module:build` calls: put your network and its weights here."""
    decoder = nn.Sequential(nn.Linear(16, 3 * 64 * 64), nn.Unflatten(1, (3, 64, 64)))
    return MyGenerator(decoder)
