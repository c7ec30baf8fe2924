"""Pictures of daily work: 12 bits in 16, satellite bands, suffixes of phones, slices of a body."""

import io
import json
import shutil
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pillow_heif
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from latentseg.errors import InputError, LatentsegError
from latentseg.generators.training.photos import read_photos
from latentseg.images import (
    PLAIN,
    Reading,
    is_plain,
    open_series,
    pages_of,
    read_halves,
    read_image,
    read_mask,
    size_of,
    with_range,
    write_image,
)
from latentseg.images.headers import is_deep
from tests.commands import run_command
from tests.students.test_segmenter import make_segmenter

CASES = Path(__file__).parents[1] / "data" / "cases"
SATELLITE = CASES / "satellite-tiff"
RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (8, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_segmenter().save(folder)
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return partial(run_command, monkeypatch, capsys)


def reference() -> Any:
    return np.array(Image.open(SATELLITE / "ref" / "rgb.png")).astype(int)


def difference(image: Any, expected: Any) -> int:
    return int(np.abs(image.astype(int) - expected.astype(int)).max())


# More than 8 bits


def test_predict_gives_radiographs_of_12_bits_the_masks_of_those_of_8(
    command,
    model,
    tmp_path,
):
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (CASES / "xray-12bit").glob("*.png"):
        shutil.copy(path, photos)
    code, _, said = command("predict", model, photos, tmp_path / "deep", "--device", "cpu")
    assert code == 0
    assert said.count("4 files of more than 8 bits: values from 0 to 4095 become black to") == 1
    eight = CASES / "xray-12bit" / "as8"
    code, _, said = command("predict", model, eight, tmp_path / "eight", "--device", "cpu")
    assert code == 0
    assert "more than 8 bits" not in said
    for k in range(4):
        deep = read_image(photos / f"x{k}_12bit.png", Reading(range=(0, 4095)))
        assert difference(deep, read_image(eight / f"x{k}.png")) <= 1  # as8 rounds down
        masks = [
            read_mask(tmp_path / name)
            for name in (f"deep/x{k}_12bit_mask.png", f"eight/x{k}_mask.png")
        ]
        assert (masks[0] == masks[1]).mean() > 0.98


@pytest.mark.parametrize(
    ("bits", "brightest"), [(10, [700, 1000, 20]), (14, [9000, 100, 16383]), (12, [3473, 3000, 1])]
)
def test_a_folder_has_one_range_that_of_the_bits_which_its_brightest_value_needs(
    tmp_path, bits, brightest
):
    for k, value in enumerate(brightest):
        Image.fromarray(np.array([[0, value]], np.uint16)).save(tmp_path / f"{k}.png")
    series = open_series(tmp_path)
    assert series.reading.range == (0, 2**bits - 1)
    shown = [int(series.read(picture)[0, 1, 0]) for picture in series.pictures]
    assert shown == [round(255 * value / (2**bits - 1)) for value in brightest]
    (note,) = series.notes
    assert f"3 files of more than 8 bits: values from 0 to {2**bits - 1}" in note


def test_a_range_that_is_full_or_given_is_not_talked_about(tmp_path):
    Image.fromarray(np.array([[0, 40_000]], np.uint16)).save(tmp_path / "a.png")
    assert open_series(tmp_path).notes == ()
    given = Reading(range=(0, 4000))
    assert with_range(given, [tmp_path / "a.png"]) == (given, "")
    assert with_range(PLAIN, []) == (PLAIN, "")


def test_a_generator_learns_from_deep_photos_in_folders_with_one_range(tmp_path):
    for k, value in enumerate((1000, 4000)):
        (tmp_path / f"visit {k}").mkdir()
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / f"visit {k}" / "a.png")
    photos = read_photos(tmp_path, (4, 4), quiet=True)
    assert photos.names == ("visit 0/a.png", "visit 1/a.png")
    assert photos.pixels[:, 0, 0, 0].tolist() == [62, 249]
    ranged = read_photos(tmp_path, (4, 4), reading=Reading(range=(0, 2000)), quiet=True)
    assert ranged.pixels[:, 0, 0, 0].tolist() == [128, 255]


@pytest.mark.parametrize("wrong", [(5, 5), (9, 1), (0, np.inf), (np.nan, 1)])
def test_a_range_that_is_none_is_refused(wrong):
    with pytest.raises(InputError, match="`range`: expected two numbers, black < white"):
        Reading(range=wrong)


# Bands


@pytest.mark.parametrize("name", ["rgbn8_alpha", "rgbn8_unspecified"])
def test_infrared_is_never_taken_for_transparency(name):
    assert difference(read_image(SATELLITE / f"{name}.tif"), reference()) == 0
    assert size_of(SATELLITE / f"{name}.tif") == (64, 64)
    assert not is_plain(SATELLITE / f"{name}.tif")


