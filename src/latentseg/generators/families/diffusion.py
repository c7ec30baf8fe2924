"""Diffusion models in one or few steps as generators: consistency models, DDIM, SD-Turbo."""

import importlib
import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentseg.errors import InputError
from latentseg.generators.arrays import read_array
from latentseg.generators.families import diffusers_folders
from latentseg.generators.families.autoencoder import NETWORKS as AUTOENCODERS
from latentseg.generators.families.autoencoder import Autoencoder, AutoencoderConfig, factor_of
from latentseg.generators.families.diffusers_folders import outputs_of, part_folder, peek
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import LayeredNetwork, NoiseNetwork, adapt
from latentseg.weights.containers import Checkpoint

UNETS = ("UNet2DModel", "UNet2DConditionModel")
CONSISTENCY = ("CMStochasticIterativeScheduler",)
DDIM = ("DDIMScheduler", "DDPMScheduler", "PNDMScheduler")
EULER = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
STEPS = 4  # of DDIM; the others make one


class Step(NamedTuple):
    """One step of a sampler, from x = signal * x0 + noise * e to less noise.

    With the network F, the image is thought to be x0 = skip * x + out * F(scale * x, time), and the
    next x is next_signal * x0 + next_noise * e.
    """

    time: float
    scale: float
    skip: float
    out: float
    signal: float
    noise: float
    next_signal: float
    next_noise: float


@dataclass(frozen=True)
class DiffusionConfig:
    """A diffusion model with its sampler.

    Attributes:
        unet: Configuration of the network by diffusers, as JSON.
        steps: Of the sampler; they need no scheduler any more.
        start: Factor on the noise z before the first step.
        clip: x0 is clamped to +-clip before each next step, but not after the last; None: never.
        is_renoised: Whether each step after the first adds fresh noise, which is then a part of z,
            instead of the noise that it found.
        vae: Configuration of the autoencoder whose latents are diffused, as JSON; "" for pixels.
        n_tokens: Length of the embedding of the prompt, a buffer of the network; 0 for no prompt.
    """

    unet: str
    steps: tuple[Step, ...]
    start: float
    clip: float | None = None
    is_renoised: bool = False
    vae: str = ""
    n_tokens: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(Step(*step) for step in self.steps))

    @property
    def values(self) -> dict[str, Any]:
        """The configuration of the network by diffusers."""
        return diffusers_folders.parse(self.unet)

    @property
    def noise_size(self) -> tuple[int, int]:
        """(height, width) of the noise image."""
        side = self.values["sample_size"]
        return (side[0], side[1]) if isinstance(side, list) else (side, side)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        height, width = self.noise_size
        factor = factor_of(self.vae) if self.vae else 1
        return (factor * height, factor * width)

    @property
    def n_classes(self) -> int:
        """Number of class labels, 0 for none."""
        return self.values.get("num_class_embeds") or 0


