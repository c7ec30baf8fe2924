"""What all commands share: flags that mean the same everywhere, opening, showing."""

import json as json_module
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from tyro.conf import OmitArgPrefixes, Positional, arg

from latentseg.cli.messages import usage_error
from latentseg.errors import InputError
from latentseg.files import write_json

if TYPE_CHECKING:
    from rich.console import Console

    from latentseg.generators import Generator
    from latentseg.students.segmenter import Segmenter


T = TypeVar("T")

# Flags that may be left out; their help says what happens then.
Maybe = Annotated[T | None, arg(help_behavior_hint="")]
Several = Annotated[tuple[T, ...], arg(help_behavior_hint="")]
OfPreset = Annotated[T | None, arg(help_behavior_hint="(default: that of the preset)")]
OfSettings = Annotated[T | None, arg(help_behavior_hint="(default: that of the settings)")]
OfFeatures = Annotated[T | None, arg(help_behavior_hint="(default: that of the features)")]
# A flag that begins with "no-"; its help says what it switches off.
Off = Annotated[bool, arg(help_behavior_hint="")]

GeneratorName = Annotated[
    Positional[str],
    arg(
        metavar="GENERATOR",
        help="Bundled name, generator folder, checkpoint (FAMILY:FILE, or FILE if it says what it "
        "is), or module:callable.",
    ),
]

Out = Annotated[Positional[Path], arg(metavar="OUT", help="Folder of the result.")]

Model = Annotated[
    Positional[str], arg(metavar="MODEL", help="Bundled name, model folder or run folder.")
]


@dataclass(frozen=True)
class Common:
    """Flags that mean the same everywhere."""

    device: str = "auto"
    """Where to compute: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""
    json: Maybe[Path] = None
    """Write the result as JSON to this file; - for stdout."""
    quiet: bool = False
    """No progress on stderr."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class CheckpointFlags:
    """What is asked of the generator."""

    classes: Several[int] = ()
    """Class labels to draw, of a conditional generator; by default all, equally often."""
    option: Several[str] = ()
    """NAME=VALUE of a checkpoint's family; see latentseg generators --family NAME."""
    latents: Maybe[Path] = None
    """Draw these latents: (N, ...) in .npy, .npz, .safetensors, or a folder of latentseg invert."""
    latent_noise: float = 0.0
    """Noise added to them, in standard deviations of the generator's latents."""
    trust_code: bool = False
    """Open a TorchScript or torch.export file: it is a program, which then runs."""


@dataclass(frozen=True)
class Processes:
    """How many processes train together; under torchrun or Slurm leave both out."""

    devices: int = 1
    """Processes on each machine: its GPUs, or parts of its CPU."""
    nodes: int = 1
    """Machines."""


COMMON = Common()
CHECKPOINT = CheckpointFlags()
CommonFlags = OmitArgPrefixes[Common]
PROCESSES = Processes()
OfProcesses = OmitArgPrefixes[Processes]
OfCheckpoint = OmitArgPrefixes[CheckpointFlags]


def changed(config: Any, **options: Any) -> Any:
    """`config` with the options that were given, that is, that are not None."""
    return replace(config, **{name: value for name, value in options.items() if value is not None})


def read_options(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as values: JSON where it is JSON, else text."""
    options = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            usage_error(f"--option {each}: expected NAME=VALUE.")
        try:
            value = json_module.loads(text)
        except ValueError:
            value = text
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def open_generator(name: str, flags: CheckpointFlags, common: Common) -> "Generator":
    """The generator that a command names, with what its flags ask of it."""
    from latentseg.generators import load_generator

    return load_generator(
        name,
        device=common.device,
        classes=flags.classes,
        options=read_options(flags.option),
        latents=flags.latents,
        latent_noise=flags.latent_noise,
        trust_code=flags.trust_code,
    )


def open_segmenter(model: str, common: Common) -> "Segmenter":
    """The segmenter that a command names."""
    from latentseg.students.segmenter import Segmenter

    return Segmenter.from_pretrained(model, device=common.device)


def photos_and_out(paths: tuple[Path, ...], command: str) -> tuple[tuple[Path, ...], Path]:
    """Photos, and the output folder that stands last; exits with code 2 if that is missing."""
    if len(paths) < 2:
        usage_error(f"{command} needs at least one photo (or folder) and, last, an output folder.")
    return paths[:-1], paths[-1]


def refuse_left_out(problems: Sequence[str]) -> None:
    """Ends a command that could not do all photos.

    Raises:
        InputError: there are some; they are listed.
    """
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{len(problems)} photos were left out:\n  {listed}")


def console(common: Common) -> "Console":
    """Where people read the result: stdout, unless JSON is to be there."""
    from rich.console import Console

    return Console(stderr=str(common.json) == "-")


def tell(common: Common, text: str) -> None:
    """Prints for people: on stdout, unless JSON is to be there; the first of several processes."""
    if not _is_first():
        return
    print(text, file=sys.stderr if str(common.json) == "-" else sys.stdout)


def write_result(common: Common, value: Any) -> None:
    """Writes the result where `--json` says; nothing without it."""
    if common.json is None or not _is_first():
        return
    if str(common.json) == "-":
        print(json_module.dumps(value, indent=2))
        return
    write_json(common.json, value)


def _is_first() -> bool:
    from latentseg.distributed import rank_and_world

    return rank_and_world()[0] == 0
