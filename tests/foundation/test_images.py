"""The one reader of pictures: every layout of pixels has one documented result."""

import gc
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentseg import images
from latentseg.errors import CorruptFileError, InputError

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (6, 4, 3), dtype=np.uint8)
IDS = RANDOM.integers(0, 4, (5, 7), dtype=np.uint8)

# What a viewer shows of stored pixels, for each value of the EXIF orientation.
UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.swapaxes(np.rot90(stored, 2), 0, 1),
    8: np.rot90,
}


def png(width: int, height: int, bits: int, color: int, rows: list[bytes], *more: bytes) -> bytes:
    """A PNG file written by hand, for what Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        checksum = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = [chunk(b"IHDR", header), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "photo.png"


@pytest.mark.parametrize("value", UPRIGHT)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_photos_and_masks_are_read_upright(file, value, format):
    lossless = {"lossless": True} if format == "WEBP" else {}
    Image.fromarray(PHOTO).save(file, format, **lossless)
    stored = images.read_image(file)
    Image.fromarray(PHOTO).save(file, format, exif=orientation(value), **lossless)
    upright = images.read_image(file)
    assert np.array_equal(upright, UPRIGHT[value](stored))
    assert images.size_of(file) == upright.shape[:2]
    if format in ("PNG", "TIFF"):
        Image.fromarray(IDS).save(file, format, exif=orientation(value))
        assert np.array_equal(images.read_mask(file), UPRIGHT[value](IDS))
        assert images.size_of(file) == images.read_mask(file).shape


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_that_does_not_exist_changes_nothing(file, value):
    Image.fromarray(PHOTO).save(file, exif=orientation(value))
    assert np.array_equal(images.read_image(file), PHOTO)
    assert images.size_of(file) == PHOTO.shape[:2]


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_is_read_as_it_is_whatever_the_name_says(tmp_path, format):
    Image.fromarray(PHOTO).save(tmp_path / "photo.jpg", format)
    assert np.array_equal(images.read_image(tmp_path / "photo.jpg"), PHOTO)


def test_gray_becomes_three_equal_channels(file):
    Image.fromarray(IDS * 60).save(file)
    assert np.array_equal(images.read_image(file), np.dstack([IDS * 60] * 3))


def test_black_and_white_becomes_0_and_255(file):
    Image.fromarray(IDS > 1).save(file)
    assert np.array_equal(images.read_image(file)[..., 0], np.where(IDS > 1, 255, 0))
    assert np.array_equal(images.read_mask(file), np.where(IDS > 1, 255, 0))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_gray_goes_from_black_to_the_most_that_its_bits_hold(file, format):
    for values, white in [
        ([[0, 257, 65535]], 65535),
        ([[0, 100, 4000]], 4095),
        ([[900, 1000]], 1023),
        ([[0, 16000]], 16383),
        ([[0, 255]], 255),
    ]:
        Image.fromarray(np.array(values, dtype=np.uint16)).save(file, format)
        expected = np.round(255 * np.array(values) / white)
        assert np.array_equal(images.read_image(file), np.dstack([expected] * 3))


def test_a_range_that_is_given_goes_before_that_of_the_bits(file):
    Image.fromarray(np.array([[0, 100, 150, 200, 4000]], np.uint16)).save(file)
    image = images.read_image(file, images.Reading(range=(100, 200)))
    assert image[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_16_bit_pgm_is_divided_by_257(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + struct.pack(">HH", 65535, 32896))
    assert images.read_image(tmp_path / "a.pgm")[..., 0].tolist() == [[255, 128]]


def test_16_bit_colors_are_rounded_with_their_low_bytes(file):
    row = struct.pack(">6H", 0xFFFF, 0x1234, 0x0000, 0x00FF, 0x8000, 0x7FFF)
    file.write_bytes(png(2, 1, 16, 2, [row]))
    assert images.read_image(file).tolist() == [[[0xFF, 0x12, 0], [1, 0x80, 0x7F]]]


def test_12_bit_colors_in_a_16_bit_png_are_not_black(file):
    file.write_bytes(png(2, 1, 16, 2, [struct.pack(">6H", 4095, 0, 2048, 1024, 0, 0)]))
    assert images.read_image(file).tolist() == [[[255, 0, 128], [64, 0, 0]]]


def test_16_bit_transparency_is_laid_over_white(file):
    file.write_bytes(png(2, 1, 16, 4, [struct.pack(">4H", 65535 // 4, 0, 20000, 65535)]))
    assert images.read_image(file)[0, :, 0].tolist() == [255, 78]


def test_without_imagecodecs_16_bit_colors_lose_their_low_bytes_or_are_refused(file, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    file.write_bytes(png(1, 1, 16, 2, [struct.pack(">3H", 0xFFFF, 0x12FF, 0)]))
    assert images.read_image(file).tolist() == [[[0xFF, 0x12, 0]]]
    file.write_bytes(png(1, 1, 16, 2, [struct.pack(">3H", 4095, 0, 0)]))
    with pytest.raises(InputError, match=r"photo\.png: needs the package imagecodecs: pip install"):
        images.read_image(file)


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (np.array([[0, 0.2, 1]], np.float32), [0, 51, 255]),
        (np.array([[0, 51, 255]], np.float32), [0, 51, 255]),
        (np.array([[0, 14_000, 70_000]], np.int32), [0, 51, 255]),
        (np.array([[-1, 1, 4]], np.int32), [0, 102, 255]),
        (np.array([[np.nan, 0.2, np.inf]], np.float32), [0, 51, 255]),
    ],
)
def test_fractions_and_signed_numbers_go_from_their_least_to_their_largest(file, values, shown):
    Image.fromarray(values).save(file, "TIFF")
    assert images.read_image(file)[0, :, 0].tolist() == shown


def test_an_opened_picture_is_read_like_its_file(file):
    picture = Image.fromarray(np.dstack([PHOTO, PHOTO[..., 0]]))
    picture.save(file, exif=orientation(6))
    with Image.open(file) as opened:
        assert np.array_equal(images.to_image(opened), images.read_image(file))
    assert images.to_image(Image.fromarray(np.ones((2, 2), np.float32))).max() == 255


def test_cmyk_is_read_as_colors(file):
    red = np.zeros((2, 2, 4), dtype=np.uint8)
    red[..., 1:3] = 255
    Image.fromarray(red, "CMYK").save(file, "TIFF")
    assert images.read_image(file).tolist() == [[[255, 0, 0]] * 2] * 2


def test_transparency_is_laid_over_white(file):
    for picture, shown in [
        (np.array([[[9, 8, 7, 255], [9, 8, 7, 0]]], dtype=np.uint8), [[9, 8, 7], [255] * 3]),
        (np.array([[[9, 255], [9, 0]]], dtype=np.uint8), [[9] * 3, [255] * 3]),
    ]:
        Image.fromarray(picture).save(file)
        assert images.read_image(file).tolist() == [shown]


def test_a_transparent_color_of_a_palette_is_white(file):
    picture = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(file, transparency=1)
    assert images.read_image(file).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert images.read_mask(file).tolist() == [[0, 1]]


def test_a_transparent_color_of_rgb_is_white(file):
    Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8)).save(
        file, transparency=(4, 5, 6)
    )
    assert images.read_image(file).tolist() == [[[1, 2, 3], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("format", "options"), [("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})]
)
def test_of_an_animation_the_first_frame_is_read_and_the_file_closed(file, format, options):
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "blue", "lime")]
    frames[0].save(file, format, save_all=True, append_images=frames[1:], **options)
    assert images.read_image(file).tolist() == [[[255, 0, 0]] * 4] * 3
    assert images.size_of(file) == (3, 4)
    gc.collect()  # a file left open would warn here, and warnings are errors


def test_a_stereo_photo_of_a_phone_is_read(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert (images.read_image(tmp_path / "a.jpg") == 255).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (100_000, 1), (1, 2), (3, 1)])
def test_extreme_shapes_are_read(file, shape):
    values = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.uint8)
    images.write_image(file, values)
    assert np.array_equal(images.read_mask(file), values)
    assert images.read_image(file).shape == (*shape, 3)
    assert images.size_of(file) == shape


@pytest.mark.parametrize("read", [images.read_image, images.read_mask, images.size_of])
class TestRefusals:
    @pytest.mark.parametrize(
        "content",
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"not a picture", b"\0" * 100],
    )
    def test_what_is_no_picture_is_refused_by_name(self, file, read, content):
        file.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"photo\.png: not a readable image"):
            read(file)

    @pytest.mark.parametrize(
        "content",
        [
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
            b"8BPS\0\1" + b"\0" * 40,
            b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        ],
    )
    def test_formats_that_are_programs_are_never_opened(self, file, read, content):
        file.write_bytes(content)
        with pytest.raises(CorruptFileError, match="of no format that is read"):
            read(file)

    def test_a_missing_file_is_refused(self, file, read):
        with pytest.raises(InputError, match="no such file"):
            read(file)

    def test_a_folder_is_refused(self, tmp_path, read):
        with pytest.raises(InputError, match="not a file"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("width", "height"), [(60_000, 60_000), (12_000, 10_000), (8_920, 10_000), (2**31 - 1, 1)]
    )
    def test_a_picture_that_would_fill_the_memory_is_refused_at_once(
        self, file, read, width, height
    ):
        file.write_bytes(png(width, height, 8, 0, [b""]))
        began = time.monotonic()
        with pytest.raises(InputError, match="at most 89000000"):
            read(file)
        assert time.monotonic() - began < 1

    def test_a_bomb_of_text_is_refused_or_ignored(self, file, read):
        text = b"Comment\0\0" + zlib.compress(b"a" * 100_000_000)
        chunk = struct.pack(">I", len(text)) + b"zTXt" + text
        chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
        file.write_bytes(png(1, 1, 8, 0, [b"\0"], chunk))
        with pytest.raises(CorruptFileError, match="Decompressed data too large"):
            read(file)


def test_a_palette_keeps_its_ids(file):
    picture = Image.fromarray(IDS, "P")
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    picture.save(file)
    assert np.array_equal(images.read_mask(file), IDS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_palette_of_few_bits_keeps_its_ids(file, bits):
    ids = IDS[:, :4] % 2
    picture = Image.fromarray(ids, "P")
    picture.putpalette([9, 9, 9, 200, 0, 0])
    picture.save(file, bits=bits)
    assert np.array_equal(images.read_mask(file), ids)


def test_gray_of_few_bits_is_scaled_as_its_format_defines(file):
    file.write_bytes(png(4, 1, 2, 0, [bytes([0b00_01_10_11])]))
    assert images.read_mask(file).tolist() == [[0, 85, 170, 255]]


def test_gray_in_any_disguise_is_a_mask(file):
    opaque = np.full_like(IDS, 255)
    for disguise in (
        IDS,
        np.dstack([IDS] * 3),
        np.dstack([IDS, opaque]),
        np.dstack([IDS, IDS, IDS, opaque]),
        IDS.astype(np.uint16),
    ):
        Image.fromarray(disguise).save(file)
        assert np.array_equal(images.read_mask(file), IDS)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_whole_numbers_of_any_type_are_a_mask(file, kind):
    Image.fromarray(IDS.astype(kind)).save(file, "TIFF")
    assert np.array_equal(images.read_mask(file), IDS)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.array([[[0, 0, 0], [5, 5, 6]]], dtype=np.uint8), r"pixel \(0, 1\).*5, 5, 6.*color"),
        (np.array([[[0, 0, 0, 255], [5, 5, 5, 9]]], dtype=np.uint8), r"\(0, 1\).*transparent"),
        (np.array([[[0, 255], [5, 9]]], dtype=np.uint8), r"\(0, 1\).*transparent"),
        (np.array([[1, 300]], dtype=np.uint16), r"\(0, 1\) with value 300 is not an id"),
        (np.array([[1, -1]], dtype=np.int32), r"\(0, 1\) with value -1 is not an id"),
        (np.array([[1, 0.5]], dtype=np.float32), r"\(0, 1\) with value 0.5 is not an id"),
        (np.array([[1, np.nan]], dtype=np.float32), r"\(0, 1\) with value nan is not an id"),
    ],
)
def test_a_mask_that_holds_no_ids_is_refused_with_its_first_pixel(file, pixels, message):
    Image.fromarray(pixels).save(file, "TIFF")
    with pytest.raises(InputError, match=rf"photo\.png: .*{message}"):
        images.read_mask(file)


def test_list_images_is_by_name_with_folders_inside_and_leaves_out_what_is_no_photo(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / ".hidden").mkdir()
    for name in ("b.PNG", "a.jpeg", "._a.jpeg", "notes.txt", "c.webp", "folder.png/d.jfif"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".hidden" / "e.png").write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in images.list_images(tmp_path)]
    assert found == ["a.jpeg", "b.PNG", "c.webp", "folder.png/d.jfif"]


def test_list_pictures_names_those_that_are_not_read(tmp_path):
    for name in ("a.png", "b.CR2", "c.psd", "notes.txt", ".d.nef"):
        (tmp_path / name).write_bytes(b"x")
    found = images.list_pictures(tmp_path)
    assert [path.name for path in found.left_out] == ["b.CR2", "c.psd"]
    assert found.problems[0] == (
        f"{tmp_path / 'b.CR2'}: .CR2 files are not read. Save it as TIFF, PNG or JPEG."
    )


def test_list_images_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="no images"):
        images.list_images(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        images.list_images(tmp_path / "missing")


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3), (5, 4, 4)])
def test_png_is_lossless(tmp_path, shape):
    pixels = RANDOM.integers(0, 256, shape, dtype=np.uint8)
    images.write_image(tmp_path / "a" / "b.png", pixels)
    assert np.array_equal(np.array(Image.open(tmp_path / "a" / "b.png")), pixels)


def test_jpeg_is_written_as_jpeg_and_close(tmp_path):
    smooth = np.linspace(0, 255, 16 * 16).reshape(16, 16).astype(np.uint8)
    images.write_image(tmp_path / "a.JPG", np.dstack([smooth] * 3))
    with Image.open(tmp_path / "a.JPG") as picture:
        assert picture.format == "JPEG"
    assert np.abs(images.read_image(tmp_path / "a.JPG")[..., 0].astype(int) - smooth).max() < 8


def test_other_formats_are_not_written(tmp_path):
    with pytest.raises(InputError, match=r"'.webp': images are written as .png or .jpg"):
        images.write_image(tmp_path / "a.webp", PHOTO)
    assert not any(tmp_path.iterdir())


def test_a_mask_is_written_with_colors_and_read_as_ids(file):
    every = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for mask in (IDS, every, every % 2):
        images.write_mask(file, mask)
        assert np.array_equal(images.read_mask(file), mask)
        assert np.array_equal(images.read_image(file), images.class_colors()[mask])


def test_a_mask_is_not_written_in_a_format_that_may_change_it(tmp_path):
    with pytest.raises(InputError, match="may change class ids"):
        images.write_mask(tmp_path / "mask.jpg", IDS)


def test_encoding_is_a_pure_function():
    assert images.encode(PHOTO) == images.encode(PHOTO.copy())


def test_tensor_and_pixels_are_inverse_for_all_values():
    values = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    x = images.to_tensor(values)
    assert x.shape == (3, 8, 32)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (-1, 1)
    assert np.array_equal(images.to_pixels(x), values)
    assert np.array_equal(images.to_pixels(images.to_tensor(values[None])), values[None])


def test_pixels_are_clamped_and_rounded():
    x = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(3, 1, 5)
    assert images.to_pixels(x.bfloat16())[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_to_tensor_takes_a_read_only_array_and_does_not_share_it():
    frozen = np.asarray(Image.fromarray(PHOTO))
    assert not frozen.flags.writeable
    assert torch.equal(images.to_tensor(frozen), images.to_tensor(PHOTO.copy()))


def test_resize_keeps_a_constant_and_averages_when_shrinking():
    assert (images.resize(np.full((5, 9, 3), 77, np.uint8), (13, 4)) == 77).all()
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = 200
    inner = images.resize(stripes, (2, 4))[:, 1:-1]
    assert np.abs(inner.astype(int) - 100).max() < 26  # without antialiasing: 0 or 200


def test_resize_mask_makes_no_new_values():
    resized = images.resize_mask(np.where(IDS > 1, 255, 0).astype(np.uint8), (17, 3))
    assert resized.shape == (17, 3)
    assert set(np.unique(resized)) <= {0, 255}


def test_overlay_colors_classes_and_leaves_the_rest():
    mask = np.zeros((6, 6), np.uint8)
    mask[1:5, 1:5], mask[5] = 1, images.IGNORE
    shown = images.overlay(np.full((6, 6, 3), 100, np.uint8), mask)
    assert (shown[0] == 100).all()
    assert (shown[5] == 100).all()
    expected = 0.45 * 100 + 0.55 * images.class_colors()[1]
    assert np.abs(shown[3, 3] - expected).max() <= 0.5
    assert (shown[1, 1] == 255).all()


def test_cut_out_is_opaque_on_the_foreground_only():
    mask = np.array([[0, 1], [2, images.IGNORE]], np.uint8)
    cut = images.cut_out(PHOTO[:2, :2], mask)
    assert cut[..., 3].tolist() == [[0, 255], [255, 0]]
    assert np.array_equal(cut[..., :3], PHOTO[:2, :2])


def test_class_colors_differ():
    colors = images.class_colors().astype(int)
    assert colors[0].tolist() == [0, 0, 0]
    first = colors[1:13]
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 1000 * np.eye(len(first))
    assert apart.min() > 50


def test_contact_sheet_places_every_picture():
    red = np.zeros((4, 6, 3), np.uint8)
    red[..., 0] = 255
    mask = np.ones((4, 6), np.uint8)
    sheet = images.contact_sheet([[red, mask], [mask]], titles=["image", "mask"], gap_px=2)
    assert sheet.shape == (14 + 2 + 2 * 6, 2 + 2 * 8, 3)
    assert (sheet[16:20, 2:8] == [255, 0, 0]).all()
    assert (sheet[16:20, 10:16] == 255).all()
    assert (sheet[22:26, 2:8] == 255).all()


def test_contact_sheet_fits_pictures_into_a_cell():
    sheet = images.contact_sheet([[PHOTO, IDS]], cell=(8, 8), gap_px=0)
    assert sheet.shape == (8, 16, 3)
