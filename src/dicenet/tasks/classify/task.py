"""The classification module: loss, metrics, optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchvision.transforms import v2

from dicenet.errors import ConfigError
from dicenet.models.network import Network
from dicenet.tasks.classifier import ClassifierOptimisation, ClassifierTask
from dicenet.tasks.classify.teacher import Teacher, distillation_loss

TASK = "classify"
#: How a teacher counts unless told otherwise.
TEACHER_WEIGHT, TEACHER_TEMPERATURE = 0.5, 2.0


@dataclass(frozen=True, kw_only=True)
class ClassifyOptimisation(ClassifierOptimisation):
    """How the weights are changed, and by which targets.

    Attributes:
        label_smoothing: part of the target given to all classes.
        mixup, cutmix: alpha of the beta distribution from which a batch's share of other pictures is drawn; 0: none.
            With both each batch has one of them.
        teacher_weight: part of the loss that is the divergence from a teacher's answers, if there is a teacher.
        teacher_temperature: by which logits are divided for it.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    teacher_weight: float = TEACHER_WEIGHT
    teacher_temperature: float = TEACHER_TEMPERATURE

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


class ClassifyTask(ClassifierTask):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy.

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
        teacher: of its answers the network learns, too.
    """

    SMALLER = "shards of smaller pictures (dicenet prepare classify --resize)"

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
        self.train_top1 = MeanMetric(nan_strategy="disable")
        self.teacher = teacher
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)

    def on_fit_start(self) -> None:
        """Take the teacher to the device: it is no part of the module."""
        if self.teacher:
            self.teacher.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Count anew what is right."""
        self.train_top1.reset()

    def running(self) -> dict[str, float]:
        """Also ``train_top1``, a fraction of one of the pictures as they were augmented; not where they are mixed."""
        pictures = float(self.train_top1.weight)
        right = {"train_top1": float(self.train_top1.mean_value) / pictures} if pictures else {}
        return {**super().running(), **right}

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Mean cross-entropy with the classes, which may be mixed; and a part of it that a teacher gives."""
        o, images, target = self.optimisation, batch["image"], batch["target"]
        if self.mixing:
            images, target = self.mixing(images, target)
        logits = self.logits(images)
        if not self.mixing:
            self.train_top1.update((logits.detach().argmax(1) == target).float())
        loss = F.cross_entropy(logits, target, label_smoothing=o.label_smoothing)
        if self.teacher is None:
            return loss
        taught = distillation_loss(logits, self.teacher.logits(images), o.teacher_temperature)
        return (1 - o.teacher_weight) * loss + o.teacher_weight * taught

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
