"""Exports answer as the segmenter does, for photos of any size, or are not written."""

import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from latentseg import files
from latentseg.datasets.real import open_dataset
from latentseg.errors import InputError
from latentseg.evaluation.measuring import measure
from latentseg.files import MANIFEST, verify_manifest
from latentseg.images import list_images, read_image, write_image
from latentseg.images import resize as resize_picture
from latentseg.students import export as module
from latentseg.students import onnx_predictor
from latentseg.students.export import Agreement, export_segmenter
from latentseg.students.graph import SegmenterGraph, record, resize
from latentseg.students.networks import PHOTO_UNET, PaddedNetwork, build_network
from latentseg.students.onnx_predictor import Predictor, read_photo
from latentseg.students.segmenter import Segmenter, ensemble
from tests.closeness import assert_same_masks
from tests.students.test_segmenter import make_image, make_segmenter

PETS = Path(__file__).parents[1] / "data" / "pets"
CARD = {"name": "discs", "description": "Finds discs.", "licence": "CC0-1.0, as the toy's"}
SIZES = [(1, 1), (1, 300), (7, 3), (16, 16), (40, 33), (120, 50)]


def make_tiny(seed=0, classes=("disc",), network=None, **options):
    """A segmenter whose network is one convolution: recorded in a moment."""
    torch.manual_seed(seed)
    network = network or nn.Conv2d(3, len(classes) + 1, 3, padding=1)
    options = {"card": CARD, **options}
    return Segmenter([network], classes=classes, input_size=(16, 16), **options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        write_image(folder / f"{i}.png", make_image(50, 40 + 10 * i, i))
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos):
    out = tmp_path_factory.mktemp("export") / "out"
    return out, export_segmenter(make_tiny(), out, photos=photos, quiet=True)


def log_difference(scores, expected):
    return np.abs(np.log(scores.clip(1e-30)) - np.log(expected.clip(1e-30))).max()


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((1, 1), (16, 16)),
        ((1, 700), (16, 256)),
        ((333, 500), (16, 24)),
        ((97, 61), (101, 64)),
        ((64, 64), (64, 64)),
        ((5, 1200), (64, 1024)),
        ((480, 640), (64, 85)),
        ((120, 50), (38, 16)),  # where Pillow 13 alone would begin with the height
        ((399, 205), (285, 173)),
    ],
)
def test_resizing_by_matrices_equals_pillow_in_every_bit(size, resized):
    image = make_image(*size)
    channels = resize(torch.from_numpy(image).permute(2, 0, 1), resized)
    assert np.array_equal(channels.permute(1, 2, 0).numpy(), resize_picture(image, resized))


def test_graph_answers_as_predict_does():
    several = make_segmenter(classes=("a", "b"))
    both = ensemble([make_segmenter(0, threshold=0.3), make_segmenter(1)])
    strips = [(1, 100_000), (100_000, 1)]
    for segmenter, flip, sizes in [
        (several, False, SIZES),
        (both, False, SIZES),
        (both, True, SIZES),
        (make_tiny(), False, strips),
    ]:
        graph = SegmenterGraph(segmenter, flip=flip)
        for size in sizes:
            image = make_image(*size)
            mask, scores = graph(torch.from_numpy(image))
            expected = segmenter.predict(image, flip=flip)
            assert log_difference(scores.numpy(), expected.scores) < 1e-3
            assert np.mean(mask.numpy() == expected.mask) > 0.999


def test_scores_of_the_graph_are_numbers_where_neighbours_contradict():
    """Interpolated log probabilities are low for every class there: softmax must not divide 0/0."""

    class Contradicting(nn.Module):
        def forward(self, x):
            sign = torch.where(torch.arange(x.shape[-1]) % 2 == 0, 1000.0, -1000.0)
            return torch.stack([sign, -sign]).expand(1, x.shape[-2], 2, -1).movedim(1, 2)

    segmenter = make_tiny()
    segmenter.members[0] = Contradicting()
    _, scores = SegmenterGraph(segmenter)(torch.from_numpy(make_image(33, 33)))
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scores.sum(0), torch.ones(33, 33))


def test_onnx_file_answers_as_the_segmenter_at_any_size(exported):
    out, _ = exported
    verify_manifest(out)
    predictor, segmenter = Predictor(out / "model.onnx"), make_tiny()
    for size in SIZES:
        mask, scores = predictor.predict(make_image(*size))
        expected = segmenter.predict(make_image(*size))
        assert (mask.dtype, mask.shape, scores.dtype) == (np.uint8, size, np.float32)
        assert_same_masks(mask, expected.mask)
        assert log_difference(scores, expected.scores) < 1e-4


