"""The named ways of measuring, with their rules: in print, equal names hide different numbers."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from latentseg.errors import InputError
from latentseg.evaluation.metrics import BETA_SQUARED


@dataclass(frozen=True)
class Rules:
    """The clauses in which protocols differ.

    Attributes:
        name: Printed beside every number.
        columns: What a table shows: the heading of each number, and its field in `Result`.
        summary: The rules in a few sentences.
        crops: Photos of data sets that are published with a crop (CUB, Flowers) are cut to their
            center square.
        is_binary: Every class is foreground, and a pixel whose probability is above 0.5 is
            predicted as foreground. Otherwise the most probable class is predicted.
        takes_half: With `is_binary`, a probability of exactly 0.5 is foreground as well.
        pools: Accuracy and F are those of all pixels together. Otherwise they are means over the
            images.
        empty_iou: IoU of an image in which a class is neither true nor predicted; NaN makes the
            mean NaN, too.
        counts_background: The background is one of the classes in `Result.class_iou`.
        lowest: The thresholds of the F curve are k / 255 for k from `lowest` to 254.
        beta_squared: Weight of the precision in F.
        best_per_image: The threshold of max F is chosen for each image. Otherwise one is chosen for
            the whole data set.
        epsilon: Added to the denominators of IoU, precision and recall, which makes 0/0 to 0. Where
            it is 0, an empty prediction has precision 1 and an empty truth has recall 1.
        sees_boundaries: Trimap IoU and boundary F are measured.
    """

    name: str
    columns: Mapping[str, str]
    summary: str
    crops: bool = False
    is_binary: bool = True
    takes_half: bool = False
    pools: bool = False
    empty_iou: float = 0.0
    counts_background: bool = False
    lowest: int = 1
    beta_squared: float = BETA_SQUARED
    best_per_image: bool = False
    epsilon: float = 0.0
    sees_boundaries: bool = False


_FOREGROUND_COLUMNS = {
    **{"acc": "acc", "IoU": "iou", "pooled IoU": "iou_pooled"},
    **{"F": "f_half", "max F": "max_f"},
}
_ALL = (
    # Melas-Kyriazi et al. 2021, official code (src/segmentation/metrics.py).
    Rules(
        name="melas2021",
        crops=True,
        columns=_FOREGROUND_COLUMNS,
        summary="Accuracy, IoU and F (beta^2 = 0.3) of the foreground, predicted where its "
        "probability is above 0.5, are means over the images. The threshold of max F is one for "
        "the data set, from 1/255 to 254/255. CUB and Flowers are cropped to their center square.",
    ),
    # Voynov et al. 2020, official code. Its 8-bit maps on the way to the true size are left out.
    Rules(
        name="voynov2020",
        columns=_FOREGROUND_COLUMNS,
        takes_half=True,
        empty_iou=math.nan,
        lowest=0,
        summary="Accuracy, IoU and F (beta^2 = 0.3) of the foreground, predicted where its "
        "probability is at least 0.5, are means over the images. An image without true and "
        "predicted foreground has no IoU, and then the mean has none either. The threshold of max "
        "F is one for the data set, from 0 to 254/255. Nothing is cropped.",
    ),
    # SelfMask (Shin et al. 2022), official code, which FOUND took over: beta^2 is squared again,
    # and the best threshold is chosen for each image.
    Rules(
        name="selfmask",
        columns=_FOREGROUND_COLUMNS,
        lowest=0,
        beta_squared=BETA_SQUARED**2,
        best_per_image=True,
        epsilon=1e-7,
        summary="Accuracy, IoU and F (beta^2 = 0.09) of the foreground, predicted where its "
        "probability is above 0.5, are means over the images. The threshold of max F is the best "
        "one of each image, from 0 to 254/255: not comparable with a threshold for the data set. "
        "0/0 counts as 0. Nothing is cropped.",
    ),
    # The saliency papers; also the "Acc" of the handcrafted rows of Melas-Kyriazi 2021, Table 1.
    Rules(
        name="mae",
        columns={"1 - MAE": "one_minus_mae", "mean F": "mean_f", "adaptive F": "adaptive_f"},
        lowest=0,
        summary="1 - MAE is 1 minus the mean absolute difference between the foreground's "
        "probability and the truth. Mean F (beta^2 = 0.3) is averaged over the thresholds from 0 "
        "to 254/255; adaptive F takes twice the mean probability of each image as its threshold. "
        "All are means over the images. Nothing is cropped.",
    ),
    # Feng et al. 2023. That IoU is of all pixels together is our decision: the paper does not say.
    Rules(
        name="feng2023",
        columns={
            **{"IoU fg": "iou_pooled", "IoU bg": "iou_background", "mean IoU": "mean_iou"},
            **{"trimap fg": "trimap_foreground", "trimap bg": "trimap_background"},
            **{"trimap mean": "trimap_mean", "1.5 px": "trimap_narrow"},
        },
        pools=True,
        empty_iou=1.0,
        counts_background=True,
        sees_boundaries=True,
        summary="IoU of the foreground (probability above 0.5), of the background, and their mean, "
        "over all pixels of the data set together. The trimap counts only pixels whose Chebyshev "
        "distance to the true boundary is at most 3 px; the last column, 1.5 px. Nothing is "
        "cropped.",
    ),
    Rules(
        name="boundary",
        columns={
            **{"IoU": "iou", "pooled IoU": "iou_pooled", "trimap IoU": "trimap_mean"},
            "boundary F": "boundary_f",
        },
        empty_iou=1.0,
        sees_boundaries=True,
        summary="Trimap IoU is the mean IoU of foreground and background over all pixels within 3 "
        "px of the true boundary. Boundary F (Csurka et al. 2013) is F1 between the boundaries, "
        "which match within 0.75 % of the image's diagonal, as a mean over the images. Nothing is "
        "cropped.",
    ),
    Rules(
        name="pooled",
        columns=_FOREGROUND_COLUMNS,
        is_binary=False,
        pools=True,
        empty_iou=1.0,
        summary="Accuracy, pooled IoU and F are of all pixels of the data set together. "
        "Every class counts. Nothing is cropped.",
    ),
    # Tritrong et al. 2021, section 4. No code of theirs measures; whether the background counts is
    # not said, but it does in the averages that are printed of their numbers (SLiMe, tables 2-4).
    Rules(
        name="tritrong2021",
        columns={
            "acc": "acc",
            "mean IoU": "mean_iou",
            "without background": "iou_pooled",
            "weighted IoU": "weighted_iou",
        },
        is_binary=False,
        pools=True,
        empty_iou=1.0,
        counts_background=True,
        summary="IoU of each class over all pixels of the data set together. The mean IoU counts "
        "the background like a class; the weighted IoU weighs each of them by its share of the "
        "true pixels.",
    ),
)
PROTOCOLS = {rules.name: rules for rules in _ALL}


def find_rules(protocol: str) -> Rules:
    """The rules called `protocol`.

    Raises:
        InputError: no protocol has this name; the nearest one is named.
    """
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
    hint = f" Perhaps {near[0]}?" if near else ""
    raise InputError(f"`protocol`: expected {', '.join(PROTOCOLS)}; found {protocol!r}.{hint}")
