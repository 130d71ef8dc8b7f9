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
from torchvision.transforms import v2

from dicenet.errors import ConfigError, DataError
from dicenet.models.network import Network
from dicenet.tasks.classify.teacher import Teacher, distillation_loss
from dicenet.tasks.task import Optimisation, Task, asked_of_all, loss_metric


@dataclass(frozen=True, kw_only=True)
class ClassifyOptimisation(Optimisation):
    """How the weights are changed, and by which targets.

    Attributes:
        optimizer: timm's names: ``sgd`` is with Nesterov's momentum, ``momentum`` without it.
        label_smoothing: part of the target given to all classes.
        mixup, cutmix: alpha of the beta distribution from which a batch's share of other pictures is drawn; 0: none.
            With both each batch has one of them.
        teacher_weight: part of the loss that is the divergence from a teacher's answers, if there is a teacher.
        teacher_temperature: by which logits are divided for it.
    """

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("sgd", "momentum", "adamw", "lamb")

    warmup: float = 0.1
    decay_all: bool = False
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie from 0 to below 1, got {self.label_smoothing}")
        if self.mixup < 0 or self.cutmix < 0:
            raise ConfigError(f"mixup and cutmix must be 0 or above, got {self.mixup} and {self.cutmix}")
        if not 0 < self.teacher_weight <= 1 or self.teacher_temperature <= 0:
            raise ConfigError(
                "teacher_weight must be above 0 and up to 1 and teacher_temperature above 0, got "
                f"{self.teacher_weight} and {self.teacher_temperature}"
            )


def mixing(optimisation: ClassifyOptimisation, classes: int) -> v2.Transform | None:
    """Mixes a batch's pictures (N, C, H, W) and classes (N,) into pictures and targets (N, classes); None: nothing."""
    kinds = ((v2.MixUp, optimisation.mixup), (v2.CutMix, optimisation.cutmix))
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
    return v2.RandomChoice(chosen) if chosen else None


class ClassifyTask(Task):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy.

    Batches are those of :func:`dicenet.data.samples.collate`.

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
        teacher: of its answers the network learns, too.
    """

    optimisation: ClassifyOptimisation

    def __init__(
        self,
        net: Network,
        class_names: Sequence[str],
        optimisation: ClassifyOptimisation | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        super().__init__(net, class_names, optimisation or ClassifyOptimisation())
        classes = len(self.class_names)
        self.mixing = mixing(self.optimisation, classes)
        self.teacher = teacher
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)
        self.loss = loss_metric()
        self.judged = SumMetric()

    def on_fit_start(self) -> None:
        """Take the teacher to the device: it is no part of the module."""
        if self.teacher:
            self.teacher.to(self.device)

    def logits(self, images: Tensor) -> Tensor:
        """Of pictures (N, C, H, W)."""
        return self.net(images.contiguous(memory_format=torch.channels_last))

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy with the classes, which may be mixed; and a part of it that a teacher gives."""
        o, images, target = self.optimisation, batch["image"], batch["target"]
        if self.mixing:
            images, target = self.mixing(images, target)
        logits = self.logits(images)
        loss = F.cross_entropy(logits, target, label_smoothing=o.label_smoothing)
        if self.teacher is None:
            return loss
        taught = distillation_loss(logits, self.teacher.logits(images), o.teacher_temperature)
        return (1 - o.teacher_weight) * loss + o.teacher_weight * taught

    def _judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits, or None if none of its pictures could be read."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        logits, target = self.logits(batch["image"]), self.truth(batch)
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
        # of a network timm always spares the slopes, which the network names; a list of parameters has no names
        return create_optimizer_v2(
            list(self.net.parameters()) if o.decay_all else self.net,
            o.optimizer,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            filter_bias_and_bn=True,
        )
