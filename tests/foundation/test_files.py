"""Round trips and refusals of `files`; damage and crashes have files of their own."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg import files
from latentseg.errors import CorruptFileError, InputError

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\\ud" not in json.dumps(value))  # lone surrogates have no UTF-8


def test_write_bytes_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.bin"
    files.write_bytes(path, b"old")
    files.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_write_bytes_takes_the_longest_name(tmp_path):
    path = tmp_path / ("n" * 251 + ".png")
    files.write_bytes(path, b"x")
    assert path.read_bytes() == b"x"


def test_write_bytes_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        files.write_bytes(tmp_path / "file" / "b.bin", b"x")


def test_atomic_keeps_the_old_file_when_the_writer_fails(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError, match="stop"), files.atomic(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=60)
@given(JSON)
def test_json_comes_back_equal(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert files.read_json(path) == value


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_with_a_number_that_is_none_is_never_written(tmp_path, number):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": number})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": 1} trailing',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b"\xff\xfe{}",
        b"[" * 100_000,
        b"9" * 5000,
        b"\x00",
    ],
)
def test_json_that_is_damaged_is_refused_by_name(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"a\.json"):
        files.read_json(path)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files.read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize("read", [files.read_json, files.read_safetensors])
def test_what_is_not_a_file_is_an_input_error(tmp_path, read):
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "missing")
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path)


def test_safetensors_come_back_equal(tmp_path):
    tensors = {
        "half": torch.randn(3, 5).to(torch.bfloat16),
        "ids": torch.arange(7, dtype=torch.uint8),
        "turned": torch.randn(4, 6).t(),
        "number": torch.tensor(3.5),
        "nothing": torch.empty(0, 3),
    }
    files.write_safetensors(tmp_path / "a.safetensors", tensors, {"b": "2", "a": "é\n"})
    back = files.read_safetensors(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    assert all(back[name].dtype == tensors[name].dtype for name in tensors)


def test_safetensors_may_be_replaced_while_their_tensors_are_in_use(tmp_path):
    path = tmp_path / "a.safetensors"
    files.write_safetensors(path, {"a": torch.ones(1000)})
    before = files.read_safetensors(path)["a"]
    files.write_safetensors(path, {"a": torch.zeros(1000)})
    assert before.sum() == 1000


def test_safetensors_have_the_same_bytes_in_every_process(tmp_path):
    code = (
        "import sys, torch; from latentseg.files import write_safetensors as w;"
        "w(sys.argv[1], {'x': torch.ones(2), 'y': torch.zeros(3)}, {c: c for c in 'hgfedcba'})"
    )
    here, there = tmp_path / "here", tmp_path / "there"
    tensors = {"y": torch.zeros(3), "x": torch.ones(2)}
    files.write_safetensors(here, tensors, {c: c for c in "abcdefgh"})
    subprocess.run([sys.executable, "-c", code, there], check=True)
    assert here.read_bytes() == there.read_bytes()
    assert files.read_safetensors(here)["x"].tolist() == [1, 1]


def test_sha256_equals_hashlib(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_remove_leftovers_touches_only_our_own(tmp_path):
    ours = tmp_path / "a" / files.TEMPORARY.format(process=7, count=0)
    theirs = tmp_path / "a" / ".report.docx.tmp"
    files.write_bytes(theirs, b"x")
    ours.write_bytes(b"x")
    files.remove_leftovers(tmp_path)
    assert theirs.exists()
    assert not ours.exists()


def test_manifest_leaves_out_hidden_files(tmp_path):
    for name in ("a.txt", "b/c.txt", ".DS_Store", ".lock"):
        files.write_text(tmp_path / name, name)
    files.write_manifest(tmp_path)
    recorded = files.read_json(tmp_path / files.MANIFEST)["sha256"]
    assert list(recorded) == ["a.txt", "b/c.txt"]
    files.write_text(tmp_path / ".DS_Store", "changed by a file browser")
    files.verify_manifest(tmp_path)


def test_manifest_keeps_only_what_is_wanted(tmp_path):
    for name in ("model/a", "checkpoints/b"):
        files.write_text(tmp_path / name, name)
    files.write_manifest(tmp_path, keep=lambda path: path.parts[0] != "checkpoints")
    assert list(files.read_json(tmp_path / files.MANIFEST)["sha256"]) == ["model/a"]


def test_verify_names_everything_that_is_wrong(tmp_path):
    for name in ("changed", "good", "missing"):
        files.write_text(tmp_path / name, name)
    files.write_manifest(tmp_path)
    (tmp_path / "changed").write_text("other")
    (tmp_path / "missing").unlink()
    with pytest.raises(CorruptFileError, match=r"changed \(changed\), missing \(missing\)"):
        files.verify_manifest(tmp_path)


def test_verify_without_a_manifest_says_unfinished(tmp_path):
    with pytest.raises(InputError, match="never finished"):
        files.verify_manifest(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"sha256": []}', "null", "", "{"])
def test_verify_refuses_what_is_no_manifest(tmp_path, content):
    (tmp_path / files.MANIFEST).write_text(content)
    with pytest.raises(CorruptFileError):
        files.verify_manifest(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/hostname",
        "a/../../secret",
        "n" * 5000,
        "nul\0",
        "\ud800",
        "",
        ".",
        "a/b/c",
    ],
)
def test_verify_survives_hostile_names(tmp_path, name):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    files.write_json(folder / files.MANIFEST, {"sha256": {name: files.sha256(tmp_path / "secret")}})
    with pytest.raises(CorruptFileError):
        files.verify_manifest(folder)


def test_claim_of_a_new_folder_records_what_was_asked(tmp_path):
    assert files.claim(tmp_path / "run", {"steps": 3, "size": (2, 3)}) is False
    assert files.read_json(tmp_path / "run" / "config.json") == {"steps": 3, "size": [2, 3]}


def test_claim_again_continues(tmp_path):
    files.claim(tmp_path, {"size": (2, 3)})
    assert files.claim(tmp_path, {"size": (2, 3)}) is True


def test_claim_names_every_field_that_differs(tmp_path):
    files.claim(tmp_path, {"seed": 0, "lr": 0.1, "train": {"steps": 3, "width": 1}, "old": 1})
    with pytest.raises(InputError) as caught:
        files.claim(tmp_path, {"seed": 1, "lr": 0.1, "train": {"steps": 4, "width": 1}, "new": 2})
    message = str(caught.value)
    assert "seed: 0 there, 1 now" in message
    assert "train.steps: 3 there, 4 now" in message
    assert "new: None there, 2 now" in message
    assert "old: 1 there, None now" in message
    assert "lr" not in message
    assert "width" not in message
    assert files.read_json(tmp_path / "config.json")["seed"] == 0


def test_claim_lets_free_fields_change_and_records_them(tmp_path):
    files.claim(tmp_path, {"steps": 3, "train": {"lr": 1, "batch": 2}})
    now = {"steps": 5, "train": {"lr": 1, "batch": 4}}
    assert files.claim(tmp_path, now, free=("steps", "train.batch")) is True
    assert files.read_json(tmp_path / "config.json") == now


def test_claim_leaves_the_record_of_finished_work_as_its_manifest_has_it(tmp_path):
    files.claim(tmp_path, {"steps": 3})
    files.write_manifest(tmp_path)
    assert files.claim(tmp_path, {"steps": 5, "new": None}, free=("steps",)) is True
    files.verify_manifest(tmp_path)


def test_claim_refuses_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not begun by this command"):
        files.claim(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_claim_takes_a_folder_with_nothing_but_hidden_files(tmp_path):
    (tmp_path / ".DS_Store").write_text("x")
    with files.locked(tmp_path):
        assert files.claim(tmp_path, {"a": 1}) is False


@pytest.mark.parametrize(
    "take", [lambda path: files.claim(path, {}), lambda path: files.locked(path).__enter__()]
)
def test_a_file_in_place_of_the_folder_is_refused(tmp_path, take):
    (tmp_path / "run").write_text("x")
    with pytest.raises(InputError, match="in the way"):
        take(tmp_path / "run")


@pytest.mark.parametrize("content", ["[]", "3", "{", ""])
def test_claim_of_a_damaged_record_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"config\.json"):
        files.claim(tmp_path, {"a": 1})


def test_check_keys_names_the_nearest():
    files.check_keys({"width": 1}, {"width", "steps"}, "config.json")
    with pytest.raises(InputError, match=r"config\.json: unknown field 'widht'. Perhaps 'width'\?"):
        files.check_keys({"widht": 1}, {"width", "steps"}, "config.json")
    with pytest.raises(InputError, match="Known: steps, width"):
        files.check_keys({"zzz": 1}, {"width", "steps"}, "config.json")


def test_free_bytes_of_a_folder_that_is_not_there_yet(tmp_path):
    assert files.free_bytes(tmp_path / "a" / "b" / "c") > 0
    assert files.free_bytes(Path()) > 0
