"""Shards: the same bytes whoever makes them, whole or absent, refused by name when damaged."""

import contextlib
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import filelock
import numpy as np
import pytest

from latentseg.datasets.shard_files import ShardFolder, check_shards, cut, is_sharded, pack
from latentseg.distributed import rank_and_world
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, read_json, sha256, verify_manifest, write_json, write_manifest
from latentseg.images import IGNORE, encode
from latentseg.synthesis import shards
from latentseg.synthesis.shards import WORK
from latentseg.synthesis.stream import Stream
from tests.shard_world import SoftTruth, Truth, contents, make
from tests.world import World


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What 22 samples look like when one worker makes them without a break."""
    return contents(make(tmp_path_factory.mktemp("whole")))


def test_shards_when_read_then_they_hold_the_samples_of_the_stream(tmp_path: Path):
    folder = ShardFolder(make(tmp_path))
    blocks = [Stream(World(), Truth(), block=4).block(k) for k in range(6)]
    names, images, masks = zip(*folder, strict=True)
    assert folder[17][0] == "00000017"
    np.testing.assert_array_equal(folder[17][1], images[17])
    assert names == tuple(f"{i:08d}" for i in range(22))
    expected = np.concatenate([block.images for block in blocks])[:22]
    np.testing.assert_array_equal(np.stack(images), expected)
    expected = np.concatenate([block.masks for block in blocks])[:22]
    np.testing.assert_array_equal(np.stack(masks), expected)
    assert (folder.classes, folder.size, len(folder)) == (("blob",), (32, 32), 22)


def test_shards_when_finished_then_everything_is_recorded_and_nothing_else_left(tmp_path: Path):
    folder = make(tmp_path)
    verify_manifest(folder)
    assert check_shards(folder) == []
    assert is_sharded(folder)
    shard = [f"shard-{k:06d}.{kind}" for k in range(3) for kind in ("json", "tar")]
    assert sorted(contents(folder)) == sorted(["config.json", "dataset.json", MANIFEST, *shard])
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
    description = read_json(folder / "dataset.json")
    records = [read_json(folder / f"shard-{k:06d}.json") for k in range(3)]
    assert [record["count"] for record in records] == [8, 8, 6]
    assert [record["first"] for record in records] == [0, 8, 16]
    assert description["candidates"] == sum(record["candidates"] for record in records)
    assert description["candidates"] == 22 + sum(description["removed"].values())
    assert min(description["removed"].values()) > 0
    assert (description["seed"], description["licence"]) == (0, "Apache-2.0")
    for k, record in enumerate(records):
        assert record["sha256"] == sha256(folder / f"shard-{k:06d}.tar")
        assert record["yield"] == round(record["count"] / record["candidates"], 4)


def test_shards_when_opened_as_tar_then_the_layout_is_that_of_webdataset(tmp_path: Path):
    with tarfile.open(make(tmp_path, 3) / "shard-000000.tar") as archive:
        members = archive.getmembers()
        record = json.loads(archive.extractfile("00000001.json").read())  # pyright: ignore[reportOptionalMemberAccess]
    kinds = ("png", "mask.png", "json")
    assert [m.name for m in members] == [f"{i:08d}.{kind}" for i in range(3) for kind in kinds]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }
    block = Stream(World(), Truth(), block=4).block(0)
    assert record["seed"] == block.seeds[1]
    assert record["removed"] == block.removed[1].tolist()


@pytest.mark.filterwarnings("ignore")
def test_shards_when_read_by_webdataset_then_it_finds_the_same_samples(tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    folder = make(tmp_path)
    urls = [str(folder / shard.name) for shard in cut(22, 8)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    ours = ShardFolder(folder)
    assert [sample["__key__"] for sample in found] == [name for name, _, _ in ours]
    for sample, (_, image, mask) in zip(found, ours, strict=True):
        np.testing.assert_array_equal(sample["png"], image)
        np.testing.assert_array_equal(sample["mask.png"][..., 0], mask)


def test_shards_when_jpg_and_soft_then_both_come_back(tmp_path: Path):
    folder = make(tmp_path, 6, labeler=SoftTruth(), suffix="jpg", soft=True)
    hard, soft = ShardFolder(folder), ShardFolder(folder, soft=True)
    for (_, image, mask), (_, same, levels) in zip(hard, soft, strict=True):
        np.testing.assert_array_equal(image, same)
        assert levels.shape == (1, 32, 32)
        np.testing.assert_array_equal(levels[0], np.where(mask > 0, 204, 51))
    assert not ShardFolder(make(tmp_path / "hard", 4), soft=True).is_soft


# Who makes them


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shards_when_ranks_work_one_after_the_other_then_the_bytes_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], order
):
    monkeypatch.setattr(shards, "_has_locks", lambda folder: False)
    for rank in order:
        assert not (tmp_path / MANIFEST).exists()
        make(tmp_path, rank=rank, world=3)
    assert contents(tmp_path) == whole


def test_shards_when_one_rank_comes_alone_then_it_does_the_work_of_all(tmp_path: Path, whole):
    assert contents(make(tmp_path, rank=1, world=5)) == whole


def test_shards_when_another_holds_one_then_it_is_waited_for_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
):
    (tmp_path / WORK).mkdir()
    other = filelock.FileLock(tmp_path / WORK / "000001.lock")
    other.acquire()
    seen = []

    def die(seconds: float) -> None:
        seen.append(sorted(path.name for path in tmp_path.glob("shard-*.tar")))
        other.release()

    monkeypatch.setattr(shards.time, "sleep", die)
    write_json(tmp_path / "config.json", json.loads(whole["config.json"]))
    assert contents(make(tmp_path)) == whole
    assert seen == [["shard-000000.tar", "shard-000002.tar"]]


@pytest.mark.slow
def test_shards_when_a_worker_process_is_killed_then_another_takes_over(
    tmp_path: Path, whole: dict[str, bytes], capfd: pytest.CaptureFixture[str]
):
    folder = make(tmp_path / "out", labeler=Truth(tmp_path / "fuse", 0.05), workers=2, quiet=False)
    assert contents(folder) == whole
    assert (tmp_path / "fuse").exists()
    said = capfd.readouterr().err
    assert "was killed (SIGKILL); the others take over" in said
    assert "synth 22/22" in said


def test_shards_when_a_worker_fails_then_its_error_is_ours(tmp_path: Path):
    with pytest.raises(InputError, match=r"most were still refused.*left 100%"):
        make(tmp_path, 8, labeler=Stubborn(), workers=2)
    assert not list(tmp_path.glob("shard-*"))


class Stubborn(Truth):
    def label(self, latents):
        labelled = super().label(latents)
        labelled.rejected_by[:] = 1
        return labelled


def test_shards_when_the_labeler_cannot_be_sent_then_torchrun_is_recommended(tmp_path: Path):
    labeler = Truth()
    labeler.hook = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"cannot be sent to other processes.*torchrun"):
        make(tmp_path, labeler=labeler, workers=2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"RANK": "3", "WORLD_SIZE": "8"}, (3, 8)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, (2, 4)),
        ({"RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 2)),
    ],
)
def test_rank_and_world_when_started_by_torchrun_or_slurm(monkeypatch, environment, expected):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert rank_and_world() == expected


# Going on


@pytest.mark.parametrize("survivors", [0, 1, 3, 5])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left")])
def test_shards_when_work_stops_then_nothing_half_is_seen_and_the_same_call_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], survivors, fault
):
    draw, drawn = Stream.block, []

    def stopping(stream: Stream, k: int):
        drawn.append(k)
        if len(drawn) > survivors:
            raise fault
        return draw(stream, k)

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "block", stopping)
        with pytest.raises((KeyboardInterrupt, InputError)):
            make(tmp_path)
    seen = {k: v for k, v in contents(tmp_path).items() if not k.startswith(WORK)}
    assert len(seen) == 1 + 2 * (survivors // 2)  # the configuration, and two files per shard
    assert seen.items() <= whole.items()
    with pytest.raises(InputError, match="never finished"):
        ShardFolder(tmp_path)
    assert contents(make(tmp_path)) == whole


def test_shards_when_killed_between_tar_and_record_then_the_shard_is_made_again(
    tmp_path: Path, whole: dict[str, bytes]
):
    make(tmp_path)
    (tmp_path / MANIFEST).unlink()
    (tmp_path / "shard-000001.json").unlink()
    (tmp_path / WORK / "000001").mkdir(parents=True)
    (tmp_path / WORK / "000001" / "half").write_bytes(b"of a worker that died")
    assert contents(make(tmp_path)) == whole


def test_shards_when_finished_then_nothing_is_drawn(tmp_path: Path, monkeypatch):
    make(tmp_path)
    monkeypatch.setattr(Stream, "block", None)
    make(tmp_path)
    verify_manifest(tmp_path)


def test_shards_when_the_count_is_raised_then_they_equal_a_larger_data_set(tmp_path: Path, whole):
    make(tmp_path, 13)
    assert contents(make(tmp_path, 22)) == whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 8}, "22 samples were asked for already"),
        ({"seed": 1}, "seed: 0 there, 1 now"),
        ({"shard_size": 4}, "shard_size: 8 there, 4 now"),
        ({"shard_size": 6}, "`shard_size`: expected a multiple of"),
        ({"count": 0}, "`count`: expected at least 1, found 0"),
        ({"suffix": "gif"}, "gif"),
        ({"workers": 0}, "`workers`: expected at least 1, found 0"),
        ({"rank": 2, "world": 2}, "`rank`: expected 0 to 1, found 2"),
    ],
)
def test_shards_when_an_option_does_not_fit_then_it_is_named(
    tmp_path: Path, whole: dict[str, bytes], options: dict, message: str
):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        make(tmp_path, **options)
    assert contents(tmp_path) == whole


def test_shards_when_the_disk_is_too_small_then_it_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shards, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match="0 MB are free"):
        make(tmp_path)
    assert not list(tmp_path.glob("shard-*"))


def test_shards_when_no_size_is_given_then_large_pictures_make_short_shards(tmp_path: Path):
    assert ShardFolder(make(tmp_path, 5, shard_size=None)).shards == cut(5, 1024)
    assert read_json(tmp_path / "config.json")["shard_size"] == 1024
    stream = Stream(World((1024, 1024)), Large())
    assert 64 <= 2**28 // shards._bytes_per_sample(stream, "png") < 128


class Large(Truth):
    def __init__(self) -> None:
        super().__init__()
        self.generator = World((1024, 1024))


# Damage


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "a bit of the shard": lambda folder: flip(folder / "shard-000001.tar", 0.5),
    "the end of the shard": lambda folder: os.truncate(folder / "shard-000001.tar", 9_000),
    "the whole shard": lambda folder: (folder / "shard-000001.tar").unlink(),
    "a bit of the record": lambda folder: flip(folder / "shard-000001.json", 0.6),
    "the whole record": lambda folder: (folder / "shard-000001.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_shards_when_damaged_then_they_are_named_and_made_again(
    tmp_path: Path, whole: dict[str, bytes], damage
):
    make(tmp_path)
    damage(tmp_path)
    assert len(problems := check_shards(tmp_path)) == 1
    assert "shard-000001" in problems[0]
    with pytest.raises(CorruptFileError, match=r"shard-000001\.(tar|json) \("):
        list(ShardFolder(tmp_path))
    assert contents(make(tmp_path)) == whole
    assert check_shards(tmp_path) == []


def test_shards_when_several_are_damaged_then_all_are_named(tmp_path: Path):
    make(tmp_path)
    flip(tmp_path / "shard-000000.tar", 0.3)
    os.truncate(tmp_path / "shard-000002.tar", 100)
    (tmp_path / "dataset.json").write_text("{}")
    assert len(check_shards(tmp_path)) == 3
    with pytest.raises(CorruptFileError, match=r"dataset\.json .*shard-000002\.tar \(cut off"):
        ShardFolder(tmp_path)


PNG, MASK = encode(np.zeros((32, 32, 3), np.uint8)), encode(np.zeros((32, 32), np.uint8))
BOMB = encode(np.zeros((3000, 3000, 3), np.uint8))
SOUND = [("00000000.png", PNG), ("00000000.mask.png", MASK), ("00000000.json", b"{}")]


def forged(folder: Path, tar: bytes) -> Path:
    """One shard from elsewhere, with a record and a manifest that agree with it."""
    make(folder, 1)
    record = read_json(folder / "shard-000000.json")
    (folder / "shard-000000.tar").write_bytes(tar)
    write_json(folder / "shard-000000.json", {**record, "bytes": len(tar)})
    write_manifest(folder)
    return folder


def packed(folder: Path, members: list[tuple[str, bytes]]) -> bytes:
    pack(folder / "a.tar", members)
    return (folder / "a.tar").read_bytes()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("00000000.pyd", b"cos\nsystem\n"), *SOUND[1:]], r"found '00000000\.pyd'"),
        ([*SOUND, ("00000000.pkl", b"")], r"holds '00000000\.pkl', which does not belong"),
        ([("../00000000.png", PNG), *SOUND[1:]], r"found '\.\./00000000\.png'"),
        ([("/etc/passwd", PNG), *SOUND[1:]], "found '/etc/passwd'"),
        (SOUND[:2], r"expected the file '00000000\.json', found its end"),
        ([SOUND[1], SOUND[0], SOUND[2]], r"found '00000000\.mask\.png'"),
        ([("00000000.png", b"no picture"), *SOUND[1:]], "not a readable picture"),
        ([("00000000.png", BOMB), *SOUND[1:]], "picture of 3000 x 3000 RGB, expected 32 x 32 RGB"),
        ([SOUND[0], ("00000000.mask.png", PNG), SOUND[2]], "32 x 32 RGB, expected 32 x 32 L"),
        (SOUND, None),
    ],
)
def test_shards_when_members_are_not_those_expected_then_the_first_is_named(
    tmp_path: Path, members, message
):
    folder = ShardFolder(forged(tmp_path / "out", packed(tmp_path, members)))
    if message is None:
        assert len(list(folder)) == 1
        return
    with pytest.raises(CorruptFileError, match=message):
        list(folder)
    assert len(check_shards(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
def test_shards_when_a_member_is_no_plain_file_then_it_is_refused(tmp_path: Path, kind: bytes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("00000000.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(CorruptFileError, match=r"found '00000000\.png'"):
        list(ShardFolder(forged(tmp_path, buffer.getvalue())))


def test_shards_when_a_forged_tar_is_cut_or_changed_anywhere_then_only_our_error_is_raised(
    tmp_path: Path,
):
    folder = make(tmp_path, 2)
    data, chance = ShardFolder(folder), random.Random(0)
    sound = (folder / "shard-000000.tar").read_bytes()
    for trial in range(300):
        content = bytearray(sound)
        if trial % 2:
            del content[chance.randrange(len(content)) :]
        else:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (folder / "shard-000000.tar").write_bytes(content)
        data.digests["shard-000000.tar"] = sha256(folder / "shard-000000.tar")  # as if agreed
        try:
            for sample in data.read(data.shards[0]):
                data.decode(sample)
        except CorruptFileError:
            continue


def test_check_when_a_mask_holds_no_class_then_the_sample_is_named(tmp_path: Path):
    mask = np.array([[0, 1], [IGNORE, 7]], np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    members = [SOUND[0], ("00000000.mask.png", encode(mask)), SOUND[2]]
    forged(tmp_path / "out", packed(tmp_path, members))
    assert check_shards(tmp_path / "out") == [
        "shard-000000.tar: 00000000.mask.png: holds the value 7, but there are 1 classes."
    ]


@pytest.mark.parametrize(
    "change",
    [{"count": 10**15}, {"count": 0}, {"shard_size": 0}, {"size": "x"}, {"classes": 3}],
)
def test_shards_when_the_description_is_forged_then_it_is_refused(tmp_path: Path, change: dict):
    make(tmp_path, 4)
    description = read_json(tmp_path / "dataset.json")
    write_json(tmp_path / "dataset.json", {**description, **change})
    write_manifest(tmp_path)
    with pytest.raises(InputError, match="does not describe shards"):
        ShardFolder(tmp_path)


# Kills

SYNTH = """
import sys
from pathlib import Path
from tests.shard_world import Truth, make

