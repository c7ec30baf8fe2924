"""What a family of generators is: its network, the readers of its files, what they leave open."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentseg.configs import check_choice, check_range, from_json
from latentseg.errors import CorruptFileError, InputError, UnsafeFileError
from latentseg.generators.protocols import Generator, GeneratorInfo
from latentseg.weights.containers import Checkpoint

# Parts of a file may be used many times over; this bounds the network that it asks for. Half
# precision doubles, and kernels that take up an upsampling nearly double again.
MOST_TIMES, SMALL_BYTES = 8, 2**28


class NetworkConfig(Protocol):
    """Everything that fixes the layers of a network; a frozen dataclass."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        ...

    @property
    def n_classes(self) -> int:
        """Number of class labels, 0 for none."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn, and what is left to choose when drawing images.

    Not every family has every choice: `Family.choices` names those that it has.

    Attributes:
        psi: Truncation towards the mean style, in (0, 1]: smaller is more typical, less varied.
        cutoff: Only the first so many layers are truncated; None: all.
        noise: "const" (every drawing of a latent is the same), "random" or "none".
        truncation: Truncation of z, in (0, 1]; what it does is said by the family.
        class_weights: How often each class occurs, not normalised; () for equally.
        bank_noise: Noise added to latents from a bank, in standard deviations of the bank.
    """

    psi: float = 0.7
    cutoff: int | None = None
    noise: str = "const"
    truncation: float | None = None
    class_weights: tuple[float, ...] = ()
    bank_noise: float = 0.0

    def __post_init__(self) -> None:
        check_range(self, ("psi", "truncation"), above=0, most=1)
        check_range(self, ("cutoff", "bank_noise"), 0)
        check_choice("noise", self.noise, ("const", "random", "none"))

    def to_json(self) -> dict[str, Any]:
        """The choices as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "Sampling":
        """Reads what `to_json` gave.

        Raises:
            InputError: a choice is unknown or out of its range.
        """
        return from_json(Sampling, values, where)


@dataclass(frozen=True)
class Imported:
    """What a reader makes of a checkpoint.

    Attributes:
        config: Of the family's network.
        weights: The network's state dict, by our names, complete.
        sampling: What the file, or else the family, prefers; options of the user go first.
        extras: Tensors beside the weights, as `SavedGenerator.extras`.
        notes: What the file does not say and was assumed, one sentence each.
    """

    config: Any
    weights: Mapping[str, Tensor]
    sampling: Sampling = field(default_factory=Sampling)
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


CHOICES = {
    "psi": "truncation towards the mean style, above 0 to 1",
    "cutoff": "truncate only the first so many layers",
    "noise": "const, random or none",
    "truncation": "of z, above 0 to 1",
    "class_weights": "how often each class occurs, a list",
    "bank_noise": "noise on latents of a bank, in its standard deviations",
}


class SavedGenerator(Generator, Protocol):
    """A generator that can be written into a folder: what `Family.adapt` builds."""

    @property
    def network(self) -> nn.Module:
        """The frozen network; its attribute `config` is a NetworkConfig."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How latents are drawn."""
        ...

    @property
    def extras(self) -> dict[str, Tensor]:
        """Tensors beside the network's: the unit of a step, a bank of latents."""
        ...

    def with_classes(self, classes: tuple[int, ...]) -> "SavedGenerator":
        """The same generator, which draws only these class labels.

        Raises:
            InputError: it has no such classes.
        """
        ...


