"""Which device computes, and in which precision."""

import contextlib

import torch

from latentseg.errors import InputError

DEVICES = ("cuda", "mps", "xpu", "cpu")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`, for example "cuda:1"; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        InputError: there is no such device, or it is not available here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name.partition(":")[0] not in DEVICES:
        raise InputError(
            f"`device`: expected auto, {', '.join(DEVICES)}, or one like cuda:1, found {name!r}."
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device`: {name} is not available here. See: latentseg doctor"
        ) from error
    return device


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is computed in hardware on `device`, not emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name` (fp32, bf16, fp16); "auto" takes bf16 where the hardware has it.

    Raises:
        InputError: no such precision.
    """
    if name == "auto":
        return torch.bfloat16 if has_fast_bf16(device) else torch.float32
    if name not in PRECISIONS:
        raise InputError(
            f"`precision`: expected one of auto, {', '.join(PRECISIONS)}, found {name!r}."
        )
    return PRECISIONS[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Mixed precision in `dtype` on `device`; a context that does nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def is_mixed(device: torch.device) -> bool:
    """Whether computing on `device` is in mixed precision now."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
