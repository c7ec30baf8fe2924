import sys
from pathlib import Path

import numpy as np
import pytest

from latentseg.errors import CorruptFileError, InputError
from latentseg.evaluation.tflite_segmenter import TfliteSegmenter
from tests.evaluation.tiny_tflite import write_tflite

pytest.importorskip("ai_edge_litert")
WEIGHTS, BIAS = (3.0, -1.0, 0.5), -0.7


def test_scores_are_the_networks_answer_at_the_size_of_the_image(tmp_path: Path):
    segmenter = TfliteSegmenter(write_tflite(tmp_path / "m.tflite", WEIGHTS, BIAS))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    scores = segmenter.scores(image)
    expected = 1 / (1 + np.exp(-(image / 255 @ np.array(WEIGHTS) + BIAS)))
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[1], expected, atol=1e-5)
    np.testing.assert_allclose(scores.sum(axis=0), 1, atol=1e-6)


def test_image_of_another_size_is_resized_there_and_back(tmp_path: Path):
    segmenter = TfliteSegmenter(write_tflite(tmp_path / "m.tflite", (8.0, 0.0, 0.0), -4.0))
    image = np.zeros((24, 40, 3), np.uint8)
    image[:, 20:, 0] = 255
    scores = segmenter.scores(image)
    assert scores.shape == (2, 24, 40)
    assert (scores[1, :, :15] < 0.1).all()
    assert (scores[1, :, 25:] > 0.9).all()


@pytest.mark.parametrize(("weights", "is_probability"), [((1.0,), True), ((9.0, 9.0, 9.0), False)])
def test_network_with_other_inputs_or_outputs_is_refused(weights, is_probability, tmp_path: Path):
    path = write_tflite(tmp_path / "m.tflite", weights, 0.0, is_probability=is_probability)
    with pytest.raises(InputError, match=r"expected an image \(1, h, w, 3\)|no probability"):
        TfliteSegmenter(path).scores(np.full((8, 8, 3), 255, np.uint8))


def test_file_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="there is no such file"):
        TfliteSegmenter(tmp_path / "m.tflite")
    (tmp_path / "m.tflite").write_bytes(b"not a network, but long enough to be looked at")
    with pytest.raises(CorruptFileError, match="not a TensorFlow Lite file"):
        TfliteSegmenter(tmp_path / "m.tflite")
    whole = write_tflite(tmp_path / "m.tflite", WEIGHTS, BIAS).read_bytes()
    (tmp_path / "m.tflite").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match="not a TensorFlow Lite file"):
        TfliteSegmenter(tmp_path / "m.tflite")


def test_extra_that_is_missing_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(InputError, match=r"pip install 'latentseg\[judge\]'"):
        TfliteSegmenter(tmp_path / "m.tflite")
