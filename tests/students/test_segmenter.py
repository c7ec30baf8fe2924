import json

import numpy as np
import pytest
import torch
from PIL import Image

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_manifest
from latentseg.images import to_tensor, write_image
from latentseg.students import segmenter as module
from latentseg.students import tiling
from latentseg.students.networks import build_network
from latentseg.students.segmenter import Segmenter, ensemble, list_segmenters
from tests.closeness import assert_same_masks
from tests.students.test_tiling import plain_blend


def make_segmenter(seed=0, classes=("disc",), logits_up_to=None, **options):
    """With random weights; logits in the hundreds, unless their largest is given."""
    torch.manual_seed(seed)
    network = build_network("unet", len(classes) + 1, width=0.125)
    for parameter in network.parameters():  # answers that differ from pixel to pixel
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    if logits_up_to is not None:
        largest = network.eval()(to_tensor(make_image())[None]).abs().max()
        for parameter in network.get_submodule("exit").parameters():
            parameter.data *= logits_up_to / largest
    return Segmenter([network], classes=classes, input_size=(16, 16), width=0.125, **options)


def make_image(height=20, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_scores_are_probabilities_at_the_size_of_the_photo():
    scores = make_segmenter(classes=("a", "b")).scores(make_image())
    assert scores.shape == (3, 20, 30)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-5)


def test_scores_follow_the_protocol_of_the_paper():
    """Logits at the input size, upsampled bilinearly, then softmax."""
    segmenter = make_segmenter()
    image = make_image(16, 24)
    logits = segmenter.members[0](to_tensor(image)[None])
    torch.testing.assert_close(
        torch.from_numpy(segmenter.scores(image)), logits.softmax(1)[0], atol=1e-5, rtol=1e-4
    )
    large = make_image(32, 48)
    small = module.resize(large, (16, 24))
    logits = segmenter.members[0](to_tensor(small)[None])
    expected = torch.nn.functional.interpolate(logits, size=(32, 48), mode="bilinear").softmax(1)[0]
    torch.testing.assert_close(
        torch.from_numpy(segmenter.scores(large)), expected, atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 5), (16, 16), (333, 17)])
def test_photos_of_any_size_are_segmented(size):
    prediction = make_segmenter().predict(make_image(*size))
    assert prediction.mask.shape == size
    assert prediction.scores.shape == (2, *size)


def test_batches_give_the_scores_of_single_images_in_order():
    segmenter = make_segmenter()
    images = [
        make_image(20, 30),
        make_image(16, 16, 1),
        make_image(20, 30, 2),
        make_image(16, 16, 3),
    ]
    for image, scores in zip(images, segmenter.scores_batch(images), strict=True):
        np.testing.assert_allclose(scores, segmenter.scores(image), atol=1e-4)
    assert segmenter.scores_batch([]) == []
    assert segmenter.predict([]) == []


def test_flip_makes_the_answer_symmetric():
    segmenter = make_segmenter()
    image = make_image(16, 16)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    scores = segmenter.scores(image, flip=True)
    np.testing.assert_allclose(segmenter.scores(mirrored, flip=True)[..., ::-1], scores, atol=1e-5)
    assert np.abs(scores - segmenter.scores(image)).max() > 1e-3


def test_photos_may_be_paths_pictures_arrays_or_lists_of_them(tmp_path):
    segmenter = make_segmenter()
    image = make_image()
    write_image(tmp_path / "photo.png", image)
    expected = segmenter.predict(image)
    photos = [tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image), image]
    for prediction in [*segmenter.predict(photos), segmenter.predict(photos[0])]:
        assert_same_masks(prediction.mask, expected.mask)
        assert np.array_equal(prediction.image, image)


def test_photos_are_turned_upright_by_exif(tmp_path):
    image = make_image(20, 30)
    picture = Image.fromarray(image)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    segmenter = make_segmenter()
    upright = np.rot90(image, k=-1).copy()
    for photo in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        prediction = segmenter.predict(photo)
        assert np.array_equal(prediction.image, upright)
        assert_same_masks(prediction.mask, segmenter.predict(upright).mask)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(InputError, match="Expected an image"):
        make_segmenter().predict(array)


def test_masks_hold_the_most_likely_class_or_what_is_above_the_threshold():
    prediction = make_segmenter(classes=("a", "b")).predict(make_image())
    assert np.array_equal(prediction.mask, prediction.scores.argmax(0))
    prediction = make_segmenter(threshold=0.2).predict(make_image())
    assert np.array_equal(prediction.mask, prediction.scores[1] > 0.2)


