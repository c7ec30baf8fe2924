"""Which labels of a data set make a class: the groupings of the papers, and a user's own."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.images import IGNORE

BACKGROUND = "background"
IGNORED = "ignore"
REST = "*"


@dataclass(frozen=True)
class Grouping:
    """Classes that are made of the labels of a data set.

    Attributes:
        name: Its name, or its file; for messages.
        groups: The labels of each class, in the order of the classes. "background" and "ignore"
            are no classes, but hold the labels that become background and those that do not count.
            The label "*" stands for all that are named nowhere. Where labels overlap in a picture,
            the earlier group wins.

    >>> Grouping("coats", {"top": ("coat",), "background": ("*",)}).ids(["hat", "coat"])
    {'coat': 1, 'hat': 0}
    """

    name: str
    groups: Mapping[str, tuple[str, ...]]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return tuple(name for name in self.groups if name not in (BACKGROUND, IGNORED))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that are named, without "*"."""
        named = (label for labels in self.groups.values() for label in labels)
        return tuple(label for label in named if label != REST)

    def ids(self, labels: Sequence[str]) -> dict[str, int]:
        """The class id of each of a data set's labels: 0 background, 1..K classes, 255 ignored.

        They are in the order of the groups.

        Raises:
            InputError: the data set lacks a label that is named, or has one that is named nowhere.
        """
        for label in self.labels:
            if label not in labels:
                near = difflib.get_close_matches(label, labels, n=1)
                hint = f" Perhaps {near[0]}?" if near else ""
                raise InputError(
                    f"`grouping`: {self.name} names {label!r}, but the dataset has no such label."
                    f"{hint} Its labels: {', '.join(labels)}."
                )
        rest = [label for label in labels if label not in self.labels]
        if rest and not any(REST in group for group in self.groups.values()):
            raise InputError(
                f"`grouping`: {self.name} says nothing of {', '.join(rest)}. Put each label into a "
                f'class, or under "{BACKGROUND}" or "{IGNORED}"; "{REST}" stands for all the rest.'
            )
        id_of = {BACKGROUND: 0, IGNORED: IGNORE}
        id_of |= {name: number for number, name in enumerate(self.classes, start=1)}
        return {
            label: id_of[name]
            for name, group in self.groups.items()
            for named in group
            for label in (rest if named == REST else [named])
        }


def find_grouping(name: str | Path | Grouping) -> Grouping:
    """The grouping of this name, or of this JSON file: {"top": ["shirt", "coat"], ...}.

    Raises:
        InputError: there is neither, or the file does not hold groups of labels.
        CorruptFileError: the file is not valid JSON.
    """
    if isinstance(name, Grouping):
        return name
    if str(name) in GROUPINGS:
        return GROUPINGS[str(name)]
    if not Path(name).is_file():
        near = difflib.get_close_matches(str(name), GROUPINGS, n=1)
        hint = f" Perhaps {near[0]}?" if near else ""
        raise InputError(
            f"`grouping`: expected one of {', '.join(GROUPINGS)}, or a JSON file such as "
            f'{{"top": ["shirt", "coat"], "background": ["*"]}}; found {name}.{hint}'
        )
    groups = read_json(name)
    if not isinstance(groups, dict) or not all(map(_is_group, groups.values())):
        raise InputError(
            f'{name}: expected an object of groups, each a list of labels, such as {{"top": '
            '["shirt", "coat"], "background": ["*"]}.'
        )
    grouping = Grouping(str(name), {key: tuple(labels) for key, labels in groups.items()})
    every = [label for labels in grouping.groups.values() for label in labels]
    twice = [label for label in dict.fromkeys(every) if every.count(label) > 1]
    if twice:
        raise InputError(f"{name}: {', '.join(twice)}: named twice. A label is of one group.")
    if not grouping.classes:
        raise InputError(f"{name}: no class besides the background. Name at least one.")
    return grouping


def _is_group(labels: object) -> bool:
    return isinstance(labels, list) and all(isinstance(one, str) and one for one in labels)


_EYE, _LIP, _NOSE = ("l_eye", "r_eye"), ("l_lip", "u_lip", "mouth"), ("nose",)
_HORSE_LEG = tuple(
    f"horse/{side}{place}{part}" for side in "lr" for place in "fb" for part in ("uleg", "lleg")
)
_HORSE_HOOF = tuple(f"horse/{side}{place}ho" for side in "lr" for place in "fb")
_CAR_SIDES = ("frontside", "backside", "leftside", "rightside", "roofside")
_CAR_BODY = tuple(f"car/{part}" for part in (*_CAR_SIDES, "door", "leftmirror", "rightmirror"))

GROUPINGS = {
    grouping.name: grouping
    for grouping in (
        # Official code of Tritrong et al. 2021 (utils.py), and its order, which settles overlaps.
        Grouping(
            "celebamask-10",
            {
                "hair": ("hair",),
                "eyebrow": ("l_brow", "r_brow"),
                "eye": _EYE,
                "lip": _LIP,
                "nose": _NOSE,
                "skin": ("skin",),
                "ear": ("l_ear", "r_ear"),
                "neck": ("neck",),
                "clothes": ("cloth",),
                BACKGROUND: (REST,),
            },
        ),
        Grouping("celebamask-3", {"eye": _EYE, "lip": _LIP, "nose": _NOSE, BACKGROUND: (REST,)}),
        # Classes of Tritrong et al. 2021. The papers do not say which labels make the body, nor
        # where mirrors go; here it is all of the car that no other class covers.
        Grouping(
            "pascal-car",
            {
                "light": ("car/headlight",),
                "plate": ("car/fliplate", "car/bliplate"),
                "wheel": ("car/wheel",),
                "window": ("car/window",),
                "body": (*_CAR_BODY, "car"),
            },
        ),
        # Hooves are legs, and what is of the horse but of no part is background: ours.
        Grouping(
            "pascal-horse",
            {
                "head": tuple(
                    f"horse/{part}" for part in ("head", "leye", "reye", "lear", "rear", "muzzle")
                ),
                "leg": (*_HORSE_LEG, *_HORSE_HOOF),
                "tail": ("horse/tail",),
                "body": ("horse/neck", "horse/torso"),
                BACKGROUND: ("horse",),
            },
        ),
        # Clothing Co-Parsing (Yang et al. 2014); the classes are ours.
        Grouping(
            "ccp",
            {
                "hair": ("hair", "hat"),
                "skin": ("skin",),
                "upper": (
                    *("blazer", "blouse", "bodysuit", "cape", "cardigan", "coat", "hoodie"),
                    *("jacket", "jumper", "scarf", "shirt", "suit", "sweater", "sweatshirt"),
                    *("t-shirt", "tie", "top", "vest"),
                ),
                "dress": ("dress", "romper"),
                "lower": (
                    *("jeans", "leggings", "panties", "pants", "shorts", "skirt", "stockings"),
                    "tights",
                ),
                "shoes": (
                    *("boots", "clogs", "flats", "heels", "loafers", "pumps", "sandals"),
                    *("shoes", "sneakers", "socks", "wedges"),
                ),
                "bag": ("bag", "purse", "wallet"),
                "accessories": (REST,),
            },
        ),
    )
}
