"""Archives of checkpoints: the one inside is opened; traps and damage are refused by name."""

import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, InputError, LatentsegError, UnsafeFileError
from latentseg.weights import archives
from latentseg.weights.containers import open_checkpoint

NAMES = ["a.zip", "a.whl", "a.tar", "a.tar.gz", "a.tgz", "netG.pth.gz"]


def weights(**tensors: float) -> bytes:
    stream = io.BytesIO()
    torch.save({name: torch.full((2,), value) for name, value in tensors.items()}, stream)
    return stream.getvalue()


def packed(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that its name says."""
    if path.suffix in (".zip", ".whl"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    elif ".tar" in path.suffixes or path.suffix == ".tgz":
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    else:
        path.write_bytes(gzip.compress(next(iter(files.values()))))
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_one_checkpoint_inside_is_opened(name: str, tmp_path: Path) -> None:
    files = {"folder/netG.pth": weights(x=3.0), "folder/README.md": b"about", ".hidden.pth": b""}
    path = packed(tmp_path / name, files)
    opened = open_checkpoint(path)
    assert opened.weights()["x"].tolist() == [3.0, 3.0]
    assert opened.path == path
    assert opened.sha256 == open_checkpoint(path).sha256
    assert not list(tmp_path.glob("latentseg-*"))


def test_archives_in_archives_are_opened_but_not_without_end(tmp_path: Path) -> None:
    content = weights(x=1.0)
    for depth in range(3):
        path = packed(tmp_path / f"{depth}.zip", {f"inner{depth}.zip": content})
        content = path.read_bytes()
    assert open_checkpoint(path).weights()["x"].tolist() == [1.0, 1.0]  # pyright: ignore
    path = packed(tmp_path / "deep.zip", {"more.zip": content})
    with pytest.raises(UnsafeFileError, match="more than 3 deep"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", NAMES[:4])
def test_of_several_one_is_asked_for(name: str, tmp_path: Path) -> None:
    path = packed(tmp_path / name, {"a/G.pth": weights(x=1.0), "a/D.pth": weights(x=2.0)})
    message = r"several checkpoints\. There are: a/D\.pth, a/G\.pth\. Say which: `options` file="
    with pytest.raises(InputError, match=message):
        open_checkpoint(path)
    assert open_checkpoint(path, part="D.pth").weights()["x"].tolist() == [2.0, 2.0]
    with pytest.raises(InputError, match="no such checkpoint"):
        open_checkpoint(path, part="E.pth")


def test_an_archive_without_a_checkpoint_says_so(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"a.txt": b"", "b.txt": b""})
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["../../escaped.pth", "/tmp/escaped.pth", "a/../../escaped.pth"])
@pytest.mark.parametrize("archive", ["a.zip", "a.tar"])
def test_names_that_leave_the_folder_are_only_names(
    name: str, archive: str, tmp_path: Path
) -> None:
    path = packed(tmp_path / "in" / archive if (tmp_path / "in").mkdir() is None else tmp_path,
                  {name: weights(x=1.0), "README": b""})  # fmt: skip
    assert open_checkpoint(path).weights()["x"].tolist() == [1.0, 1.0]
    assert not list(tmp_path.rglob("escaped.pth"))


def test_links_and_devices_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.pth").write_bytes(weights(x=1.0))
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("l.pth", tarfile.SYMTYPE), ("h.pth", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(tmp_path / "secret.pth")
            archive.addfile(info)
        info = tarfile.TarInfo("f.pth")
        info.type = tarfile.FIFOTYPE
        archive.addfile(info)
    with pytest.raises(InputError, match="holds no checkpoint"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", NAMES)
def test_what_unfolds_to_many_times_its_size_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "SMALL_BYTES", 2**20)
    path = packed(tmp_path / name, {"netG.pth": bytes(2**26)})
    if name == "a.tar":
        with pytest.raises(CorruptFileError, match="neither a safetensors"):
            open_checkpoint(path)
        return
    with pytest.raises(UnsafeFileError, match="many times its size"):
        open_checkpoint(path)


def test_numbers_of_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 2)
    for name in ("a.zip", "a.tar"):
        path = packed(tmp_path / name, {f"{i}.pth": b"" for i in range(4)})
        with pytest.raises(UnsafeFileError, match="more than 2 files"):
            open_checkpoint(path)


def test_errors_name_the_archive_and_the_file_in_it(tmp_path: Path) -> None:
    path = packed(tmp_path / "a.zip", {"netG.pth": b"\x80 nothing", "README": b""})
    with pytest.raises(LatentsegError, match=re.escape(f"{path}: netG.pth")) as error:
        open_checkpoint(path)
    assert "latentseg-" not in str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_cut_and_flipped_archives_are_refused_or_read(name: str, tmp_path: Path) -> None:
    path = packed(tmp_path / name, {"netG.pth": weights(x=3.0), "README": b"text"})
    whole, rng = path.read_bytes(), torch.Generator().manual_seed(0)
    for _ in range(40):
        at = int(torch.randint(len(whole), (), generator=rng))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(torch.randint(8, (), generator=rng))
        for content in (whole[:at], bytes(flipped)):
            path.write_bytes(content)
            try:
                open_checkpoint(path)
            except LatentsegError as error:
                assert path.name in str(error)  # noqa: PT017
