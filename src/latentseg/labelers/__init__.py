"""Labelers turn generated images into masks; the methods of the papers are labelers."""

from collections.abc import Collection
from pathlib import Path

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.generators.protocols import Generator
from latentseg.labelers.protocols import Labeler, Labelled

__all__ = ["METHODS", "Labeler", "Labelled", "labelers_for", "load_labeler"]

# What each method needs of a generator beyond images: one of its ABILITIES, or nothing.
METHODS: dict[str, str | None] = {
    "directions": None,
    "style-mixing": "variants",
    "few-shot": "features",
    "feature-clusters": "features",
}


def labelers_for(abilities: Collection[str]) -> tuple[str, ...]:
    """The methods that a generator with these `abilities` can serve."""
    return tuple(
        method for method, needed in METHODS.items() if needed is None or needed in abilities
    )


def load_labeler(folder: Path | str, generator: Generator) -> Labeler:
    """Reads a labeler that was fitted to `generator`.

    Raises:
        InputError: the folder holds no labeler, or it was fitted to another generator.
        CorruptFileError: one of its files is damaged.
    """
    from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
    from latentseg.labelers.directions import DirectionsLabeler
    from latentseg.labelers.feature_clusters import FeatureClustersLabeler
    from latentseg.labelers.few_shot import FewShotLabeler
    from latentseg.labelers.style_mixing import StyleMixingLabeler

    loaders = {
        "directions": DirectionsLabeler.load,
        "style-mixing": StyleMixingLabeler.load,
        "few-shot": FewShotLabeler.load,
        "feature-clusters": FeatureClustersLabeler.load,
        AgreementLabeler.method: AgreementLabeler.load,
        VotingLabeler.method: VotingLabeler.load,
    }
    path = Path(folder) / "labeler.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no labeler (no labeler.json). "
            f"Make one with: latentseg fit directions {generator.info.name} {folder}"
        )
    description = read_json(path)
    method = description.get("method") if isinstance(description, dict) else None
    if method not in loaders:
        raise CorruptFileError(
            f"{path}: unknown method {method!r}. This version knows: {', '.join(loaders)}."
        )
    return loaders[method](folder, generator)
