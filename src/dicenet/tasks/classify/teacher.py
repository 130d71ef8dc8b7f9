"""A trained network whose answers another one learns from (Hinton, Vinyals, Dean, 2015)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from dicenet.data.transforms import Preprocessing
from dicenet.errors import ConfigError, WeightsError, nearest
from dicenet.models.loading import load
from dicenet.models.pyramid import PyramidNetwork
from dicenet.models.restoring import MULTILABEL
from dicenet.tasks.classifier import IMAGENET_CLASSES, class_order


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Divergence of the student's softened probabilities from the teacher's, mean over the pictures.

    Times the square of the temperature, so that its gradient is of the size of the cross-entropy's.

    Args:
        logits, teacher_logits: (N, classes).
        temperature: by which logits are divided.
    """
    student, teacher = (F.log_softmax(values / temperature, dim=1) for values in (logits, teacher_logits))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


class Teacher:
    """A frozen network that answers for the pictures that a student sees.

    It is no module, so that it is no part of the student's weights, checkpoints, averages and processes.

    Args:
        net: any classifier.
        own: how its pictures are prepared.
        seen: how the student's are.
        order: for each class of the student the teacher's.
    """

    def __init__(self, net: nn.Module, own: Preprocessing, seen: Preprocessing, order: Sequence[int]) -> None:
        if own.in_chans != seen.in_chans and seen.in_chans != 1:
            raise ConfigError("a teacher of grey pictures cannot teach a student of colours: train with --in-chans 1")
        self.net = net.eval().requires_grad_(False)
        self.size = own.input_size
        self.order = torch.tensor(order)
        # from values as the student sees them to values as the teacher does: one factor and one shift per channel
        means, stds = (
            [torch.tensor(getattr(form, name)).view(1, -1, 1, 1) for form in (seen, own)] for name in ("mean", "std")
        )
        self.factor, self.shift = stds[0] / stds[1], (means[0] - means[1]) / stds[1]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teacher":
        """Itself: it never changes, and averages of weights copy the module that has it."""
        return self

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.net.to(device)
        self.order, self.factor, self.shift = (x.to(device) for x in (self.order, self.factor, self.shift))

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Of the student's classes (N, classes) for pictures (N, C, H, W) as the student sees them."""
        images = images.float() * self.factor + self.shift
        if images.shape[-2:] != self.size:
            images = resize(images, list(self.size), InterpolationMode.BILINEAR, antialias=True)
        return self.net(images)[:, self.order]


def load_teacher(name: str, class_names: Sequence[str], seen: Preprocessing) -> Teacher:
    """A teacher from a file of any known format, or by the name of a timm model with its weights.

    Args:
        name: path, name of an official checkpoint, or timm's name (also with ``hf-hub:`` or ``local-dir:``).
        class_names: of the student, among the teacher's; classes without names are taken in their order.
        seen: how the student's pictures are prepared.

    Raises:
        ConfigError: there is no such model, or it lacks some of the classes.
        WeightsError: it holds no classifier of one class a picture, or its weights cannot be had.
    """
    net = _classifier(name)
    named = "label_names" in net.pretrained_cfg or net.num_classes == IMAGENET_CLASSES
    if not named and net.num_classes == len(class_names):
        order = list(range(net.num_classes))
    else:
        order = class_order(class_names, net, f"--teacher {name}", "Choose another teacher")
    channels, height, width = net.pretrained_cfg["input_size"]
    mean, std = (tuple(net.pretrained_cfg[key]) for key in ("mean", "std"))
    return Teacher(net, Preprocessing((height, width), channels, mean, std), seen, order)


def check_teacher_name(name: str) -> None:
    """Raise ConfigError if it is neither a file nor of a timm model; whether it can teach is seen when it is loaded."""
    if not Path(name).exists() and ":" not in name and not timm.is_model(name.split(".")[0]):
        near = nearest(name, timm.list_models())
        raise ConfigError(f"--teacher {name} is neither a file nor a timm model{near}")


def _classifier(name: str) -> Any:
    """A network of ours or of timm that has classes, of which a picture shows one."""
    check_teacher_name(name)
    if Path(name).exists():
        net: Any = load(name)
    else:
        try:
            net = timm.create_model(name, pretrained=True)
        except (RuntimeError, ValueError, OSError) as error:
            raise WeightsError(f"--teacher {name}: its weights cannot be had or do not fit: {error}") from error
    if isinstance(net, PyramidNetwork) or not getattr(net, "num_classes", 0):
        raise WeightsError(f"--teacher {name} holds no classifier")
    if net.pretrained_cfg.get("task") == MULTILABEL:
        raise WeightsError(
            f"--teacher {name} is a multi-label classifier, whose answers are no shares of one class: give one that "
            "'dicenet train classify' made"
        )
    return net
