"""Scores of detections: against COCO's own code, published and hand-worked examples, and a naive loop."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import dicenet
from dicenet.tasks.detect.drawing import precision_recall_plot
from dicenet.tasks.detect.metrics import DetectionMetrics, precision_recall_curves
from dicenet.tasks.drawing import png

NUMBERS = (
    *("map", "map50", "map75", "map_small", "map_medium", "map_large", "mar_100"),
    *("map50_voc07", "map50_voc10"),
)
LISTS = ("ap_per_class", "ap50_per_class", "ap50_voc07_per_class", "ap50_voc10_per_class")


def found(boxes, scores, labels=None):
    labels = [0] * len(scores) if labels is None else labels
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        "scores": torch.tensor(scores, dtype=torch.float64),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }


def truth(boxes, labels=None, **more):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels, dtype=torch.int64)
    kinds = {"area": torch.float64, "crowd": torch.bool, "difficult": torch.bool}
    return {"boxes": boxes, "labels": labels} | {
        name: torch.tensor(values, dtype=kinds[name]) for name, values in more.items()
    }


def as_found(target):
    return {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.ones(len(target["labels"]))}


def scores(predictions, targets, classes=1, **options):
    metrics = DetectionMetrics(classes, **options)
    metrics.update(predictions, targets)
    return metrics.compute()


def curve(predictions, targets, **options):
    (only,) = precision_recall_curves(predictions, targets, 1, **options)
    return only


def column(count, left=0.0):
    """Boxes of 10 × 10 pixels, one below the other, far apart."""
    return [[left, 20.0 * n, left + 10.0, 20.0 * n + 10.0] for n in range(count)]


# -- COCO


@pytest.fixture(scope="module")
def coco(shared):
    """The annotations of a few pictures, and the same as targets: 34 pictures, 2 without boxes, 5 crowds."""
    content = json.loads((shared("data/tiny_coco") / "annotations/instances_val2017.json").read_text())
    classes = {number: n for n, number in enumerate(sorted(category["id"] for category in content["categories"]))}
    content["images"].sort(key=lambda picture: picture["id"])  # the order in which COCO's code takes equal scores
    targets = []
    for picture in content["images"]:
        own = [annotation for annotation in content["annotations"] if annotation["image_id"] == picture["id"]]
        boxes = [[x, y, x + width, y + height] for x, y, width, height in (a["bbox"] for a in own)]
        more = {"crowd": [a["iscrowd"] == 1 for a in own], "area": [a["area"] for a in own]}
        targets.append(truth(boxes, [classes[a["category_id"]] for a in own], **more))
    return content, classes, targets


def jittered(targets, classes, seed):
    """Detections about the truth and anywhere, of right and wrong classes, many; none in every fourth picture."""
    generator = np.random.default_rng(seed)
    predictions = []
    for number, target in enumerate(targets):
        near = np.repeat(target["boxes"].numpy(), 4, axis=0)
        sides = np.tile(near[:, 2:] - near[:, :2], 2)
        near = near + sides * generator.normal(size=near.shape) * generator.choice([0.02, 0.1, 0.3], (len(near), 1))
        corners = generator.uniform(0, 300, (150, 2))
        boxes = np.concatenate([near, np.hstack([corners, corners + generator.uniform(2, 200, (150, 2))])])
        labels = np.concatenate([np.repeat(target["labels"].numpy(), 4), generator.integers(0, classes, 150)])
        labels[generator.random(len(labels)) < 0.1] = 7  # more than 100 of one class in some pictures
        if number % 3 == 0:
            labels[-130:] = 7
        keep = slice(0, 0) if number % 4 == 1 else slice(None)
        predictions.append(found(boxes[keep], np.round(generator.random(len(boxes))[keep], 3), labels[keep]))
    return predictions


def judged_by_pycocotools(content, classes, predictions):
    """COCO's scores and average precisions per class; -1 where there is no truth."""
    numbers = {n: number for number, n in classes.items()}
    results = [
        {
            "image_id": picture["id"],
            "category_id": numbers[int(label)],
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
            "score": float(score),
        }
        for picture, boxes in zip(content["images"], predictions, strict=True)
        for box, label, score in zip(boxes["boxes"], boxes["labels"], boxes["scores"], strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = content
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][..., 0, 2]
    names = ("map", "map50", "map75", "map_small", "map_medium", "map_large")
    return {
        **dict(zip(names, evaluation.stats[:6], strict=True)),
        "mar_100": evaluation.stats[8],
        "ap_per_class": precision.mean((0, 1)).tolist(),
        "ap50_per_class": precision[0].mean(0).tolist(),
    }


def without_none(value):
    return [-1 if one is None else one for one in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_pycocotools(coco, seed):
    content, classes, targets = coco
    predictions = jittered(targets, len(classes), seed)
    expected = judged_by_pycocotools(content, classes, predictions)
    assert 0.05 < expected["map"] < 0.95
    assert expected["map_small"] > 0
    mine = scores(predictions, targets, len(classes))
    for name, value in expected.items():
        assert without_none(mine[name]) == pytest.approx(value, abs=1e-6), name
    no_truth = set(range(len(classes))) - {int(n) for target in targets for n in target["labels"]}
    assert no_truth, "classes that have false positives alone"
    assert all(mine["ap_per_class"][n] is None for n in no_truth)


def test_truth_as_predictions_is_all_right(coco):
    _, classes, targets = coco
    for counted in (targets, [{k: v for k, v in target.items() if k != "area"} for target in targets]):
        result = scores([as_found(target) for target in counted], counted, len(classes))
        assert {name: result[name] for name in NUMBERS} == pytest.approx(dict.fromkeys(NUMBERS, 1.0))
        for name in LISTS:
            assert {value for value in result[name] if value is not None} == {1.0}


def test_areas_of_boxes_stand_in_for_areas():
    """A box of 40 × 40 pixels is of medium size, unless its object covers less of it."""
    target = truth([[0, 0, 40, 40]])
    result = scores([as_found(target)], [target])
    assert (result["map_small"], result["map_medium"], result["map_large"]) == (None, 1, None)
    result = scores([as_found(target)], [truth([[0, 0, 40, 40]], area=[900.0])])
    assert (result["map_small"], result["map_medium"], result["map_large"]) == (1, None, None)


def test_crowds_are_ignored():
    """Any number of boxes in a crowd are neither right nor wrong, whatever the protocol; COCO's IoU is their share."""
    target = truth([[0, 0, 100, 100], [200, 0, 210, 10]], crowd=[True, False])
    within = [[0, 0, 100, 60], [0, 0, 100, 90], [200, 0, 210, 10]]
    result = scores([found(within, [0.9, 0.8, 0.7])], [target])
    assert {result[name] for name in ("map", "map50_voc07", "map50_voc10")} == {1.0}


# -- PASCAL VOC


def test_truth_of_voc_as_predictions_is_all_right():
    """Difficult objects among others, alone in a picture, and as all there is of a class."""
    boxes = [[10, 10, 60, 70], [30, 20, 45, 35], [100, 100, 300, 260]]
    targets = [
        truth(boxes, [0, 0, 1], difficult=[False, True, False]),
        truth([[1, 1, 9, 9]], [1], difficult=[True]),
        truth([[1, 1, 30, 40]], [2], difficult=[True]),
        truth([]),
    ]
    for plus_one in (False, True):
        result = scores([as_found(target) for target in targets], targets, 4, plus_one=plus_one)
        assert {name: result[name] for name in NUMBERS} == pytest.approx(dict.fromkeys(NUMBERS, 1.0))
        assert result["ap50_voc07_per_class"] == pytest.approx([1, 1, None, None])
        assert result["ap50_voc10_per_class"] == pytest.approx([1, 1, None, None])
        assert result["ap_per_class"] == pytest.approx([1, 1, 1, None]), "COCO knows no difficult objects"


def test_hand_worked():
    """Four objects in two pictures, five predictions: right, wrong, right, wrong, right.

    Recalls 1/4, 1/4, 2/4, 2/4, 3/4; precisions 1, 1/2, 2/3, 1/2, 3/5. Interpolated: 1 up to 1/4, 2/3 up to 1/2, 3/5 up
    to 3/4, then 0. Eleven points: 1 at 0, .1, .2; 2/3 at .3, .4, .5; 3/5 at .6, .7; 0 at .8, .9, 1. All points: the
    sum of 1/4 times each.
    """
    targets = [truth(column(3)), truth(column(1))]
    wrong = [[300, 300, 310, 310]]
    predictions = [found(column(2) + wrong, [0.9, 0.5, 0.6]), found(wrong + column(1), [0.8, 0.7])]
    line = curve(predictions, targets)
    assert line.recall == pytest.approx([1 / 4, 1 / 4, 2 / 4, 2 / 4, 3 / 4])
    assert line.precision == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2, 3 / 5])
    voc07, voc10 = (3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11, (1 + 2 / 3 + 3 / 5) / 4
    assert (line.ap_voc07(), line.ap_voc10()) == pytest.approx((voc07, voc10))
    result = scores(predictions, targets)
    assert (result["map50_voc07"], result["map50_voc10"]) == pytest.approx((voc07, voc10))
    assert line.at(np.array([0.0, 0.25, 0.26, 0.75, 0.76])) == pytest.approx([1, 1, 2 / 3, 3 / 5, 0])


# The example of https://github.com/rafaelpadilla/Object-Detection-Metrics (samples/sample_2): left, top, width, height
PUBLISHED_TRUTHS = (
    ((25, 16, 38, 56), (129, 123, 41, 62)),
    ((123, 11, 43, 55), (38, 132, 59, 45)),
    ((16, 14, 35, 48), (123, 30, 49, 44), (99, 139, 47, 47)),
    ((53, 42, 40, 52), (154, 43, 31, 34)),
    ((59, 31, 44, 51), (48, 128, 34, 52)),
    ((36, 89, 52, 76), (62, 58, 44, 67)),
    ((28, 31, 55, 63), (58, 67, 50, 58)),
)
PUBLISHED_PREDICTIONS = (
    ((0.88, 5, 67, 31, 48), (0.70, 119, 111, 40, 67), (0.80, 124, 9, 49, 67)),
    ((0.71, 64, 111, 64, 58), (0.54, 26, 140, 60, 47), (0.74, 19, 18, 43, 35)),
    (
        *((0.18, 109, 15, 77, 39), (0.67, 86, 63, 46, 45), (0.38, 160, 62, 36, 53)),
        *((0.91, 105, 131, 47, 47), (0.44, 18, 148, 40, 44)),
    ),
    ((0.35, 83, 28, 28, 26), (0.78, 28, 68, 42, 67), (0.45, 87, 89, 25, 39), (0.14, 10, 155, 60, 26)),
    ((0.62, 50, 38, 28, 46), (0.44, 95, 11, 53, 28), (0.95, 29, 131, 72, 29), (0.23, 29, 163, 72, 29)),
    ((0.45, 43, 48, 74, 38), (0.84, 17, 155, 29, 35), (0.43, 95, 110, 25, 42)),
    ((0.48, 16, 20, 101, 88), (0.95, 33, 116, 37, 49)),
)


def test_published_example():
    """Published: 26.84 % with 11 points, 24.56 % (from rounded terms) or 24.57 % with all, at IoU 0.3 with +1."""

    def corners(box):
        left, top, width, height = box
        return [left, top, left + width, top + height]

    targets = [truth([corners(box) for box in boxes]) for boxes in PUBLISHED_TRUTHS]
    predictions = [
        found([corners(box[1:]) for box in boxes], [box[0] for box in boxes]) for boxes in PUBLISHED_PREDICTIONS
    ]
    line = curve(predictions, targets, iou=0.3, plus_one=True)
    assert len(line.recall) == 24
    assert line.recall[-1] == pytest.approx(7 / 15)
    assert 100 * line.ap_voc07() == pytest.approx(26.84, abs=0.01)
    assert 100 * line.ap_voc10() == pytest.approx(24.57, abs=0.01)


def test_a_second_hit_is_wrong():
    target = truth(column(2))
    predictions = found([[0, 0, 10, 9], *column(2)], [0.9, 0.8, 0.7])
    line = curve([predictions], [target])
    assert line.precision == pytest.approx([1, 1 / 2, 2 / 3]), "the better score counts, not the better IoU"
    assert line.recall == pytest.approx([1 / 2, 1 / 2, 1])


def test_a_box_belongs_to_its_nearest_truth_also_if_that_is_taken():
    """Else the second box, which reaches the other truth as well, would be right."""
    target = truth([[0, 0, 10, 10], [4, 0, 14, 10]])
    predictions = found([[0, 0, 10, 10], [1, 0, 11, 10]], [0.9, 0.8])
    line = curve([predictions], [target])
    assert line.precision == pytest.approx([1, 1 / 2])


def test_difficult_objects_are_ignored():
    target = truth(column(3), difficult=[False, True, True])
    predictions = found([*column(2), *column(2)[1:]], [0.7, 0.9, 0.8])
    line = curve([predictions], [target])
    assert (line.recall.tolist(), line.precision.tolist()) == ([1.0], [1.0])
    missed = curve([found([[300, 300, 310, 310]], [0.9])], [target])
    assert (missed.recall.tolist(), missed.precision.tolist()) == ([0.0], [0.0])


def test_plus_one_changes_a_borderline_case():
    """Two boxes of 9 × 9, three apart: 54 of 108 pixels are IoU 1/2; as 10 × 10, 70 of 130 are more. Four apart less.

    Of 8 × 8, three apart: 40 of 88 are less than 1/2; as 9 × 9, 54 of 108 are just enough.
    """
    for side, apart, plain, with_one in ((9, 3, 1, 1), (9, 4, 0, 0), (8, 3, 0, 1)):
        target, box = truth([[0, 0, side, side]]), found([[apart, 0, side + apart, side]], [0.5])
        assert curve([box], [target]).recall.tolist() == [plain]
        assert curve([box], [target], plus_one=True).recall.tolist() == [with_one]
        assert scores([box], [target], plus_one=True)["map50_voc10"] == with_one
    assert scores([box], [target], plus_one=True)["map50"] == 0, "COCO has no such habit"


def test_there_is_no_limit_of_boxes():
    targets = [truth(column(300))]
    result = scores([as_found(target) for target in targets], targets)
    assert result["map50_voc10"] == 1
    assert result["mar_100"] == pytest.approx(1 / 3)


def test_equal_scores_stay_in_order():
    wrong = [[300, 300, 310, 310]]
    assert curve([found(wrong + column(1), [0.5, 0.5])], [truth(column(1))]).precision.tolist() == [0, 0.5]
    assert curve([found(column(1) + wrong, [0.5, 0.5])], [truth(column(1))]).precision.tolist() == [1, 0.5]


def naive_iou(a, b, plus_one):
    width = min(a[2], b[2]) - max(a[0], b[0]) + plus_one
    height = min(a[3], b[3]) - max(a[1], b[1]) + plus_one
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0] + plus_one) * (box[3] - box[1] + plus_one) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def naive_curve(predictions, targets, label, iou, plus_one):
    """(recalls, precisions) of a class, box by box; None without truth."""
    pictures = []
    for target in targets:
        ignored = target["difficult"] | target["crowd"]
        own = zip(target["boxes"].tolist(), target["labels"].tolist(), ignored.tolist(), strict=True)
        pictures.append([{"box": box, "ignored": skip, "used": False} for box, n, skip in own if n == label])
    positives = sum(not true["ignored"] for picture in pictures for true in picture)
    boxes = []
    for number, one in enumerate(predictions):
        own = zip(one["boxes"].tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True)
        boxes += [(score, number, box) for box, n, score in own if n == label]
    hits, misses, recalls, precisions = 0, 0, [], []
    for _, number, box in sorted(boxes, key=lambda entry: -entry[0]):
        best, owner = -1.0, None
        for true in pictures[number]:
            overlap = naive_iou(box, true["box"], plus_one)
            if overlap > best:
                best, owner = overlap, true
        if best >= iou and owner["ignored"]:
            continue
        if best >= iou and not owner["used"]:
            owner["used"], hits = True, hits + 1
        else:
            misses += 1
        recalls.append(hits / positives if positives else 0)
        precisions.append(hits / (hits + misses))
    return (recalls, precisions) if positives else None


