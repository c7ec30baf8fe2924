import pytest

from latentseg import errors

MENDABLE = [
    "InputError",
    "CorruptFileError",
    "UnsafeFileError",
    "NotFinishedError",
    "DivergedError",
]


@pytest.mark.parametrize("name", MENDABLE)
def test_every_error_is_a_latentseg_error_and_keeps_its_message(name):
    error = getattr(errors, name)("masks/1.png: wrong.")
    assert isinstance(error, errors.LatentsegError)
    assert str(error) == "masks/1.png: wrong."


def test_errors_are_no_kind_of_each_other():
    kinds = [getattr(errors, name) for name in MENDABLE]
    assert all(a is b or not issubclass(a, b) for a in kinds for b in kinds)