def test_onnx_file_says_what_it_is_and_nothing_of_where_it_was_made(exported):
    out, record = exported
    session = onnxruntime.InferenceSession(out / "model.onnx")
    (photo,) = session.get_inputs()
    shapes = {each.name: (each.type, each.shape) for each in session.get_outputs()}
    assert (photo.name, photo.type, photo.shape) == (
        "photo", "tensor(uint8)", ["height", "width", 3],
    )  # fmt: skip
    assert shapes == {
        "mask": ("tensor(uint8)", ["height", "width"]),
        "scores": ("tensor(float)", [2, "height", "width"]),
    }
    predictor = Predictor(out / "model.onnx")
    assert predictor.classes == ("background", "disc")
    assert predictor.licence == CARD["licence"]
    for card in (predictor.card, (out / "README.md").read_text()):
        assert "Finds discs." in card
        assert "license: cc0-1.0" in card
        assert "predict.py" in card
    content = (out / "model.onnx").read_bytes()
    for path in (str(Path(module.__file__).parent), "site-packages"):
        assert path.encode() not in content
    assert record == json.loads((out / "export.json").read_text())
    assert record["agreement"]["max_difference"] <= 1e-3
    assert record["agreement"]["equal_labels"] >= 0.9999
    assert (record["agreement"]["photos"], record["agreement"]["n_photos"]) == ("given", 3)
    assert record["size_bytes"] == len(content)
    assert record["weights"] == make_tiny().digest


def test_predictor_of_one_file_needs_neither_torch_nor_latentseg(exported, tmp_path):
    """Run as a script with both blocked; its mask is the file that latentseg writes."""
    out, _ = exported
    picture = Image.fromarray(make_image(30, 20))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'latentseg', 'onnx']))"
    script = f"{blocked}; import runpy; runpy.run_path('predict.py', run_name='__main__')"
    arguments = ["model.onnx", tmp_path / "turned.png", tmp_path / "mask.png"]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=out, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    make_tiny().predict(tmp_path / "turned.png").save(tmp_path / "expected.png")
    assert (tmp_path / "mask.png").read_bytes() == (tmp_path / "expected.png").read_bytes()


@pytest.mark.parametrize(
    ("model", "photo", "mask", "said"),
    [
        ("model.onnx", "missing.png", "mask.png", "missing.png"),
        ("model.onnx", "export.json", "mask.png", "not a readable image"),
        ("model.onnx", "photo.png", "mask.jpg", "written as .png"),
        ("README.md", "photo.png", "mask.png", "not a segmenter in ONNX"),
        ("gone.onnx", "photo.png", "mask.png", "gone.onnx"),
    ],
)
def test_predictor_says_in_a_sentence_what_is_wrong(
    exported, tmp_path, monkeypatch, model, photo, mask, said
):
    out, _ = exported
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    write_image(tmp_path / "photo.png", make_image())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["predict.py", model, photo, mask])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit, match=f"error: .*{said}"):
        runpy.run_path("predict.py", run_name="__main__")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)]
)
def test_predictor_refuses_arrays_that_are_no_images(exported, array):
    with pytest.raises(ValueError, match="Expected an image"):
        Predictor(exported[0] / "model.onnx").predict(array)


def pictures() -> Iterator[tuple[str, Image.Image, dict[str, Any]]]:
    """One picture of each kind that a decoder may get wrong."""
    image = Image.fromarray(make_image(9, 14))
    for orientation in range(1, 9):
        exif = image.getexif()
        exif[0x0112] = orientation
        yield f"exif{orientation}.png", image, {"exif": exif}
        yield f"exif{orientation}.tiff", image, {"exif": exif}
    for mode in ("1", "L", "LA", "P", "RGBA"):
        yield f"{mode}.png", image.convert(mode), {}
    yield "transparent.gif", image.convert("P"), {"transparency": 3}
    yield "cmyk.jpg", image.convert("CMYK"), {}
    deep = np.random.default_rng(0).integers(0, 65536, (9, 14), dtype=np.uint16)
    yield "16bit.png", Image.fromarray(deep), {}


