import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from latentseg.datasets.real import check_dataset, open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_json
from latentseg.images import IGNORE
from tests.datasets.fabricate import blob, ids, photo, write, write_pair

MASK = blob(0)
IMAGE = photo(0, MASK)


def write_published(images, masks, names=("0001", "0002")):
    for name in names:
        write(images / f"{name}.jpg", IMAGE)
        write(masks / f"{name}.png", 255 * MASK)


# Published layouts


@pytest.mark.parametrize(
    ("name", "images", "masks"),
    [
        ("ECSSD", "images", "ground_truth_mask"),
        ("DUTS", "DUTS-TE-Image", "DUTS-TE-Mask"),
        ("DUTS", "DUTS-TE/DUTS-TE-Image", "DUTS-TE/DUTS-TE-Mask"),
        ("DUT-OMRON", "DUT-OMRON-image", "pixelwiseGT-new-PNG"),
        (
            "DUT-OMRON",
            "DUT-OMRON-image/DUT-OMRON-image",
            "DUT-OMRON-gt-pixelwise.zip/pixelwiseGT-new-PNG",
        ),
    ],
)
def test_saliency_layouts_are_recognised(name, images, masks, tmp_path):
    write_published(tmp_path / images, tmp_path / masks)
    dataset = open_dataset(tmp_path)
    assert (dataset.name, len(dataset), dataset.crops) == (name, 2, False)
    stem, image, mask = dataset[1]
    assert (stem, image.shape, mask.tolist()) == ("0002", (16, 16, 3), MASK.tolist())


def test_duts_prefers_the_test_part_over_the_training_part(tmp_path):
    write_published(tmp_path / "DUTS-TE/DUTS-TE-Image", tmp_path / "DUTS-TE/DUTS-TE-Mask", ["te"])
    write_published(tmp_path / "DUTS-TR/DUTS-TR-Image", tmp_path / "DUTS-TR/DUTS-TR-Mask", ["tr"])
    assert open_dataset(tmp_path)[0][0] == "te"
    assert open_dataset(tmp_path / "DUTS-TR").name == "DUTS-TR"


def test_published_masks_are_foreground_above_half(tmp_path):
    write(tmp_path / "images" / "a.jpg", np.zeros((1, 4, 3), np.uint8))
    gray = ids([[0, 127, 128, 255]])
    path = tmp_path / "ground_truth_mask" / "a.png"
    path.parent.mkdir()
    for mode in ("L", "RGB", "LA", "P"):
        Image.fromarray(gray).convert(mode).save(path)
        assert open_dataset(tmp_path)[0][2].tolist() == [[0, 0, 1, 1]], mode


def write_cub(root, masks):
    names = [f"00{i}.Some_bird/Some_Bird_{i}" for i in range(1, 5)]
    for name in names:
        write(root / "images" / f"{name}.jpg", IMAGE)
        write(masks / f"{name}.png", 51 * np.uint8(3) * MASK)  # three of five annotators
    (root / "images.txt").write_text("".join(f"{i} {n}.jpg\n" for i, n in enumerate(names, 1)))
    (root / "train_test_split.txt").write_text("1 0\n2 1\n3 0\n4 0\n")
    return names


def test_cub_without_the_papers_split_takes_the_official_test_photos(tmp_path):
    names = write_cub(tmp_path / "CUB_200_2011", tmp_path / "segmentations")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "CUB (train_test_split)"
    assert dataset.crops
    assert [name for name, _, _ in dataset] == [names[0], names[2], names[3]]
    assert dataset[0][2].tolist() == MASK.tolist()


def test_cub_with_the_papers_split_takes_its_test_photos(tmp_path):
    names = write_cub(tmp_path, tmp_path / "segmentations")
    (tmp_path / "train_val_test_split.txt").write_text("1 0\n2 2\n3 1\n4 2\n")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "CUB (train_val_test_split)"
    assert [name for name, _, _ in dataset] == [names[1], names[3]]


def test_cub_when_a_listed_file_is_missing_names_it(tmp_path):
    names = write_cub(tmp_path, tmp_path / "segmentations")
    (tmp_path / "segmentations" / f"{names[2]}.png").unlink()
    assert check_dataset(tmp_path) == [f"segmentations/{names[2]}.png: is listed, but missing."]


def write_flowers(folder):
    for number in (1, 2, 3):
        write(folder / "jpg" / f"image_{number:05d}.jpg", IMAGE)
        colors = ids([[0, 0, 254], [200, 0, 90]])[MASK]
        write(folder / "segmim" / f"segmim_{number:05d}.jpg", colors)
    sets = {"trnid": [[3, 1]], "valid": [[2]], "tstid": [[2]]}
    savemat(folder / "setid.mat", sets)


def test_flowers_takes_trnid_and_what_is_not_blue(tmp_path):
    write_flowers(tmp_path)
    dataset = open_dataset(tmp_path)
    assert (dataset.name, dataset.crops) == ("Flowers", True)
    assert [name for name, _, _ in dataset] == ["image_00001", "image_00003"]
    assert (dataset[0][2] == MASK).mean() > 0.9  # segmim is JPEG


