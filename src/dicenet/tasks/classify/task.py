"""The classification module: loss, metrics, optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor
from torchmetrics import MetricCollection, SumMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from dicenet.errors import ConfigError, DataError
from dicenet.models.network import Network
from dicenet.tasks.task import Optimisation, Task, asked_of_all, loss_metric

TASK = "classify"


@dataclass(frozen=True, kw_only=True)
class ClassifyOptimisation(Optimisation):
    """How the weights are changed. Weight decay spares norms, slopes and biases.

    Attributes:
        label_smoothing: part of the target given to all classes.
    """

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("sgd", "adamw", "lamb")

    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie from 0 to below 1, got {self.label_smoothing}")


class ClassifyTask(Task):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy.

    Batches are those of :func:`dicenet.data.samples.collate`.
    """

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
        self.loss = loss_metric()
        self.judged = SumMetric()

    def logits(self, batch: dict[str, Any]) -> Tensor:
        """Of a batch's pictures."""
        return self.net(batch["image"].contiguous(memory_format=torch.channels_last))

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.logits(batch), batch["target"], label_smoothing=self.optimisation.label_smoothing)

    def _judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits, or None if none of its pictures could be read."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        logits, target = self.logits(batch), self.truth(batch)
        self.metrics.update(logits, target)
        self.loss.update(F.cross_entropy(logits, target, reduction="none"))
        self.judged.update(len(logits))
        return logits

    def truth(self, batch: dict[str, Any]) -> Tensor:
        """The class of each picture, as the network numbers them."""
        return batch["target"]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores and confusions."""
        logits = self._judge(batch)
        if logits is not None:
            self.confusion.update(logits, self.truth(batch))

    def scores(self) -> dict[str, float]:
        """Fractions of one: top1, top5; and the mean loss. Raises DataError if no picture could be read."""
        with asked_of_all():
            found = {**self.metrics.compute(), "loss": self.loss.compute()}
            judged = self.judged.compute()
        if not judged:
            reason = next(iter(self.bad_pictures.values()), "there are none")
            raise DataError(f"no picture to judge by could be read: {reason}")
        return {name: float(value) for name, value in found.items()}

    def reset_scores(self) -> None:
        """Forget them."""
        for metric in (self.metrics, self.loss, self.judged):
            metric.reset()

    def make_optimizer(self) -> torch.optim.Optimizer:
        """timm's, of that name."""
        o = self.optimisation
        return create_optimizer_v2(
            self.net,
            o.optimizer,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            filter_bias_and_bn=True,
        )