if __name__ == "__main__":
    out, count, workers = sys.argv[1:]
    settings = {"block": 16, "shard_size": 128, "workers": int(workers), "quiet": True}
    make(Path(out), int(count), labeler=Truth(pause_s=0.01), **settings)
"""


def start(folder: Path, workers: int, count: int = 2000) -> subprocess.Popen[bytes]:
    script = folder.parent / "synth.py"
    script.write_text(SYNTH)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(script), str(folder), str(count), str(workers)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def below(process: subprocess.Popen[bytes]) -> list[int]:
    """The worker processes that a process has started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    except FileNotFoundError:
        return []
    return [int(pid) for pid in children.split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
def test_2000_samples_by_1_2_and_4_workers_and_after_40_kills_have_equal_sha256(tmp_path: Path):
    for workers in (1, 2, 4):
        assert start(tmp_path / str(workers), workers).wait() == 0
    expected = contents(tmp_path / "1")
    assert contents(tmp_path / "2") == contents(tmp_path / "4") == expected
    chance, out = random.Random(0), tmp_path / "killed"
    kills = 0
    while kills < 40:
        process = start(out, chance.choice((1, 1, 2, 4)))
        while process.poll() is None and not list(out.glob(f"{WORK}/*/.latentseg-*.tmp")):
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 1.5))
        number = chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        if process.poll() is None:
            victim = chance.choice([process.pid, *below(process)])
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, number)
            kills += 1
            if victim != process.pid and chance.random() < 0.7:
                process.kill()  # a worker and then the one who started it
        process.wait()
        for path in out.glob("shard-*"):
            assert path.read_bytes() == expected[path.name]
        if len(list(out.glob("shard-*.json"))) > 10:  # so that there is work to kill
            for k in chance.sample(range(16), 12):
                (out / f"shard-{k:06d}.tar").unlink(missing_ok=True)
    while start(out, 2).wait():
        pass
    assert contents(out) == expected
