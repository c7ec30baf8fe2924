"""Whatever a description says, what opens it answers with an error of ours, or opens it."""

import pytest

from tests.foundation.fuzz import READERS, leaks_of

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools 2.0.11

# Those of the ground floor, the students, the painter and the synthesis.
QUICK = (
    *("manifest", "claim", "samples_jsonl", "segmenter", "predictions", "painting", "gallery"),
    *("strokes", "training_state", "names", "grouping", "labels_json"),
)
FEW, MANY = 20, 450  # changed documents for each reader; of all readers together, over 10 000


@pytest.mark.parametrize("name", QUICK)
def test_changed_descriptions_raise_only_our_errors(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    assert leaks_of(READERS[name](folder), range(FEW)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_thousands_of_changed_descriptions_raise_only_our_errors(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    assert leaks_of(READERS[name](folder), range(MANY)) == {}