def test_prediction_gives_mask_overlay_and_cut_out(tmp_path):
    prediction = make_segmenter().predict(make_image())
    prediction.save(tmp_path / "mask.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "mask.png")), prediction.mask)
    assert prediction.overlay().shape == (20, 30, 3)
    assert np.array_equal(prediction.cut_out()[..., 3] > 0, prediction.mask > 0)


class Brightness(torch.nn.Module):
    """Foreground where a pixel is brighter than grey; counts the pictures of each call."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(8.0))
        self.calls = []

    def forward(self, x):
        self.calls.append(tuple(x.shape))
        foreground = self.weight * x.mean(1)
        return torch.stack([-foreground, foreground], 1)


def make_brightness_segmenter():
    network = Brightness()
    return Segmenter([network], classes=("light",), input_size=(16, 16)), network


def test_photos_that_are_seen_equally_large_go_through_the_network_together():
    segmenter, network = make_brightness_segmenter()
    images = [make_image(20, 30), make_image(32, 48), make_image(30, 20), make_image(160, 240)]
    scores = segmenter.scores_batch(images)
    assert network.calls == [(3, 3, 16, 24), (1, 3, 24, 16)]
    assert [one.shape for one in scores] == [(2, *image.shape[:2]) for image in images]


def test_batches_are_small_where_pictures_are_large(monkeypatch):
    monkeypatch.setattr(module, "MAX_BATCH_PIXELS", 16 * 16 * 5 + 1)
    segmenter, network = make_brightness_segmenter()
    segmenter.scores_batch([make_image(16, 16, i) for i in range(12)])
    assert [shape[0] for shape in network.calls] == [5, 5, 2]
    segmenter.scores_batch([make_image(16, 200)] * 2)
    assert [shape[0] for shape in network.calls[3:]] == [1, 1]


def test_scores_of_large_photos_never_lie_in_memory_as_a_whole(monkeypatch):
    monkeypatch.setattr(tiling, "STRIP_VALUES", 2 * 300 * 10)
    segmenter = make_segmenter()
    image = make_image(200, 300)
    ((index, strips),) = segmenter.strips([segmenter.view(image)])
    strips = list(strips)
    assert index == 0
    assert max(strip.shape[1] for strip in strips) == 10
    whole = segmenter.scores(image)
    np.testing.assert_allclose(torch.cat(strips, 1).numpy(), whole, atol=1e-6)
    mask = torch.cat([segmenter.decide(strip) for strip in strips])
    assert_same_masks(mask, segmenter.predict(image).mask)


def test_tiles_find_what_is_lost_when_a_photo_is_seen_whole():
    image = np.zeros((320, 320, 3), np.uint8)
    image[100:110, 200:210] = 255
    segmenter, network = make_brightness_segmenter()
    assert segmenter.predict(image).mask.sum() == 0
    found = segmenter.predict(image, tile=32).mask
    assert 60 <= found.sum() <= 160
    assert found[96:114, 196:214].sum() == found.sum()
    assert {shape[-2:] for shape in network.calls[1:]} == {(16, 16)}


def test_tiled_scores_are_those_of_windows_blended_and_scaled_up():
    segmenter = make_segmenter(classes=("a", "b"), logits_up_to=8)
    image = make_image(50, 76)
    picture = module.resize(image, (round(50 * 16 / 20), round(76 * 16 / 20)))

    def answer(window):
        return segmenter.logits(to_tensor(window)[None], flip=True)[0]

    blended = torch.from_numpy(plain_blend(picture, answer, 16, 0.25))
    expected = torch.nn.functional.interpolate(blended[None], size=(50, 76), mode="bilinear")[0]
    scores = segmenter.scores(image, flip=True, tile=20, tile_overlap=0.25)
    np.testing.assert_allclose(scores, expected.softmax(0), atol=1e-5)
    assert np.abs(scores - segmenter.scores(image, flip=True)).max() > 0.01


def test_a_flat_segmenter_answers_alike_with_and_without_tiles():
    segmenter, network = make_brightness_segmenter()
    network.weight.zero_()
    image = make_image(100, 150)
    np.testing.assert_allclose(segmenter.scores(image, tile=32), segmenter.scores(image), atol=1e-7)


def test_photos_that_fit_into_a_tile_are_seen_whole():
    segmenter = make_segmenter()
    image = make_image(30, 90)
    np.testing.assert_allclose(segmenter.scores(image, tile=30), segmenter.scores(image), atol=1e-6)
    assert not np.array_equal(segmenter.scores(image, tile=29), segmenter.scores(image))
    with pytest.raises(InputError, match="at least 16"):
        segmenter.predict(image, tile=15)


CARD = {
    "name": "discs",
    "licence": "CC0",
    "generator": {"name": "toy", "licence": "CC0"},
    "results": [{"dataset": "toy", "protocol": "melas2021", "n_images": 3, "iou": 0.51234}],
}


def test_saved_segmenter_answers_alike(tmp_path):
    segmenter = make_segmenter(classes=("a", "b"), threshold=0.4, card=CARD)
    segmenter.save(tmp_path / "model")
    loaded = Segmenter.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.scores(make_image()), segmenter.scores(make_image()), atol=1e-6
    )
    assert loaded.digest == segmenter.digest
    assert (loaded.classes, loaded.input_size, loaded.card) == (("a", "b"), (16, 16), CARD)
    assert (loaded.network, loaded.width, loaded.threshold) == ("unet", 0.125, 0.4)


def test_saving_twice_writes_the_same_bytes(tmp_path):
    for name in "ab":
        make_segmenter(card=CARD).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_half_precision_halves_the_file_and_hardly_changes_the_answer(tmp_path):
    segmenter = make_segmenter()
    segmenter.save(tmp_path / "full")
    segmenter.save(tmp_path / "half", half=True)
    full, half = (
        (tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half")
    )
    assert half < 0.55 * full
    loaded = Segmenter.from_pretrained(tmp_path / "half")
    assert next(loaded.members.parameters()).dtype == torch.float32
    np.testing.assert_allclose(
        loaded.scores(make_image()), segmenter.scores(make_image()), atol=0.02
    )


def test_card_names_results_protocol_and_licence(tmp_path):
    make_segmenter(card=CARD).save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    for part in ("# discs", "CC0", "melas2021", "0.512", "background, disc"):
        assert part in card


def test_unknown_card_field_is_refused():
    with pytest.raises(InputError, match="licence"):
        make_segmenter(card={"license": "CC0"})


def test_run_folder_stands_for_its_model(tmp_path):
    make_segmenter().save(tmp_path / "run" / "model")
    (tmp_path / "run" / "config.json").write_text("{}")
    assert Segmenter.from_pretrained(tmp_path / "run").classes == ("disc",)


def test_saving_over_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds files"):
        make_segmenter().save(tmp_path)
    make_segmenter(0).save(tmp_path / "model")
    make_segmenter(1).save(tmp_path / "model")
    assert Segmenter.from_pretrained(tmp_path / "model").digest == make_segmenter(1).digest


def test_bundled_segmenter_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ASSETS", tmp_path)
    make_segmenter().save(tmp_path / "pets64")
    assert list_segmenters() == ["pets64"]
    assert Segmenter.from_pretrained("pets64").classes == ("disc",)
    with pytest.raises(InputError, match="pets64"):
        Segmenter.from_pretrained("pets46")


def test_folder_without_a_segmenter_is_refused(tmp_path):
    with pytest.raises(InputError, match="no segmenter in this folder"):
        Segmenter.from_pretrained(tmp_path)


def test_ensemble_averages_probabilities(tmp_path):
    first, second = make_segmenter(0), make_segmenter(1, card={"licence": "CC0", "results": [{}]})
    both = ensemble([second, first])
    image = make_image(16, 16)
    mean = (first.scores(image) + second.scores(image)) / 2
    np.testing.assert_allclose(both.scores(image), mean, atol=1e-5)
    assert both.card == {"licence": "CC0"}
    both.save(tmp_path / "model")
    loaded = Segmenter.from_pretrained(tmp_path / "model")
    assert len(loaded.members) == 2
    np.testing.assert_allclose(loaded.scores(image), mean, atol=1e-5)


def test_ensembles_of_unequals_or_of_nothing_are_refused():
    with pytest.raises(InputError, match="differ in classes"):
        ensemble([make_segmenter(), make_segmenter(classes=("cat",))])
    with pytest.raises(InputError, match="at least one"):
        ensemble([])


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    config.update(changes)
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v is not None})
    )
    write_manifest(folder)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"format": 2}, InputError, "format 2"),
        ({"colour": 1}, InputError, "colour"),
        ({"classes": []}, CorruptFileError, "classes"),
        ({"classes": ["a", "b"]}, CorruptFileError, "do not fit"),
        ({"classes": None}, CorruptFileError, "classes"),
        ({"width": 0.25}, CorruptFileError, "do not fit"),
        ({"width": 1e9}, InputError, "width"),
        ({"width": "wide"}, CorruptFileError, "width"),
        ({"members": 2}, CorruptFileError, "do not fit"),
        ({"members": 0}, CorruptFileError, "members"),
        ({"input_size": [16]}, CorruptFileError, "input_size"),
        ({"mean": [0, 0, 0]}, InputError, "mean"),
        ({"network": "os.system"}, InputError, "os.system"),
    ],
)
def test_wrong_configurations_are_refused(tmp_path, changes, error, said):
    make_segmenter().save(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(error, match=said):
        Segmenter.from_pretrained(tmp_path)


def test_every_damaged_byte_is_noticed(tmp_path):
    make_segmenter().save(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("config.json", "model.safetensors", "README.md"):
        content = (tmp_path / name).read_bytes()
        for position in rng.integers(0, len(content), 10):
            damaged = bytearray(content)
            damaged[position] ^= 1 << rng.integers(8)
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(CorruptFileError, match=name):
                Segmenter.from_pretrained(tmp_path)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CorruptFileError, match="missing"):
        Segmenter.from_pretrained(tmp_path)


def test_loading_leaves_the_global_random_state_alone(tmp_path):
    make_segmenter().save(tmp_path)
    before = torch.get_rng_state()
    Segmenter.from_pretrained(tmp_path)
    assert torch.equal(before, torch.get_rng_state())


def test_no_members_or_classes_are_refused():
    with pytest.raises(InputError, match="one network"):
        Segmenter([], classes=("a",), input_size=(16, 16))