@pytest.mark.parametrize("name", ["rgb16", "rgbn16"])
def test_12_bits_in_a_16_bit_tiff_go_to_4095_unless_a_range_is_given(name):
    stored = tifffile.imread(SATELLITE / f"{name}.tif")[..., :3]
    image = read_image(SATELLITE / f"{name}.tif")
    assert difference(image, np.round(255.0 * stored / 4095)) == 0
    assert (
        difference(read_image(SATELLITE / f"{name}.tif", Reading(range=(0, 3060))), reference())
        == 0
    )


@pytest.mark.parametrize("name", ["bands5_float", "bands8_uint8"])
def test_many_bands_are_refused_by_what_they_are_and_read_when_they_are_named(name):
    path = SATELLITE / f"{name}.tif"
    with pytest.raises(InputError, match=r"tif: has [58] bands of (float32|uint8); .*`bands`"):
        read_image(path)
    assert difference(read_image(path, Reading(bands=(1, 2, 3))), reference()) == 0
    swapped = read_image(path, Reading(bands=(3, 2, 1)))
    assert difference(swapped, reference()[..., ::-1]) == 0
    gray = read_image(path, Reading(bands=(2,)))
    assert difference(gray, np.dstack([reference()[..., 1]] * 3)) == 0
    with pytest.raises(InputError, match=r"`bands`: expected 1 to [58], found 9"):
        read_image(path, Reading(bands=(9,)))


def test_predict_takes_bands_from_the_command_line(command, model, tmp_path):
    photo = SATELLITE / "bands8_uint8.tif"
    code, _, said = command("predict", model, photo, tmp_path / "refused", "--device", "cpu")
    assert code == 1
    assert "which of them are red, green and blue has to be said" in said
    options = ("--bands", 1, 2, 3, "--device", "cpu")
    assert command("predict", model, photo, tmp_path / "out", *options)[0] == 0
    assert command("predict", model, SATELLITE / "ref", tmp_path / "ref", *options)[0] == 0
    masks = [
        read_mask(tmp_path / name) for name in ("out/bands8_uint8_mask.png", "ref/rgb_mask.png")
    ]
    assert np.array_equal(masks[0], masks[1])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("compression", [None, "zlib", "lzw"])
def test_bands_are_read_however_they_lie(tmp_path, planar, compression):
    bands = RANDOM.integers(0, 256, (6, 8, 12), dtype=np.uint8)
    values = bands if planar == "separate" else np.moveaxis(bands, 0, -1)
    tifffile.imwrite(
        tmp_path / "a.tif", values, planarconfig=planar, photometric="minisblack",
        compression=compression,
    )  # fmt: skip
    image = read_image(tmp_path / "a.tif", Reading(bands=(6, 1, 4)))
    assert np.array_equal(image, np.moveaxis(bands[[5, 0, 3]], 0, -1))


def test_a_map_has_no_transparency_and_a_drawing_has(tmp_path):
    cut = np.where(RANDOM.random((8, 12)) < 0.5, 0, 255).astype(np.uint8)
    values = np.dstack([RGB, cut])
    tifffile.imwrite(
        tmp_path / "drawing.tif", values, photometric="rgb", extrasamples=["unassalpha"]
    )
    pixel_scale = (33550, "d", 3, (10.0, 10.0, 0.0), True)
    tifffile.imwrite(
        tmp_path / "map.tif", values, photometric="rgb", extrasamples=["unassalpha"],
        extratags=[pixel_scale],
    )  # fmt: skip
    expected = np.where(cut[..., None] > 0, RGB, 255)
    assert np.array_equal(read_image(tmp_path / "drawing.tif"), expected)
    assert np.array_equal(read_image(tmp_path / "map.tif"), RGB)


@pytest.mark.parametrize("wrong", [(), (1, 2), (0,), (1, 2, 3, 4)])
def test_bands_that_are_none_are_refused(wrong):
    with pytest.raises(InputError, match="`bands`: expected one or three numbers from 1"):
        Reading(bands=wrong)


