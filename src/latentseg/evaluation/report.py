"""The report of a run: one self-contained page, made from the run folder alone."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from latentseg.errors import InputError, LatentsegError
from latentseg.evaluation.comparison import group_results, headline, ours_among_papers
from latentseg.evaluation.papers import DATASETS, PUBLISHED
from latentseg.figures import Line, Panel, bar_chart, histogram, line_chart
from latentseg.files import read_bytes, read_json, write_text
from latentseg.images import encode, read_image, resize
from latentseg.labelers.kinds import Story
from latentseg.labelers.registry import kinds
from latentseg.plain_data import parse_json
from latentseg.version import __version__

PLAIN_BYTES = 60_000  # smaller pictures are embedded as they are
WIDEST_PX = 1_200
MOST_POINTS = 400  # of a curve
MOST_LINES = 6  # in a panel
# Caption of each picture of the story, and what leads from the picture before to it.
IMAGE = {"image": ("the image that the generator draws from it", "→")}
MASK = {"mask": ("the mask", "=")}
OUTSIDE = {
    "pair": ("image and mask: a pair to learn from", ""),
    "photo": ("a real photo", ""),
    "prediction": ("what the student sees in it", "→"),
}


def render_report(run: Path | str) -> Path:
    """Writes `run`/report.html: the story in pictures, curves, results, best and worst photos.

    It reads config.json, labeler/{quality.json, contact_sheet.png}, samples/{story.json,
    pairs.png}, every metrics.jsonl, photos/rounds.json, results.json and examples/examples.json.
    What is missing is left out, and named at the end of the page.

    Args:
        run: A run folder.

    Returns:
        The path of the page.

    Raises:
        InputError: there is no such folder.
    """
    run = Path(run)
    if not run.is_dir():
        raise InputError(f"{run}: there is no such folder. Expected the folder of a run.")
    parts = _Parts(run)
    config = parts.json("config.json") or {}
    results = group_results(parts.json("results.json") or [])
    generator = config.get("generator")
    page = _TEMPLATE.render(
        version=__version__,
        run_name=run.absolute().name,
        generator=generator.get("name") if isinstance(generator, dict) else generator,
        config=config,
        few_shot=config.get("method") == "few-shot",
        hero=headline(results),
        story=_story(parts),
        how=_kind_story(config.get("method")).how,
        pairs=parts.picture("samples/pairs.png"),
        sheet=parts.picture("labeler/contact_sheet.png"),
        labeling=_labeling(parts.json("labeler/quality.json")),
        training=_training(parts),
        rounds=_rounds(parts),
        results=results,
        papers={"datasets": DATASETS, "rows": PUBLISHED, "ours": ours_among_papers(results)},
        examples=_examples(parts),
        missing=parts.missing,
    )
    write_text(run / "report.html", page)
    return run / "report.html"


class _Parts:
    """The files of a run folder, with a list of those that are missing or damaged."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.missing: list[str] = []

    def json(self, name: str) -> Any:
        try:
            return read_json(self.run / name)
        except LatentsegError:
            self.missing.append(name)
            return None

    def picture(self, name: str) -> str | None:
        try:
            return _embedded(self.run / name)
        except LatentsegError:
            self.missing.append(name)
            return None

    def strip(self, name: str) -> list[str]:
        """A strip of three pictures of equal width, one by one."""
        try:
            return [
                _jpeg(third) for third in np.array_split(read_image(self.run / name), 3, axis=1)
            ]
        except LatentsegError:
            self.missing.append(name)
            return []


def _embedded(path: Path) -> str:
    image = read_image(path)
    if path.suffix == ".png" and path.stat().st_size <= PLAIN_BYTES:
        return _data("image/png", read_bytes(path))
    return _jpeg(image)


def _jpeg(image: np.ndarray) -> str:
    height, width = image.shape[:2]
    if width > WIDEST_PX:
        image = resize(image, (max(1, round(height * WIDEST_PX / width)), WIDEST_PX))
    return _data("image/jpeg", encode(np.ascontiguousarray(image), ".jpg"))


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _kind_story(method: object) -> Story:
    """The story of a registered labeler; a plain one for others, as no file names code to run."""
    known = kinds()
    return known[method].story if isinstance(method, str) and method in known else Story()


