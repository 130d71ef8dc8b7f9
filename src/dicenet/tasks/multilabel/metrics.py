"""How well labels are found: precision, recall and F1 over all labels and by class, mAP, recall by size of objects."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision

from dicenet.data.labels import SIZES
from dicenet.errors import ConfigError

DEFAULT_THRESHOLD = 0.5


def logit_threshold(probability: float) -> float:
    """The logit whose probability it is, 0 for 0.5. Raises ConfigError unless it lies between 0 and 1."""
    if not 0 < probability < 1:
        raise ConfigError(f"threshold is a probability between 0 and 1, got {probability}")
    return math.log(probability / (1 - probability))


def ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Their quotient, 0 where there is nothing to divide by."""
    return part / whole.clamp(min=1)


class MultilabelMetrics(Metric):
    """Counts of labels that are found, missed and found where they are not, over a whole set.

    A class is found where its probability is above the threshold. Overall scores are of the sums of all counts, those
    of classes are means over all classes, as in the official code: one that no picture shows, or of which none was
    found rightly, counts as 0.

    Args:
        num_classes: C.
        threshold: a probability.
    """

    full_state_update = False
    true_positives: Tensor
    found: Tensor
    shown: Tensor
    found_by_size: Tensor
    shown_by_size: Tensor
    logits: list[Tensor]
    truth: list[Tensor]

    def __init__(self, num_classes: int, threshold: float = DEFAULT_THRESHOLD) -> None:
        super().__init__()
        self.limit = logit_threshold(threshold)
        for name in ("true_positives", "found", "shown"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")
        for name in ("found_by_size", "shown_by_size"):
            self.add_state(name, torch.zeros(len(SIZES), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("logits", "truth"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            logits: (N, C).
            target: (N, 4, C), see :func:`dicenet.data.labels.target_of`.
        """
        shown, by_size = target[:, 0].bool(), target[:, 1:].bool()
        found = logits > self.limit
        self.true_positives += (found & shown).sum(0)
        self.found += found.sum(0)
        self.shown += shown.sum(0)
        self.found_by_size += (found[:, None] & by_size).sum((0, 2))
        self.shown_by_size += by_size.sum((0, 2))
        self.logits.append(logits.detach().float())
        self.truth.append(shown)

    def compute(self) -> dict[str, Any]:
        """Scores as fractions of one.

        Returns:
            ``f1``, ``precision``, ``recall`` with ``_overall`` and ``_class`` behind; ``map`` over the classes that are
            shown (None if none is); ``recall_small``, ``recall_medium``, ``recall_large``: part of the labels found
            whose class the picture shows as an object of that size (None if none does). By class: ``f1_per_class``,
            ``precision_per_class``, ``recall_per_class``, ``ap_per_class`` (None for one that no picture shows),
            ``shown_per_class`` and ``found_per_class``, in pictures.
        """
        # on the CPU: not all devices have float64
        counts = tuple(count.cpu().double() for count in (self.true_positives, self.found, self.shown))
        by_class = _rates(*counts)
        overall = _rates(*(count.sum() for count in counts))
        precisions = self._average_precisions()
        known = [value for value in precisions if value is not None]
        return {
            **{f"{name}_overall": float(value) for name, value in overall.items()},
            **{f"{name}_class": float(values.mean()) for name, values in by_class.items()},
            "map": sum(known) / len(known) if known else None,
            **{
                f"recall_{size}": found / shown if shown else None
                for size, found, shown in zip(
                    SIZES, self.found_by_size.tolist(), self.shown_by_size.tolist(), strict=True
                )
            },
            **{f"{name}_per_class": values.tolist() for name, values in by_class.items()},
            "ap_per_class": precisions,
            "shown_per_class": self.shown.tolist(),
            "found_per_class": self.found.tolist(),
        }

    def _average_precisions(self) -> list[float | None]:
        """Area under precision over recall of each class, by steps, without interpolation; None without truth."""
        if not self.shown.any():
            return [None] * len(self.shown)
        gathered = (torch.cat(part) if isinstance(part, list) else part for part in (self.logits, self.truth))
        logits, truth = (part.cpu() for part in gathered)
        # in float64 more logits keep their order
        probabilities = logits.double().sigmoid()
        return [
            float(binary_average_precision(probabilities[:, index], truth[:, index].long())) if shown else None
            for index, shown in enumerate(self.shown.tolist())
        ]


def _rates(true_positives: Tensor, found: Tensor, shown: Tensor) -> dict[str, Tensor]:
    return {
        "f1": ratio(2 * true_positives, found + shown),
        "precision": ratio(true_positives, found),
        "recall": ratio(true_positives, shown),
    }
