"""BigBiGAN (Donahue and Simonyan 2019): a BigGAN without classes, its latents those of photos."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.arrays import read_array
from latentseg.generators.families.biggan import (
    OPTIONS,
    PORTED_EPS,
    BigGAN,
    BigGANConfig,
    is_named_bigbigan,
    objection,
    read_layout,
)
from latentseg.generators.family import Family, Imported, Options, Sampling, SavedGenerator
from latentseg.generators.noise_generator import adapt as adapt_noise_network
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import Checkpoint


def doubt(checkpoint: Checkpoint) -> str | None:
    """Why this is rather a BigGAN, whose layout is the same; None if it is not."""
    is_named = is_named_bigbigan(checkpoint)
    return None if is_named else "its name does not begin with BigBiGAN, and BigGAN is stored alike"


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the generator, which is fed class 0 always, and the bank of latents."""
    eps = {name: options.get(name, value) for name, value in PORTED_EPS.items()}
    config, weights = read_layout(checkpoint, eps)
    weights["shared.weight"] = weights["shared.weight"][:1]
    notes = [
        f"{name} is not in the file: {value:g} was assumed, as in the authors' code."
        for name, value in PORTED_EPS.items()
        if name not in options
    ]
    extras = {}
    if "latents" in options:
        latent = len(config.channels) * config.z_chunk_size
        extras["bank"] = read_bank(options["latents"], latent)
        notes.append(
            f"Latents are the {len(extras['bank'])} rows of {Path(options['latents']).name}."
        )
    return Imported(replace(config, n_classes=0), weights, extras=extras, notes=tuple(notes))


def read_bank(path: Any, latent: int) -> Tensor:
    """Latents of photos, (N, `latent`) float32, from a .npy file or a .npz file of one array.

    Raises:
        InputError: there is no such file, or its array has another shape or another type.
        CorruptFileError: it is damaged, has Python objects, or numbers that are not finite.
    """
    if not isinstance(path, str | Path):
        raise InputError(f"`latents`: expected the path of a file, found {path!r}.")
    bank = read_array(path)
    if bank.ndim != 2 or bank.shape[1] != latent or not len(bank):
        raise InputError(f"{path}: has shape {tuple(bank.shape)}, expected (N, {latent}).")
    return bank


def adapt(
    network: BigGAN, info: GeneratorInfo, sampling: Sampling, extras: Mapping[str, Tensor]
) -> SavedGenerator:
    """As `Family.adapt`; the only extra is "bank".

    Raises:
        InputError: noise is to be added to a bank, and there is none.
    """
    if sampling.bank_noise and "bank" not in extras:
        raise InputError(
            "`bank_noise`: there is no bank of latents; give one by the option latents."
        )
    return adapt_noise_network(network, info, sampling, extras)


FAMILY = Family(
    name="bigbigan",
    title="BigBiGAN (Donahue and Simonyan 2019)",
    files="BigBiGAN*.pth",
    licence="none stated by its authors",
    config=BigGANConfig,
    build=BigGAN,
    adapt=adapt,
    objection=objection,
    doubt=doubt,
    read=read,
    options={**OPTIONS, "latents": "a .npy or .npz file of latents (N, dim_z) that are drawn"},
    choices=("bank_noise",),
    abilities=("variants", "features"),
    published={"bigbigan-128": BigGANConfig(n_classes=0, bn_eps=PORTED_EPS["bn_eps"])},
)
