"""Measuring a segmenter on real photos, beside the floors: the command `latentseg eval`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from latentseg.datasets.real import Groups, RealDataset, open_dataset
from latentseg.errors import InputError
from latentseg.evaluation.baselines import floors
from latentseg.evaluation.mask_folders import holds_masks, open_masks
from latentseg.evaluation.measuring import Scorer, measure
from latentseg.evaluation.results import Result
from latentseg.images import PLAIN, Reading
from latentseg.progress import say
from latentseg.students.segmenter import WHOLE, Segmenter


@runtime_checkable
class HasOptions(Protocol):
    """A scorer that can answer in more than one way, as `Segmenter.predict` can."""

    def with_options(self, *, flip: bool, scales: Sequence[float], edges: int | None) -> Scorer:
        """The same scorer, which always answers so."""
        ...


def evaluate(
    model: Scorer | Path | str,
    dataset: RealDataset | Path | str,
    *,
    protocol: str = "melas2021",
    classes: Sequence[str] | None = None,
    foreground: int | None = None,
    group: Groups = (),
    reading: Reading = PLAIN,
    binarize: bool = False,
    invert: bool = False,
    limit: int | None = None,
    flip: bool = False,
    scales: Sequence[float] = WHOLE,
    edges: int | None = None,
    device: str = "auto",
    quiet: bool = False,
) -> Result:
    """Measures a segmenter on real photos, beside floors that need no look at the photos.

    Args:
        model: A segmenter or anything else that scores images; the name or folder of a segmenter;
            or a folder of masks that another tool made: see `open_masks`.
        dataset: Photos with true masks: an opened data set, or its folder.
        protocol: A name of `PROTOCOLS`; it is part of the result.
        classes: Names of the classes, if the true masks do not say them.
        foreground: The value of the foreground in the true masks, if they do not say it.
        group: Classes to make of the labels; see `open_dataset`.
        reading: How photos become images where there is a choice.
        binarize, invert: How masks are read; see `open_dataset`.
        limit: Measure at most this many photos, evenly spread.
        flip: Average the answer with that for the mirrored photo.
        scales: Average over the photo seen at these multiples of the input size.
        edges: Let masks end where the brightness of the photo changes, within this many pixels;
            see `Segmenter.predict`.
        device: Where a segmenter that is given by name computes.
        quiet: Show no progress.

    Returns:
        The numbers, with `floors`. `print` shows them as a table.

    Raises:
        InputError: there is no such segmenter, data set or protocol; their classes do not agree;
            or `flip`, `scales` or `edges` is asked of masks.
        CorruptFileError: a file is damaged.
        DivergedError: scores are NaN or infinite.
    """
    if not isinstance(dataset, RealDataset):
        dataset = open_dataset(
            dataset,
            classes=classes,
            foreground=foreground,
            grouping=group,
            reading=reading,
            binarize=binarize,
            invert=invert,
        )
    for each in dataset.notes:
        say(f"eval: {each}", quiet=quiet)
    note = ""
    if isinstance(model, Path | str) and holds_masks(model):
        matched = open_masks(model, dataset)
        scorer, dataset, note = matched.masks, matched.dataset, matched.note
        if note:
            say(note)
    elif isinstance(model, Path | str):
        scorer = Segmenter.from_pretrained(model, device=device)
    else:
        scorer = model
    if flip or tuple(scales) != WHOLE or edges is not None:
        if not isinstance(scorer, HasOptions):
            raise InputError("`flip`, `scales`, `edges`: masks are measured as they are.")
        scorer = scorer.with_options(flip=flip, scales=scales, edges=edges)
    dataset = dataset.thinned(limit)
    result = measure(scorer, dataset, protocol=protocol, quiet=quiet)
    return replace(result, note=note, floors=floors(dataset, protocol=protocol))
