import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import read_image
from latentseg.labelers.feature_clusters import FeatureClustersLabeler, fit_feature_clusters
from latentseg.labelers.feature_clusters_settings import FeatureClustersConfig
from latentseg.labelers.naming import BACKGROUND, ClassNames
from tests.closeness import assert_same_masks
from tests.few_shot_world import FewShotWorld
from tests.parts_world import PartsWorld
from tests.world import seeds

CONFIG = FeatureClustersConfig(k=8, layer=2, n_images=12, restarts=4)


@cache
def fitted() -> FeatureClustersLabeler:
    return fit_feature_clusters(FewShotWorld(), config=CONFIG)


def test_clusters_when_features_tell_the_parts_then_each_lies_in_one_part():
    labeler = fitted()
    latents = labeler.generator.sample(seeds(16))
    segments = labeler.segments(latents)[0].numpy()
    truth = FewShotWorld().masks(latents).numpy()
    joint = np.zeros((8, 4), int)
    np.add.at(joint, (segments.ravel(), truth.ravel()), 1)
    assert joint.max(axis=1).sum() / joint.sum() > 0.9
    assert set(joint.argmax(axis=1)) == {0, 1, 2, 3}


def test_clusters_when_fitted_then_those_at_the_border_are_background():
    labeler = fitted()
    latents = labeler.generator.sample(seeds(16))
    masks, truth = labeler.label(latents).masks, FewShotWorld().masks(latents)
    agreement = ((masks > 0) & (truth > 0)).sum() / ((masks > 0) | (truth > 0)).sum()
    assert agreement > 0.5
    assert BACKGROUND in labeler.names.given
    assert set(labeler.classes) == set(labeler.names.given) - {BACKGROUND}


def test_clusters_when_named_then_equal_names_are_one_class():
    named = fitted().with_names(ClassNames(("thing",) * 7 + (BACKGROUND,)))
    assert named.classes == ("thing",)
    assert set(named.label(named.own_latents(4)).masks.unique().tolist()) <= {0, 1}


def test_fit_when_with_a_folder_then_it_writes_all_and_loads_the_same(tmp_path: Path):
    labeler = fit_feature_clusters(FewShotWorld(), config=CONFIG, out=tmp_path)
    latents = labeler.generator.sample(seeds(4))
    expected, found = fitted().label(latents), labeler.label(latents)
    assert_same_masks(expected.masks, found.masks)
    assert torch.equal(expected.rejected_by, found.rejected_by)
    assert json.dumps(labeler.info) == json.dumps(fitted().info)
    assert read_json(tmp_path / "quality.json")["samples"] == 64
    assert read_image(tmp_path / "contact_sheet.png").size
    for path in list(tmp_path.iterdir()):
        if path.name.startswith(".") or path.name == "config.json":
            continue
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises((CorruptFileError, InputError)):
            FeatureClustersLabeler.load(tmp_path, FewShotWorld())
        path.write_bytes(content)


def test_label_when_the_batch_is_split_then_masks_and_verdicts_agree():
    labeler = fitted()
    latents = labeler.generator.sample(seeds(6))
    whole = labeler.label(latents)
    parts = [labeler.label(latents[rows]) for rows in (slice(0, 1), slice(1, 6))]
    assert_same_masks(whole.masks, torch.cat([part.masks for part in parts]))
    assert torch.equal(whole.rejected_by, torch.cat([part.rejected_by for part in parts]))
    assert ((whole.confidence >= 0) & (whole.confidence <= 1)).all()


def test_fit_when_no_layer_is_asked_for_then_a_coarse_one_is_taken():
    config = replace(CONFIG, layer=None, normalize=True)
    assert fit_feature_clusters(FewShotWorld(), config=config).config.layer == 0


def test_fit_when_the_generator_has_no_features_then_it_is_refused():
    with pytest.raises(InputError, match=r"feature-clusters needs\. It can serve"):
        fit_feature_clusters(PartsWorld())


@pytest.mark.parametrize("options", [{"k": 1}, {"n_images": 0}, {"restarts": 0}])
def test_config_when_wrong_then_it_is_refused(options):
    with pytest.raises(InputError, match=r"expected|at least"):
        FeatureClustersConfig(**options)
