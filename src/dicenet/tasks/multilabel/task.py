"""The multi-label module: loss, metrics."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dicenet.data.labels import SIZES
from dicenet.models.network import Network
from dicenet.models.restoring import MULTILABEL
from dicenet.tasks.classifier import ClassifierOptimisation, ClassifierTask
from dicenet.tasks.multilabel.metrics import DEFAULT_THRESHOLD, MultilabelMetrics

TASK = MULTILABEL
#: Scores that a training names; the best epoch is that of the first.
SCORES = ("f1_overall", "f1_class", "map")


class MultilabelTask(ClassifierTask):
    """Trains and judges a network that gives a logit for each class of a picture: binary cross-entropy, F1, mAP.

    The loss that is shown is the mean over pictures and classes; gradients are of its sum over the classes, as in the
    official code, which multiplies the mean by its 80 classes.

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
        threshold: a class is found where its probability is above it.
        order: for each class of the data that of the network, where they are others: only these are judged.
    """

    order: Tensor

    def __init__(
        self,
        net: Network,
        class_names: Sequence[str],
        optimisation: ClassifierOptimisation | None = None,
        threshold: float = DEFAULT_THRESHOLD,
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(net, class_names, optimisation or ClassifierOptimisation())
        chosen = range(len(self.class_names)) if order is None else order
        self.register_buffer("order", torch.tensor(chosen), persistent=False)
        self.metrics = MultilabelMetrics(len(self.order), threshold)
        self.loss_factor = float(len(self.class_names))

    def logits(self, images: Tensor) -> Tensor:
        """Of pictures (N, C, H, W), for the classes of the data."""
        return super().logits(images)[:, self.order]

    def judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits, or None if none of its pictures could be read."""
        logits = super().judge(batch)
        if logits is None:  # of each process the metric must have logits to gather, be it of no picture
            none = torch.zeros(0, len(self.order), device=self.device)
            self.metrics.update(none, none[:, None].expand(-1, 1 + len(SIZES), -1))
        return logits

    def losses(self, logits: Tensor, truth: Tensor) -> Tensor:
        """(N,) binary cross-entropy, the mean over the classes; ``truth`` is (N, 4, C)."""
        shown = truth[:, 0].to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, shown, reduction="none").mean(dim=1)

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean binary cross-entropy."""
        return self.losses(self.logits(batch["image"]), self.truth(batch)).mean()

    def scores(self) -> dict[str, float]:
        """Fractions of one: see :data:`SCORES`; and the mean loss. Raises DataError if no picture could be read."""
        found = self.all_scores()
        return {name: math.nan if found[name] is None else float(found[name]) for name in (*SCORES, "loss")}
