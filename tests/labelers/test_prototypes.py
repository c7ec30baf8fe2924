"""Classes that mean the same in every image: against the parts world, by both ways."""

import json
from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.labelers.fit_style_mixing import fit_style_mixing
from latentseg.labelers.foreground import background_classes, places
from latentseg.labelers.naming import ClassNames, read_names
from latentseg.labelers.prototypes import fit_prototypes, segment_statistics
from latentseg.labelers.style_mixing import StyleMixingLabeler
from latentseg.labelers.style_mixing_settings import StyleMixingConfig
from tests.parts_world import PARTS, PartsWorld, matched_iou
from tests.world import seeds

CONFIG = StyleMixingConfig(k=4, n_variants=16, first_mixed_layer=1, restarts=4)


@cache
def fitted(meaning: str) -> StyleMixingLabeler:
    config = replace(CONFIG, meaning=meaning)  # pyright: ignore[reportArgumentType]
    return fit_style_mixing(PartsWorld(), config=config, quiet=True)


@pytest.mark.parametrize("meaning", ["shared", "matched"])
def test_labeler_when_there_are_four_segments_then_each_is_one_part_everywhere(meaning: str):
    world, labeler = PartsWorld(), fitted(meaning)
    latents = world.sample(seeds(32, key=7))
    masks, truth = labeler.label(latents).masks.numpy(), world.masks(latents).numpy()
    assert labeler.classes == ("part-1", "part-2", "part-3")
    # One renaming for all images: a class may not change its meaning from image to image.
    renamed = [np.array((0, *order))[masks] for order in permutations((1, 2, 3))]
    assert max(matched_iou(each, truth, 4) for each in renamed) >= 0.95


def test_prototypes_when_segments_come_in_any_order_then_they_are_told_apart():
    rng = np.random.default_rng(0)
    kinds = rng.normal(0, 3, (5, 8))
    orders = np.stack([rng.permutation(5) for _ in range(20)])
    statistics = torch.from_numpy(kinds[orders] + rng.normal(0, 0.2, (20, 5, 8))).float()
    prototypes, cost = fit_prototypes(statistics, torch.ones(8))
    classes = prototypes.match(statistics).numpy()
    kind_of = np.array([classes[0][np.argmax(orders[0] == kind)] for kind in range(5)])
    np.testing.assert_array_equal(classes, kind_of[orders])
    assert cost < 0.5


def test_segment_statistics_when_a_segment_is_known_then_so_are_its_colour_and_place():
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, :2] = 1
    points = labels.flatten(1)[..., None].float().expand(1, 16, 3)
    statistics, weights = segment_statistics(points, labels, 2)
    assert statistics[0, :, :3].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert statistics[0, 0, 3].item() == pytest.approx(-statistics[0, 1, 3].item())
    assert statistics[0, 0, 3] > 0
    assert statistics[0, :, 6].tolist() == [0.5, 0.5]
    assert weights[:3].square().sum() == pytest.approx(weights[3:].square().sum())


def test_background_classes_when_one_lies_at_the_border_then_it_is_one_of_them():
    labels = torch.zeros(3, 12, 12, dtype=torch.int64)
    labels[:, 3:9, 3:6], labels[:, 3:9, 6:9] = 1, 2
    assert background_classes(places(labels, 3), 0.0).tolist() == [True, False, False]


def test_names_when_merged_or_dropped_then_masks_follow(tmp_path: Path):
    labeler = fitted("shared")
    latents = labeler.generator.sample(seeds(4))
    labeler.save(tmp_path)
    given = labeler.names.given
    plain = labeler.label(latents).masks
    merged = {
        str(i): {"part-1": "figure", "part-2": "figure"}.get(name, "background")
        for i, name in enumerate(given, start=1)
    }
    (tmp_path / "classes.json").write_text(json.dumps(merged))
    named = StyleMixingLabeler.load(tmp_path, labeler.generator)
    assert named.classes == ("figure",)
    masks = named.label(latents).masks
    agreeing = (masks == 1) == ((plain == 1) | (plain == 2))
    assert agreeing.float().mean() > 0.99  # small components are counted anew
    assert named.info["classes"] != labeler.info["classes"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ('{"1": "a", "2": "b", "3": "c"}', "class 4 is missing"),
        ('{"1": "a", "2": "b", "3": "c", "4": "d", "5": "e"}', "unknown field '5'"),
        ('{"1": "a", "2": 7, "3": "c", "4": "d"}', "class 2 is 7"),
        ('{"1": "a", "2": " ", "3": "c", "4": "d"}', "class 2: has an empty name"),
        ('["a", "b"]', "found list"),
        (json.dumps({str(i): "background" for i in range(1, 5)}), "at least one"),
    ],
)
def test_read_names_when_the_file_is_nonsense_then_it_says_where(tmp_path, content, named):
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(InputError, match=named):
        read_names(tmp_path, n=4)


def test_read_names_when_the_file_is_cut_or_missing_then_it_says_so(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_names(tmp_path, n=2)
    (tmp_path / "classes.json").write_text('{"1": "a", ')
    with pytest.raises(CorruptFileError, match="JSON"):
        read_names(tmp_path, n=2)


def test_fit_when_there_are_parts_then_a_page_shows_them_and_their_names_can_be_changed(
    tmp_path: Path,
):
    world = PartsWorld()
    config = replace(CONFIG, n_variants=4, restarts=2)
    labeler = fit_style_mixing(world, config=config, out=tmp_path, quiet=True)
    page = (tmp_path / "classes.html").read_text()
    assert page.count("<img") == 4
    assert "://" not in page
    assert (tmp_path / "classes.png").is_file()
    assert read_json(tmp_path / "classes.json") == {
        str(i): name for i, name in enumerate(labeler.names.given, start=1)
    }
    names = [PARTS[0] if name != "background" else name for name in labeler.names.given]
    ClassNames(tuple(names)).write(tmp_path)
    # The folder stays whole: names are the user's.
    assert fit_style_mixing(world, config=config, out=tmp_path, quiet=True).classes == ("body",)
