"""The twelve generators of Melas-Kyriazi 2021, Table 2, at their real size with random weights."""

from dataclasses import replace

import pytest

from latentseg.generators.registry import families
from latentseg.labelers.direction_search import find_direction
from latentseg.labelers.directions_settings import SETTINGS
from tests.generators.random_weights import random_generator

TABLE_2 = (
    "studiogan/acgan-tiny64", "studiogan/biggan-tiny64", "studiogan/ggan-tiny64",
    "studiogan/sagan-tiny64", "studiogan/sngan-tiny64", "studiogan/sagan-128",
    "studiogan/sngan-128", "studiogan/contragan-128", "studiogan/biggan-128",
    "selfcond/uncond-128", "selfcond/selfcond-128", "bigbigan/bigbigan-128",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE_2)
def test_direction_is_searched_at_the_real_size(name: str) -> None:
    family, _, published = name.partition("/")
    known = families()[family]
    generator = random_generator(known, known.published[published])
    config = replace(SETTINGS["ours"], steps=2, restarts=1, restart_steps=1, batch=2)
    direction = find_direction(generator, "light", config=config, quiet=True)
    assert direction.values.shape == generator.info.latent
    assert direction.values.isfinite().all()
    assert len(direction.losses) == 2
