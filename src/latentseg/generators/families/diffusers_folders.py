"""Folders of the diffusers library: their configurations, their weights, and their networks."""

import contextlib
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.files import read_json
from latentseg.plain_data import parse_json
from latentseg.weights.containers import Checkpoint, Weights

WEIGHTS = tuple(
    f"diffusion_pytorch_model.{end}" for end in ("safetensors", "fp16.safetensors", "bin")
)
# Attention layers were named otherwise before diffusers 0.17.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def peek(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of a folder; empty where there is none."""
    try:
        values = read_json(checkpoint.path / name) if checkpoint.kind == "folder" else {}
    except LatentsegError:
        return {}
    return values if isinstance(values, dict) else {}


def part_folder(checkpoint: Checkpoint, part: str) -> Path:
    """Where a part of a pipeline is: its own folder, or the pipeline's, as in early ones."""
    folder = checkpoint.path / part
    return folder if folder.is_dir() else checkpoint.path


def read_configuration(path: Path) -> dict[str, Any]:
    """The configuration of a network or scheduler, without what diffusers notes on its origin.

    Raises:
        InputError: there is no such file.
        CorruptFileError: it is not a configuration.
    """
    values = read_json(path)
    if not isinstance(values, dict) or not isinstance(values.get("_class_name"), str):
        raise CorruptFileError(f"{path}: not a configuration of diffusers: no '_class_name'.")
    return {name: v for name, v in values.items() if name[0] != "_" or name == "_class_name"}


def read_weights(folder: Path, checkpoint: Checkpoint) -> Weights:
    """The state dict of the network in `folder`, by the present names.

    Raises:
        InputError: there is no file of weights; those that are read are named.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            inside = checkpoint.inside(str((folder / name).relative_to(checkpoint.path)))
            weights = inside.weights()
            return Weights({_present(key): w for key, w in weights.items()}, inside.path)
    raise InputError(
        f"{folder}: no weights in it. Expected {', '.join(WEIGHTS)}; weights in several files are "
        "not read: save them as one with save_pretrained(..., max_shard_size='100GB')."
    )


def _present(name: str) -> str:
    *path, layer, kind = name.rsplit(".", 2) if name.count(".") > 1 else ("", name)
    is_attention = layer in OLD_NAMES and "attentions" in name
    return ".".join([*path, OLD_NAMES[layer], kind]) if is_attention else name


def diffusers_class(name: str) -> Any:
    """A class of the library diffusers, of the extra `diffusion`.

    Raises:
        InputError: the library is missing, or cannot be imported; the message says how to mend it.
    """
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"Folders of diffusers need the module {error.name}, which is not installed. "
            "Run: pip install 'latentseg[diffusion]'"
        ) from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        # diffusers imports torchvision where it finds it, which fails if it is for another torch.
        raise InputError(
            f"{name} of diffusers {_version('diffusers')} cannot be imported with torch "
            f"{torch.__version__} and torchvision {_version('torchvision')} ({error}). If the two "
            "were built for different versions: pip uninstall torchvision, which is not needed "
            "here. Else: pip install --upgrade 'latentseg[diffusion]'"
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"


def parse(configuration: str) -> dict[str, Any]:
    """A configuration that was stored as JSON.

    Raises:
        InputError: it is none.
    """
    try:
        values = parse_json(configuration)
        values["_class_name"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"Not a configuration of diffusers: {configuration[:80]!r}.") from error
    return values


def build(values: Mapping[str, Any], known: Sequence[str], as_class: str | None = None) -> Any:
    """A network with random weights, or a scheduler, by its configuration.

    Args:
        values: As `read_configuration` gives them.
        known: The classes that may be built.
        as_class: One of them, to be built instead of the one in `values`.

    Raises:
        InputError: of another class, diffusers cannot build it, or it cannot be imported.
    """
    name = values["_class_name"]
    if name not in known:
        raise InputError(f"{name} of diffusers is not known here. Known: {', '.join(known)}.")
    kind = diffusers_class(as_class or name)
    try:
        return kind.from_config(dict(values))
    except Exception as error:  # whatever a constructor does with nonsense
        raise InputError(f"diffusers cannot build this {name} ({error}).") from error


@contextlib.contextmanager
def outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that takes what `modules` put out, in the order in which they run."""
    outputs: list[Tensor] = []

    def take(module: nn.Module, inputs: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(take) for module in modules]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
