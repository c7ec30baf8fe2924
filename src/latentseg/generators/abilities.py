"""What a generator can do beyond drawing images, by name."""

from latentseg.generators.protocols import (
    Generator,
    HasEncoder,
    HasFeatures,
    HasVariants,
)

ABILITIES: dict[str, type] = {
    "variants": HasVariants,
    "features": HasFeatures,
    "encoder": HasEncoder,
}


def abilities(generator: Generator) -> tuple[str, ...]:
    """Of `ABILITIES`, what `generator` has; and "classes", if it is conditional."""
    found = [name for name, protocol in ABILITIES.items() if isinstance(generator, protocol)]
    return (*found, "classes") if generator.info.n_classes else tuple(found)
