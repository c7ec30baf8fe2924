import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.training_states import Checkpoints, load_state, save_state


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_state_round_trip(tmp_path):
    save_state(tmp_path / "a", {"x": torch.arange(3.0)})
    assert torch.equal(load_state(tmp_path / "a")["x"], torch.arange(3.0))


def test_unfinished_and_damaged_states_are_refused(tmp_path):
    with pytest.raises(InputError):
        load_state(tmp_path / "none")
    save_state(tmp_path / "a", {"x": torch.arange(3.0)})
    damage(tmp_path / "a" / "state.safetensors")
    with pytest.raises(CorruptFileError, match="changed"):
        load_state(tmp_path / "a")


def test_the_last_two_checkpoints_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    assert checkpoints.load() == (0, {})
    for step in (5, 10, 15):
        checkpoints.save(step, {"x": torch.tensor(step)})
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == [
        "step-0000010",
        "step-0000015",
    ]
    assert checkpoints.load() == (15, {"x": torch.tensor(15)})


def test_damaged_newest_checkpoint_falls_back_with_a_warning(tmp_path, capsys):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(5, {"x": torch.tensor(5)})
    checkpoints.save(10, {"x": torch.tensor(10)})
    damage(tmp_path / "step-0000010" / "state.safetensors")
    step, tensors = checkpoints.load()
    assert (step, int(tensors["x"])) == (5, 5)
    assert "warning: checkpoint step-0000010" in capsys.readouterr().err


def test_delete_removes_all(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(5, {"x": torch.tensor(5)})
    checkpoints.delete()
    assert not (tmp_path / "c").exists()
    assert checkpoints.newest() is None