class Sampler(nn.Module):
    """The whole way from noise to images, differentiable."""

    unet: Any
    embedding: Tensor

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.unet = diffusers_folders.build(config.values, UNETS)
        self.decoder = (
            Autoencoder(AutoencoderConfig(config.vae, config.size)) if config.vae else None
        )
        if self.decoder is not None:  # nothing is encoded
            self.decoder.vae.encoder = self.decoder.vae.quant_conv = None
        if config.n_tokens:
            width = self.unet.config.cross_attention_dim
            self.register_buffer("embedding", torch.zeros(1, config.n_tokens, width))

    @property
    def noise(self) -> tuple[int, int, int]:
        """Shape of the noise of one step."""
        return (self.unet.config.in_channels, *self.config.noise_size)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Of the middle and the upsampling blocks in the first step; then those of the decoder."""
        widths = tuple(self.unet.config.block_out_channels)[::-1]
        middle = () if self.unet.mid_block is None else widths[:1]
        decoder = () if self.decoder is None else self.decoder.feature_channels
        return (*middle, *widths, *decoder)

    def forward(self, noise: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and activation maps.

        Args:
            noise: (B, steps, *self.noise) if it is renoised, else (B, 1, *self.noise).
            labels: (B, steps), or None.
        """
        steps, clip = self.config.steps, self.config.clip
        x = self.config.start * noise[:, 0]
        features: list[Tensor] = []
        for i, step in enumerate(steps):
            with outputs_of(self._blocks() if i == 0 else []) as outputs:
                predicted = self._predict(x, step, None if labels is None else labels[:, i])
            features += outputs
            x0 = step.skip * x + step.out * predicted
            is_last = i + 1 == len(steps)
            x_next = step.next_signal * (x0 if clip is None or is_last else x0.clamp(-clip, clip))
            if step.next_noise and self.config.is_renoised:
                x_next = x_next + step.next_noise * noise[:, i + 1]
            elif step.next_noise:
                found = (x - step.signal * x0) / step.noise
                x_next = x_next + step.next_noise * found
            x = x_next
        if self.decoder is not None:
            x, decoded = self.decoder.draw(x, None)
            features += decoded
        return x.expand(-1, 3, -1, -1), features

    def _blocks(self) -> list[nn.Module]:
        middle = [] if self.unet.mid_block is None else [self.unet.mid_block]
        return [*middle, *self.unet.up_blocks]

    def _predict(self, x: Tensor, step: Step, labels: Tensor | None) -> Tensor:
        time = x.new_full((len(x),), step.time)
        conditions: dict[str, Tensor] = {} if labels is None else {"class_labels": labels.long()}
        if self.config.n_tokens:
            conditions["encoder_hidden_states"] = self.embedding.expand(len(x), -1, -1)
        return self.unet(step.scale * x, time, **conditions).sample


class Diffusion(NoiseNetwork):
    """One noise image decides everything: a single step, or the deterministic steps of DDIM."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.sampler = Sampler(config)

    @property
    def latent(self) -> tuple[int, ...]:
        """The noise image."""
        return self.sampler.noise

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """As `Sampler.feature_channels`."""
        return self.sampler.feature_channels

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W), not clamped, and activation maps of z (B, C, H, W)."""
        if labels is not None:
            labels = labels[:, None].expand(-1, len(self.config.steps))
        return self.sampler(z[:, None], labels)


