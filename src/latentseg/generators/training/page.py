"""The page of a training, report.html: samples over time, curves, numbers; one file by itself."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from latentseg.figures import Line, Panel, line_chart
from latentseg.files import write_text
from latentseg.images import Pixels, encode, read_image
from latentseg.progress import duration

MOST_ROWS = 10  # of samples over time, and of the table
MOST_POINTS = 400
# Panels by title, each with its columns of metrics.jsonl and what a reader calls them.
PANELS: dict[str, dict[str, str]] = {
    "Frechet distance by features (fd-lite0)": {"fd-lite0": "fd-lite0"},
    "precision and recall": {"precision": "precision", "recall": "recall"},
    "sliced Wasserstein distance": {"swd": "swd", "swd_floor": "between photos"},
    "losses": {"d": "discriminator", "g": "generator"},
}
COLUMNS = ("images", "minutes", "fd-lite0", "precision", "recall", "swd", "fid", "d", "g")
EXPLANATION = (
    "fd-lite0 is the Frechet distance between features of EfficientNet-Lite0 of drawn images and "
    "of photos; it compares with other values of fd-lite0 at equally many images only, and is no "
    "FID. Precision is the share of drawn images that lie among the photos, recall the share of "
    "photos that lie among the drawn images (Kynkaanniemi et al. 2019). Distances are measured "
    "without truncation."
)


def write_page(
    out: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str,
    summary: str,
    commands: str,
    psi: float,
    preview_rows: int,
) -> None:
    """Writes `out`/report.html.

    Args:
        out: Folder of the training, with previews/step-NNNNNNNNN.png.
        rows: Of metrics.jsonl, by step.
        name: Of the generator.
        summary: A sentence on what is trained.
        commands: Which trained it.
        psi: Truncation of the previews.
        preview_rows: Rows of images in a preview.
    """
    seen = [row for row in rows if preview_of(out, row["step"]).is_file()]
    page = _template().render(
        name=name,
        summary=summary,
        rows=[_at(out, row, preview_rows) for row in spread(seen, MOST_ROWS)],
        charts=_charts(rows),
        explanation=EXPLANATION,
        sheet=_embedded(read_image(preview_of(out, rows[-1]["step"]))),
        psi=psi,
        table=_table(spread(rows, MOST_ROWS)),
        commands=commands,
    )
    write_text(out / "report.html", page)


def preview_of(out: Path, step: int) -> Path:
    """The contact sheet that a training in `out` wrote after `step` steps."""
    return out / "previews" / f"step-{step:09d}.png"


def spread(rows: Sequence[Mapping[str, Any]], n: int) -> list[Mapping[str, Any]]:
    """At most `n` rows, the first and the last among them, in even ratios of their steps.

    >>> [row["step"] for row in spread([{"step": s} for s in (1, 2, 3, 4, 8, 16)], 3)]
    [1, 4, 16]
    """
    if len(rows) <= n:
        return list(rows)
    steps = np.log([row["step"] for row in rows])
    wanted = np.linspace(steps[0], steps[-1], n)
    nearest = {int(np.abs(steps - each).argmin()) for each in wanted}
    return [rows[index] for index in sorted(nearest)]


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("training.html.jinja")


def _at(out: Path, row: Mapping[str, Any], preview_rows: int) -> dict[str, str]:
    sheet = read_image(preview_of(out, row["step"]))
    return {
        "images": _grouped(row["images"]),
        "picture": _embedded(sheet[: sheet.shape[0] // preview_rows]),
    }


def _embedded(picture: Pixels) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(encode(picture, '.jpg')).decode()}"


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[Markup]:
    panels = [panel for title, names in PANELS.items() if (panel := _panel(title, names, rows))]
    return [Markup(line_chart(panels[i : i + 2])) for i in range(0, len(panels), 2)]


def _panel(title: str, names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> Panel | None:
    rows = rows[:: -(-len(rows) // MOST_POINTS)]
    lines = []
    for column, shown in names.items():
        known = [row for row in rows if column in row]
        if known:
            thousands = [row["images"] / 1000 for row in known]
            lines.append(Line(shown, thousands, [row[column] for row in known]))
    return Panel(title, "thousand images", lines) if lines else None


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    named = [{**row, "minutes": duration(row["seconds"])} for row in rows]
    titles = [title for title in COLUMNS if any(title in row for row in named)]
    return {
        "titles": ["time" if title == "minutes" else title for title in titles],
        "rows": [[_cell(row.get(title, "")) for title in titles] for row in named],
    }


def _cell(value: Any) -> str:
    return _grouped(value) if isinstance(value, int) else str(value)


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")
