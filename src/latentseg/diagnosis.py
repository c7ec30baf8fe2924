"""What `latentseg doctor` finds: versions, devices, and what works here."""

import importlib
import importlib.metadata
import os
import platform
import tempfile

import torch

from latentseg.devices import has_fast_bf16, pick_device
from latentseg.files import free_bytes
from latentseg.generators import list_generators
from latentseg.students.segmenter import list_segmenters
from latentseg.version import __version__

REQUIRED = ("torch", "kornia", "numpy", "scipy", "safetensors", "Pillow", "tyro")
GIB = 2**30


def diagnose() -> dict[str, str]:
    """Each thing that was looked at, with what was found and, where it fails, how to mend it."""
    device = pick_device()
    findings = {
        "latentseg": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
    }
    findings |= {name: importlib.metadata.version(name) for name in REQUIRED}
    findings |= {
        "device": f"{device} (chosen unless you say another)",
        "cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used",
        "bf16": "in hardware" if has_fast_bf16(device) else "not in hardware: float32 is used",
        "torchvision": _torchvision(),
        "networks (extra)": _extra("segmentation_models_pytorch", "networks"),
        "metrics (extra)": _extra("torch_fidelity", "metrics"),
        "diffusion (extra)": _extra("diffusers", "diffusion"),
        "export (extra)": _extra("onnxruntime", "export"),
        "app (extra)": _extra("starlette", "app"),
        "judge (extra)": _extra("ai_edge_litert", "judge"),
        "temporary folder": f"{free_bytes(tempfile.gettempdir()) / GIB:.1f} GiB free",
        "bundled generators": ", ".join(each.name for each in list_generators()) or "none",
        "bundled segmenters": ", ".join(list_segmenters()) or "none",
    }
    return findings


def _torchvision() -> str:
    """The one library whose build must match torch's; see docs/decisions.md."""
    try:
        version = importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return "not installed (only the extras need it)"
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        return (
            f"{version} does not work with torch {torch.__version__} ({error}). Install builds "
            "that match: pip install --force-reinstall torch torchvision"
        )
    return f"{version}, works"


def _extra(module: str, extra: str) -> str:
    try:
        importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module:
            return f"not installed: pip install 'latentseg[{extra}]'"
        return f"does not import: {error}"
    return "works"