def naive_average_precisions(recalls, precisions):
    def highest(at):
        return max((p for r, p in zip(recalls, precisions, strict=True) if r >= at), default=0)

    area, last = 0.0, 0.0
    for recall in recalls:
        area, last = area + (recall - last) * highest(recall), recall
    return sum(highest(n * 0.1) for n in range(11)) / 11, area


@pytest.mark.parametrize("plus_one", [False, True])
@pytest.mark.parametrize("iou", [0.3, 0.5, 0.75])
def test_curves_equal_a_naive_loop(coco, iou, plus_one):
    _, classes, targets = coco
    generator = torch.Generator().manual_seed(1)
    difficult = [torch.rand(len(target["labels"]), generator=generator) < 0.3 for target in targets]
    targets = [target | {"difficult": flags} for target, flags in zip(targets, difficult, strict=True)]
    predictions = jittered(targets, len(classes), 5)
    metrics = DetectionMetrics(len(classes), plus_one=plus_one)
    metrics.update(predictions, targets)
    curves = metrics.curves(iou)
    result = metrics.compute()
    areas = []
    for label, line in enumerate(curves):
        expected = naive_curve(predictions, targets, label, iou, plus_one)
        assert (line is None) == (expected is None)
        if expected:
            assert line.recall == pytest.approx(expected[0], abs=1e-12)
            assert line.precision == pytest.approx(expected[1], abs=1e-12)
            areas.append(naive_average_precisions(*expected))
            assert (line.ap_voc07(), line.ap_voc10()) == pytest.approx(areas[-1], abs=1e-12)
    assert 20 < len(areas) < len(classes)
    if iou == 0.5:
        assert (result["map50_voc07"], result["map50_voc10"]) == pytest.approx(np.mean(areas, axis=0), abs=1e-12)


