"""The README.md of a saved segmenter: what it is, how it was made, how good it is, whose it is."""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

from latentseg.files import check_keys
from latentseg.students.networks import initialized_on

FIELDS = {
    "name": "short name",
    "description": "one or two sentences",
    "licence": "licence of the weights",
    "generator": "GeneratorInfo.to_json()",
    "labeler": "Labeler.info",
    "training": "the TrainConfig, and what it was trained on",
    "photos": "the unlabelled photos that helped, if any",
    "results": "what was measured: entries of results.json",
}

HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-nc-4.0")


def check_card(card: Mapping[str, Any]) -> None:
    """Refuses fields that a card does not have.

    Raises:
        InputError: a field is unknown; the nearest known one is named.
    """
    check_keys(card, set(FIELDS), "card of the segmenter")


def render_card(config: Mapping[str, Any], *, usage: str | None = None) -> str:
    """The README.md for the config.json of a segmenter, in Markdown.

    Args:
        config: Of the segmenter.
        usage: How it is used; by default from a folder that is called like the segmenter.
    """
    card = config["card"]
    parts = [
        _header(config),
        f"# {card.get('name', 'A segmenter')}",
        card.get(
            "description", f"Segments photos into: background, {', '.join(config['classes'])}."
        ),
        usage or usage_of(card.get("name", "FOLDER")),
        _facts("Network", _network(config)),
        _results(card.get("results", [])),
        _facts("Trained", card.get("training", {})),
        _facts("Labeler", card.get("labeler", {})),
        _facts("Generator", card.get("generator", {})),
        _facts("Unlabelled photos", card.get("photos", {})),
        f"## Licence\n\n{card.get('licence', 'Not stated.')}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def html_card(config: Mapping[str, Any]) -> str:
    """A table of what a segmenter is and how good it was on real photos, in HTML."""
    card = config["card"]
    facts = {**_network(config), "licence": card.get("licence", "not stated")}
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(_shown(value))}</td></tr>"
        for name, value in facts.items()
    ]
    rows += [
        f"<tr><th>IoU, {escape(str(result['dataset']))}</th><td>{_cell(result['iou'])} "
        f"({escape(str(result['protocol']))})</td></tr>"
        for result in card.get("results", [])
        if result.get("iou") is not None
    ]
    return f"<b>{escape(card.get('name', 'A segmenter'))}</b><table>{''.join(rows)}</table>"


def usage_of(name: str) -> str:
    """How a segmenter is used that `Segmenter.from_pretrained` finds by `name`."""
    return (
        f"```\nlatentseg predict {name} photo.jpg out/\n```\n\n"
        "```python\n"
        "from latentseg import Segmenter\n\n"
        f'Segmenter.from_pretrained("{name}").predict("photo.jpg").save("mask.png")\n'
        "```"
    )


def _header(config: Mapping[str, Any]) -> str:
    """What the Hugging Face Hub reads: licence, task, results."""
    from huggingface_hub import EvalResult, ModelCardData

    card = config["card"]
    results = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=result["dataset"],
            dataset_name=f"{result['dataset']}, {result.get('setting', result['protocol'])}",
            metric_type=metric,
            metric_name=f"{metric} ({result['protocol']})",
            metric_value=result[metric],
        )
        for result in card.get("results", [])
        for metric in ("acc", "iou", "max_f", "mean_iou", "weighted_iou")
        if result.get(metric) is not None
    ]
    data = ModelCardData(
        model_name=card.get("name", "segmenter"),
        license=_licence_id(card.get("licence", "")),
        library_name="latentseg",
        pipeline_tag="image-segmentation",
        tags=["image-segmentation"],
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _licence_id(licence: str) -> str:
    """The Hub's name of a licence that begins with its SPDX name; else "other".

    >>> _licence_id("Apache-2.0, like the generator's weights"), _licence_id("MIT-like")
    ('apache-2.0', 'other')
    """
    name = re.split(r"[\s,;]", licence.lower(), maxsplit=1)[0]
    return name if name in HUB_LICENCES else "other"


def _network(config: Mapping[str, Any]) -> dict[str, Any]:
    height, width = config["input_size"]
    origin = initialized_on(config["network"])
    return {
        "network": config["network"],
        **({"encoder": f"initialized with {origin} (**)"} if origin else {}),
        "width": config["width"],
        "members": config["members"],
        "classes": ["background", *config["classes"]],
        "input": f"RGB in [-1, 1], shorter side {min(height, width)} px, aspect kept",
        "foreground": f"where its probability is above {config['threshold']:g}",
        "latentseg": config["latentseg"],
    }


def _facts(title: str, facts: Mapping[str, Any] | str) -> str:
    """A section with one line for each fact; "" without facts."""
    if not facts:
        return ""
    if isinstance(facts, str):
        return f"## {title}\n\n{facts}"
    lines = [f"- {name}: {_shown(value)}" for name, value in facts.items()]
    return "\n".join([f"## {title}", "", *lines])


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_shown(inner) for inner in value)
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _results(results: list[Mapping[str, Any]]) -> str:
    """A table with one row for each measurement, and its protocol by name."""
    if not results:
        return ""
    columns = (
        *("dataset", "protocol", "setting", "n_images", "acc"),
        *("iou", "iou_pooled", "max_f", "mean_iou", "weighted_iou"),
    )
    rows = [[_cell(result.get(column)) for column in columns] for result in results]
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"## Results on real photos\n\n{table}\n\n"
        "`iou` is the mean over the images, `iou_pooled` is over all pixels together; `mean_iou` "
        "and `weighted_iou` are, too, and count the background as a class."
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
