"""Turn any pretrained image generator into an image segmenter.

Nothing heavy is imported until one of the public names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentseg.version import __version__

if TYPE_CHECKING:
    from latentseg.evaluation.real_photos import evaluate
    from latentseg.generators import list_generators, load_generator
    from latentseg.generators.training import train_generator
    from latentseg.inversion.folder import invert
    from latentseg.labelers import load_labeler
    from latentseg.labelers.feature_clusters import fit_feature_clusters
    from latentseg.labelers.few_shot import fit_few_shot
    from latentseg.labelers.fit_directions import fit_directions
    from latentseg.labelers.fit_style_mixing import fit_style_mixing
    from latentseg.students.segmenter import Segmenter
    from latentseg.students.training import train
    from latentseg.synthesis.writers import synthesize

__all__ = [
    "Segmenter",
    "__version__",
    "evaluate",
    "fit_directions",
    "fit_feature_clusters",
    "fit_few_shot",
    "fit_style_mixing",
    "invert",
    "list_generators",
    "load_generator",
    "load_labeler",
    "synthesize",
    "train",
    "train_generator",
]

_HOMES = {
    "Segmenter": "latentseg.students.segmenter",
    "evaluate": "latentseg.evaluation.real_photos",
    "fit_directions": "latentseg.labelers.fit_directions",
    "fit_feature_clusters": "latentseg.labelers.feature_clusters",
    "fit_few_shot": "latentseg.labelers.few_shot",
    "fit_style_mixing": "latentseg.labelers.fit_style_mixing",
    "invert": "latentseg.inversion.folder",
    "list_generators": "latentseg.generators",
    "load_generator": "latentseg.generators",
    "load_labeler": "latentseg.labelers",
    "synthesize": "latentseg.synthesis.writers",
    "train": "latentseg.students.training",
    "train_generator": "latentseg.generators.training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'latentseg' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*__all__]
