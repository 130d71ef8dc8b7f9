"""The segmentation module: loss, metrics, optimisation."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassConfusionMatrix

from dicenet.data.masks import IGNORE, resized_labels
from dicenet.engine.schedules import check_schedule, scheduler
from dicenet.errors import ConfigError, DataError, TrainingError
from dicenet.models.loading import describe
from dicenet.models.segmentation import SegmentationNetwork
from dicenet.tasks.segment.inference import sliding_labels
from dicenet.tasks.segment.metrics import scores
from dicenet.weights.files import METADATA_KEY

TASK = "segment"
OPTIMIZERS = ("sgd", "adamw")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class SegmentOptimisation:
    """How the weights are changed; the defaults are the official code's.

    Attributes:
        optimizer: sgd or adamw.
        lr: of the backbone; the decoder's is ``lr_mult`` times that.
        weight_decay: on all parameters, as in the official code.
        schedule, warmup: see :mod:`dicenet.engine.schedules`.
        cycled: epochs in which the schedule ``hybrid`` cycles.
        freeze_backbone: train the decoder only; the backbone's norms keep their statistics.
        freeze_norms: keep the statistics and affine parameters of all norms. The official code means to, but goes on
            to update the statistics.
    """

    optimizer: str = "sgd"
    lr: float = 0.009
    lr_mult: float = 10.0
    weight_decay: float = 4e-5
    momentum: float = 0.9
    schedule: str = "hybrid"
    warmup: float = 0.0
    cycled: int | None = None
    freeze_backbone: bool = False
    freeze_norms: bool = False

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"optimizer {self.optimizer!r} is unknown: choose one of {', '.join(OPTIMIZERS)}")
        check_schedule(self.schedule)
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup is a part of the run from 0 to below 1, got {self.warmup}")
        if self.lr <= 0 or self.lr_mult <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"lr and lr_mult must be above 0 and weight_decay not below, got {self.lr}, {self.lr_mult} and "
                f"{self.weight_decay}"
            )
        if self.cycled is not None and self.cycled < 1:
            raise ConfigError(f"cycled must be at least 1 epoch, got {self.cycled}")
        if not 0 < self.momentum < 1:
            raise ConfigError(f"momentum must lie between 0 and 1, got {self.momentum}")


class SegmentTask(L.LightningModule):
    """Trains and judges a segmentation network: cross-entropy without void pixels, mean IoU.

    Batches are those of :mod:`dicenet.data.masks`; pictures that could not be read are collected in ``bad_pictures``
    (name to reason). Scores come from one confusion matrix over all pictures (and processes), of label maps that were
    resized to each picture's own size.

    Args:
        net: the network.
        class_names: of its classes.
        optimisation: how it is trained.
        class_weights: of the loss; all alike if None.
        mode: how pictures are judged: see :mod:`dicenet.tasks.segment.inference`.
    """

    def __init__(
        self,
        net: SegmentationNetwork,
        class_names: Sequence[str],
        optimisation: SegmentOptimisation | None = None,
        class_weights: Sequence[float] | None = None,
        mode: str = "whole",
    ) -> None:
        super().__init__()
        self.net = net.to(memory_format=torch.channels_last)
        self.class_names = list(class_names)
        self.optimisation = optimisation or SegmentOptimisation()
        self.mode = mode
        weights = torch.tensor(class_weights or [1.0] * len(self.class_names))
        self.register_buffer("class_weights", weights, persistent=False)
        self.confusion = MulticlassConfusionMatrix(len(self.class_names), ignore_index=IGNORE, validate_args=False)
        self.loss = MeanMetric()
        self.bad_pictures: dict[str, str] = {}
        self.learned = False
        self._freeze()

    # -- training

    def on_train_epoch_start(self) -> None:
        """Set the mode of each part: Lightning keeps the one that it finds, and warns of frozen parts before this."""
        self.train()

    def _frozen_parts(self) -> list[nn.Module]:
        frozen = list(self.net.backbone.modules()) if self.optimisation.freeze_backbone else []
        if self.optimisation.freeze_norms:
            frozen += [module for module in self.net.modules() if isinstance(module, NORMS)]
        return frozen

    def _freeze(self) -> None:
        for part in self._frozen_parts():
            for parameter in part.parameters(recurse=False):  # timm's norms may hold an activation that learns
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> "SegmentTask":
        """Training mode for all but the frozen parts."""
        super().train(mode)
        for part in self._frozen_parts():
            part.eval()
        return self

    def _loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean over the pixels that are not void, weighted by class; 0 where there are none."""
        weights = self.class_weights.float()  # also where the network computes with fewer bits
        losses = F.cross_entropy(logits.float(), target, weights, ignore_index=IGNORE, reduction="sum")
        known = target[target != IGNORE]
        return losses / weights[known].sum().clamp(min=1e-12)

    def training_step(self, batch: dict[str, Any], batch_index: int) -> Tensor | None:
        """Loss of a batch. Raises TrainingError when it is no longer finite."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        self.learned |= bool((batch["target"] != IGNORE).any())
        loss = self._loss(self.net(batch["image"].contiguous(memory_format=torch.channels_last)), batch["target"])
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} in epoch {self.current_epoch + 1}, step {self.global_step + 1}: use a "
                f"smaller --lr than {self.optimisation.lr} or a longer --warmup"
            )
        self.log(
            "train_loss",
            loss,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=len(batch["image"]),
            sync_dist=True,
        )
        return loss

    def on_train_epoch_end(self) -> None:
        """Raise DataError if there was nothing to learn from."""
        if not self.learned:
            reason = next(iter(self.bad_pictures.values()), "their masks are void everywhere")
            raise DataError(f"there is nothing to learn from in the pictures: {reason}")

    def configure_optimizers(self) -> Any:
        """Two groups of parameters, a schedule per step."""
        o = self.optimisation
        parts = ((self.net.backbone, o.lr), (self.net.decoder, o.lr * o.lr_mult))
        groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": rate} for part, rate in parts]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if o.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, o.lr, momentum=o.momentum, weight_decay=o.weight_decay)
        else:
            optimizer = torch.optim.AdamW(groups, o.lr, weight_decay=o.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        epochs = self.trainer.max_epochs or 1
        plan = scheduler(optimizer, o.schedule, steps, int(o.warmup * steps), epochs, o.cycled)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plan, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Describe the network, so that a checkpoint can be used like the weights."""
        checkpoint[METADATA_KEY] = json.dumps(describe(self.net, self.class_names, epochs=self.current_epoch + 1))

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
        self.loss.update(self._loss(logits, torch.stack(small).long()), len(logits))
        return logits.argmax(1)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect confusions."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect confusions."""
        self._judge(batch)

    def on_validation_epoch_end(self) -> None:
        """Log the scores and start anew."""
        for name, value in self.validation_scores().items():
            self.log(f"val_{name}", value, prog_bar=name == "mean_iou", sync_dist=True)
        self.confusion.reset()
        self.loss.reset()

    def all_scores(self) -> dict[str, Any]:
        """What :func:`dicenet.tasks.segment.metrics.scores` gives. Raises DataError if there is nothing to judge by."""
        with warnings.catch_warnings():
            # each process must ask for the sum over all, also one that could read none of its pictures
            warnings.filterwarnings("ignore", message=r".*was called before the ``update`` method")
            confusion = self.confusion.compute().reshape(len(self.class_names), -1)  # of one class it is a number
        if not confusion.any():
            reason = next(iter(self.bad_pictures.values()), "all is void")
            raise DataError(f"there is nothing to judge by in the pictures: {reason}")
        return scores(confusion)

    def validation_scores(self) -> dict[str, float]:
        """Fractions of one: mean_iou, pixel_accuracy; the mean loss. Raises DataError if there is one class only."""
        found = self.all_scores()
        present = [name for name, iou in zip(self.class_names, found["iou_per_class"], strict=True) if iou is not None]
        if len(present) == 1 and len(self.class_names) > 1:
            raise DataError(
                f"the masks to judge by hold one class only, {present[0]} (255 is void): a mask's pixels must be the "
                "numbers of their classes, from 0 on"
            )
        result = {key: float(found[key]) for key in ("mean_iou", "pixel_accuracy")}
        return result | {"loss": float(self.loss.compute())}