def _story(parts: _Parts) -> dict[str, Any] | None:
    story = parts.json("samples/story.json")
    if story is None:
        return None
    pictures = {name: parts.picture(f"samples/{name}.png") for name in story["pictures"]}

    def panels(captions: Mapping[str, tuple[str, str]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "caption": caption, "sign": sign, "src": pictures[name]}
            for name, (caption, sign) in captions.items()
            if pictures.get(name)
        ]

    cells = _latent_cells(story["latent"])
    # A combination of labelers shows the steps of both.
    steps = {name: each for kind in kinds().values() for name, each in kind.story.captions.items()}
    inside = panels({**IMAGE, **steps, **MASK})
    return {**story, "cells": cells, "inside": inside, "outside": panels(OUTSIDE)}


def _latent_cells(values: Sequence[float]) -> list[dict[str, Any]]:
    """The latent as a square of coloured cells: hue by sign, strength by size."""
    side = int(np.ceil(np.sqrt(len(values))))
    largest = max((abs(value) for value in values), default=1) or 1
    return [
        {
            "x": i % side,
            "y": i // side,
            "side": side,
            "series": 1 if value > 0 else 2,
            "strength": round(abs(value) / largest, 2),
        }
        for i, value in enumerate(values)
    ]


def _labeling(quality: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Curves and counts of the labeler; only what its kind reports."""
    if not quality:
        return None
    return {
        "losses": _direction_losses(quality.get("directions") or {}),
        "radii": _radius_curves(quality.get("radii") or [], quality.get("generation_radius")),
        "radius": quality.get("generation_radius"),
        "layers": _layer_curves(quality.get("layers") or [], quality.get("first_mixed_layer")),
        "first_mixed_layer": quality.get("first_mixed_layer"),
        "cosine": quality.get("cosine"),
        "directions": list(quality.get("directions") or {}),
        "steps": [found["steps"] for found in (quality.get("directions") or {}).values()],
        "filters": _filters(quality),
        "kept": quality["kept"] / quality["samples"] if quality.get("samples") else None,
        "samples": quality.get("samples"),
        "areas": _areas(quality.get("areas")),
    }


def _direction_losses(directions: Mapping[str, Any]) -> Markup | None:
    panels = []
    for part, title in (("contrast", "contrast loss"), ("structure", "structure loss")):
        lines = [
            Line(sign, *_thinned(range(len(found["losses"][part])), found["losses"][part]))
            for sign, found in directions.items()
            if part in found.get("losses", {})
        ]
        if lines:
            panels.append(Panel(title, "step of the search", lines))
    return Markup(line_chart(panels)) if panels else None


def _radius_curves(rows: Sequence[Mapping[str, Any]], chosen: float | None) -> Markup | None:
    if not rows:
        return None
    radii = [row["radius"] for row in rows]
    mark = None if chosen is None else (chosen, f"chosen: {chosen:g}")

    def by_sign(key: str) -> list[Line]:
        return [Line(sign, radii, [row[key][sign] for row in rows]) for sign in rows[0][key]]

    def known(key: str, name: str) -> Line:
        points = [(row["radius"], row[key]) for row in rows if row.get(key) is not None]
        return Line(name, [radius for radius, _ in points], [value for _, value in points])

    shares = [known("kept", "kept"), known("agreement", "agreement"), known("area", "area")]
    alignment = known("edge_alignment", "edges on the outline")
    panels = [
        Panel("edges change", "radius", by_sign("edge_change"), mark=mark),
        Panel("centre lightens", "radius", by_sign("brightness_change"), mark=mark),
        Panel("share", "radius", shares, mark=mark),
        Panel("edges on the outline, against elsewhere", "radius", [alignment], mark=mark),
    ]
    return Markup(line_chart(panels))


def _layer_curves(rows: Sequence[Mapping[str, Any]], chosen: int | None) -> Markup | None:
    """What masks do as styles are mixed from later layers on."""
    if not rows:
        return None
    layers = [row["layer"] for row in rows]
    mark = None if chosen is None else (float(chosen), f"chosen: {chosen}")

    def line(key: str, name: str) -> Line:
        return Line(name, layers, [row[key] for row in rows])

    agreement = [line("halves", "of one image"), line("chance", "of different images")]
    panels = [
        Panel("variants change by", "first mixed layer", [line("change", "change")], mark=mark),
        Panel("masks of either half agree", "first mixed layer", agreement, mark=mark),
    ]
    return Markup(line_chart(panels))


def _filters(quality: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How many samples each filter refused, as shares of all."""
    removed, samples = quality.get("removed") or {}, quality.get("samples")
    if not samples:
        return []
    return [
        {"name": name, "count": count, "share": count / samples} for name, count in removed.items()
    ]


def _areas(areas: Mapping[str, Any] | None) -> Markup | None:
    if not areas:
        return None
    chart = bar_chart(
        areas["bounds"],
        areas["counts"],
        x_label="share of the image",
        title="masks of this area",
        width=5,
    )
    return Markup(chart)


def _training(parts: _Parts) -> Markup | None:
    """Loss and agreement of every student that was trained in the run."""
    losses, ious = [], []
    for path in sorted(parts.run.rglob("metrics.jsonl"), key=_training_order):
        reports = [report for report in _json_lines(path) if "step" in report and "loss" in report]
        if not reports:
            continue
        name = path.parent.relative_to(parts.run).as_posix()
        steps = [report["step"] for report in reports]
        losses.append(Line(name, *_thinned(steps, [report["loss"] for report in reports])))
        if all("iou" in report for report in reports):
            ious.append(Line(name, *_thinned(steps, [report["iou"] for report in reports])))
    if not losses:
        parts.missing.append("metrics.jsonl")
        return None
    panels = [Panel("loss", "step", losses[:MOST_LINES], is_log=True)]
    if ious:
        panels.append(Panel("IoU with the training masks", "step", ious[:MOST_LINES]))
    return Markup(line_chart(panels))


def _training_order(path: Path) -> tuple[bool, Path]:
    return "student" not in path.parts, path


def _json_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in read_bytes(path).decode(errors="replace").splitlines():
        try:
            found.append(parse_json(line))
        except ValueError:  # the last line of a run that was killed
            continue
    return [report for report in found if isinstance(report, dict)]


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    every = max(1, -(-len(x) // MOST_POINTS))
    return list(x)[::every], list(y)[::every]


def _rounds(parts: _Parts) -> dict[str, Any] | None:
    """A table of the rounds with unlabelled photos: a column for each plain value of a round."""
    if not (parts.run / "photos").is_dir():
        return None  # not asked for, so not missing
    rounds = parts.json("photos/rounds.json")
    if not rounds:
        return None
    plain = (int, float, str)
    columns = dict.fromkeys(
        key for row in rounds for key, value in row.items() if isinstance(value, plain)
    )
    return {"columns": list(columns), "rows": [[row.get(key) for key in columns] for row in rounds]}


def _examples(parts: _Parts) -> dict[str, Any] | None:
    examples = parts.json("examples/examples.json")
    if examples is None:
        return None
    groups = {
        kind: [{**one, "panels": parts.strip(f"examples/{one['file']}")} for one in shown]
        for kind, shown in examples["groups"].items()
    }
    ious = examples["ious"]
    chart = histogram(
        ious,
        x_label="IoU of a photo",
        title="photos",
        mark=(float(np.mean(ious)), f"mean {np.mean(ious):.3f}"),
    )
    return {**examples, "groups": groups, "chart": Markup(chart)}


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}".replace(",", "\u202f")


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("latentseg.evaluation"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(number=_number, count=_count, plain=_plain)
_TEMPLATE = _ENVIRONMENT.get_template("report.html.jinja")