# -- what pictures may look like


@pytest.mark.parametrize(
    ("targets", "reason"),
    [([], "no objects"), ([truth([])], "no objects"), ([truth(column(1), crowd=[True])], "crowds alone")],
)
def test_nothing_to_judge_by(targets, reason):
    predictions = [found(column(1), [0.5]) for _ in targets]
    with pytest.raises(dicenet.DataError, match=f"nothing to judge by in the pictures: their truth has {reason}"):
        scores(predictions, targets)


def test_difficult_objects_alone_have_no_voc_score():
    result = scores([found(column(1), [0.5])], [truth(column(1), difficult=[True])])
    assert (result["map"], result["map50_voc07"], result["map50_voc10"]) == (1, None, None)


def test_no_predictions():
    result = scores([found([], [])], [truth(column(2))], 2)
    assert (result["map"], result["mar_100"], result["map50_voc07"], result["map50_voc10"]) == (0, 0, 0, 0)
    assert (result["ap_per_class"], result["ap50_voc07_per_class"]) == ([0, None], [0, None])


def test_pictures_can_come_in_parts(coco):
    """Batches or all at once, and anew after a reset."""
    _, classes, targets = coco
    predictions = jittered(targets, len(classes), 0)
    whole = scores(predictions, targets, len(classes))
    metrics = DetectionMetrics(len(classes))
    for _ in range(2):
        for start in range(0, len(targets), 5):
            metrics.update(predictions[start : start + 5], targets[start : start + 5])
        assert metrics.compute() == whole
        metrics.reset()