def test_black_and_white_that_is_stored_the_other_way_round_is_turned(tmp_path):
    values = np.array([[0, 4095]], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert read_image(tmp_path / "a.tif")[0, :, 0].tolist() == [255, 239]


# Stacks


def test_pages_of_a_stack_are_read_by_number_and_previews_are_none(tmp_path):
    pages = RANDOM.integers(0, 4096, (3, 8, 12), dtype=np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for page in pages:
            file.write(page, photometric="minisblack")
        file.write(pages[0, ::4, ::4], photometric="minisblack", subfiletype=1)
    assert pages_of(tmp_path / "a.tif") == [0, 1, 2]
    assert pages_of(tmp_path / "a.tif", Reading(page=3)) == [2]
    for k in range(3):
        expected = np.round(255.0 * pages[k] / 4095)
        image = read_image(tmp_path / "a.tif", Reading(range=(0, 4095)), k)
        assert difference(image[..., 0], expected) == 0
    with pytest.raises(InputError, match="`page`: expected 1 to 3, found 4"):
        pages_of(tmp_path / "a.tif", Reading(page=4))


def test_a_series_has_every_page_of_its_stacks(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.stack([RGB, RGB[::-1]]), photometric="rgb")
    write_image(tmp_path / "b.png", RGB)
    series = open_series(tmp_path)
    names = [Path(picture.name).name for picture in series.pictures]
    assert names == ["a_0001", "a_0002", "b"]
    assert np.array_equal(series.read(series.pictures[1]), RGB[::-1])


# Suffixes


def test_predict_reads_the_suffixes_of_phones_or_names_what_it_left_out(
    command,
    model,
    tmp_path,
):
    out = tmp_path / "out"
    code, _, said = command(
        "predict", model, CASES / "suffixes", out, "--device", "cpu", "--json", tmp_path / "r.json"
    )
    assert code == 1
    assert "1 photos were left out" in said
    assert "c.heic: not a readable image" in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert [Path(path).name for path in found["segmented"]] == [
        "a.jpg",
        "b.jfif",
        "d.gif",
        "e.avif",
    ]
    assert {path.name for path in out.glob("*_mask.png")} == {f"{k}_mask.png" for k in "abde"}


def test_a_heic_photo_is_read_upright(tmp_path):
    smooth = np.zeros((64, 96, 3), np.uint8)
    smooth[:, 48:] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    heif = pillow_heif.from_pillow(Image.fromarray(smooth))
    heif.save(tmp_path / "a.heic", quality=100)
    assert difference(read_image(tmp_path / "a.heic"), smooth) < 8
    assert size_of(tmp_path / "a.heic") == (64, 96)
    assert not is_plain(tmp_path / "a.heic")


def test_without_its_package_a_heic_photo_is_refused_with_the_command_that_helps(
    tmp_path, monkeypatch
):
    content = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(RGB)).save(content)
    (tmp_path / "a.heic").write_bytes(content.getvalue())
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(InputError, match=r"a\.heic: needs the package pillow-heif: pip install"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("format", ["AVIF", "GIF", "JPEG"])
def test_other_photos_are_read_whatever_their_suffix(tmp_path, format):
    smooth = np.full((16, 16, 3), 90, np.uint8)
    Image.fromarray(smooth).save(tmp_path / "a.jpe", format)
    assert difference(read_image(tmp_path / "a.jpe"), smooth) <= 3


# Slices of a body


def write_dicom(path: Path, values: Any, **tags: Any) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    data.Rows, data.Columns = values.shape[-2:]
    if values.ndim == 3:
        data.NumberOfFrames = len(values)
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelRepresentation = int(values.dtype == np.int16)
    data.PixelData = values.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


def test_a_dicom_slice_is_windowed_as_it_asks(tmp_path):
    values = np.array([[0, 1024, 1064, 1224, 3000]], np.int16)
    path = write_dicom(
        tmp_path / "ct.dcm", values, RescaleSlope="1", RescaleIntercept="-1024", WindowCenter="40",
        WindowWidth="401",
    )  # fmt: skip
    # PS3.3 C.11.2.1.2: black up to 40 - 0.5 - 200, white from 40 - 0.5 + 200 on
    hounsfield = values.astype(float) - 1024
    expected = np.round(255.0 * ((hounsfield + 160.5) / 400).clip(0, 1))
    assert read_image(path)[..., 0].tolist() == expected.tolist()
    assert is_deep(path)
    assert size_of(path) == (1, 5)
    lung = read_image(path, Reading(range=(-1000, 200)))
    assert lung[0, 1, 0] == round(255 * 1000 / 1200)


def test_a_dicom_radiograph_whose_low_values_are_bright_is_turned(tmp_path):
    values = np.array([[0, 1023, 4095]], np.uint16)
    path = write_dicom(tmp_path / "x.dcm", values, PhotometricInterpretation="MONOCHROME1")
    assert read_image(path, Reading(range=(0, 4095)))[0, :, 0].tolist() == [255, 191, 0]


def test_frames_of_a_dicom_file_are_pages(tmp_path):
    values = RANDOM.integers(0, 1024, (3, 4, 5), dtype=np.uint16)
    path = write_dicom(tmp_path / "x.dcm", values)
    assert pages_of(path) == [0, 1, 2]
    image = read_image(path, Reading(range=(0, 1023)), 2)
    assert difference(image[..., 0], np.round(255.0 * values[2] / 1023)) == 0


def test_slices_of_a_nifti_volume_are_pages_seen_from_the_feet(tmp_path):
    volume = RANDOM.integers(0, 1000, (5, 4, 3)).astype(np.int16)
    for name in ("v.nii", "v.nii.gz"):
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([1, 1, 2, 1])), tmp_path / name)
        assert pages_of(tmp_path / name) == [0, 1, 2]
        assert size_of(tmp_path / name) == (4, 5)
        image = read_image(tmp_path / name, Reading(range=(0, 999)), 1)[..., 0]
        assert difference(image, np.round(255.0 * volume[:, ::-1, 1].T / 999)) == 0
    # stored from left to right instead: the same picture
    turned = nibabel.Nifti1Image(volume[::-1], np.diag([-1, 1, 2, 1]))
    nibabel.save(turned, tmp_path / "t.nii")
    again = read_image(tmp_path / "t.nii", Reading(range=(0, 999)), 1)[..., 0]
    assert np.array_equal(again, image)


