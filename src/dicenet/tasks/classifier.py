"""What the tasks of classifiers share, one class a picture or several: training and judging, and trained networks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from timm.data import ImageNetInfo
from timm.optim import create_optimizer_v2
from torch import Tensor
from torchmetrics import SumMetric

from dicenet.data.transforms import Preprocessing, evaluation_transform
from dicenet.engine.console import some
from dicenet.errors import ConfigError, DataError, WeightsError
from dicenet.models.loading import check_task, load
from dicenet.models.network import Network
from dicenet.tasks.task import Optimisation, Task, asked_of_all, loss_metric

IMAGENET_CLASSES = 1000
_ADVICE = "Name the data's classes as the network's, or train from it with --weights"


@dataclass(frozen=True, kw_only=True)
class ClassifierOptimisation(Optimisation):
    """How the weights are changed.

    Attributes:
        optimizer: timm's names: ``sgd`` is with Nesterov's momentum, ``momentum`` without it.
    """

    OPTIMIZERS: ClassVar[tuple[str, ...]] = ("sgd", "momentum", "adamw", "lamb")
    WARMUP: ClassVar[float] = 0.1

    decay_all: bool = False


class ClassifierTask(Task):
    """Trains and judges a network that gives a logit for each class of a whole picture.

    Batches are those of :func:`dicenet.data.samples.collate`. Subclasses make ``metrics``, which has ``update`` (logits
    and truth), ``compute`` and ``reset``, as torchmetrics has them.
    """

    net: Network
    metrics: Any

    def __init__(self, net: Network, class_names: Sequence[str], optimisation: ClassifierOptimisation) -> None:
        super().__init__(net, class_names, optimisation)
        self.loss = loss_metric()
        self.judged = SumMetric()

    # -- what each task says

    def losses(self, logits: Tensor, truth: Any) -> Tensor:
        """(N,) loss of each picture, as it is judged."""
        raise NotImplementedError

    def truth(self, batch: dict[str, Any]) -> Any:
        """What each picture shows."""
        return batch["target"]

    # -- what they share

    def logits(self, images: Tensor) -> Tensor:
        """Of pictures (N, C, H, W)."""
        return self.net(images.contiguous(memory_format=torch.channels_last))

    def judge(self, batch: dict[str, Any]) -> Tensor | None:
        """Collect the scores of a batch; its logits, or None if none of its pictures could be read."""
        self.bad_pictures.update(batch["errors"])
        if "image" not in batch:
            return None
        logits, truth = self.logits(batch["image"]), self.truth(batch)
        self.metrics.update(logits, truth)
        self.loss.update(self.losses(logits, truth))
        self.judged.update(len(logits))
        return logits

    def validation_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores."""
        self.judge(batch)

    def test_step(self, batch: dict[str, Any], batch_index: int) -> None:
        """Collect scores."""
        self.judge(batch)

    def all_scores(self) -> dict[str, Any]:
        """What the metrics give, and the mean loss. Raises DataError if no picture could be read."""
        with asked_of_all():
            found = {**self.metrics.compute(), "loss": float(self.loss.compute())}
            judged = self.judged.compute()
        if not judged:
            reason = next(iter(self.bad_pictures.values()), "there are none")
            raise DataError(f"no picture to judge by could be read: {reason}")
        return found

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


# -- trained networks


def class_names_of(net: Network) -> list[str]:
    """Names of the classes: those saved with the weights, ImageNet's for 1000 classes, or else numbers."""
    if names := net.pretrained_cfg.get("label_names"):
        return list(names)
    if net.num_classes == IMAGENET_CLASSES:
        return ImageNetInfo("imagenet-1k").label_descriptions()
    return [str(index) for index in range(net.num_classes)]


def same_classes(net: Network, names: Sequence[str]) -> bool:
    """Whether a network's classes are these, in this order (for ImageNet's also by WordNet id)."""
    if net.num_classes == IMAGENET_CLASSES and list(names) == ImageNetInfo("imagenet-1k").label_names():
        return "label_names" not in net.pretrained_cfg
    return class_names_of(net) == list(names)


def class_order(data_names: Sequence[str], net: Network, weights: str, advice: str = _ADVICE) -> list[int]:
    """For each class of the data the class of the network with the same name (or WordNet id).

    Raises:
        ConfigError: the data has classes that the network does not know; the message ends with ``advice``.
    """
    names = class_names_of(net)
    known = {name: index for index, name in enumerate(names)}
    if net.num_classes == IMAGENET_CLASSES and "label_names" not in net.pretrained_cfg:
        known |= {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}
    unknown = [name for name in data_names if name not in known]
    if unknown:
        raise ConfigError(
            f"{weights} was trained for {len(names)} classes ({some(names)}), the data has {len(data_names)}, among "
            f"them unknown ones: {some(unknown)}. {advice}"
        )
    return [known[name] for name in data_names]


def load_classifier(weights: str, task: str, img_size: int | tuple[int, int] | None) -> tuple[Network, Preprocessing]:
    """A classifier ready to be used, and how its pictures are prepared.

    Args:
        weights: of the classifier.
        task: its word on the command line, ``classify`` or ``multilabel``.
        img_size: another input size than its own.

    Raises:
        WeightsError: it is of another task, or has no classes.
    """
    check_task(weights, task)
    net = load(weights)
    assert isinstance(net, Network)
    if net.num_classes == 0:
        raise WeightsError(f"{weights} has no classifier")
    if img_size is not None:
        net.set_input_size(img_size)
    return net.eval().to(memory_format=torch.channels_last), Preprocessing.of(net.pretrained_cfg)


def logits_of(
    net: Network, preprocessing: Preprocessing, pictures: Sequence[tuple[Path, Image.Image]], device: torch.device
) -> Tensor:
    """(N, C) of pictures, on the CPU in float32."""
    if not pictures:
        return torch.empty(0, net.num_classes)
    transform = evaluation_transform(preprocessing)
    batch = torch.stack([transform(picture) for _, picture in pictures])
    dtype = next(net.parameters()).dtype
    with torch.inference_mode():
        return net(batch.to(device, dtype, memory_format=torch.channels_last)).float().cpu()
