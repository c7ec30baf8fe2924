"""What labelers need of a generator beyond images, and the refusal of a generator without it."""

from latentseg.errors import InputError
from latentseg.generators.abilities import abilities
from latentseg.generators.protocols import Generator
from latentseg.labelers.registry import labelers_for

WHAT = {
    "variants": "cannot draw variants of an image (the same layout in another look: `n_layers` "
    "and `variants` of the protocol HasVariants)",
    "features": "its activation maps cannot be read (`feature_channels` and `features` of the "
    "protocol HasFeatures)",
    "encoder": "cannot encode images (the protocol HasEncoder)",
}


def check_ability(generator: Generator, ability: str | None, method: str) -> None:
    """Raises an error unless the generator has the ability that a method needs.

    Raises:
        InputError: it has not; names the labelers that it can serve.
    """
    found = abilities(generator)
    if ability is None or ability in found:
        return
    raise InputError(
        f"generator {generator.info.name!r}: {WHAT.get(ability, f'lacks {ability}')}, which "
        f"{method} needs. It can serve: {', '.join(labelers_for(found))}."
    )
