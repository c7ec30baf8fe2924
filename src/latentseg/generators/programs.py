"""Generators that are programs: TorchScript and torch.export files, opened only on trust.

To read one is to run it. TorchScript is a program by design; `torch.export.load` (torch 2.13)
unpickles weights and constants where the file asks for it, evaluates its shape expressions with
sympy, runs its guards as Python, and loads compiled libraries that lie in the archive.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from latentseg.errors import InputError, UnsafeFileError
from latentseg.generators.banks import Bank
from latentseg.generators.family import Options
from latentseg.generators.priors import Prior
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.weights.containers import Checkpoint

PROGRAMS = ("torchscript", "exported")  # values of `Checkpoint.kind`
OPTIONS = {
    "latent": "Shape of one latent, 128 or [4, 8, 8], if the program does not say it.",
    "n_classes": "Number of class labels, of a program that takes (latents, labels).",
    "licence": "Of the weights.",
    "space": "Of the latents, for people: z, w or ws.",
}
BATCH = 3  # drawn when a program is opened, to see that it takes batches of any size


@dataclass(frozen=True)
class Program:
    """A program with its weights.

    Attributes:
        call: Latents, or latents and labels, to images.
        move: The same program on another device.
    """

    call: Callable[..., Tensor]
    move: Callable[[torch.device], "Program"]


class ProgramGenerator:
    """A program as a latentseg generator; its latents are standard normal.

    Args:
        program: Takes latents (B, *latent), or those and labels (B,) int64; gives images.
        info: Its identity card.
        device: Where it is.
        given: Latents that are drawn instead of normal ones.
    """

    def __init__(
        self,
        program: Program,
        info: GeneratorInfo,
        device: torch.device,
        given: Bank | None = None,
    ) -> None:
        self.program, self.given, self._device = program, given, device
        self.info = replace(info, bank=None if given is None else given.description)
        self.prior = Prior(info.latent, info.n_classes, classes=info.classes)
        if given is not None:
            given.check(info.name, [info.latent], info.n_classes)
            self.prior = self.prior.drawn_from(given, self.prior.spread)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._device

    def to(self, device: torch.device | str) -> "ProgramGenerator":
        """Moves the weights and returns itself."""
        self._device = torch.device(device)
        self.program = self.program.move(self._device)
        return self

    def with_classes(self, classes: tuple[int, ...]) -> "ProgramGenerator":
        """The same program; only these class labels are drawn.

        Raises:
            InputError: there are no such classes.
        """
        info = replace(self.info, classes=classes)
        return ProgramGenerator(self.program, info, self._device, self.given)

    def with_bank(self, bank: Bank) -> "ProgramGenerator":
        """The same program; the latents of `bank` are drawn. Steps keep their unit.

        Raises:
            InputError: its latents, (N, *latent), or labels do not fit.
        """
        return ProgramGenerator(self.program, self.info, self._device, bank)

    def sample(self, seeds: Tensor) -> Latents:
        """Draws latents for each seed, (B,) int64, and classes."""
        z, labels = self.prior.draw(seeds)
        return Latents(z.to(self._device), None if labels is None else labels.to(self._device))

    def __call__(self, latents: Latents) -> Tensor:
        """Latents (B, *latent) to images (B, 3, H, W) float32, as the program gives them."""
        labels = () if latents.labels is None else (latents.labels,)
        x = self.program.call(latents.values, *labels).float()
        return x.expand(-1, 3, -1, -1)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """Moves latents by `step`, (*latent) or (B, *latent)."""
        return latents.with_values(latents.values + step)


def load_program(checkpoint: Checkpoint, options: Options, *, trust_code: bool) -> ProgramGenerator:
    """Opens a TorchScript or torch.export file, which runs what is in it.

    Args:
        checkpoint: Of one of the kinds `PROGRAMS`.
        options: See `OPTIONS`.
        trust_code: The user's word that the file may be run.

    Raises:
        UnsafeFileError: `trust_code` is not given.
        InputError: an option does not fit, or the program does not draw images of such latents.
    """
    path = checkpoint.path
    if not trust_code:
        raise UnsafeFileError(
            f"{path}: a {checkpoint.kind} file is a program, and opening it runs it. If you trust "
            f"where it comes from, and its sha256 is {checkpoint.sha256}, allow it with "
            "`trust_code`."
        )
    if unknown := [name for name in options if name not in OPTIONS]:
        raise InputError(f"`options`: {path} has no {unknown[0]}. There are: {', '.join(OPTIONS)}.")
    program, latent = _exported(path) if checkpoint.kind == "exported" else _scripted(path)
    info = GeneratorInfo(
        name=path.stem,
        size=(0, 0),
        latent=_latent(latent, options, path),
        n_classes=_n_classes(options),
        space=str(options.get("space", "z")),
        licence=str(options.get("licence", "not said by the file")),
        source=f"{checkpoint.kind} program {path.name}",
        sha256=checkpoint.sha256,
    )
    generator = ProgramGenerator(program, info, torch.device("cpu"))
    size = _checked_size(generator, path)
    return ProgramGenerator(program, replace(info, size=size), torch.device("cpu"))


def _scripted(path: Path) -> tuple[Program, tuple[int, ...] | None]:
    with _quiet(path):
        module = torch.jit.load(str(path), map_location="cpu").eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def move(device: torch.device) -> Program:
        return Program(module.to(device), move)

    return Program(module, move), None


def _exported(path: Path) -> tuple[Program, tuple[int, ...] | None]:
    with _quiet(path):
        exported = torch.export.load(path)
        names = list(exported.graph_signature.user_inputs)
        shapes = {
            node.name: node.meta["val"].shape for node in exported.graph.nodes if node.name in names
        }

    def move(device: torch.device) -> Program:
        module = move_to_device_pass(exported, str(device)).module()
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        return Program(module, move)

    shape = tuple(shapes.get(names[0], ())) if names else ()
    if shape and isinstance(shape[0], int):
        raise InputError(
            f"{path}: exported for batches of {shape[0]} only. Export it again with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},)."
        )
    is_fixed = len(shape) > 1 and all(isinstance(side, int) for side in shape[1:])
    return move(torch.device("cpu")), shape[1:] if is_fixed else None


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Without torch's advice to those who write programs; whatever it raises becomes ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # the file decides what
        raise InputError(f"{path}: torch {torch.__version__} cannot open it ({error}).") from error


def _latent(found: tuple[int, ...] | None, options: Options, path: Path) -> tuple[int, ...]:
    given: Any = options.get("latent")
    if given is None:
        if found is None:
            raise InputError(
                f"{path}: the shape of its latents is not in the file. Say it, for "
                "example with `options` latent=128."
            )
        return found
    latent = tuple(given) if isinstance(given, list | tuple) else (given,)
    if not latent or not all(isinstance(side, int) and side > 0 for side in latent):
        raise InputError(f"`latent`: expected a shape, 128 or [4, 8, 8], found {given!r}.")
    if found is not None and latent != found:
        raise InputError(f"`latent`: the program takes {list(found)}, found {given!r}.")
    return latent


def _n_classes(options: Options) -> int:
    n_classes = options.get("n_classes", 0)
    if not isinstance(n_classes, int) or n_classes < 0:
        raise InputError(f"`n_classes`: expected a whole number, found {n_classes!r}.")
    return n_classes


@torch.no_grad()
def _checked_size(generator: ProgramGenerator, path: Path) -> tuple[int, int]:
    """(height, width) of the images, by drawing some: batches of any size, each alike again."""
    latents = generator.sample(torch.arange(BATCH))
    try:
        x, again = generator(latents), generator(latents)
        alone = generator(latents[:1])
    except Exception as error:  # the program decides what
        labels = f" and {generator.info.n_classes} labels" if generator.info.n_classes else ""
        raise InputError(
            f"{path}: cannot draw latents {list(generator.info.latent)}{labels} in batches of "
            f"{BATCH} and of 1 ({error}). Check latent and n_classes, and that it was saved for "
            "batches of any size."
        ) from error
    if x.ndim != 4 or x.shape[:2] != (BATCH, 3) or alone.shape != (1, *x.shape[1:]):
        raise InputError(f"{path}: it gives {tuple(x.shape)}; expected ({BATCH}, 3, H, W).")
    if not torch.allclose(x, again, atol=1e-4, rtol=1e-4):
        raise InputError(
            f"{path}: draws another image each time. Make its noise constant, and save it after "
            "eval()."
        )
    return (x.shape[2], x.shape[3])