def test_predictor_reads_photos_as_latentseg_does(tmp_path):
    for name, picture, options in pictures():
        picture.save(tmp_path / name, **options)
        assert np.array_equal(read_photo(tmp_path / name), read_image(tmp_path / name)), name


def test_predictor_refuses_pictures_that_are_not_safe_to_decode(tmp_path, monkeypatch):
    (tmp_path / "script.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.fromarray(make_image()).save(tmp_path / "large.png")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "float.tiff")
    whole = (tmp_path / "large.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(onnx_predictor, "MAX_PIXELS", 599)
    for name in ("script.eps", "large.png", "float.tiff", "cut.png"):
        with pytest.raises(ValueError, match=name):
            read_photo(tmp_path / name)


@pytest.mark.slow
def test_torch_program_answers_as_the_segmenter_for_a_u_net(tmp_path, photos):
    segmenter = make_segmenter(classes=("a", "b"), card=CARD)
    record = export_segmenter(segmenter, tmp_path, format="torch", photos=photos, quiet=True)
    verify_manifest(tmp_path)
    segment = torch.export.load(tmp_path / "model.pt2").module()
    for size in [(2, 200), (16, 16), (40, 33)]:
        mask, scores = segment(torch.from_numpy(make_image(*size)))
        expected = segmenter.predict(make_image(*size))
        assert np.mean(mask.numpy() == expected.mask) > 0.999
        assert log_difference(scores.numpy(), expected.scores) < 1e-3
    assert record["agreement"]["sizes"] == [list(size) for size in module.SIZES]
    assert "torch.export.load" in (tmp_path / "README.md").read_text()
    assert b"site-packages" not in (tmp_path / "model.pt2").read_bytes()


def test_network_padded_to_multiples_is_recorded_for_all_sizes():
    segmenter = make_tiny(network=PaddedNetwork(nn.Conv2d(3, 2, 3, padding=1), multiple=32))
    program = record(segmenter, flip=True).module()
    for size in [(40, 33), (16, 16)]:
        _, scores = program(torch.from_numpy(make_image(*size)))
        expected = segmenter.scores(make_image(*size), flip=True)
        assert log_difference(scores.numpy(), expected) < 1e-4


def test_network_that_asks_for_the_size_is_refused():
    class Choosy(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolution = nn.Conv2d(3, 2, 1)

        def forward(self, x):
            return self.convolution(x) if x.shape[-1] % 7 else functional.relu(self.convolution(x))

    with pytest.raises(InputError, match="cannot be recorded"):
        record(make_tiny(network=Choosy()))


def test_model_folder_is_exported_and_compared(tmp_path, photos):
    record = export_segmenter(
        make_segmenter(card=CARD), tmp_path, format="safetensors", photos=photos, quiet=True
    )
    loaded = Segmenter.from_pretrained(tmp_path)
    assert loaded.digest == make_segmenter().digest == record["weights"]
    assert record["agreement"]["max_difference"] == 0
    with pytest.raises(InputError, match="holds files"):
        export_segmenter(make_tiny(), tmp_path, photos=photos, quiet=True)
    assert Segmenter.from_pretrained(tmp_path).digest == loaded.digest


def test_export_that_answers_otherwise_is_not_written(tmp_path, photos, monkeypatch):
    """Five percent in some weights are noticed; so is a NaN."""
    original = module.record
    for change in (1.05, float("nan")):

        def altered(segmenter, change=change, **options):
            other = make_tiny()
            next(other.members.parameters())[0, 0] *= change
            return original(other, **options)

        monkeypatch.setattr(module, "record", altered)
        with pytest.raises(InputError, match="answers otherwise"):
            export_segmenter(make_tiny(), tmp_path, format="torch", photos=photos, quiet=True)
        assert not any(tmp_path.iterdir())


def test_agreement_counts_labels_and_logits_of_all_photos(monkeypatch):
    """One wrong label in 20 000 pixels is one too many."""
    segmenter = make_tiny()
    monkeypatch.setattr(module, "SIZES", ((100, 100),))
    monkeypatch.setattr(module, "_drawn", lambda: [make_image(100, 100, i) for i in range(2)])

    def answering(n_wrong):
        def answer(photo):
            expected = segmenter.predict(photo)
            mask = expected.mask.copy()
            mask.reshape(-1)[:n_wrong] ^= 1
            return mask, expected.scores

        return answer

    agreed = module._agreement(segmenter, answering(1), None, flip=False, quiet=True)
    assert agreed == Agreement(
        "drawn by the bundled generator pets64", 2, ((100, 100),), 0.0, 1 - 1e-4
    )
    with pytest.raises(InputError, match=r"99\.9800% of the labels"):
        module._agreement(segmenter, answering(2), None, flip=False, quiet=True)


@pytest.mark.slow
def test_int8_is_kept_only_where_the_iou_holds(tmp_path, photos):
    wide = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))
    segmenter = make_tiny(network=wide)
    seen = []

    def measure(fall):
        def iou(scorer):
            seen.append(scorer.scores(make_image()))
            return 0.7 - fall * (len(seen) % 2 == 0)

        return iou

    options = {"int8": True, "photos": photos, "quiet": True}
    with pytest.raises(InputError, match=r"from 0\.7000 to 0\.6949, by 0\.0051"):
        export_segmenter(segmenter, tmp_path, measure=measure(0.0051), **options)
    assert not any(tmp_path.iterdir())
    record = export_segmenter(segmenter, tmp_path, measure=measure(0.0049), **options)
    assert record["int8"]["fall"] == pytest.approx(0.0049)
    exact, rounded = seen[-2:]
    assert 1e-6 < np.abs(exact - rounded).max() < 0.1
    np.testing.assert_allclose(exact, segmenter.scores(make_image()), atol=1e-5)
    assert Predictor(tmp_path / "model.onnx").classes == ("background", "disc")
    content = (tmp_path / "model.onnx").read_bytes()
    assert b"QuantizeLinear" in content
    assert b"tmp" not in content.replace(b"_tmp", b"")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "tensorflow"}, "`format`: .* found tensorflow"),
        ({"format": "safetensors", "flip": True}, "`flip`: "),
        ({"format": "torch", "int8": True}, "only the format onnx"),
        ({"int8": True}, "`int8`: needs `photos`"),
        ({"int8": True, "photos": PETS / "images"}, "`measure`"),
        ({"photos": []}, "at least one"),
        ({"photos": PETS / "nowhere"}, "no such folder"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        export_segmenter(make_tiny(), tmp_path / "out", quiet=True, **options)
    assert not (tmp_path / "out").exists()


def test_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r"onnxscript.*latentseg\[export\]"):
        export_segmenter(make_tiny(), tmp_path)


