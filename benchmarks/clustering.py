"""Clustering of pixels against scikit-learn, and time per mask: python benchmarks/clustering.py.

Both cluster the same pixels of style-mixed images into k clusters from as many starts.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import tyro

from measuring import Row, finish, in_fresh_process, peak_bytes, seconds_each, show

if TYPE_CHECKING:
    from torch import Tensor

    from latentseg.labelers.style_mixing import StyleMixingLabeler

LAYER_SHARE = 0.4  # of the layers keep their style


def labeler_of(name: str, device: str, restarts: int) -> "StyleMixingLabeler":
    """Default options, without a search for the first mixed layer."""
    from latentseg.generators import load_generator
    from latentseg.labelers.naming import ClassNames
    from latentseg.labelers.style_mixing import StyleMixingLabeler
    from latentseg.labelers.style_mixing_settings import StyleMixingConfig
    from latentseg.labelers.variants import check_variants

    generator = load_generator(name, device=device)
    layer = round(LAYER_SHARE * check_variants(generator).n_layers)
    config = StyleMixingConfig(first_mixed_layer=layer, restarts=restarts)
    names = ClassNames(("foreground",))
    return StyleMixingLabeler(generator, config=config, seed=0, names=names)


def draw_pixels(name: str, device: str, n_images: int, file: Path) -> Row:
    """Writes descriptors of the pixels of generated images, (n_images, D, P), to a file."""
    import torch

    from latentseg.files import write_safetensors
    from latentseg.labelers.variants import descriptors

    labeler = labeler_of(name, device, 1)
    latents = labeler.own_latents(n_images)
    parts = [
        descriptors(variants).mT.cpu()
        for start in range(0, n_images, 4)
        for variants in labeler.drawn(latents[start : start + 4])
    ]
    write_safetensors(file, {"columns": torch.cat(parts)})
    return {}


def pixels(file: Path, device: str) -> "Tensor":
    """The descriptors in a file, (B, P, D)."""
    from latentseg.devices import pick_device
    from latentseg.files import read_safetensors

    return read_safetensors(file)["columns"].to(pick_device(device)).mT


def forget_peak() -> int:
    """Starts the peak memory anew, where the system lets it; what it is now, in bytes."""
    counter = Path("/proc/self/clear_refs")
    if counter.exists():
        counter.write_text("5")
    return peak_bytes()


def ours(file: Path, device: str, k: int, restarts: int) -> Row:
    """latentseg's clustering of all images at once."""
    import torch

    from latentseg.labelers.clustering import cluster

    points = pixels(file, device)
    seeds = torch.zeros(len(points), dtype=torch.int64)
    cluster(points[:8], k, seeds=seeds[:8], restarts=restarts)
    finish(points.device)
    before = forget_peak()
    began = time.perf_counter()
    found = cluster(points, k, seeds=seeds, restarts=restarts)
    finish(points.device)
    seconds = time.perf_counter() - began
    return _row("latentseg", points, seconds, float(found.inertia.sum()), before)


def scikit_learn(file: Path, k: int, restarts: int) -> Row:
    """KMeans of scikit-learn, image after image, on the CPU."""
    from sklearn.cluster import KMeans

    points = pixels(file, "cpu")
    rows = [one.contiguous().cpu().numpy() for one in points]
    model = KMeans(k, n_init=restarts, random_state=0)  # pyright: ignore[reportArgumentType]
    model.fit(rows[0])
    before = forget_peak()
    began = time.perf_counter()
    inertia = sum(float(model.fit(row).inertia_ or 0.0) for row in rows)
    return _row("scikit-learn KMeans", points, time.perf_counter() - began, inertia, before)


def mask(name: str, device: str, n_images: int, restarts: int, seconds: float) -> Row:
    """From latents to masks: drawing, clustering, filters."""
    from latentseg.labelers.variants import draw_variants

    labeler = labeler_of(name, device, restarts)
    latents = labeler.own_latents(n_images)
    styles = labeler.styles.to(labeler.generator.device)
    whole = seconds_each(lambda: labeler.label(latents), labeler.generator.device, seconds=seconds)
    drawing = seconds_each(
        lambda: draw_variants(labeler.mixing, latents, styles, labeler.keep),
        labeler.generator.device,
        seconds=seconds,
    )
    return {
        "masks at once": n_images,
        "ms per mask": 1e3 * whole / n_images,
        "of it drawing variants": f"{drawing / whole:.0%}",
        "variants": labeler.config.n_variants,
    }


def _row(what: str, points: "Tensor", seconds: float, inertia: float, before: int) -> Row:
    return {
        "clustering": what,
        "ms per image": 1e3 * seconds / len(points),
        "seconds": seconds,
        "inertia": f"{inertia:.6g}",
        "MB beside the pixels": round(max(0, peak_bytes() - before) / 1e6),
        "pixels MB": round(points.numel() * 4 / 1e6),
    }


def main(
    generator: str = "pets64",
    images: int = 256,
    k: int = 2,
    restarts: int = 10,
    device: str = "auto",
    seconds: float = 5.0,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Clusters the same pixels with latentseg and with scikit-learn, then times whole masks.

    Args:
        generator: What `latentseg.load_generator` takes.
        images: Images to cluster, each with 32 variants.
        k: Clusters.
        restarts: Starts of every clustering.
        device: auto, cpu, cuda, ...
        seconds: Time spent on each size of batch of masks.
        json: File for the numbers; those of the masks go to the same name with "-masks".
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "pixels.safetensors"
        in_fresh_process(draw_pixels, generator, device, images, file)
        own = in_fresh_process(ours, file, device, k, restarts)
        reference = in_fresh_process(scikit_learn, file, k, restarts)
    slow = reference["seconds"]
    rows = [
        {**row, "times faster": f"{float(slow) / float(row['seconds']):.1f}"}
        for row in (own, reference)
    ]
    title = f"{images} images of {generator}, k = {k}, {restarts} starts"
    show(title, rows, device=device, json_file=json)
    masks = [in_fresh_process(mask, generator, device, n, restarts, seconds) for n in (1, 16)]
    beside = None if json is None else json.with_stem(f"{json.stem}-masks")
    show(f"\nMasks of {generator}", masks, device=device, json_file=beside)


if __name__ == "__main__":
    tyro.cli(main)