Options = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A family of generators.

    Attributes:
        name: As in "stylegan2:ffhq.pkl".
        title: For people, with the paper.
        files: Which files are read, for people.
        licence: Of the weights that its authors publish.
        config: The frozen dataclass of its networks' configurations.
        build: Network with random weights from a configuration. It has the configuration as its
            attribute `config`.
        adapt: Generator from a network with weights: (network, info, sampling, extras). Of `info`
            it replaces `latent` and `space`, which the sampling decides.
        objection: Why a checkpoint is not of this family, in a few words ("no parameter
            'shared.weight'"); None if it is. Looks at names, not at tensors.
        doubt: Where two families have the same layout: why this file is rather of the other one,
            None if it is not. Whoever names the family is believed.
        read: The checkpoint as our network's configuration and weights; given the options.
        options: Of `convert`, which `read` understands: name and what it is for.
        choices: Fields of `Sampling` that it heeds.
        defaults: Their values, unless a file prefers others.
        abilities: Of its generators, for tables: "variants", "features", "encoder", "classes";
            those of a particular network are what its generator has.
        published: Configurations of well-known weights, by name.
    """

    name: str
    title: str
    files: str
    licence: str
    config: type
    build: Callable[[Any], nn.Module]
    adapt: Callable[[Any, GeneratorInfo, Sampling, Mapping[str, Tensor]], SavedGenerator]
    objection: Callable[[Checkpoint], str | None]
    read: Callable[[Checkpoint, Options], Imported]
    options: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    defaults: Sampling = field(default_factory=Sampling)
    doubt: Callable[[Checkpoint], str | None] = lambda checkpoint: None
    abilities: tuple[str, ...] = ("features",)
    published: Mapping[str, Any] = field(default_factory=dict)

    def check_options(self, options: Options) -> None:
        """Refuses options that this family does not have.

        Raises:
            InputError: there is one; those that it has are named.
        """
        self._refuse(options, {*self.options, *self.choices})

    def check_choices(self, options: Options) -> None:
        """Refuses options that only reading a checkpoint could heed.

        Raises:
            InputError: there is one; the choices that are left are named.
        """
        self._refuse(options, set(self.choices))

    def _refuse(self, options: Options, known: set[str]) -> None:
        if unknown := [name for name in options if name not in known]:
            has = ", ".join(sorted(known)) or "none"
            raise InputError(f"`options`: {self.name} has no {unknown[0]}. There are: {has}.")

    def generator(
        self, imported: Imported, info: GeneratorInfo, where: Path | str
    ) -> SavedGenerator:
        """The generator, on the CPU, of what a reader made of the file `where`.

        Raises:
            CorruptFileError: parameters are missing, unknown, of another shape, or not finite.
            UnsafeFileError: the network would take many times the memory of the file.
        """
        # Without memory at first: names and shapes come from the file.
        with torch.device("meta"):
            expected = self.build(imported.config).state_dict()
        check_weights(expected, imported.weights, where)
        n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in expected.values())
        if n_bytes > MOST_TIMES * bytes_on_disk(where) + SMALL_BYTES:
            raise UnsafeFileError(
                f"{where}: unfolds to a network of {n_bytes / 1e9:.1f} GB, many times its size. "
                "Take the file from its publisher again."
            )
        network = self.build(imported.config)
        load_weights(network, imported.weights, where)
        network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return self.adapt(network, info, imported.sampling, imported.extras)

    def sampling(self, preferred: Sampling, options: Options) -> Sampling:
        """What the file prefers, with the options of the user before it."""
        names = {field.name for field in fields(Sampling)}
        chosen = {name: value for name, value in options.items() if name in names}
        return Sampling(**{**asdict(preferred), **chosen})


def check_weights(
    expected: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: Path | str
) -> None:
    """Compares names and shapes of the weights of a file with those of a network.

    Raises:
        CorruptFileError: a parameter is missing, unknown or of another shape; it is named.
    """
    for name in [*expected, *weights]:
        if name not in weights:
            raise CorruptFileError(f"{where}: the parameter {name!r} is missing.")
        if name not in expected:
            raise CorruptFileError(f"{where}: unknown parameter {name!r}.")
        if weights[name].shape != expected[name].shape:
            raise CorruptFileError(
                f"{where}: {name!r} has shape {tuple(weights[name].shape)}, "
                f"expected {tuple(expected[name].shape)}."
            )


def load_weights(network: nn.Module, weights: Mapping[str, Tensor], where: Path | str) -> None:
    """Fills `network`; numbers are converted to its own precision.

    Raises:
        CorruptFileError: a parameter is missing, unknown, of another shape, or not finite; it is
            named.
    """
    check_weights(network.state_dict(), weights, where)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise CorruptFileError(f"{where}: {name!r} has numbers that are not finite.")
    network.load_state_dict(dict(weights))


def bytes_on_disk(path: Path | str) -> int:
    """Size of a file, or of all files in a folder."""
    path = Path(path)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