@pytest.mark.parametrize(
    ("predictions", "targets", "message"),
    [
        ([], [truth([])], "predictions of 0 pictures, but the truth of 1"),
        ([found(column(1), [0.5], [2])], [truth([])], "labels go from 0 to 1, got 2 to 2"),
        ([found([], [])], [truth(column(2), [-1, 1])], "labels go from 0 to 1, got -1 to 1"),
        ([found(column(2), [0.5])], [truth([])], r"2 boxes, but its columns have the shapes \(1,\), \(1,\)"),
        ([found([], [])], [truth(column(1), crowd=[True, False])], "1 boxes, but its columns have the shapes"),
    ],
)
def test_wrong_pictures(predictions, targets, message):
    with pytest.raises(dicenet.ConfigError, match=message):
        scores(predictions, targets, 2)


@pytest.mark.parametrize("iou", [0, 1.1])
def test_wrong_iou(iou):
    with pytest.raises(dicenet.ConfigError, match=f"not above 1, got {iou}"):
        precision_recall_curves([], [], 1, iou)


# -- several processes


def in_a_process(rank, folder, shares):
    """Judge a share of the pictures; write what all together give."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=len(shares))
    predictions, targets, classes = torch.load(folder / "pictures.pt")
    metrics = DetectionMetrics(classes)
    own = shares[rank]
    metrics.update([predictions[n] for n in own], [targets[n] for n in own])
    lines = [None if line is None else line.precision.tolist() for line in metrics.curves()]
    (folder / f"{rank}.json").write_text(json.dumps([metrics.compute(), lines]))
    assert len(metrics.predictions) == len(own), "each has its own pictures again"
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("others", ["every second", "one without boxes", "none"])
def test_processes_with_unequal_numbers_of_pictures(coco, tmp_path, others):
    _, classes, targets = coco
    targets = [*targets, truth([], crowd=[], difficult=[])]
    predictions = [*jittered(targets[:-1], len(classes), 2), found([], [])]
    pictures = list(range(35))
    second = {"every second": pictures[1::2], "one without boxes": [34], "none": []}[others]
    first = [n for n in pictures if n not in second]
    torch.save((predictions, targets, len(classes)), tmp_path / "pictures.pt")
    torch.multiprocessing.spawn(in_a_process, (tmp_path, (first, second)), nprocs=2)
    # equal scores are taken in the order of the pictures, which unequal shares change
    order = pictures if others == "every second" else [first[0], *second, *first[1:]]
    metrics = DetectionMetrics(len(classes))
    metrics.update([predictions[n] for n in order], [targets[n] for n in order])
    lines = [None if line is None else line.precision.tolist() for line in metrics.curves()]
    expected = [metrics.compute(), lines]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == expected


# -- the plot


@pytest.mark.parametrize("classes", [1, 3, 25])
def test_plot(classes):
    generator = np.random.default_rng(0)
    labels = [n % classes for n in range(60)]
    target = truth(column(60), labels)
    box = found(column(60), generator.random(60), [label if n % 3 else 0 for n, label in enumerate(labels)])
    curves = [*precision_recall_curves([box], [target], classes), None]
    figure = precision_recall_plot(curves, [f"class_{n} $" for n in range(classes)] + ["nowhere"])
    assert png(figure).startswith(b"\x89PNG")
    (axes,) = figure.axes
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(names) == {1: 1, 3: 4, 25: 1}[classes], "many classes have one line for their mean"
    assert not any("nowhere" in name for name in names)


def test_plot_of_nothing():
    assert png(precision_recall_plot([None], ["nowhere"])).startswith(b"\x89PNG")
