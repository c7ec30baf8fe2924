import threading
from dataclasses import replace

import numpy as np
import pytest

from latentseg.app.head_preview import HeadPreview
from latentseg.errors import InputError
from latentseg.images import IGNORE
from latentseg.labelers.few_shot_settings import OURS
from tests.few_shot_world import FewShotWorld
from tests.labelers.test_few_shot import QUICK, mean_iou, painting
from tests.parts_world import PARTS


def test_preview_when_taught_then_it_answers_for_other_images():
    preview = HeadPreview(FewShotWorld(), config=QUICK)
    with pytest.raises(InputError, match="no head yet"):
        preview.predict([1])
    made = painting()
    assert not preview.fit([("empty", 0, np.full((32, 32), IGNORE, np.uint8))], PARTS)
    assert preview.fit([("0000", 0, made.masks[0])], PARTS)
    truth = painting(3, first=5)
    found = preview.predict(truth.seeds)
    assert found.dtype == np.uint8
    assert mean_iou(found, truth.masks) > 0.9
    with pytest.raises(InputError, match="class id"):
        preview.fit([("0000", 0, made.masks[0])], PARTS[:1])


def test_preview_when_called_again_while_at_work_then_the_latest_call_wins():
    endless = replace(QUICK, training=replace(OURS, steps=10**9))
    preview, made, finished = HeadPreview(FewShotWorld(), config=endless), painting(), []

    def teach() -> None:
        finished.append(preview.fit([("0000", 0, made.masks[0])], PARTS))

    first = threading.Thread(target=teach)
    first.start()
    while preview.newest == 0:
        first.join(0.01)
    preview.config = QUICK
    assert preview.fit([("0000", 0, made.masks[0])], PARTS)
    first.join(30)
    assert finished == [False]
    assert mean_iou(preview.predict([0]), made.masks) > 0.9
