from latentseg.datasets.groupings import GROUPINGS
from latentseg.evaluation.comparison import group_results, headline
from latentseg.evaluation.papers import PUBLISHED_PARTS


def entry(dataset: str, classes: list[str], protocol: str = "tritrong2021") -> dict[str, object]:
    return {
        "dataset": dataset,
        "protocol": protocol,
        "iou": 0.4,
        "mean_iou": 0.5,
        "class_iou": dict.fromkeys(["background", *classes], 0.5),
        "floors": {"places": {"iou": 0.1}, "background": {"iou": 0.0}},
    }


def test_results_of_parts_stand_between_their_floors_and_the_papers():
    classes = list(GROUPINGS["pascal-horse"].classes)
    (group,) = group_results([entry("PASCAL-Part (horse)", classes)])
    kinds = [row.kind for row in group.rows]
    assert kinds == ["floor", "floor", "ours", "paper", "paper", "paper"]
    assert group.rows[0].label == "everything is background"
    assert group.classes == ["background", *classes]
    assert list(group.columns.values()) == ["acc", "mean_iou", "iou_pooled", "weighted_iou"]
    ours = headline([group])
    assert ours is not None
    assert [row.kind for row in ours.bars] == ["floor", "floor", "ours"]


def test_papers_stand_only_beside_the_same_classes_and_protocol():
    other = entry("PASCAL-Part (horse)", ["head", "leg"])
    pooled = entry("PASCAL-Part (horse)", list(GROUPINGS["pascal-horse"].classes), "pooled")
    for group in group_results([other, pooled]):
        assert all(row.kind != "paper" for row in group.rows)


def test_one_class_needs_no_table_of_classes():
    one = {**entry("pets", []), "protocol": "melas2021", "class_iou": {"pet": 0.5}}
    (group,) = group_results([one])
    assert group.classes == []
    assert list(group.columns) == ["acc", "IoU", "pooled IoU", "F", "max F"]


def test_published_numbers_of_parts_average_to_the_printed_mean_but_for_one():
    for row in PUBLISHED_PARTS:
        if not row.class_iou:
            continue
        assert set(row.class_iou) == {"background", *GROUPINGS[row.grouping].classes}
        mean = sum(row.class_iou.values()) / len(row.class_iou)
        printed = 0.7066 if row.grouping == "celebamask-10" else row.mean_iou
        assert abs(mean - printed) < 6e-4, row