def test_flowers_when_the_split_is_damaged_is_refused(tmp_path):
    write_flowers(tmp_path)
    (tmp_path / "setid.mat").write_bytes(b"not a mat file")
    with pytest.raises(CorruptFileError, match=r"setid\.mat: not a readable list"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(("folder", "name"), [("CUB_200_2011", "CUB"), ("Flowers", "Flowers")])
def test_prepared_test_folders_are_recognised(folder, name, tmp_path):
    root = tmp_path / folder
    write_published(root / "test_images" / "class", root / "test_segmentations" / "class")
    dataset = open_dataset(root)
    assert (dataset.name, dataset.crops, dataset[0][0]) == (name, True, "class/0001")


def test_a_folder_of_parts_names_them(tmp_path):
    write_pair(tmp_path / "test", "a", IMAGE, MASK)
    with pytest.raises(InputError, match="Perhaps one of the folders in it: test"):
        open_dataset(tmp_path)
    with pytest.raises(InputError, match="there is no such folder"):
        open_dataset(tmp_path / "nowhere")


# What the values mean


def test_dataset_json_of_the_folder_above_holds_for_its_parts(tmp_path):
    mask = MASK.copy()
    mask[0] = IGNORE
    write_pair(tmp_path / "pets" / "test", "a", IMAGE, mask)
    write_json(
        tmp_path / "pets" / "dataset.json", {"classes": ["pet"], "ignore": 255, "foreground": None}
    )
    dataset = open_dataset(tmp_path / "pets" / "test")
    assert (dataset.name, dataset.classes) == ("pets/test", ("pet",))
    assert dataset[0][2].tolist() == mask.tolist()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 255], [0, 1]),
        ([0, 1, 255], [0, 1, 255]),
        ([0, 1], [0, 1]),
    ],
)
def test_without_dataset_json_the_masks_speak(values, expected, tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, len(values), 3), np.uint8), ids([values]))
    assert open_dataset(tmp_path)[0][2].tolist() == [expected]


def test_without_dataset_json_other_values_must_be_named(tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 3, 3), np.uint8), ids([[0, 1, 2]]))
    with pytest.raises(InputError, match=r"hold the values 0, 1, 2, and nothing says.*`classes`"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, classes=["cat", "dog"])
    assert dataset.classes == ("cat", "dog")
    assert dataset[0][2].tolist() == [[0, 1, 2]]


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ({"foreground": 255, "ignore": 255}, [0, 1, 1]),
        ({"foreground": 255, "ignore": 128}, [0, 1, 255]),
        ({"foreground": 128, "ignore": 255, "classes": ["pet"]}, [0, 255, 1]),
    ],
)
def test_dataset_json_with_a_foreground_value(description, expected, tmp_path):
    values = ids([[0, 255, 255 if expected[2] == 1 and expected[1] == 1 else 128]])
    write_pair(tmp_path, "a", np.zeros((1, 3, 3), np.uint8), values)
    write_json(tmp_path / "dataset.json", description)
    assert open_dataset(tmp_path)[0][2].tolist() == [expected]


def test_options_go_before_dataset_json(tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 2, 3), np.uint8), ids([[0, 255]]))
    write_json(tmp_path / "dataset.json", {"classes": ["pet"], "ignore": 255})
    dataset = open_dataset(tmp_path, foreground=255)
    assert dataset[0][2].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "expected an object"),
        ({"classes": "pet"}, "classes is 'pet'; expected a list of names"),
        ({"classes": []}, "expected a list of names"),
        ({"classes": ["a"], "ignore": "255"}, "ignore is '255'"),
        ({"classes": ["a"], "ignore": 1}, "ignore 1 is the id of a class"),
        ({"foreground": 0}, "`foreground`: expected a mask value in 1-255, found 0"),
        ({"classes": ["a", "b"], "foreground": 255}, "means one class, but there are 2: a, b"),
        ({"classes": [str(i) for i in range(255)]}, "255 classes; expected 1 to 254"),
    ],
)
def test_dataset_json_when_it_is_wrong_is_refused(description, message, tmp_path):
    write_pair(tmp_path, "a", IMAGE, MASK)
    write_json(tmp_path / "dataset.json", description)
    with pytest.raises(InputError, match=message):
        check_dataset(tmp_path)


# Problems


def with_one(value):
    """The mask with one pixel of another value."""
    mask = MASK.copy()
    mask[2, 5] = value
    return mask


