"""Style mixing: masks against the world's exact ones, the fit, and what cannot be labelled."""

import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.generators.protocols import Latents
from latentseg.labelers import fit_style_mixing as fit_style_mixing_module
from latentseg.labelers.fit_style_mixing import fit_style_mixing, measure_layers, reliability
from latentseg.labelers.foreground import foreground_segment
from latentseg.labelers.mask_measures import mask_iou
from latentseg.labelers.naming import ClassNames
from latentseg.labelers.style_mixing import StyleMixingLabeler, clean, segment
from latentseg.labelers.style_mixing_settings import KIND, StyleMixingConfig
from latentseg.labelers.variants import descriptors, draw_variants, reduce
from tests.closeness import assert_same_masks
from tests.world import World, seeds

FOREGROUND = ClassNames(("foreground",))
BRIEF = StyleMixingConfig(n_variants=6, restarts=2)


@cache
def mixing(n_classes: int = 0, **options: Any) -> StyleMixingLabeler:
    """A labeler of the world with the default settings, but for `options`."""
    config = StyleMixingConfig(first_mixed_layer=1, **options)
    return StyleMixingLabeler(World(n_classes=n_classes), config=config, seed=0, names=FOREGROUND)


def ious(labeler: StyleMixingLabeler, n: int = 48) -> np.ndarray:
    world = labeler.generator
    assert isinstance(world, World)
    latents = world.sample(seeds(n, key=7))
    return mask_iou(labeler.label(latents).masks.numpy() > 0, world.masks(latents).numpy() > 0)


@pytest.mark.parametrize("n_classes", [0, 3])
def test_labeler_when_k_is_2_then_its_masks_are_the_known_ones(n_classes: int):
    found = ious(mixing(n_classes))
    assert found.mean() >= 0.96  # 0.95 is asked for
    assert found.min() >= 0.9


@pytest.mark.parametrize(
    "options",
    [
        {"foreground": "border"},
        {"foreground": "vote"},
    ],
)
def test_labeler_when_an_option_is_chosen_then_masks_stay_good(options: dict[str, Any]):
    assert ious(mixing(**options), 16).mean() >= 0.9


def test_labeler_when_more_variants_are_drawn_then_masks_are_better():
    few, many = (ious(mixing(n_variants=n, min_component=0.0), 16).mean() for n in (2, 32))
    assert many > few


def test_label_when_asked_then_images_are_the_generators_and_confidence_is_the_mean_margin():
    labeler = mixing()
    latents = labeler.generator.sample(seeds(3))
    labelled = labeler.label(latents)
    torch.testing.assert_close(labelled.images, labeler.generator(latents))
    variants = torch.cat(list(labeler.drawn(latents)))
    assert variants.shape == (3, 32, 3, 32, 32)
    torch.testing.assert_close(variants[:, 0], labelled.images)
    found = labeler.segments(variants)
    torch.testing.assert_close(labelled.confidence, found.margins.mean(dim=(1, 2)))


@pytest.mark.parametrize("memory", [1, 40_000_000, 2**30])
def test_label_when_the_batch_is_split_or_memory_is_small_then_masks_stay(memory: int):
    labeler = mixing(memory=memory)
    latents = labeler.generator.sample(seeds(7))
    whole, plain = labeler.label(latents), mixing().label(latents)
    parts = [labeler.label(latents[rows]) for rows in (slice(0, 1), slice(1, 4), slice(4, 7))]
    assert_same_masks(whole.masks, torch.cat([part.masks for part in parts]))
    assert_same_masks(whole.masks, plain.masks)
    assert torch.equal(whole.rejected_by, torch.cat([part.rejected_by for part in parts]))


def test_draw_variants_when_memory_is_small_then_the_same_variants_are_drawn():
    world = World()
    latents, styles = world.sample(seeds(3)), seeds(5, key=1)
    whole, one_by_one = (
        draw_variants(world, latents, styles, 1, memory=memory) for memory in (2**30, 1)
    )
    assert whole.shape == (3, 5, 3, 32, 32)
    torch.testing.assert_close(whole, one_by_one)
    torch.testing.assert_close(whole, world.variants(latents, styles, 1))