def test_a_nifti_segmentation_is_a_mask(tmp_path):
    volume = RANDOM.integers(0, 3, (5, 4, 3)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "m.nii.gz")
    assert np.array_equal(read_mask(tmp_path / "m.nii.gz", 2), volume[:, ::-1, 2].T)


@pytest.mark.parametrize(("package", "name"), [("pydicom", "a.dcm"), ("nibabel", "a.nii")])
def test_without_its_package_a_slice_is_refused_with_the_command_that_helps(
    tmp_path, monkeypatch, package, name
):
    write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16))
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4)), tmp_path / "a.nii")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        InputError, match=rf"needs the package {package}: pip install 'latentseg\[me"
    ):
        read_image(tmp_path / name)


# Hostile and damaged


def damaged(path: Path, rng: Any) -> bytes:
    content = bytearray(path.read_bytes())
    if rng.random() < 0.3:
        return bytes(content[: rng.integers(len(content))])
    for _ in range(rng.integers(1, 6)):
        # mostly in the tags, where a wrong number does most
        limit = len(content) if rng.random() < 0.3 else min(len(content), 600)
        content[rng.integers(limit)] = rng.integers(256)
    return bytes(content)


def complaint(read: Any, path: Path) -> str:
    """What a reader says of a file; "none" if it reads it."""
    try:
        read(path)
    except LatentsegError as error:
        return str(error)
    return "none"


@pytest.mark.parametrize("kind", ["tif", "stack", "dcm", "nii", "nii.gz", "heic", "avif", "png"])
def test_damaged_pictures_are_read_or_refused_by_name(tmp_path, kind):
    source = tmp_path / "source"
    values = RANDOM.integers(0, 4096, (12, 16), dtype=np.uint16)
    match kind:
        case "tif":
            tifffile.imwrite(source, np.dstack([values] * 5), photometric="minisblack")
        case "stack":
            tifffile.imwrite(source, np.stack([values] * 3), photometric="minisblack")
        case "dcm":
            write_dicom(source, values)
        case "nii" | "nii.gz":
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"s.{kind}")
            source = tmp_path / f"s.{kind}"
        case "heic":
            pillow_heif.from_pillow(Image.fromarray(RGB)).save(source)
        case "avif":
            Image.fromarray(RGB).save(source, "AVIF")
        case _:
            Image.fromarray(values).save(source, "PNG")
    rng = np.random.default_rng(3)
    path = tmp_path / f"photo.{'tif' if kind == 'stack' else kind}"
    for _ in range(60):
        path.write_bytes(damaged(source, rng))
        for read in (read_image, read_mask, read_halves, size_of, is_plain, pages_of):
            assert complaint(read, path).startswith((f"{path}: ", "none"))
        is_deep(path)


def test_a_tiff_whose_pages_go_round_in_a_circle_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * count, first)
    (tmp_path / "a.tif").write_bytes(content)
    for read in (read_image, size_of, pages_of):
        assert "go round in a circle" in complaint(read, tmp_path / "a.tif")


@pytest.mark.parametrize("side", [30_000, 2**31 - 1])
def test_a_tiff_or_slice_that_would_fill_the_memory_is_refused(tmp_path, side):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4), np.uint16), photometric="minisblack")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    for entry in range(first + 2, first + 2 + 12 * count, 12):
        if struct.unpack_from("<H", content, entry)[0] in (256, 257):
            struct.pack_into("<HII", content, entry + 2, 4, 1, side)
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(InputError, match="too large"):
        read_image(tmp_path / "a.tif")
    path = write_dicom(tmp_path / "a.dcm", np.zeros((4, 4), np.uint16), Rows=60_000, Columns=60_000)
    with pytest.raises(InputError, match="too large"):
        read_image(path)
    assert pydicom.dcmread(path).Rows == 60_000
