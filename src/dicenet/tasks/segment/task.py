"""The segmentation module: loss, metrics, optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from dicenet.data.masks import IGNORE, resized_labels
from dicenet.errors import DataError
from dicenet.models.segmentation import SegmentationNetwork
from dicenet.tasks.pyramid import PyramidOptimisation, PyramidTask
from dicenet.tasks.segment.inference import sliding_labels
from dicenet.tasks.segment.metrics import scores
from dicenet.tasks.task import asked_of_all, loss_metric

TASK = "segment"


@dataclass(frozen=True, kw_only=True)
class SegmentOptimisation(PyramidOptimisation):
    """How the weights are changed; the defaults are the official code's."""

    lr: float = 0.009
    lr_mult: float = 10.0
    weight_decay: float = 4e-5


class SegmentTask(PyramidTask):
    """Trains and judges a segmentation network: cross-entropy without void pixels, mean IoU.

    Batches are those of :mod:`dicenet.data.masks`. Scores come from one confusion matrix over all pictures (and
    processes), of label maps that were resized to each picture's own size.

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
        class_weights: of the loss; all alike if None.
        mode: how pictures are judged: see :mod:`dicenet.tasks.segment.inference`.
    """

    WITHOUT_TRUTH = "their masks are void everywhere"

    net: SegmentationNetwork
    optimisation: SegmentOptimisation

    def __init__(
        self,
        net: SegmentationNetwork,
        class_names: Sequence[str],
        optimisation: SegmentOptimisation | None = None,
        class_weights: Sequence[float] | None = None,
        mode: str = "whole",
    ) -> None:
        super().__init__(net, class_names, optimisation or SegmentOptimisation())
        self.mode = mode
        weights = torch.tensor(class_weights or [1.0] * len(self.class_names))
        self.register_buffer("class_weights", weights, persistent=False)
        self.confusion = MulticlassConfusionMatrix(len(self.class_names), ignore_index=IGNORE, validate_args=False)
        self.loss = loss_metric()
        self.freeze()

    # -- training

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the pixels that are not void, weighted by class; 0 where there are none."""
        weights = self.class_weights.float()  # also where the network computes with fewer bits
        losses = F.cross_entropy(logits.float(), target, weights, ignore_index=IGNORE, reduction="sum")
        known = target[target != IGNORE]
        return losses / weights[known].sum().clamp(min=1e-12)

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """See :meth:`_loss`."""
        return self._loss(self.net(batch["image"].contiguous(memory_format=torch.channels_last)), batch["target"])

    def has_truth(self, batch: dict[str, Any]) -> bool:
        """Whether a pixel is not void."""
        return bool((batch["target"] != IGNORE).any())

    # -- judging

    def _judge(self, batch: dict[str, Any]) -> None:
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return
        for labels, target in zip(self._labels(batch), batch["target"], strict=True):
            resized = resized_labels(labels, tuple(target.shape))
            self.confusion.update(resized.flatten().long()[None], target.flatten().long()[None])

    def _labels(self, batch: dict[str, Any]) -> Tensor:
        if self.mode == "sliding":
            assert self.net.input_size is not None
            return torch.stack([sliding_labels(self.net, image, self.net.input_size) for image in batch["image"]])
        logits = self.net(batch["image"].contiguous(memory_format=torch.channels_last))
        small = [resized_labels(target, tuple(logits.shape[2:])) for target in batch["target"]]
        self.loss.update(self._loss(logits, torch.stack(small).long()).expand(len(logits)))
        return logits.argmax(1)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect confusions."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect confusions."""
        self._judge(batch)

    def reset_scores(self) -> None:
        """Forget them."""
        self.confusion.reset()
        self.loss.reset()

    def all_scores(self) -> dict[str, Any]:
        """What :func:`dicenet.tasks.segment.metrics.scores` gives. Raises DataError if there is nothing to judge by."""
        with asked_of_all():
            confusion = self.confusion.compute().reshape(len(self.class_names), -1)  # of one class it is a number
        if not confusion.any():
            reason = next(iter(self.bad_pictures.values()), "all is void")
            raise DataError(f"there is nothing to judge by in the pictures: {reason}")
        return scores(confusion)

    def scores(self) -> dict[str, float]:
        """Fractions of one: mean_iou, pixel_accuracy; the mean loss. DataError if there is nothing to judge by."""
        found = self.all_scores()
        with asked_of_all():
            loss = float(self.loss.compute())
        return {key: float(found[key]) for key in ("mean_iou", "pixel_accuracy")} | {"loss": loss}