def test_descriptors_when_of_pixels_then_distances_are_those_of_correlation():
    variants = torch.rand(1, 10, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    points = descriptors(variants)[0]
    series = variants[0].flatten(2).permute(2, 1, 0).numpy()  # pixel, channel, variant
    for a in range(4):
        for b in range(4):
            correlations = [np.corrcoef(series[a, c], series[b, c])[0, 1] for c in range(3)]
            expected = 2 * (3 - sum(correlations))
            assert float((points[a] - points[b]).square().sum()) == pytest.approx(
                expected, abs=1e-4
            )


def test_segment_when_the_image_is_larger_than_the_resolution_then_every_pixel_is_assigned():
    world = World((64, 64))
    config = StyleMixingConfig(first_mixed_layer=1, resolution=32)
    labeler = StyleMixingLabeler(world, config=config, seed=0, names=FOREGROUND)
    assert ious(labeler, 12).mean() >= 0.95
    latents = world.sample(seeds(2))
    assert labeler.votes(latents, world(latents)).shape == (2, 64, 64)


def test_reduce_when_not_square_then_the_longest_side_is_the_bound():
    assert reduce(torch.zeros(1, 2, 3, 40, 20), 10).shape == (1, 2, 3, 10, 5)


def test_label_when_the_filters_are_tight_then_each_refuses_by_its_name():
    latents = World().sample(seeds(6))
    for options, name in (
        ({"max_area": 0.011}, "area"),
        ({"min_confidence": 1.0}, "confidence"),
        ({"min_agreement": 1.1}, "agreement"),
    ):
        rejected_by = mixing(**options).label(latents).rejected_by
        assert (rejected_by == 1 + mixing().filters.index(name)).all()


def test_clean_when_there_are_specks_and_holes_then_both_go():
    mask = np.zeros((2, 12, 12), dtype=bool)
    mask[0, 2:9, 2:9] = True
    mask[0, 5, 5] = False
    mask[0, 11, 11] = True
    cleaned = clean(mask, StyleMixingConfig())
    assert cleaned[0].sum() == 49
    assert not cleaned[1].any()
    assert np.array_equal(clean(mask, StyleMixingConfig(min_component=0, fill_holes=False)), mask)


@pytest.mark.parametrize("rule", ["border", "center", "vote"])
def test_foreground_when_one_segment_is_a_disc_in_the_middle_then_it_is_chosen(rule):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 16), indexing="ij")
    disc = ((y.square() + x.square()) < 0.3).long()
    assert foreground_segment(torch.stack([disc, 1 - disc]), 2, rule=rule).tolist() == [1, 0]


def test_foreground_when_a_segment_is_empty_then_it_is_never_chosen():
    assert foreground_segment(torch.ones(1, 4, 4, dtype=torch.int64), 2).tolist() == [1]
    with pytest.raises(InputError, match=r"`foreground`: expected one of .* found 'luck'"):
        foreground_segment(torch.ones(1, 4, 4, dtype=torch.int64), 2, rule="luck")  # pyright: ignore[reportArgumentType]


class Flat(World):
    """Draws the same grey for every latent."""

    def __call__(self, latents: Latents) -> torch.Tensor:
        return torch.full_like(super().__call__(latents), 0.2)


def test_label_when_images_are_constant_then_nothing_is_sure_and_the_filters_refuse():
    labeler = StyleMixingLabeler(Flat(), config=mixing().config, seed=0, names=FOREGROUND)
    labelled = labeler.label(Flat().sample(seeds(2)))
    assert (labelled.confidence == 0).all()
    assert (labelled.rejected_by > 0).all()


def test_label_when_there_is_one_variant_then_the_image_alone_is_clustered():
    labeler = mixing(n_variants=1)
    latents = labeler.generator.sample(seeds(3))
    assert labeler.label(latents).masks.shape == (3, 32, 32)
    x = labeler.generator(latents)
    alone = segment(x[:, None], labeler.config, seed=1)
    assert alone.segments.shape == (3, 32, 32)


def test_fit_when_k_exceeds_the_pixels_then_it_is_refused():
    with pytest.raises(InputError, match="`k`: 17, but an image has only 4 x 4"):
        fit_style_mixing(World((4, 4)), config=replace(BRIEF, k=17), quiet=True)


class Bare:
    """A generator without variants."""

    def __init__(self) -> None:
        self.world = World()
        self.info, self.device = self.world.info, self.world.device
        self.to, self.sample, self.shift = self.world.to, self.world.sample, self.world.shift

    def __call__(self, latents: Latents) -> torch.Tensor:
        return self.world(latents)


def test_fit_when_the_generator_has_no_variants_then_it_says_what_it_can_serve(tmp_path: Path):
    bare = Bare()
    with pytest.raises(InputError, match=r"variants.*It can serve: directions"):
        fit_style_mixing(bare, out=tmp_path / "labeler", quiet=True)  # pyright: ignore[reportArgumentType]
    assert bare.world.draws == 0
    assert not (tmp_path / "labeler").exists()


def test_fit_when_given_a_folder_then_it_holds_labeler_report_and_picture(tmp_path: Path):
    world = World()
    made = fit_style_mixing(world, config=BRIEF, out=tmp_path, quiet=True)
    assert made.config.first_mixed_layer == 1
    loaded = StyleMixingLabeler.load(tmp_path, world)
    latents = world.sample(seeds(5))
    assert_same_masks(made.label(latents).masks, loaded.label(latents).masks)
    assert json.dumps(loaded.info) == json.dumps(made.info)
    assert (tmp_path / "contact_sheet.png").is_file()
    quality = read_json(tmp_path / "quality.json")
    assert quality["first_mixed_layer"] == 1
    assert [row["layer"] for row in quality["layers"]] == [1]
    assert quality["kept"] + sum(quality["removed"].values()) == quality["samples"]
    assert sum(quality["areas"]["counts"]) == quality["kept"]


