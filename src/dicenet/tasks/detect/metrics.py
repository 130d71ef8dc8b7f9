"""Scores of an object detector: average precisions of COCO and of PASCAL VOC, precision-recall curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
import torch.distributed
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from dicenet.errors import ConfigError, DataError

Array = NDArray[Any]
Boxes = Mapping[str, Tensor]

# Columns of a picture's rows: 0 to 3 are the box, then come the class and what only predictions or only truths have.
_LABEL = 4
_SCORE = 5
_AREA, _DIFFICULT, _CROWD = 5, 6, 7

# Places in COCO's tables of precision and recall
_AREAS = {"": 0, "_small": 1, "_medium": 2, "_large": 3}
_IOUS = {"50": 0, "75": 5}
_MOST_BOXES = -1  # 100 boxes of a class and picture

_COCO_BOXES = 100
_COCO_IOUS, _COCO_RECALLS = 10, 101


@dataclass(frozen=True)
class Curve:
    """Precision against recall of one class, a point for each prediction that counts, best scores first.

    Attributes:
        recall: (points,), never falls.
        precision: (points,).
    """

    recall: Array
    precision: Array

    def at(self, recalls: Array) -> Array:
        """Interpolated precision: the highest at a recall or above it, 0 where the curve does not reach it."""
        best = np.maximum.accumulate(self.precision[::-1])[::-1]
        return np.append(best, 0.0)[np.searchsorted(self.recall, recalls)]

    def ap_voc07(self) -> float:
        """Mean interpolated precision at eleven recalls: average precision of PASCAL VOC until 2009."""
        # 3 * 0.1 is a hair above 3 / 10. A recall of exactly 3 / 10 thus misses it, as in the official evaluations.
        return float(self.at(np.arange(11) * 0.1).mean())

    def ap_voc10(self) -> float:
        """Area under the interpolated precision: average precision of PASCAL VOC since 2010."""
        return float((np.diff(self.recall, prepend=0.0) * self.at(self.recall)).sum())


class DetectionMetrics(Metric):
    """Average precisions over all pictures, of all processes.

    The pictures stay in main memory until :meth:`reset`. All processes must ask for results; each may have any number
    of pictures.

    Args:
        classes: number of classes, without background.
        plus_one: for the VOC scores, boxes end at the far edge of their last pixel: a pixel is added to widths and
            heights, as the official code does.
        options: of :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    predictions: list[Tensor]
    truths: list[Tensor]

    def __init__(self, classes: int, plus_one: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.classes = classes
        self.plus_one = plus_one
        self.add_state("predictions", [], dist_reduce_fx=None)
        self.add_state("truths", [], dist_reduce_fx=None)

    def update(self, predictions: Sequence[Boxes], targets: Sequence[Boxes]) -> None:
        """Add pictures.

        Args:
            predictions: per picture ``boxes`` (n, 4): left, top, right, bottom in pixels of the original picture;
                ``labels`` (n,): classes from 0 on; ``scores`` (n,).
            targets: per picture ``boxes`` and ``labels`` alike. May be absent: ``difficult`` and ``crowd`` (n,),
                none by default; ``area`` (n,) in square pixels, that of the boxes by default.

        Raises:
            ConfigError: if numbers of pictures or shapes do not fit together, or a label is no class.
        """
        found, true = _rows(predictions, targets, self.classes)
        self.predictions += found
        self.truths += true

    def compute(self) -> dict[str, Any]:
        """Fractions of one. A score is None where there is no truth; such classes are left out of the means.

        Difficult objects count for COCO, which knows none. They and crowds are ignored for VOC. Predictions of equal
        scores are taken in the order of the pictures.

        Returns:
            The list ``objects_per_class``, without crowds. Of COCO (101 recalls; at most 100 boxes of a class and
            picture): ``map`` over the IoUs 0.5 to 0.95, ``map50``, ``map75``, by the area of objects ``map_small``
            (below 32²), ``map_medium``, ``map_large`` (above 96²), the mean recall ``mar_100``, the lists
            ``ap_per_class`` and ``ap50_per_class``. Of PASCAL VOC at IoU 0.5: ``map50_voc07`` (11 recalls),
            ``map50_voc10`` (all recalls), the lists ``ap50_voc07_per_class`` and ``ap50_voc10_per_class``.

        Raises:
            DataError: if no picture has an object that is not a crowd.
        """
        found, true = _arrays(self.predictions), _arrays(self.truths)
        if all(rows[:, _CROWD].all() for rows in true):
            reason = "crowds alone" if any(map(len, true)) else "no objects"
            raise DataError(f"there is nothing to judge by in the pictures: their truth has {reason}")
        return {
            "objects_per_class": _objects(true, self.classes),
            **_coco_scores(found, true, self.classes),
            **_voc_scores(found, true, self.classes, self.plus_one),
        }

    def curves(self, iou: float = 0.5) -> list[Curve | None]:
        """See :func:`precision_recall_curves`; of the pictures of all processes, each of which must ask."""
        with self.sync_context():
            return _curves(_arrays(self.predictions), _arrays(self.truths), self.classes, iou, self.plus_one)

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        """Gather the pictures, in the order in which they are dealt out to processes.

        torchmetrics gathers tensor by tensor and so waits for ever where a process has fewer pictures.
        """
        group = process_group or self.process_group
        parts: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(parts, (_arrays(self.predictions), _arrays(self.truths)), group)
        found, true = zip(*parts, strict=True)
        self.predictions, self.truths = _dealt(found), _dealt(true)


def precision_recall_curves(
    predictions: Sequence[Boxes],
    targets: Sequence[Boxes],
    classes: int,
    iou: float = 0.5,
    plus_one: bool = False,
) -> list[Curve | None]:
    """Curves of the PASCAL VOC protocol.

    Predictions of a class are sorted by score over all pictures, equal ones stay in their order. Each belongs to the
    truth of its class with which it has the highest IoU, if that reaches ``iou``. It is ignored if that truth is
    difficult or a crowd; else the first of each truth is right. All others are wrong.

    Args:
        predictions, targets: of each picture, see :meth:`DetectionMetrics.update`.
        classes: number of classes.
        iou: above 0, up to 1.
        plus_one: see :class:`DetectionMetrics`.

    Returns:
        Per class; None where all truth is ignored or there is none.

    Raises:
        ConfigError: as :meth:`DetectionMetrics.update`, or if ``iou`` is no such number.
    """
    found, true = _rows(predictions, targets, classes)
    return _curves(_arrays(found), _arrays(true), classes, iou, plus_one)


# -- pictures as rows


def _rows(predictions: Sequence[Boxes], targets: Sequence[Boxes], classes: int) -> tuple[list[Tensor], list[Tensor]]:
    if len(predictions) != len(targets):
        raise ConfigError(f"there are predictions of {len(predictions)} pictures, but the truth of {len(targets)}")
    found = [_table(boxes, classes, boxes["scores"]) for boxes in predictions]
    return found, [_table(boxes, classes, *_truth_columns(boxes)) for boxes in targets]


def _truth_columns(truth: Boxes) -> tuple[Tensor, Tensor, Tensor]:
    left, top, right, bottom = truth["boxes"].detach().cpu().double().reshape(-1, 4).T
    none = torch.zeros_like(left)
    area = truth.get("area", (right - left) * (bottom - top))
    return area, truth.get("difficult", none), truth.get("crowd", none)


def _table(boxes: Boxes, classes: int, *columns: Tensor) -> Tensor:
    """A picture's boxes in rows. Double precision, in which COCO's files are compared with its bounds."""
    corners, labels = boxes["boxes"].reshape(-1, 4), boxes["labels"]
    columns = (labels, *columns)
    if any(column.shape != corners.shape[:1] for column in columns):
        shapes = ", ".join(str(tuple(column.shape)) for column in columns)
        raise ConfigError(f"a picture has {len(corners)} boxes, but its columns have the shapes {shapes}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ConfigError(f"labels go from 0 to {classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    return torch.column_stack([column.detach().cpu().double() for column in (corners, *columns)])


def _arrays(pictures: Sequence[Tensor]) -> list[Array]:
    return [rows.cpu().numpy() for rows in pictures]


def _joined(pictures: list[Array], columns: int) -> Array:
    return np.concatenate([np.zeros((0, columns)), *pictures])


def _objects(truths: list[Array], classes: int) -> list[int]:
    rows = _joined(truths, _CROWD + 1)
    return np.bincount(rows[rows[:, _CROWD] == 0, _LABEL].astype(int), minlength=classes).tolist()


def _dealt(parts: Sequence[Sequence[Array]]) -> list[Tensor]:
    """The first picture of each process, then the second of each, and so on."""
    return [torch.from_numpy(rows) for turn in zip_longest(*parts) for rows in turn if rows is not None]


# -- COCO


def _coco_scores(predictions: list[Array], truths: list[Array], classes: int) -> dict[str, Any]:
    """What pycocotools gives: https://github.com/cocodataset/cocoapi."""
    tables = [_coco_tables(predictions, truths, label) for label in range(classes)]
    precision = np.stack([table[0] for table in tables], axis=2)  # (IoUs, recalls, classes, areas)
    recall = np.stack([table[1] for table in tables], axis=1)  # (IoUs, classes, areas)
    means = {f"map{name}": _known_mean(precision[..., area]) for name, area in _AREAS.items()}
    return {
        **means,
        **{f"map{name}": _known_mean(precision[iou, ..., 0]) for name, iou in _IOUS.items()},
        "mar_100": _known_mean(recall[..., 0]),
        "ap_per_class": [_known_mean(precision[:, :, label, 0]) for label in range(classes)],
        "ap50_per_class": [_known_mean(precision[_IOUS["50"], :, label, 0]) for label in range(classes)],
    }


def _coco_tables(predictions: list[Array], truths: list[Array], label: int) -> tuple[Array, Array]:
    """Precision (IoUs, recalls, areas) and recall (IoUs, areas) of a class; -1 where there is no truth.

    COCO's code needs a kilobyte for each box. It looks at one class at a time, and so is given one at a time.
    """
    pairs = [
        (found[found[:, _LABEL] == label], true[true[:, _LABEL] == label])
        for found, true in zip(predictions, truths, strict=True)
    ]
    pairs = [(_surest(found), true) for found, true in pairs if len(found) or len(true)]
    if not any(len(true) for _, true in pairs):
        areas = len(_AREAS)
        return np.full((_COCO_IOUS, _COCO_RECALLS, areas), -1.0), np.full((_COCO_IOUS, areas), -1.0)
    of_found, of_truth = ([pair[side] for pair in pairs] for side in (0, 1))
    found, truth = _joined(of_found, _SCORE + 1), _joined(of_truth, _CROWD + 1)
    areas = (found[:, 2:4] - found[:, :2]).prod(1)
    evaluation = COCOeval_faster(
        _coco(of_truth, truth, label, area=truth[:, _AREA], iscrowd=truth[:, _CROWD].astype(int)),
        _coco(of_found, found, label, area=areas, iscrowd=np.zeros(len(found), int), score=found[:, _SCORE]),
        "bbox",
    )
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][:, :, 0, :, _MOST_BOXES], evaluation.eval["recall"][:, 0, :, _MOST_BOXES]


def _surest(found: Array) -> Array:
    """The boxes of a class and picture that COCO looks at."""
    return found[np.argsort(-found[:, _SCORE], kind="stable")[:_COCO_BOXES]]


def _known_mean(values: Array) -> float | None:
    """Mean without the entries of -1, which stand for no truth."""
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _coco(pictures: list[Array], rows: Array, label: int, **more: Array) -> COCO:
    """A data set of the rows of all pictures, all of one class, with more fields of each row."""
    fields = {
        "image_id": np.repeat(np.arange(len(pictures)), [len(boxes) for boxes in pictures]),
        "category_id": rows[:, _LABEL].astype(int),
        "bbox": np.column_stack([rows[:, :2], rows[:, 2:4] - rows[:, :2]]),
        **more,
    }
    entries = zip(*(values.tolist() for values in fields.values()), strict=True)
    return COCO(
        {
            "images": [{"id": index} for index in range(len(pictures))],
            "categories": [{"id": label}],
            # numbers from 1: the evaluation takes a 0 for no match
            "annotations": [{"id": n, **dict(zip(fields, entry, strict=True))} for n, entry in enumerate(entries, 1)],
        }
    )


# -- PASCAL VOC


def _voc_scores(predictions: list[Array], truths: list[Array], classes: int, plus_one: bool) -> dict[str, Any]:
    """Of the development kit: http://host.robots.ox.ac.uk/pascal/VOC."""
    curves = _curves(predictions, truths, classes, 0.5, plus_one)
    voc07 = [None if curve is None else curve.ap_voc07() for curve in curves]
    voc10 = [None if curve is None else curve.ap_voc10() for curve in curves]
    return {
        "map50_voc07": _mean(voc07),
        "map50_voc10": _mean(voc10),
        "ap50_voc07_per_class": voc07,
        "ap50_voc10_per_class": voc10,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _curves(
    predictions: list[Array], truths: list[Array], classes: int, iou: float, plus_one: bool
) -> list[Curve | None]:
    if not 0 < iou <= 1:
        raise ConfigError(f"the IoU from which on a box is found must lie above 0 and not above 1, got {iou}")
    found, truth = _joined(predictions, _SCORE + 1), _joined(truths, _CROWD + 1)
    skipped = (truth[:, _DIFFICULT] > 0) | (truth[:, _CROWD] > 0)
    positives = np.bincount(truth[~skipped, _LABEL].astype(int), minlength=classes)
    overlap, owner = _best_truths(predictions, truths, plus_one)
    near = overlap >= iou
    ignored = np.zeros(len(found), bool)
    ignored[near] = skipped[owner[near]]
    order = np.argsort(-found[:, _SCORE], kind="stable")
    order = order[~ignored[order]]
    right = _firsts(owner[order], near[order])
    labels = found[order, _LABEL]
    return [_curve(right[labels == label], count) if count else None for label, count in enumerate(positives)]


def _firsts(owner: Array, near: Array) -> Array:
    """Which are the first of their truth, of those that are near it."""
    candidates = np.flatnonzero(near)
    _, first = np.unique(owner[candidates], return_index=True)
    right = np.zeros(len(owner), bool)
    right[candidates[first]] = True
    return right


def _curve(right: Array, positives: int) -> Curve:
    hits = np.cumsum(right)
    return Curve(hits / positives, hits / np.arange(1, len(hits) + 1))


def _best_truths(predictions: list[Array], truths: list[Array], plus_one: bool) -> tuple[Array, Array]:
    """For each prediction, the highest IoU with a truth of its class in its picture, and that truth's row in all.

    The IoU is -1 where there is no such truth; the row means nothing then.
    """
    overlaps, owners, start = [np.zeros(0)], [np.zeros(0, int)], 0
    for found, truth in zip(predictions, truths, strict=True):
        iou = np.full((len(found), len(truth) + 1), -1.0)  # a truth of no class, for pictures without any
        same = found[:, None, _LABEL] == truth[None, :, _LABEL]
        iou[:, :-1][same] = _ious(found, truth, plus_one)[same]
        best = iou.argmax(1)
        overlaps.append(iou[np.arange(len(found)), best])
        owners.append(start + best)
        start += len(truth)
    return np.concatenate(overlaps), np.concatenate(owners)


def _ious(found: Array, truth: Array, plus_one: bool) -> Array:
    """Intersections over unions, (predictions, truths)."""
    near, far = found[:, None, :2], found[:, None, 2:4] + plus_one
    true_near, true_far = truth[None, :, :2], truth[None, :, 2:4] + plus_one
    shared = (np.minimum(far, true_far) - np.maximum(near, true_near)).clip(min=0).prod(-1)
    union = (far - near).prod(-1) + (true_far - true_near).prod(-1) - shared
    return shared / np.where(union > 0, union, np.inf)  # boxes may be empty
