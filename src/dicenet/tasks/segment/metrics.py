"""Scores of a segmentation from one confusion matrix over all pictures."""

from typing import Any

from torch import Tensor


def iou_per_class(confusion: Tensor) -> list[float | None]:
    """Intersection over union of each class; None for a class that is neither in the truth nor predicted.

    Args:
        confusion: (classes, classes), rows are the true classes; pixels.
    """
    hits = confusion.diagonal().double()
    union = confusion.sum(0).double() + confusion.sum(1).double() - hits
    return [
        hit / all_of_it if all_of_it else None for hit, all_of_it in zip(hits.tolist(), union.tolist(), strict=True)
    ]


def scores(confusion: Tensor) -> dict[str, Any]:
    """Fractions of one: see the keys.

    Returns:
        ``mean_iou`` over the classes that are in the truth; ``mean_iou_all`` over all, absent ones as 0 (the official
        code's habit); ``pixel_accuracy``; ``iou_per_class`` (None for classes that are not in the truth).
    """
    ious = iou_per_class(confusion)
    there = confusion.sum(1) > 0
    present = [iou or 0.0 for iou, is_there in zip(ious, there.tolist(), strict=True) if is_there]
    pixels = int(confusion.sum())
    return {
        "mean_iou": sum(present) / len(present) if present else 0.0,
        "mean_iou_all": sum(present) / len(ious),
        "pixel_accuracy": int(confusion.diagonal().sum()) / pixels if pixels else 0.0,
        "iou_per_class": [iou if is_there else None for iou, is_there in zip(ious, there.tolist(), strict=True)],
    }