def test_fit_when_the_folder_is_finished_then_nothing_is_drawn_and_other_work_is_refused(
    tmp_path: Path,
):
    fit_style_mixing(World(), config=BRIEF, out=tmp_path, quiet=True)
    world = World()
    fit_style_mixing(world, config=BRIEF, out=tmp_path, quiet=True)
    assert world.draws == 0
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        fit_style_mixing(World(), config=BRIEF, seed=1, out=tmp_path, quiet=True)


class Deep(World):
    """The world with its layout cut into three layers."""

    n_layers = 4

    def variants(self, latents: Latents, seeds: torch.Tensor, keep: int) -> torch.Tensor:
        own, others = latents.values, self.sample(seeds).values
        kept = (0, 2, 3, 7, 21)[keep]
        drawn = [
            self(latents.with_values(torch.cat([own[:, :kept], row], dim=1)))
            for row in others[:, None, kept:].expand(-1, len(latents), -1)
        ]
        return torch.stack(drawn, dim=1)


def test_fit_when_the_layer_is_open_then_the_one_that_keeps_the_layout_is_chosen():
    rows = measure_layers(Deep(), quiet=True)
    assert [row["layer"] for row in rows] == [1, 2, 3]
    assert rows[0]["change"] > rows[2]["change"] > 0
    assert max(rows, key=reliability)["layer"] == 3
    assert all(row["chance"] < row["halves"] for row in rows)


def test_reliability_when_masks_agree_by_chance_or_nothing_changes_then_0():
    row = {"change": 0.4, "halves": 0.8, "chance": 0.3}
    assert reliability(row) > 0.2
    assert reliability({**row, "change": 0.0}) == 0
    assert reliability({**row, "chance": 0.8}) == 0


def test_fit_when_interrupted_then_the_same_call_continues_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = fit_style_mixing(Deep(), config=BRIEF, out=tmp_path / "whole", quiet=True)
    measure, calls = fit_style_mixing_module._measure_layer, []

    def interrupted(*arguments: Any) -> dict[str, float]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(fit_style_mixing_module, "_measure_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_style_mixing(Deep(), config=BRIEF, out=tmp_path / "parts", quiet=True)
    with pytest.raises(InputError, match="never finished"):
        StyleMixingLabeler.load(tmp_path / "parts", Deep())
    again = fit_style_mixing(Deep(), config=BRIEF, out=tmp_path / "parts", quiet=True)
    assert len(calls) == 4  # only the layer that was missing
    assert again.info == whole.info
    assert read_json(tmp_path / "parts" / "quality.json") == read_json(
        tmp_path / "whole" / "quality.json"
    )


def test_load_when_the_generator_is_another_then_it_is_refused(tmp_path: Path):
    mixing().save(tmp_path)
    with pytest.raises(InputError, match="n_classes 0; this one has 3"):
        StyleMixingLabeler.load(tmp_path, World(n_classes=3))


@pytest.mark.parametrize("name", ["labeler.json", "classes.json", "MANIFEST.json"])
def test_load_when_a_file_is_damaged_then_it_is_refused(tmp_path: Path, name: str):
    mixing().save(tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises((CorruptFileError, InputError)):
        StyleMixingLabeler.load(tmp_path, World())


@pytest.mark.parametrize(
    "change",
    [
        {"k": 1},
        {"n_variants": 0},
        {"foreground": "area"},
        {"meaning": "none"},
        {"min_confidence": -1.0},
        {"memory": 0},
    ],
)
def test_config_when_a_value_is_impossible_then_it_is_refused(change: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(change))):
        replace(BRIEF, **change)


def test_config_when_written_and_read_then_it_is_the_same():
    written = json.loads(json.dumps(asdict(BRIEF)))
    assert KIND.options(written, "x") == BRIEF
    with pytest.raises(InputError, match="Perhaps 'foreground'"):
        KIND.options({"forground": "border"}, "x")


def test_options_when_of_an_earlier_version_then_they_are_read_or_refused_by_name():
    earlier = {"colour": "rgb", "normalisation": "correlation", "clustering": "kmeans"}
    earlier |= {"spatial_weight": 0.0, "foreground": "center", "n_variants": 6, "restarts": 2}
    assert KIND.options(earlier, "x") == BRIEF
    for change in ({"colour": "lab"}, {"clustering": "mixture"}, {"spatial_weight": 0.05}):
        name = next(iter(change))
        with pytest.raises(InputError, match=f"labeler.json: `{name}` is .* no longer"):
            KIND.options({**earlier, **change}, "labeler.json")


def test_labeler_when_the_layer_is_not_one_of_the_generators_then_it_is_refused():
    with pytest.raises(InputError, match=r"`first_mixed_layer`: expected 0 to 2.* found 3"):
        StyleMixingLabeler(
            World(), config=replace(BRIEF, first_mixed_layer=3), seed=0, names=FOREGROUND
        )
