"""Decoders of autoencoders: AutoencoderKL and VQModel of diffusers, with a bank for a prior."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.arrays import read_array
from latentseg.generators.families import diffusers_folders
from latentseg.generators.families.diffusers_folders import outputs_of, peek
from latentseg.generators.family import Family, Imported, Options, Sampling, load_weights
from latentseg.generators.noise_generator import FromNoise, NoiseNetwork
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.images import cover, open_series, to_tensor
from latentseg.weights.containers import Checkpoint

NETWORKS = ("AutoencoderKL", "VQModel")
NO_PRIOR = (
    "A decoder does not know which latents are likely. Give some: `options` photos=FOLDER encodes "
    "photos, `options` latents=FILE takes a .npy, .npz or safetensors file with (N, C, H, W)."
)


@dataclass(frozen=True)
class AutoencoderConfig:
    """An autoencoder of diffusers.

    Attributes:
        vae: Its configuration by diffusers, as JSON.
        size: (height, width) of the images: multiples of the factor by which latents are smaller.
    """

    vae: str
    size: tuple[int, int]

    def __post_init__(self) -> None:
        values, factor = self.values, factor_of(self.vae)
        if values.get("in_channels", 3) != 3 or values.get("out_channels", 3) != 3:
            raise InputError("An autoencoder of other than RGB images; those are not read.")
        if any(not isinstance(side, int) or side <= 0 or side % factor for side in self.size):
            raise InputError(f"`size`: expected multiples of {factor} pixels, found {self.size}.")

    @property
    def values(self) -> dict[str, Any]:
        """The configuration by diffusers."""
        return diffusers_folders.parse(self.vae)

    @property
    def n_classes(self) -> int:
        """No class labels."""
        return 0


def factor_of(vae: str) -> int:
    """How many times wider than latents the images of a configuration by diffusers are."""
    return 2 ** (len(diffusers_folders.parse(vae).get("block_out_channels", [64])) - 1)


class Autoencoder(NoiseNetwork):
    """An autoencoder of diffusers whose latents have a spread of about 1.

    A latent is (what the encoder gives - shift_factor) * scaling_factor, as diffusion models take
    it. A VQModel puts the nearest entry of its codebook in the place of each latent vector; the
    gradient passes straight through.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = diffusers_folders.build(config.values, NETWORKS)
        self.scale = float(self.vae.config.scaling_factor)
        self.shift = float(self.vae.config.get("shift_factor") or 0)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one latent."""
        values, factor = self.vae.config, factor_of(self.config.vae)
        channels = values.get("vq_embed_dim") or values.latent_channels
        return (channels, self.config.size[0] // factor, self.config.size[1] // factor)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Of the decoder's middle block and of its upsampling blocks."""
        widths = tuple(self.vae.config.block_out_channels)[::-1]
        return (widths[0], *widths)

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images and the outputs of the decoder's blocks; there are no labels."""
        decoder = self.vae.decoder
        with outputs_of([decoder.mid_block, *decoder.up_blocks]) as features:
            x = self.vae.decode(z / self.scale + self.shift).sample
        return x, features

    def encode(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to the most likely latents, (B, C, h, w)."""
        encoded = self.vae.encode(x)
        latent = encoded.latents if "latents" in encoded else encoded.latent_dist.mode()
        return (latent - self.shift) * self.scale


class AutoencoderGenerator(FromNoise):
    """An autoencoder as a latentseg generator, which also finds the latents of photos."""

    network: Autoencoder

    def encode(self, x: Tensor) -> Latents:
        """The most likely latents of images (B, 3, H, W) in [-1, 1]."""
        return Latents(self.network.encode(x))


def adapt(
    network: Autoencoder, info: GeneratorInfo, sampling: Sampling, extras: Mapping[str, Tensor]
) -> AutoencoderGenerator:
    """As `Family.adapt`; the only extra is "bank". Without it latents are standard normal."""
    return AutoencoderGenerator(network, info, sampling, extras.get("bank"))


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not an autoencoder of diffusers; None if it is one."""
    if checkpoint.kind != "folder":
        return "not a folder"
    if peek(checkpoint, "config.json").get("_class_name") not in NETWORKS:
        return f"no config.json of {' or '.join(NETWORKS)}"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads config.json and the weights; the bank of latents is made of an option."""
    if ("photos" in options) == ("latents" in options):
        raise InputError(f"{checkpoint.path}: expected photos or latents. {NO_PRIOR}")
    if "size" in options and "latents" in options:
        raise InputError(
            "`size`: goes with photos only; the latents decide the size of the images."
        )
    values = diffusers_folders.read_configuration(checkpoint.path / "config.json")
    weights = diffusers_folders.read_weights(checkpoint.path, checkpoint)
    weights = {f"vae.{name}": tensor for name, tensor in weights.items()}
    config = AutoencoderConfig(json.dumps(values, sort_keys=True), _photo_size(values, options))
    if "latents" in options:
        bank = read_array(str(options["latents"]))
        if bank.ndim != 4:
            raise InputError(f"{options['latents']}: shape {tuple(bank.shape)}, not (N, C, H, W).")
        height, width = (factor_of(config.vae) * side for side in bank.shape[2:])
        config = replace(config, size=(height, width))
        note = f"The latents are taken as already multiplied by {values.get('scaling_factor')}."
    else:
        network = Autoencoder(config).eval()
        load_weights(network, weights, checkpoint.path)
        bank = _encoded(network, str(options["photos"]))
        note = f"Photos were scaled to cover {config.size[0]} x {config.size[1]} and cut."
    if len(bank) < 2:
        raise InputError(f"{len(bank)} latent; expected at least 2, better hundreds.")
    return Imported(config, weights, extras={"bank": bank}, notes=(note,))


def _photo_size(values: Mapping[str, Any], options: Options) -> tuple[int, int]:
    """(height, width) to which photos are brought: the option, or else what it was trained with."""
    side = options.get("size", values.get("sample_size"))
    if isinstance(side, list | tuple) and len(side) == 2:
        return (side[0], side[1])
    if not isinstance(side, int):
        raise InputError(f"`size`: expected a number of pixels, for example 256, found {side!r}.")
    return (side, side)


@torch.no_grad()
def _encoded(network: Autoencoder, folder: str) -> Tensor:
    """(N, *latent): one photo after the other, which bounds the memory."""
    series = open_series(folder)
    photos = (cover(series.read(picture), network.config.size) for picture in series.pictures)
    return torch.cat([network.encode(to_tensor(photo)[None]) for photo in photos])


STABLE_DIFFUSION = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

FAMILY = Family(
    name="autoencoder",
    title="Decoders of latent diffusion (Rombach et al. 2022), AutoencoderKL and VQModel",
    files="diffusers folder with config.json",
    licence="not said by the files: the model card of the weights says it",
    config=AutoencoderConfig,
    build=Autoencoder,
    adapt=adapt,
    objection=objection,
    read=read,
    options={
        "photos": "Folder of photos; their latents are the ones that are drawn.",
        "latents": ".npy, .npz or safetensors file of latents (N, C, H, W) to draw instead.",
        "size": "Side of the photos in pixels; by default the sample size of config.json.",
    },
    choices=("bank_noise",),
    abilities=("features", "encoder"),
    published={"stable-diffusion-256": AutoencoderConfig(json.dumps(STABLE_DIFFUSION), (256, 256))},
)