def test_export_stopped_at_any_write_is_finished_by_the_same_call(tmp_path, monkeypatch):
    """Each write in turn fails after the temporary file is there, as after a kill."""
    module._write(tmp_path, {"model.onnx": b"old", "predict.py": b"old"})
    replace = files.os.replace
    content = dict.fromkeys(["model.pt2", "README.md", "export.json"], b"new")
    for stop in range(4):
        calls = iter(range(9))

        def stopping(source, target, calls=calls, stop=stop):
            if next(calls) == stop:
                Path(source).with_name(".latentseg-1-1.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(files.os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            module._write(tmp_path, content)
        monkeypatch.setattr(files.os, "replace", replace)
        assert not (tmp_path / MANIFEST).exists()
        module._check_folder(tmp_path)
        module._write(tmp_path, content)
        verify_manifest(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {*content, MANIFEST}


def test_other_files_are_neither_overwritten_nor_deleted(tmp_path, photos):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="holds files"):
        export_segmenter(make_tiny(), tmp_path, photos=photos, quiet=True)
    with pytest.raises(InputError, match="in the way"):
        export_segmenter(make_tiny(), tmp_path / "thesis.tex", photos=photos, quiet=True)
    assert (tmp_path / "thesis.tex").read_text() == "x"


class FakeHub:
    """The Hub as a folder; it remembers what it was asked."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []

    def HfApi(self, token):
        return SimpleNamespace(
            create_repo=lambda repo_id, **options: self.asked.append((repo_id, token, options)),
            upload_folder=self.upload,
        )

    def upload(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.folder / repo_id)
        return SimpleNamespace(commit_url=f"https://huggingface.co/{repo_id}/commit/1")

    def snapshot_download(self, repo_id, revision, allow_patterns):
        self.asked.append((repo_id, revision, sorted(allow_patterns)))
        if not (self.folder / repo_id).is_dir():
            raise ConnectionError("404 Client Error\nmore lines")
        return str(self.folder / repo_id)


@pytest.fixture
def fake_hub(tmp_path, monkeypatch):
    import huggingface_hub

    fake = FakeHub(tmp_path / "hub")
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


def test_segmenter_goes_to_the_hub_and_comes_back(fake_hub):
    segmenter = make_segmenter(card={**CARD, "results": [RESULT]})
    url = segmenter.push_to_hub("user/discs", token="secret", private=True)
    assert url == "https://huggingface.co/user/discs/commit/1"
    assert fake_hub.asked == [("user/discs", "secret", {"private": True, "exist_ok": True})]
    loaded = Segmenter.from_pretrained("user/discs", revision="v1")
    np.testing.assert_allclose(
        loaded.scores(make_image()), segmenter.scores(make_image()), atol=1e-6
    )
    assert fake_hub.asked[1] == (
        "user/discs", "v1", ["MANIFEST.json", "README.md", "config.json", "model.safetensors"],
    )  # fmt: skip
    card = (fake_hub.folder / "user" / "discs" / "README.md").read_text()
    assert 'from_pretrained("user/discs")' in card
    for line in ("license: cc0-1.0", "pipeline_tag: image-segmentation", "value: 0.51234"):
        assert line in card


RESULT = {"dataset": "toy", "protocol": "melas2021", "n_images": 3, "iou": 0.51234, "max_f": None}


def test_what_the_hub_gives_is_verified(fake_hub):
    from latentseg.errors import CorruptFileError

    make_segmenter().push_to_hub("user/discs")
    weights = fake_hub.folder / "user" / "discs" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFileError, match=r"model\.safetensors"):
        Segmenter.from_pretrained("user/discs")


def test_what_is_not_on_the_hub_is_an_error_of_one_line(fake_hub, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"user/nothing: no such folder.*404 Client Error\)"):
        Segmenter.from_pretrained("user/nothing")
    monkeypatch.setattr(fake_hub, "upload", None)
    with pytest.raises(InputError, match="hf auth login"):
        make_segmenter().push_to_hub("user/discs")


def test_names_on_this_disk_never_ask_the_hub(fake_hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_segmenter().save("runs/discs")
    assert Segmenter.from_pretrained("runs/discs").digest == make_segmenter().digest
    for name in ("./runs/none", "/runs/none", "runs/none/", "a/b/c", "none", Path("runs/none")):
        with pytest.raises(InputError):
            Segmenter.from_pretrained(name)
    assert fake_hub.asked == []


def test_save_goes_on_where_a_kill_left_a_temporary_file(tmp_path):
    make_segmenter().save(tmp_path)
    (tmp_path / ".latentseg-1-1.tmp").write_bytes(b"half")
    make_segmenter(1).save(tmp_path)
    assert Segmenter.from_pretrained(tmp_path).digest == make_segmenter(1).digest


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_student_that_knows_photos_is_exported_for_every_size(format, photos, tmp_path):
    torch.manual_seed(0)
    segmenter = Segmenter(
        [build_network(PHOTO_UNET, 2)], classes=("a",), input_size=(32, 32), network=PHOTO_UNET
    )
    result = export_segmenter(segmenter, tmp_path, format=format, photos=photos, quiet=True)
    assert result["agreement"]["equal_labels"] > 0.999
    card = (tmp_path / "README.md").read_text()
    assert "ImageNet weights of EfficientNet-Lite0, Apache-2.0 (**)" in card


@pytest.mark.slow
def test_bundled_segmenter_in_8_bits_keeps_its_iou(tmp_path):
    """The U-Net of pets64 in ONNX: equal masks of real photos; then in 8 bits."""
    segmenter = Segmenter.from_pretrained("pets64", device="cpu")
    export_segmenter(segmenter, tmp_path / "exact", photos=PETS / "images", quiet=True)
    predictor = Predictor(tmp_path / "exact" / "model.onnx")
    for path in list_images(PETS / "images")[:40]:
        assert_same_masks(predictor.predict(read_photo(path))[0], segmenter.predict(path).mask)
    dataset = open_dataset(PETS)
    record = export_segmenter(
        segmenter,
        tmp_path / "int8",
        int8=True,
        photos=PETS / "images",
        measure=lambda scorer: measure(scorer, dataset, quiet=True).iou,
        quiet=True,
    )
    assert record["int8"]["fall"] < 0.005
    exact, small = ((tmp_path / name / "model.onnx").stat().st_size for name in ("exact", "int8"))
    assert small < exact / 3
