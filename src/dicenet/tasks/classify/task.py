"""The classification module: loss, metrics, optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from dicenet.errors import ConfigError
from dicenet.models.network import Network
from dicenet.tasks.classifier import ClassifierOptimisation, ClassifierTask

TASK = "classify"


@dataclass(frozen=True, kw_only=True)
class ClassifyOptimisation(ClassifierOptimisation):
    """How the weights are changed.

    Attributes:
        label_smoothing: part of the target given to all classes.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie from 0 to below 1, got {self.label_smoothing}")


class ClassifyTask(ClassifierTask):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy."""

    optimisation: ClassifyOptimisation

    def __init__(
        self, net: Network, class_names: Sequence[str], optimisation: ClassifyOptimisation | None = None
    ) -> None:
        super().__init__(net, class_names, optimisation or ClassifyOptimisation())
        classes = len(self.class_names)
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits(batch), batch["target"], label_smoothing=self.optimisation.label_smoothing)

    def losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(N,) cross-entropy."""
        return F.cross_entropy(logits, truth, reduction="none")

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores and confusions."""
        logits = self.judge(batch)
        if logits is not None:
            self.confusion.update(logits, self.truth(batch))

    def scores(self) -> dict[str, float]:
        """Fractions of one: top1, top5; and the mean loss. Raises DataError if no picture could be read."""
        return {name: float(value) for name, value in self.all_scores().items()}