def write_problems(folder):
    """A folder in which everything is wrong that can be."""
    write_pair(folder, "good", IMAGE, MASK)
    write_pair(folder, "out_of_range", IMAGE, with_one(7))
    write_pair(folder, "smooth", IMAGE, np.arange(256, dtype=np.uint8).reshape(16, 16))
    colors = np.zeros((16, 16, 3), np.uint8)
    colors[2, 2] = 255, 0, 0
    write(folder / "images" / "colors.png", IMAGE)
    write(folder / "masks" / "colors.png", colors)
    write_pair(folder, "small_mask", IMAGE, MASK[:8])
    write(folder / "images" / "no_mask.jpg", IMAGE)
    write(folder / "masks" / "no_image.png", MASK)
    write_pair(folder, "twice", IMAGE, MASK)
    write(folder / "images" / "twice.jpg", IMAGE)
    write(folder / "images" / "Case.png", IMAGE)
    write(folder / "masks" / "case.png", MASK)
    write_pair(folder, "cut_image", IMAGE, MASK)
    cut = folder / "images" / "cut_image.png"
    cut.write_bytes(cut.read_bytes()[:200])
    write_pair(folder, "no_picture", IMAGE, MASK)
    (folder / "masks" / "no_picture.png").write_text("hello")
    (folder / "images" / "._good.jpg").write_text("of another system")
    write_json(folder / "dataset.json", {"classes": ["pet"], "ignore": 255})


def test_check_dataset_finds_all_problems_at_once_by_name(tmp_path):
    write_problems(tmp_path)
    problems = check_dataset(tmp_path)
    expected = {
        "masks/out_of_range.png": "pixel (2, 5) has the value 7 (wrong pixels: 1). "
        'Expected: class ids 0-1, and 255 for ignored. If 7 means "no label", say "ignore": 7',
        "masks/smooth.png": "pixel (0, 2) has the value 2 (wrong pixels: 253). "
        "Expected: class ids 0-1, and 255 for ignored. So many values",
        "masks/colors.png": "",
        "masks/small_mask.png": "8 x 16 pixels, but its image images/small_mask.png has "
        "16 x 16 (height x width)",
        "images/no_mask.jpg": "has no mask masks/no_mask.png",
        "masks/no_image.png": "has no image of that name in images",
        "images/twice.png": "has the same name as twice.jpg",
        "images/Case.png": "has no mask masks/Case.png; masks/case.png differs in case",
        "masks/case.png": "has no image",
        "images/cut_image.png": "not a readable image",
        "masks/no_picture.png": "not a readable image",
    }
    for name, text in expected.items():
        assert any(problem.startswith(f"{name}: {text}") for problem in problems), (name, problems)
    assert len(problems) == len(expected)


def test_open_dataset_lists_all_problems_in_its_error(tmp_path):
    write_problems(tmp_path)
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert "11 problems:" in message
    assert all(problem in message for problem in check_dataset(tmp_path))
    assert f"latentseg check {tmp_path}" in message


def test_check_dataset_when_255_is_the_foreground_says_how_to_name_it(tmp_path):
    write_pair(tmp_path, "a", IMAGE, 255 * MASK)
    write_json(tmp_path / "dataset.json", {"classes": ["pet"], "ignore": 255})
    (problem,) = check_dataset(tmp_path)
    assert "`foreground` 255" in problem


def test_check_dataset_when_all_masks_are_empty_says_so(tmp_path):
    write_pair(tmp_path, "a", IMAGE, 0 * MASK)
    (problem,) = check_dataset(tmp_path)
    assert "all of them are empty" in problem


def test_check_dataset_without_dataset_json_names_the_few_odd_masks(tmp_path):
    for name in "abc":
        write_pair(tmp_path, name, IMAGE, 255 * MASK)
    write_pair(tmp_path, "odd", IMAGE, with_one(9))
    (problem,) = check_dataset(tmp_path)
    assert problem.startswith("masks/odd.png: pixel ")


@pytest.mark.parametrize("n_masks", [0, 1])
def test_check_dataset_when_there_are_no_images_says_so(n_masks, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for _ in range(n_masks):
        write(tmp_path / "masks" / "a.png", MASK)
    problems = check_dataset(tmp_path)
    assert any("images: no images" in problem for problem in problems)
    with pytest.raises(InputError, match="no images"):
        open_dataset(tmp_path)


def test_check_dataset_of_a_sound_folder_is_empty(tmp_path):
    write_pair(tmp_path, "a", IMAGE, MASK)
    assert check_dataset(tmp_path) == []


# Reading


def test_dataset_iterates_in_order_of_names(tmp_path):
    for number in (2, 0, 1):
        write_pair(tmp_path, f"{number}", photo(number, MASK), MASK)
    dataset = open_dataset(tmp_path)
    assert [name for name, _, _ in dataset] == ["0", "1", "2"]
    for (_, image, _), number in zip(dataset, range(3), strict=True):
        assert image.tolist() == photo(number, MASK).tolist()


def test_thinned_refuses_less_than_one(tmp_path):
    write_pair(tmp_path, "a", IMAGE, MASK)
    dataset = open_dataset(tmp_path)
    assert len(dataset.thinned(None)) == len(dataset.thinned(5)) == 1
    with pytest.raises(InputError, match="`limit`: expected at least 1, found 0"):
        dataset.thinned(0)
