"""The README.md of a saved segmenter: what it is, how it was made, how good it is, whose it is."""

from collections.abc import Mapping
from typing import Any

from latentseg.files import check_keys

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


def check_card(card: Mapping[str, Any]) -> None:
    """Refuses fields that a card does not have.

    Raises:
        InputError: a field is unknown; the nearest known one is named.
    """
    check_keys(card, set(FIELDS), "card of the segmenter")


def render_card(config: Mapping[str, Any]) -> str:
    """The README.md for the config.json of a segmenter, in Markdown."""
    card = config["card"]
    parts = [
        f"# {card.get('name', 'A segmenter')}",
        card.get(
            "description", f"Segments photos into: background, {', '.join(config['classes'])}."
        ),
        _usage(card),
        _facts("Network", _network(config)),
        _results(card.get("results", [])),
        _facts("Trained", card.get("training", {})),
        _facts("Labeler", card.get("labeler", {})),
        _facts("Generator", card.get("generator", {})),
        _facts("Unlabelled photos", card.get("photos", {})),
        f"## Licence\n\n{card.get('licence', 'Not stated.')}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _usage(card: Mapping[str, Any]) -> str:
    name = card.get("name", "FOLDER")
    return (
        f"```\nlatentseg predict {name} photo.jpg out/\n```\n\n"
        "```python\n"
        "from latentseg import Segmenter\n\n"
        f'Segmenter.from_pretrained("{name}").predict("photo.jpg").save("mask.png")\n'
        "```"
    )


def _network(config: Mapping[str, Any]) -> dict[str, Any]:
    height, width = config["input_size"]
    return {
        "network": config["network"],
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
    columns = ("dataset", "protocol", "setting", "n_images", "acc", "iou", "iou_pooled", "max_f")
    rows = [[_cell(result.get(column)) for column in columns] for result in results]
    lines = [columns, ["---"] * len(columns), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"## Results on real photos\n\n{table}\n\n"
        "`iou` is the mean over the images, `iou_pooled` is over all pixels together."
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
