"""What the rest of the package knows of a labeler: one row for each, read by every command."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError

if TYPE_CHECKING:
    from latentseg.images import Pixels
    from latentseg.labelers.protocols import Labeler

L_co = TypeVar("L_co", bound="Labeler", covariant=True)


@dataclass(frozen=True)
class Fitted(Generic[L_co]):
    """A labeler, and how to report on it.

    Attributes:
        labeler: The labeler.
        quality: Makes the content of quality.json, JSON values; None: what the filters make of
            samples.
        sheet: Draws contact_sheet.png, (H, W, 3) uint8; None: images beside their masks.
        finish: What else is done in the folder before the labeler is saved there.
    """

    labeler: L_co
    quality: Callable[[], dict[str, Any]] | None = None
    sheet: "Callable[[], Pixels] | None" = None
    finish: Callable[[Path], None] | None = None


@dataclass(frozen=True)
class Story:
    """What the report of a run says about a labeler.

    Attributes:
        how: How it comes from an image to a mask, in a sentence or two.
        captions: Of the images that its `steps` show: caption, and the sign that leads to the image
            from the one before.
    """

    how: str = "The labeler says what is foreground in it."
    captions: Mapping[str, tuple[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class LabelerKind(Generic[L_co]):
    """One kind of labeler.

    Attributes:
        name: As commands and files have it; `module:callable` for one of the user's own.
        title: What it is, with its paper.
        config: A frozen dataclass. Its fields are the flags of the command line, its "Attributes:"
            their help.
        settings: Configurations by name, published ones and ours; the first one is the default.
        fit: A function (generator, *, config, seed, folder, quiet) to a `Fitted`, with the painted
            images as second argument if the kind takes any. `folder` is where interrupted work is
            kept, or None.
        load: A function (folder, generator) to the labeler that its `save` wrote there.
        needs: What it needs of a generator beyond images: one of its `ABILITIES`, or nothing.
        takes_painted: Whether it learns from painted images.
        check: A function (generator, config), or (generator, painted, config), that raises
            InputError for what cannot be done, before any work is.
        can_vote: Whether its labelers say how sure they are of each pixel: `HasVotes`.
        members: Values of the field `mode` of which each makes a labeler of its own; the students
            of these can be averaged as an ensemble.
        flags: Names of flags, by field, where they differ. A field that is a dataclass gives a
            prefix to the flags of its own fields, its name; "" gives none.
        renamed: New names of fields, by the ones that earlier versions wrote; a field of a field
            is called "outer.inner".
        respelled: New spellings of texts, by the ones that earlier versions wrote.
        retired: Fields that earlier versions wrote, each with the one value that is still known.
        story: What the report of a run says about it.
    """

    name: str
    title: str
    config: type
    settings: Mapping[str, Any]
    fit: Callable[..., Fitted[L_co]]
    load: Callable[..., L_co]
    needs: str | None = None
    takes_painted: bool = False
    check: Callable[..., None] | None = None
    can_vote: bool = False
    members: tuple[str, ...] = ()
    flags: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict)
    respelled: Mapping[str, str] = field(default_factory=dict)
    retired: Mapping[str, Any] = field(default_factory=dict)
    story: Story = field(default_factory=Story)

    @property
    def default(self) -> Any:
        """The configuration that is taken if nothing else is said."""
        return next(iter(self.settings.values()))

    def options(self, values: Any, where: Path | str) -> Any:
        """The configuration that a labeler.json records, also one of an earlier version.

        Raises:
            InputError: a field is unknown, or asks for what this version no longer does.
            CorruptFileError: it is no JSON object.
        """
        if not isinstance(values, Mapping):
            raise CorruptFileError(f"{where}: the options of the labeler are {values!r}.")
        return from_json(self.config, self._current(values, where), where)

    def _current(
        self, values: Mapping[str, Any], where: Path | str, prefix: str = ""
    ) -> dict[str, Any]:
        """Values of an earlier version as this one has them."""
        current = {}
        for name, value in values.items():
            dotted = f"{prefix}{name}"
            if dotted in self.retired:
                _check_retired(dotted, value, self.retired[dotted], where)
                continue
            if isinstance(value, Mapping):
                value = self._current(value, where, f"{dotted}.")
            if isinstance(value, str):
                value = self.respelled.get(value, value)
            current[self.renamed.get(dotted, name)] = value
        return current


def _check_retired(name: str, value: object, kept: object, where: Path | str) -> None:
    if value != kept:
        raise InputError(
            f"{where}: `{name}` is {value!r}. Measured worse than {kept!r}, it is no longer "
            "offered: use the version that wrote this labeler, or fit it again without it."
        )


def deferred(reference: str) -> Callable[..., Any]:
    """The function `module:name` of this package, whose module is imported by the first call."""
    module, _, name = reference.partition(":")

    def call(*arguments: Any, **options: Any) -> Any:
        function: Any = import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
        return function(*arguments, **options)

    return call
