"""What is in a dataset: how many samples were kept, how large objects are, what looks alike."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from latentseg.datasets.descriptions import DESCRIPTION
from latentseg.datasets.pairs import LabelledImages
from latentseg.datasets.real import open_dataset
from latentseg.datasets.shard_files import ShardFolder, is_sharded
from latentseg.errors import InputError
from latentseg.files import atomic, read_json
from latentseg.images import IGNORE, Pixels, contact_sheet, resize

AREA_BINS = 20
HASH_PX, KEPT = 32, 8  # of the shrunk image, and of its lowest frequencies
NEAR_BITS = 4  # of 64: how much the hashes of near-duplicates may differ
SHOWN_GROUPS, SHOWN_EACH = 6, 4
COLUMNS = 100_000  # comparisons made at once
BITS_SET = np.array([value.bit_count() for value in range(256)], np.uint8)
LUMA = (0.299, 0.587, 0.114)


def statistics(
    dataset: Path | str | LabelledImages, *, limit: int | None = None, picture: Path | None = None
) -> dict[str, Any]:
    """Measures a dataset.

    Args:
        dataset: A dataset folder, a folder of shards, or any dataset that can be indexed.
        limit: Look at the first `limit` samples only.
        picture: Draw the result into this PNG, too.

    Returns:
        JSON values:

        - count: samples looked at.
        - yield: share of the drawn candidates that was kept, and removed: how many each filter
          refused; both None if the dataset does not say.
        - areas: of each class, and of "foreground" (all classes): mean and quantiles of its share
          of the pixels that count, in [0, 1]; histogram: samples in 20 equal parts of [0, 1];
          missing: samples without it.
        - ignored: mean share of pixels that do not count.
        - look_alikes: groups of images whose perceptual hashes differ by at most 4 of 64 bits, or
          are joined by such; distinct: images left if each group counted once; share of the images
          in groups; and the names in the largest groups.

    Raises:
        InputError: the dataset is empty or not finished.
        CorruptFileError: a file has changed since it was written.
    """
    data, description = _opened(dataset)
    n = min(len(data), limit or len(data))
    if n == 0:
        raise InputError(f"{dataset}: no images, so nothing can be measured.")
    areas = np.empty((n, len(data.classes) + 1))  # each class, and last what is ignored
    hashes, names = np.empty(n, np.uint64), []
    for i in range(n):
        name, image, mask = data[i]
        areas[i], hashes[i] = _areas(mask, len(data.classes)), perceptual_hash(image)
        names.append(name)
    groups = look_alikes(hashes)
    result = {
        "count": n,
        **_yield(description),
        "areas": {
            "foreground": _distribution(areas[:, :-1].sum(axis=1)),
            **{name: _distribution(areas[:, k]) for k, name in enumerate(data.classes)},
        },
        "ignored": _rounded(areas[:, -1].mean()),
        "look_alikes": {
            "groups": len(groups),
            "distinct": n - sum(len(group) - 1 for group in groups),
            "share": _rounded(sum(map(len, groups)) / n),
            "largest": [[names[i] for i in group] for group in groups[:SHOWN_GROUPS]],
        },
    }
    if picture:
        shown = [[data[i][1] for i in group[:SHOWN_EACH]] for group in groups[:SHOWN_GROUPS]]
        draw(result, shown, picture)
    return result


def perceptual_hash(image: Pixels) -> np.uint64:
    """64 bits that change little when an image is compressed, scaled or brightened.

    They tell which of the 8 x 8 lowest frequencies, without the mean, are above their median.

    Source: the "pHash" of Zauner 2010, Implementation and benchmarking of perceptual image hash
    functions, with the lowest frequencies from (0, 0) as in the imagehash library.

    Args:
        image: (H, W, 3) uint8.
    """
    gray = resize(image, (HASH_PX, HASH_PX)).astype(np.float64) @ np.array(LUMA)
    low = np.asarray(dctn(gray, norm="ortho"))[:KEPT, :KEPT].ravel()
    bits = low > np.median(low[1:])  # the mean says how bright the image is, not what it shows
    return np.packbits(bits).view(">u8")[0].astype(np.uint64)


def look_alikes(hashes: NDArray[np.uint64], near_bits: int = NEAR_BITS) -> list[list[int]]:
    """Groups of indices whose hashes differ by at most `near_bits`, or are joined by such.

    Every such pair is found, without comparing all: of `near_bits` + 1 parts of the hash one must
    be equal in both.

    Args:
        hashes: (n,) uint64.
        near_bits: 0 to 15.

    Returns:
        Groups of at least two, the largest first.
    """
    distinct, which = np.unique(hashes, return_inverse=True)  # a collapsed generator has few
    found: list[NDArray[np.int64]] = [np.empty((0, 2), np.int64)]
    for low, high in pairwise(np.linspace(0, 64, near_bits + 2).astype(int)):
        part = (distinct >> np.uint64(low)) & np.uint64(2 ** int(high - low) - 1)
        for bucket in _equal(part):
            found.extend(_near_pairs(distinct, bucket, near_bits))
    a, b = np.concatenate(found).T
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(len(distinct), len(distinct)))
    _, label = connected_components(graph, directed=False)
    groups = [group.tolist() for group in _equal(label[which]) if len(group) > 1]
    return sorted(groups, key=lambda group: (-len(group), group))


def _equal(values: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The indices of each distinct value, in order."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    return np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)


def _near_pairs(
    hashes: NDArray[np.uint64], bucket: NDArray[np.int64], near_bits: int
) -> Iterator[NDArray[np.int64]]:
    """Pairs (m, 2) within `bucket` that are near, a few rows at a time."""
    if len(bucket) < 2:
        return
    rows = max(1, COLUMNS // len(bucket))
    for start in range(0, len(bucket), rows):
        part = bucket[start : start + rows]
        differing = np.bitwise_xor.outer(hashes[part], hashes[bucket])
        distance = BITS_SET[differing[..., None].view(np.uint8)].sum(axis=-1)
        a, b = np.nonzero(distance <= near_bits)
        pairs = np.column_stack([part[a], bucket[b]])
        yield pairs[pairs[:, 0] < pairs[:, 1]]


def draw(result: dict[str, Any], groups: list[list[Pixels]], path: Path) -> None:
    """Draws what `statistics` found as a PNG.

    Args:
        result: Of `statistics`.
        groups: Images (H, W, 3) of the largest groups of near-duplicates.
        path: Where to.
    """
    figure = matplotlib.figure.Figure(figsize=(11, 3.6), layout="constrained")
    kept, areas, alike = figure.subplots(1, 3)
    if result["yield"] is None:
        kept.text(0.5, 0.5, "the dataset does not say", ha="center", va="center")
        kept.set_axis_off()
    else:
        shares = {"kept": result["yield"], **_shares(result)}
        kept.barh(list(shares), list(shares.values()), color="#3a7ca5")
        kept.invert_yaxis()
        kept.set_xlabel("share of the candidates")
    kept.set_title("yield")
    edges = np.linspace(0, 1, AREA_BINS + 1)
    several = len(result["areas"]) > 2  # a single class is the foreground
    for name, found in result["areas"].items() if several else [*result["areas"].items()][:1]:
        areas.stairs(found["histogram"], edges, label=name)
    areas.set_title("areas")
    areas.set_xlabel("share of the pixels")
    areas.set_ylabel("samples")
    areas.legend(fontsize="small")
    found = result["look_alikes"]
    alike.set_title(f"near-duplicates: {found['share']:.1%} of the images")
    alike.set_axis_off()
    if groups:
        alike.imshow(contact_sheet(groups, cell=(64, 64)))
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _opened(dataset: Path | str | LabelledImages) -> tuple[LabelledImages, dict[str, Any]]:
    """The dataset, and what its dataset.json says."""
    if not isinstance(dataset, str | Path):
        return dataset, {}
    if is_sharded(dataset):
        return ShardFolder(dataset), read_json(Path(dataset) / DESCRIPTION)
    opened = open_dataset(dataset, examine=False)
    return opened, dict(opened.facts)


def _yield(description: dict[str, Any]) -> dict[str, Any]:
    """How many candidates were kept and refused; datasets from elsewhere do not say."""
    count, candidates = description.get("count"), description.get("candidates")
    if not isinstance(count, int) or not isinstance(candidates, int) or candidates < 1:
        return {"yield": None, "candidates": None, "removed": None}
    removed = description.get("removed")
    return {"yield": _rounded(count / candidates), "candidates": candidates, "removed": removed}


def _shares(result: dict[str, Any]) -> dict[str, float]:
    return {name: n / result["candidates"] for name, n in (result["removed"] or {}).items()}


def _areas(mask: Pixels, n_classes: int) -> NDArray[np.float64]:
    """Share of the counting pixels of each class, then the share of all pixels ignored."""
    pixels = np.bincount(mask.ravel(), minlength=256)
    counting = mask.size - pixels[IGNORE]
    return np.append(pixels[1 : n_classes + 1] / max(counting, 1), pixels[IGNORE] / mask.size)


def _distribution(areas: NDArray[np.float64]) -> dict[str, Any]:
    levels = (5, 25, 50, 75, 95)
    quantiles = np.percentile(areas, levels).round(4).tolist()
    return {
        "mean": _rounded(areas.mean()),
        "quantiles": {f"{p}%": value for p, value in zip(levels, quantiles, strict=True)},
        "missing": int((areas == 0).sum()),
        "histogram": np.histogram(areas, AREA_BINS, (0, 1))[0].tolist(),
    }


def _rounded(value: float) -> float:
    return round(float(value), 4)
