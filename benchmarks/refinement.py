"""Masks that are cleaned and judged per second: python benchmarks/refinement.py.

With --official FOLDER, the official code of Melas-Kyriazi 2021 that lies in FOLDER refines the same
masks: the functions of its src/datasets/gan_dataset.py, in the order in which it calls them.
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any
from unittest.mock import MagicMock

import numpy as np
import tyro

from measuring import Row, in_fresh_process, show

if TYPE_CHECKING:
    from torch import Tensor

Verdict = tuple[np.ndarray, np.ndarray]  # masks (B, H, W), and whether they are kept

CELLS = 10  # across an image, each of another brightness, so that shapes are a tenth of it wide
GRAIN = 0.05  # noise of single pixels, which gives the masks small components
# What the official file imports for its generators and its command line; nothing here needs it.
ABSENT = ("retry", "omegaconf", "models", "pytorch_pretrained_gans")


def images(count: int, side: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Random images (B, 3, H, W) in [-1, 1], and the same lit and darkened in random places.

    Lit and darkened images are as those of a good direction: two peaks in the histogram.
    """
    import torch
    from torch.nn.functional import interpolate

    rng = torch.Generator().manual_seed(0)

    def clouds() -> "Tensor":
        cells = torch.randn(count, 1, CELLS, CELLS, generator=rng)
        grain = torch.randn(count, 1, side, side, generator=rng)
        return interpolate(cells, (side, side), mode="bicubic") / 3 + GRAIN * grain

    x = torch.cat([clouds(), clouds(), clouds()], dim=1)
    change = clouds() - 0.1  # positive where the masks are
    light = x / 2 + (6 * change + clouds()).tanh() / 2
    dark = x / 2 - (6 * change + clouds()).tanh() / 2
    return x.clamp(-1, 1), light.clamp(-1, 1), dark.clamp(-1, 1)


def ours(count: int, side: int, is_dual: bool, is_all: bool, seconds: float, out: Path) -> Row:
    """`refine`, with the filters of the official settings or with all five."""
    from latentseg.labelers.directions_settings import SETTINGS, RefinementConfig
    from latentseg.labelers.losses import gray
    from latentseg.labelers.refinement import refine

    x, light, dark = images(count, side)
    plain, lit = gray(x).numpy(), gray(light).numpy()
    darkened = gray(dark).numpy() if is_dual else plain
    parts = [lit > plain, plain > darkened] if is_dual else []
    shifted = [light, dark] if is_dual else [light]
    every = RefinementConfig(min_roundness=0.005, min_overlap=0.5)
    config = every if is_all else SETTINGS["official"].refinement

    def once() -> Verdict:
        masks, rejected_by = refine(lit > darkened, parts, shifted, config)
        return masks, rejected_by == 0

    filters = "all five" if is_all else "official settings"
    return _measured("latentseg", filters, is_dual, once, seconds, out)


def published(folder: str, count: int, side: int, is_dual: bool, seconds: float, out: Path) -> Row:
    """The official code with its default thresholds; what a filter refuses no later one sees."""
    import torch

    code = _imported(Path(folder) / "src" / "datasets" / "gan_dataset.py")
    x, light, dark = images(count, side)

    def cleaned(lit: "Tensor", darkened: "Tensor") -> "Tensor":
        masks = code.convert_images_to_mask(darkened, lit)
        return code.apply_connected_components_filter(masks, threshold=0.2)

    def once() -> Verdict:
        shifted = [light, dark] if is_dual else [light]
        judged = [cleaned(light, x), cleaned(x, dark)] if is_dual else [cleaned(light, x)]
        masks = cleaned(light - dark, 0 * x) if is_dual else judged[0]
        fair = [code.get_area_filter_indices(each, thresholds=[0.0, 0.5]) for each in judged]
        is_kept = torch.stack(fair).all(dim=0)
        peaks = [code.get_histogram_filter_indices(each[is_kept], bins=12) for each in shifted]
        is_kept[is_kept.clone()] = torch.stack(peaks).all(dim=0)
        return masks.numpy() > 0, is_kept.numpy()

    return _measured("official", "official settings", is_dual, once, seconds, out)


def _imported(file: Path) -> Any:
    if not file.is_file():
        raise SystemExit(f"{file}: no such file. Give the root of the official repository.")
    for name in ABSENT:
        sys.modules[name] = MagicMock()
    spec = importlib.util.spec_from_file_location("gan_dataset", file)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{file}: cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _measured(
    code: str,
    filters: str,
    is_dual: bool,
    once: Callable[[], Verdict],
    seconds: float,
    out: Path,
) -> Row:
    masks, is_kept = once()
    np.savez(out, masks=masks, is_kept=is_kept)
    walls, spent = [], []
    began = time.perf_counter()
    while len(walls) < 3 or time.perf_counter() - began < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        once()
        walls.append(time.perf_counter() - wall)
        spent.append(time.process_time() - cpu)
    return {
        "code": code,
        "filters": filters,
        "directions": 2 if is_dual else 1,
        "batch": len(masks),
        "samples/s": len(masks) / float(np.median(walls)),
        "samples/CPU s": len(masks) / float(np.median(spent)),
        "masks cleaned/CPU s": (3 if is_dual else 1) * len(masks) / float(np.median(spent)),
        "kept": f"{is_kept.mean():.0%}",
    }


def components(count: int, side: int) -> float:
    """Components of each mask before it is cleaned: the length of the official code's loop."""
    import scipy.ndimage

    from latentseg.labelers.losses import gray

    _, light, dark = images(count, side)
    masks = (gray(light) > gray(dark)).numpy()
    numbers = np.empty(masks.shape[1:], np.int32)
    found = (scipy.ndimage.label(mask, np.ones((3, 3)), output=numbers) for mask in masks)
    return sum(int(each) for each in found) / count  # pyright: ignore[reportArgumentType]


def agreement(one: Path, other: Path) -> str:
    """The share of the samples with equal masks and equal verdicts."""
    a, b = np.load(one), np.load(other)
    same = (a["masks"] == b["masks"]).all(axis=(1, 2)) & (a["is_kept"] == b["is_kept"])
    return f"{same.mean():.1%}"


def main(
    official: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None,
    side: int = 128,
    batch: int = 64,
    seconds: float = 5.0,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures one direction and two, each in a process of its own.

    Args:
        official: Root of the official repository. Its code is run. It needs scikit-image.
        side: Height and width of the masks in pixels.
        batch: Samples refined together.
        seconds: Least time spent on each row.
        json: File for the numbers.
    """
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        one, other = Path(folder) / "ours.npz", Path(folder) / "official.npz"
        for is_dual in (False, True):
            row = in_fresh_process(ours, batch, side, is_dual, False, seconds, one)
            rows.append({**row, "as official": ""})
            if official is not None:
                options = (official, batch, side, is_dual, seconds, other)
                row = in_fresh_process(published, *options)
                rows[-1]["as official"] = agreement(one, other)
                rows.append({**row, "as official": ""})
        row = in_fresh_process(ours, batch, side, True, True, seconds, one)
        rows.append({**row, "as official": ""})
    each = f"{components(batch, side):.0f} components each"
    show(f"Refining masks of {side} x {side} pixels, {each}", rows, device="cpu", json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
