"""The classification module: loss, metrics, optimisation."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import Tensor
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from dicenet.engine.schedules import check_schedule, scheduler
from dicenet.errors import ConfigError, DataError, TrainingError
from dicenet.models.loading import describe
from dicenet.models.network import Network
from dicenet.weights.files import METADATA_KEY

TASK = "classify"
_OPTIMIZERS = ("sgd", "adamw", "lamb")


@dataclass(frozen=True)
class Optimisation:
    """How the weights are changed. Weight decay spares norms, slopes and biases."""

    optimizer: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: str = "linear"
    warmup: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in _OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(_OPTIMIZERS)}")
        check_schedule(self.schedule)
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a part of the run from 0 to below 1, got {self.warmup}")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"label_smoothing must lie from 0 to below 1, got {self.label_smoothing}")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ConfigError(f"lr must be above 0 and weight_decay not below, got {self.lr} and {self.weight_decay}")
        if not 0 < self.momentum < 1:
            raise ConfigError(f"momentum must lie between 0 and 1, got {self.momentum}")


class ClassifyTask(L.LightningModule):
    """Trains and judges a classifier: cross-entropy, top-1 and top-5 accuracy.

    Batches are those of :func:`dicenet.data.samples.collate`; pictures that could not be read are collected
    in ``bad_pictures`` (name to reason).
    """

    def __init__(self, net: Network, class_names: Sequence[str], optimisation: Optimisation | None = None) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.class_names = list(class_names)
        self.optimisation = optimisation or Optimisation()
        classes = len(self.class_names)
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(classes, average="micro"),
                "top5": MulticlassAccuracy(classes, average="micro", top_k=min(5, classes)),
            }
        )
        self.confusion = MulticlassConfusionMatrix(classes)
        self.loss = MeanMetric()
        self.bad_pictures: dict[str, str] = {}

    def _scores(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Logits and classes of a batch, or None if none of its pictures could be read."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        return self.net(image), batch["target"]

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor | None:
        """Loss of a batch. Raises TrainingError when it is no longer finite."""
        scores = self._scores(batch)
        if scores is None:
            return None
        loss = F.cross_entropy(*scores, label_smoothing=self.optimisation.label_smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step + 1}: use a "
                f"smaller --lr than {self.optimisation.lr} or a longer --warmup"
            )
        self.log(
            "train_loss", loss, on_step=True, on_epoch=True, prog_bar=True, batch_size=len(scores[1]), sync_dist=True
        )
        return loss

    def _judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits."""
        scores = self._scores(batch)
        if scores is None:
            return None
        self.metrics.update(*scores)
        self.loss.update(F.cross_entropy(*scores, reduction="none"))
        return scores[0]

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores."""
        self._judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and start anew."""
        for name, value in self.validation_scores().items():
            self.log(f"val_{name}", value, prog_bar=name == "top1", sync_dist=True)
        self.metrics.reset()
        self.loss.reset()

    def validation_scores(self) -> dict[str, float]:
        """Fractions of one: top1, top5; and the mean loss. Raises DataError if no picture could be read."""
        if not self.loss.update_called:
            reason = next(iter(self.bad_pictures.values()), "there are none")
            raise DataError(f"no picture to judge by could be read: {reason}")
        return {name: float(value) for name, value in {**self.metrics.compute(), "loss": self.loss.compute()}.items()}

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores and confusions."""
        logits = self._judge(batch)
        if logits is not None:
            self.confusion.update(logits, batch["target"])

    def configure_optimizers(self) -> Any:
        """timm's optimiser, a schedule per step."""
        o = self.optimisation
        optimizer = create_optimizer_v2(
            self.net,
            o.optimizer,
            lr=o.lr,
            weight_decay=o.weight_decay,
            momentum=o.momentum,
            filter_bias_and_bn=True,
        )
        steps = int(self.trainer.estimated_stepping_batches)
        plan = scheduler(optimizer, o.schedule, steps, int(o.warmup * steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network, so that a checkpoint can be used like the weights."""
        checkpoint[METADATA_KEY] = json.dumps(describe(self.net, self.class_names, epochs=self.current_epoch + 1))
