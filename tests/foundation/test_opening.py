"""Only regular files are opened, no link in a work folder is followed, JSON and YAML bounded."""

import os
import socket
import threading

import pytest

from latentseg import files
from latentseg.errors import CorruptFileError, InputError

READERS = [
    files.open_regular,
    files.read_bytes,
    files.read_text,
    files.read_json,
    files.read_yaml,
    files.read_safetensors,
    files.sha256,
]


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="a pipe, where a file was expected"):
        read(tmp_path / "pipe")


@pytest.mark.parametrize("read", READERS)
def test_a_device_is_refused_also_behind_a_link(tmp_path, read):
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="a device"):
        read(tmp_path / "endless")


def test_a_socket_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("s")
        with pytest.raises(InputError, match="a socket"):
            files.open_regular("s")


def test_a_link_outside_a_work_folder_is_read(tmp_path):
    (tmp_path / "a.json").write_text("1")
    (tmp_path / "b.json").symlink_to(tmp_path / "a.json")
    assert files.read_json(tmp_path / "b.json") == 1


def test_the_holders_name_is_not_written_through_a_link(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / files.HOLDER).symlink_to(precious)
    with pytest.raises(InputError, match="a link"), files.locked(tmp_path / "work"):
        pass
    assert precious.read_text() == "mine"


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / files.LOCK).symlink_to(precious)
    with pytest.raises(InputError, match="cannot be worked in"), files.locked(tmp_path / "work"):
        pass
    assert precious.read_text() == "mine"


def test_a_linked_folder_inside_a_work_folder_is_neither_written_nor_read(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.json").write_text("1")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "masks").symlink_to(tmp_path / "elsewhere")
    with files.locked(tmp_path / "work"):
        with pytest.raises(InputError, match="masks: a link"):
            files.write_json(tmp_path / "work" / "masks" / "a.json", 2)
        with pytest.raises(InputError, match="masks: a link"):
            files.read_json(tmp_path / "work" / "masks" / "a.json")
        with pytest.raises(InputError, match="masks: a link"):
            files.open_in_place(tmp_path / "work" / "masks" / "a.json", "ab")
    assert (tmp_path / "elsewhere" / "a.json").read_text() == "1"


def test_the_work_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    with files.locked(tmp_path / "runs"):
        files.write_json(tmp_path / "runs" / "a.json", 2)
    assert files.read_json(tmp_path / "disk" / "a.json") == 2


@pytest.mark.parametrize("mode", ["ab", "a+b", "r+b"])
def test_a_journal_is_never_opened_through_a_link(tmp_path, mode):
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "journal").symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="a link"):
        files.open_in_place(tmp_path / "journal", mode)
    with pytest.raises(InputError, match="a link"):
        files.truncate(tmp_path / "journal", 0)
    assert (tmp_path / "precious").read_text() == "mine"


def test_nothing_of_the_lock_is_left(tmp_path):
    with files.locked(tmp_path / "work"):
        assert (tmp_path / "work" / files.LOCK).is_file()
        assert (tmp_path / "work" / files.HOLDER).is_file()
    assert not any((tmp_path / "work").iterdir())


def test_a_lock_that_vanishes_on_release_still_lets_in_one_at_a_time(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(5):
            with files.locked(tmp_path / "work"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1e999]", "too large for a number"),
        ("[-1e400]", "too large for a number"),
        ("[" + "9" * 401 + "]", "too large for an integer"),
        ("[9223372036854775808]", "too large for an integer"),
        ("[" * 65 + "]" * 65, "deeper than 64 levels"),
        ('{"a":' * 900 + "1" + "}" * 900, "deeper than 64 levels"),
        ('["\\ud800"]', "surrogates"),
    ],
)
def test_json_is_finite_and_bounded(tmp_path, text, problem):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(CorruptFileError, match=problem):
        files.read_json(tmp_path / "a.json")


def test_json_of_the_greatest_depth_is_read(tmp_path):
    (tmp_path / "a.json").write_text("[" * 64 + "]" * 64)
    assert files.read_json(tmp_path / "a.json")


def test_json_that_is_too_large_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("[" + " " * 100 + "]")
    with pytest.raises(CorruptFileError, match="larger than 50 bytes"):
        files.read_json(tmp_path / "a.json", limit=50)


LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (LAUGHS, "more than 100000 values"),
        ("a: &a [*a]", "itself"),
        ("[" * 100_000, "deeper than 64"),
        ("- " * 5000, "deeper than 64"),
        ("a: .inf", "finite"),
        ("a: 2001-01-01", "a date"),
        ("a: 99999999999999999999", "too large"),
        ("{[1]: 2}", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("a: 0x_", "cannot be read"),
        ("x" * (2**20 + 1), "larger than"),
        ("\xff", "cannot be read"),
    ],
)
def test_yaml_is_plain_and_bounded(tmp_path, text, problem):
    (tmp_path / "a.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptFileError, match=problem):
        files.read_yaml(tmp_path / "a.yaml")


def test_yaml_with_a_few_aliases_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: &a [1, x]\nb: *a\nnames: {0: cat}\n")
    assert files.read_yaml(tmp_path / "a.yaml") == {
        "a": [1, "x"],
        "b": [1, "x"],
        "names": {0: "cat"},
    }