class RenoisedDiffusion(LayeredNetwork):
    """Each step adds noise of its own (Song et al. 2023, algorithm 1): layers are steps."""

    def __init__(self, config: DiffusionConfig) -> None:
        super().__init__()
        self.config = config
        self.sampler = Sampler(config)

    @property
    def latent(self) -> tuple[int, ...]:
        """One noise image for each step."""
        return (self.n_layers, *self.sampler.noise)

    @property
    def n_layers(self) -> int:
        """The steps."""
        return len(self.config.steps)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """As `Sampler.feature_channels`."""
        return self.sampler.feature_channels

    def conditions(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """The noise of each step, and its class in the last column."""
        noise = z.flatten(2)
        if labels is None:
            return noise
        column = labels.to(z.dtype)[:, None, None].expand(-1, self.n_layers, 1)
        return torch.cat([noise, column], dim=2)

    def synthesis(self, conditions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W), not clamped, and activation maps."""
        values = math.prod(self.sampler.noise)
        noise = conditions[..., :values].unflatten(2, self.sampler.noise)
        return self.sampler(noise, conditions[..., values] if self.config.n_classes else None)


def build(config: DiffusionConfig) -> Diffusion | RenoisedDiffusion:
    """The network with random weights."""
    is_layered = config.is_renoised and len(config.steps) > 1
    return RenoisedDiffusion(config) if is_layered else Diffusion(config)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a pipeline of diffusers; None if it is one."""
    if checkpoint.kind != "folder":
        return "not a folder"
    index = peek(checkpoint, "model_index.json")
    if not index:
        return "no model_index.json"
    if not isinstance(index.get("unet"), list) or index["unet"][-1:][0] not in UNETS:
        return f"its model_index.json has no {' or '.join(UNETS)}"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the network, the scheduler as a table of steps, and the decoder, if there is one."""
    folder = part_folder(checkpoint, "unet")
    unet = diffusers_folders.read_configuration(folder / "config.json")
    vae, decoder = _decoder(checkpoint)
    _check_network(unet, vae, checkpoint.path)
    network = diffusers_folders.read_weights(folder, checkpoint)
    weights = {
        **{f"sampler.unet.{name}": tensor for name, tensor in network.items()},
        **{f"sampler.decoder.vae.{name}": tensor for name, tensor in decoder.items()},
    }
    n_tokens = 0
    if unet["_class_name"] == "UNet2DConditionModel":
        embedding = _embedding(checkpoint.path, unet, options)
        n_tokens = embedding.shape[1]
        weights["sampler.embedding"] = embedding
    elif given := {"prompt", "embedding"} & set(options):
        raise InputError(f"{min(given)}: this network takes no prompt.")
    path = part_folder(checkpoint, "scheduler") / "scheduler_config.json"
    scheduler = diffusers_folders.read_configuration(path)
    steps, start, clip = _sampler(scheduler, options, path)
    config = DiffusionConfig(
        unet=json.dumps(unet, sort_keys=True),
        steps=steps,
        start=start,
        clip=None if vae else clip,  # as the official pipelines of latents have it
        is_renoised=scheduler["_class_name"] in CONSISTENCY,
        vae=json.dumps(vae, sort_keys=True) if vae else "",
        n_tokens=n_tokens,
    )
    return Imported(config, weights, notes=_notes(scheduler["_class_name"], config, options))


def _decoder(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the decoder, both empty where pixels are diffused."""
    index = peek(checkpoint, "model_index.json")
    for part in ("vae", "vqvae"):
        if part in index:
            folder = checkpoint.path / part
            vae = diffusers_folders.read_configuration(folder / "config.json")
            if vae["_class_name"] not in AUTOENCODERS:
                raise InputError(f"{folder}: {vae['_class_name']} is not known here.")
            weights = diffusers_folders.read_weights(folder, checkpoint)
            encoder = ("encoder.", "quant_conv.")
            return vae, {name: w for name, w in weights.items() if not name.startswith(encoder)}
    return {}, {}


def _check_network(unet: Mapping[str, Any], vae: Mapping[str, Any], where: Path) -> None:
    """Refuses networks with inputs or outputs that are not understood."""
    channels = unet.get("in_channels")
    if channels != unet.get("out_channels"):
        raise InputError(
            f"{where}: its network maps {channels} to {unet.get('out_channels')} channels: "
            "expected as many as it takes (no learned variance, no inpainting)."
        )
    expected = (vae.get("latent_channels"),) if vae else (1, 3)
    if channels not in expected:
        raise InputError(f"{where}: its network has {channels} channels; expected {expected}.")
    if not isinstance(unet.get("sample_size"), int | list):
        raise InputError(f"{where}: its unet/config.json has no sample_size. Write it in.")
    for name in ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type"):
        if unet.get(name) is not None:
            raise InputError(f"{where}: {name} {unet[name]!r} is not supported (SDXL, for one).")


def _notes(scheduler: str, config: DiffusionConfig, options: Options) -> tuple[str, ...]:
    notes = []
    if "steps" not in options:
        notes.append(f"The number of steps is assumed: {len(config.steps)}.")
    if scheduler in (*DDIM[1:], *EULER[1:]):
        sampler = "DDIM with eta 0" if scheduler in DDIM else "Euler's method"
        notes.append(f"Its {scheduler} is random or has a memory; {sampler} is used instead.")
    if config.n_tokens:
        notes.append("The prompt is fixed, without guidance: every latent is drawn with it.")
    return tuple(notes)


def _sampler(
    scheduler: Mapping[str, Any], options: Options, where: Path
) -> tuple[tuple[Step, ...], float, float | None]:
    """Of a scheduler: `DiffusionConfig.steps`, `start` and `clip`."""
    name = scheduler["_class_name"]
    n_steps = options.get("steps", STEPS if name in DDIM else 1)
    n_train = scheduler.get("num_train_timesteps", 40 if name in CONSISTENCY else 1000)
    if not isinstance(n_train, int):
        raise InputError(f"{where}: num_train_timesteps {n_train!r} is not a whole number.")
    if not isinstance(n_steps, int) or not 1 <= n_steps <= n_train:
        raise InputError(
            f"`steps`: expected a whole number from 1 to {n_train}, found {n_steps!r}."
        )
    try:
        with warnings.catch_warnings():
            # The schedulers of diffusers convert tensors in a way that numpy 2 advises against.
            warnings.simplefilter("ignore", DeprecationWarning)
            if name in CONSISTENCY:
                return consistency_steps(n_steps, **_numbers(scheduler))
            if name in DDIM:
                return _ddim_steps(n_steps, scheduler)
            if name in EULER:
                return _euler_steps(n_steps, scheduler)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise InputError(f"{where}: this {name} gives no steps ({error}).") from error
    known = ", ".join((*CONSISTENCY, *DDIM, *EULER))
    raise InputError(f"{where}: {name} is not known here. Known: {known}.")


def _numbers(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in scheduler.items() if name != "_class_name"}


def consistency_steps(
    n_steps: int,
    *,
    num_train_timesteps: int = 40,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    sigma_data: float = 0.5,
    s_noise: float = 1.0,
    rho: float = 7.0,
    clip_denoised: bool = True,
) -> tuple[tuple[Step, ...], float, float | None]:
    """The steps of a consistency model (Song et al. 2023, appendix C), as `_sampler`.

    Noise levels are those of Karras et al. 2022, Eq. 5. Defaults are those of diffusers.
    """
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    stride = num_train_timesteps // n_steps / max(num_train_timesteps - 1, 1)
    sigmas = [(ends[0] + i * stride * (ends[1] - ends[0])) ** rho for i in range(n_steps)]
    steps = []
    for sigma, following in zip(sigmas, [*sigmas[1:], sigma_min], strict=True):
        above, norm = sigma - sigma_min, math.hypot(sigma, sigma_data)
        step = Step(
            time=250 * math.log(sigma),
            scale=1 / norm,
            skip=sigma_data**2 / (above**2 + sigma_data**2),
            out=above * sigma_data / norm,
            signal=1.0,
            noise=sigma,
            next_signal=1.0,
            next_noise=s_noise * math.sqrt(max(following**2 - sigma_min**2, 0)),
        )
        steps.append(step)
    return tuple(steps), sigma_max, 1.0 if clip_denoised else None


def _ddim_steps(
    n_steps: int, scheduler: Mapping[str, Any]
) -> tuple[tuple[Step, ...], float, float | None]:
    """The steps of DDIM with eta 0 (Song et al. 2021, Eq. 12), as `_sampler`."""
    if scheduler.get("thresholding"):
        raise InputError("A scheduler with dynamic thresholding is not supported.")
    noising = diffusers_folders.build(scheduler, DDIM, as_class=DDIM[0])
    noising.set_timesteps(n_steps)
    alphas, stride = noising.alphas_cumprod.tolist(), noising.config.num_train_timesteps // n_steps
    steps = []
    for time in noising.timesteps.tolist():
        left = time - stride
        following = alphas[left] if left >= 0 else float(noising.final_alpha_cumprod)
        steps.append(_step(time, _mixture(alphas[time]), _mixture(following), noising.config))
    clip = noising.config.clip_sample_range if noising.config.clip_sample else None
    return tuple(steps), 1.0, clip


def _euler_steps(
    n_steps: int, scheduler: Mapping[str, Any]
) -> tuple[tuple[Step, ...], float, float | None]:
    """The steps of Euler's method (Karras et al. 2022, algorithm 1), as `_sampler`."""
    noising = diffusers_folders.build(scheduler, EULER, as_class=EULER[0])
    noising.set_timesteps(n_steps)
    sigmas = noising.sigmas.tolist()
    steps = tuple(
        _step(time, (1.0, sigma), (1.0, following), noising.config)
        for time, sigma, following in zip(
            noising.timesteps.tolist(), sigmas[:-1], sigmas[1:], strict=True
        )
    )
    return steps, float(noising.init_noise_sigma), None


def _mixture(alpha: float) -> tuple[float, float]:
    """Shares of signal and noise, whose squares sum to 1."""
    return math.sqrt(alpha), math.sqrt(1 - alpha)


def _step(
    time: float, now: tuple[float, float], following: tuple[float, float], config: Any
) -> Step:
    """A step from one pair of (signal, noise) to the next, by what the network predicts."""
    signal, noise = now
    norm = math.hypot(signal, noise)
    by_prediction = {
        "epsilon": lambda: (1 / signal, -noise / signal),
        "sample": lambda: (0.0, 1.0),
        "v_prediction": lambda: (signal / norm**2, -noise / norm),
    }
    if config.prediction_type not in by_prediction:
        raise InputError(f"prediction_type {config.prediction_type!r} is not known here.")
    skip, out = by_prediction[config.prediction_type]()
    return Step(time, 1 / norm, skip, out, signal, noise, *following)


def _embedding(folder: Path, unet: Mapping[str, Any], options: Options) -> Tensor:
    """(1, T, D): the prompt, as an option gives it."""
    if ("prompt" in options) == ("embedding" in options):
        raise InputError(
            f"{folder}: expected a prompt: `options` prompt='a photo of a cat', which needs "
            "transformers, or `options` embedding=FILE, a .npy or safetensors file with its "
            "embedding (1, T, D)."
        )
    if "prompt" in options:
        embedding = _embedded(folder, str(options["prompt"]))
    else:
        embedding = read_array(str(options["embedding"]))
    embedding = embedding[None] if embedding.ndim == 2 else embedding
    width = unet.get("cross_attention_dim", 1280)
    if embedding.ndim != 3 or len(embedding) != 1 or embedding.shape[2] != width:
        raise InputError(
            f"{folder}: an embedding of shape {tuple(embedding.shape)}; expected (1, T, {width})."
        )
    return embedding


@torch.no_grad()
def _embedded(folder: Path, prompt: str) -> Tensor:
    """The prompt by the folder's own tokenizer and text encoder, padded to the longest prompt."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            "A prompt needs transformers: pip install transformers. Or give its embedding: "
            "`options` embedding=FILE"
        ) from error
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            folder / "tokenizer", local_files_only=True
        )
        encoder = transformers.CLIPTextModel.from_pretrained(
            folder / "text_encoder", local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: no CLIP text encoder can be read ({error}).") from error
    tokens = tokenizer(
        prompt,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    return encoder.float().eval()(tokens.input_ids)[0]


def _published(n_classes: int, **unet: Any) -> DiffusionConfig:
    """A consistency model of Song et al. 2023 in one step, by the class names of diffusers."""
    steps, start, clip = consistency_steps(1)
    values = {
        "_class_name": "UNet2DModel",
        "num_class_embeds": n_classes or None,
        "attention_head_dim": 64,
        "upsample_type": "resnet",
        "downsample_type": "resnet",
        "in_channels": 3,
        "out_channels": 3,
        **unet,
    }
    return DiffusionConfig(json.dumps(values), steps, start, clip, is_renoised=True)


FAMILY = Family(
    name="diffusion",
    title="Diffusion in few steps: consistency models (Song et al. 2023), DDIM, SD-Turbo",
    files="diffusers folder with model_index.json",
    licence="not said by the files: the model card of the weights says it",
    config=DiffusionConfig,
    build=build,
    adapt=adapt,
    objection=objection,
    read=read,
    options={
        "steps": "Number of steps; by default 1, and 4 for DDIM.",
        "prompt": "Text that every image is drawn for, of a text-to-image model.",
        "embedding": ".npy or safetensors file of the prompt's embedding (1, T, D), instead.",
    },
    choices=("class_weights",),
    abilities=("variants", "features", "classes"),
    published={
        "cd-imagenet64": _published(
            1000,
            sample_size=64,
            layers_per_block=3,
            block_out_channels=[192, 384, 576, 768],
            down_block_types=["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
            up_block_types=[*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
            resnet_time_scale_shift="scale_shift",
            attn_norm_num_groups=32,
        ),
        "cd-lsun256": _published(
            0,
            sample_size=256,
            layers_per_block=2,
            block_out_channels=[256, 256, 512, 512, 1024, 1024],
            down_block_types=[*["ResnetDownsampleBlock2D"] * 3, *["AttnDownBlock2D"] * 3],
            up_block_types=[*["AttnUpBlock2D"] * 3, *["ResnetUpsampleBlock2D"] * 3],
        ),
    },
)
