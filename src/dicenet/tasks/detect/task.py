"""The detection module: loss, metrics, optimisation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dicenet.errors import ConfigError, DataError
from dicenet.models.detection import DetectionNetwork, detections
from dicenet.tasks.detect.loss import match, ssd_loss
from dicenet.tasks.detect.metrics import DetectionMetrics
from dicenet.tasks.pyramid import PyramidOptimisation, PyramidTask
from dicenet.tasks.task import asked_of_all, loss_metric

TASK = "detect"


@dataclass(frozen=True, kw_only=True)
class DetectOptimisation(PyramidOptimisation):
    """How the weights are changed; the defaults are the official code's for pictures of 300x300.

    Attributes:
        negatives_of_empty: whether pictures without objects teach what is background; the official code leaves them
            out.
    """

    lr: float = 0.01
    weight_decay: float = 5e-4
    negatives_of_empty: bool = True


#: Numbers with less digits than float32 would be too coarse for boxes in pixels and for priors.
_WHOLE = ("32-true", "64-true")


def check_precision(precision: str) -> str:
    """Lightning's word, unchanged. Raises ConfigError for those that round the true boxes and the priors."""
    if precision.endswith("-true") and precision not in _WHOLE:
        raise ConfigError(
            f"precision {precision} would round the boxes themselves: give {precision.replace('true', 'mixed')}"
        )
    return precision


@dataclass(frozen=True)
class Thresholds:
    """Which boxes count: see :func:`dicenet.models.detection.detections`."""

    score: float = 0.01
    nms: float = 0.45


class DetectTask(PyramidTask):
    """Trains and judges a detector: SSD's loss, average precisions.

    Batches are those of :func:`dicenet.data.boxes.collate_boxes`.

    Args:
        net: the network.
        class_names: of its classes, without the background.
        optimisation: how it is trained.
        thresholds: which boxes are judged.
        plus_one: see :class:`dicenet.tasks.detect.metrics.DetectionMetrics`.
    """

    WITHOUT_TRUTH = "there are no boxes in them"

    net: DetectionNetwork
    optimisation: DetectOptimisation

    def __init__(
        self,
        net: DetectionNetwork,
        class_names: Sequence[str],
        optimisation: DetectOptimisation | None = None,
        thresholds: Thresholds | None = None,
        plus_one: bool = False,
    ) -> None:
        super().__init__(net, class_names, optimisation or DetectOptimisation())
        self.thresholds = thresholds or Thresholds()
        self.metrics = DetectionMetrics(len(self.class_names), plus_one)
        self.loss = loss_metric()
        self.freeze()

    # -- training

    def _outputs(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.net(batch["image"].contiguous(memory_format=torch.channels_last))

    def _loss(self, outputs: tuple[Tensor, Tensor], targets: Sequence[dict[str, Tensor]], sizes: Tensor) -> Tensor:
        """Of outputs and boxes in pixels of pictures of some sizes (N, 2), height and width."""
        matched = [
            match(target["boxes"] / size.flip(0).repeat(2), target["labels"], self.net.priors)
            for target, size in zip(targets, sizes, strict=True)
        ]
        classes, codes = (torch.stack(part) for part in zip(*matched, strict=True))
        return torch.stack(ssd_loss(*outputs, classes, codes, self.optimisation.negatives_of_empty)).sum()

    def batch_loss(self, batch: dict[str, Any]) -> Tensor:
        """Loss of classes and of boxes."""
        image = batch["image"]
        size = torch.tensor(image.shape[2:], dtype=torch.float32, device=image.device)
        return self._loss(self._outputs(batch), batch["target"], size.expand(len(image), 2))

    def has_truth(self, batch: dict[str, Any]) -> bool:
        """Whether there is a box."""
        return any(len(target["boxes"]) for target in batch["target"])

    # -- judging

    def _judge(self, batch: dict[str, Any]) -> None:
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return
        outputs, targets = self._outputs(batch), batch["target"]
        sizes = torch.stack([target["size"] for target in targets])
        wanted = [_without(target, target["crowd"]) for target in targets]
        self.loss.update(self._loss(outputs, wanted, sizes.float()).expand(len(targets)))
        limits = self.thresholds
        found = detections(*outputs, self.net.priors, [(h, w) for h, w in sizes.tolist()], limits.score, limits.nms)
        self.metrics.update(found, targets)

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect boxes."""
        self._judge(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect boxes."""
        self._judge(batch)

    def all_scores(self) -> dict[str, Any]:
        """What :meth:`dicenet.tasks.detect.metrics.DetectionMetrics.compute` gives, and the mean loss.

        Raises:
            DataError: there is nothing to judge by; the message says why a picture could not be read, if one could not.
        """
        with asked_of_all():
            loss = float(self.loss.compute())
            try:
                return {**self.metrics.compute(), "loss": loss}
            except DataError as error:
                if not self.bad_pictures:
                    raise
                reason = next(iter(self.bad_pictures.values()))
                raise DataError(f"{error}; {len(self.bad_pictures)} could not be read, the first: {reason}") from error

    def scores(self) -> dict[str, float]:
        """Fractions of one: map50, map; the mean loss. Raises DataError if there is nothing to judge by."""
        found = self.all_scores()
        return {key: float(found[key]) for key in ("map50", "map", "loss")}

    def reset_scores(self) -> None:
        """Forget them."""
        self.metrics.reset()
        self.loss.reset()


def _without(target: dict[str, Tensor], left_out: Tensor) -> dict[str, Tensor]:
    return {key: target[key][~left_out] for key in ("boxes", "labels")}
