import pytest
import torch

from latentseg import devices
from latentseg.errors import InputError

CPU = torch.device("cpu")


def test_auto_takes_the_best_device_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert devices.pick_device().type == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert devices.pick_device().type == "mps"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert devices.pick_device() == CPU


def test_the_cpu_is_always_there():
    assert devices.pick_device("cpu") == CPU


@pytest.mark.parametrize(
    "name", ["", "gpu", "meta", "hpu", "mkldnn", "privateuseone", "CPU", "auto:1"]
)
def test_a_device_that_does_not_exist_is_refused(name):
    with pytest.raises(InputError, match="expected auto, cuda, mps, xpu, cpu"):
        devices.pick_device(name)


@pytest.mark.parametrize("name", ["cuda:99", "cuda:x", "cpu:-2", "xpu:99"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(InputError, match="not available here"):
        devices.pick_device(name)


@pytest.mark.parametrize(("is_fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_takes_bf16_only_from_hardware(monkeypatch, is_fast, expected):
    monkeypatch.setattr(devices, "has_fast_bf16", lambda device: is_fast)
    assert devices.pick_precision("auto", CPU) == expected


def test_named_precisions():
    assert devices.pick_precision("fp32", CPU) == torch.float32
    assert devices.pick_precision("bf16", CPU) == torch.bfloat16
    assert devices.pick_precision("fp16", CPU) == torch.float16
    with pytest.raises(InputError, match="`precision`: expected one of auto, fp32, bf16, fp16"):
        devices.pick_precision("fp8", CPU)


def test_has_fast_bf16_answers_everywhere(monkeypatch):
    assert isinstance(devices.has_fast_bf16(CPU), bool)
    assert devices.has_fast_bf16(torch.device("mps")) is False
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert devices.has_fast_bf16(CPU) is False


def test_autocast_computes_in_the_precision():
    x = torch.randn(4, 4)
    with devices.autocast(CPU, torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
    with devices.autocast(CPU, torch.float32):
        assert (x @ x).dtype == torch.float32
